// Command rbee-catalog-builtin is the catalog source builtin: it contains the small model
// rbee-tiny, so that a fresh machine without a network has a model to talk to.
package main

import (
	_ "embed"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// version is set by the linker.
var version = "0.0.0-dev"

// tiny is the model. rbee-tiny.md describes how it was made; the recipe is in rbee-tiny-src.
//
//go:embed rbee-tiny.gguf
var tiny string

func main() { catalog.Serve(newSource(version, tiny)) }
