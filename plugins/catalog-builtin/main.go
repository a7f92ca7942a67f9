// Command rbee-catalog-builtin is the catalog source builtin: it carries the small model rbee-tiny
// inside itself, so that a fresh machine without a network has something to talk to.
package main

import (
	_ "embed"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// version is set by the linker.
var version = "0.0.0-dev"

// tiny is the model. How it was made stands in rbee-tiny.md, the recipe in rbee-tiny-src.
//
//go:embed rbee-tiny.gguf
var tiny string

func main() { catalog.Serve(newSource(version, tiny)) }
