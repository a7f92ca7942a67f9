// Command rbee-catalog-npm is the catalog source npm: engine libraries from an npm registry, with
// the registry's own digest and the user's npm settings for registry, credentials, proxy and
// certificates.
package main

import (
	"os"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { catalog.Serve(newSource(version, os.Environ())) }
