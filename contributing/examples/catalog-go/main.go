// Command rbee-catalog-shelf is a catalog source in one file: the models of a folder.
package main

import (
	"context"
	"crypto/sha256"
	"embed"
	"fmt"
	"io"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/catalog/simple"
)

//go:embed shelf
var shelf embed.FS

func list(context.Context) (models []catalog.Manifest, err error) {
	files, err := shelf.ReadDir("shelf")
	for _, f := range files {
		text, err := shelf.ReadFile("shelf/" + f.Name())
		if err != nil {
			return nil, err
		}
		models = append(models, catalog.Manifest{Ref: f.Name(), Files: []catalog.File{{
			Path: f.Name() + ".gguf", SizeBytes: int64(len(text)), Digest: fmt.Sprintf("sha256:%x", sha256.Sum256(text)),
		}}})
	}
	return models, err
}

func source() simple.Source {
	info := sdk.Info{Name: "shelf", Version: "0.1.0", Summary: "Has what is on its shelf."}
	return simple.Source{Info: info, List: list, Open: func(_ context.Context, f catalog.File) (io.ReadCloser, error) {
		return shelf.Open("shelf/" + f.Ref)
	}}
}

func main() { simple.Serve(source()) }
