// Command rbee-catalog-file is the catalog source file: models that lie on this machine already.
package main

import "github.com/rbee-project/rbee/plugins/sdk/catalog"

// version is set by the linker.
var version = "0.0.0-dev"

func main() { catalog.Serve(newSource(version)) }
