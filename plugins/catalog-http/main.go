// Command rbee-catalog-http is the catalog source http: models and engines at web addresses that
// include their digest, and those that an index document lists by name.
package main

import (
	"os"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { catalog.Serve(newSource(version, os.Environ())) }
