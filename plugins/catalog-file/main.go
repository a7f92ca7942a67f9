// Command rbee-catalog-file is the catalog source file: models that are already on this machine.
package main

import "github.com/rbee-project/rbee/plugins/sdk/catalog"

// version is set by the linker.
var version = "0.0.0-dev"

func main() { catalog.Serve(newSource(version)) }
