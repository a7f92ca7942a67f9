// Command rbee-catalog-huggingface is the catalog source huggingface, hf for short: GGUF models
// from the Hugging Face Hub or a mirror of it, with the Hub's own digests, and from the local cache
// of Hugging Face's tools.
package main

import (
	"os"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// version is set by the linker.
var version = "0.0.0-dev"

func main() { catalog.Serve(newSource(version, os.Environ())) }
