// Command rbee-catalog-github is the catalog source github: engines and models among the files of
// GitHub's releases, with GitHub's digests or those of a checksum file in the release.
package main

import (
	"os"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { catalog.Serve(newSource(version, os.Environ())) }
