// Command rbee-catalog-fake is the catalog source of package fake as a plugin.
package main

import (
	"os"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest/fake"
)

func main() { catalog.Serve(fake.NewCatalog(fake.NameOf(sdk.KindCatalog, os.Args[0]))) }
