// Command rbee-catalog-counted is a catalog source with one model, on an HTTP server of the test
// that counts what is fetched.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

type source struct{ origin string }

func main() { catalog.Serve(&source{}) }

func (*source) Info(context.Context) (sdk.Info, error) {
	return sdk.Info{Name: "counted", Kind: sdk.KindCatalog, Version: "0.1.0", Summary: "one model of a test"}, nil
}

func (*source) Schema(context.Context) (sdk.Schema, error) {
	return sdk.Schema{Attributes: []sdk.Attribute{{Name: "origin", Type: "string", Doc: "The server."}}}, nil
}

func (s *source) Configure(_ context.Context, config sdk.Config) (sdk.Diagnostics, error) {
	var v struct {
		Origin string `json:"origin"`
	}
	err := json.Unmarshal(config.JSON, &v)
	s.origin = v.Origin
	return nil, err
}

func (*source) Search(context.Context, catalog.Query, func(catalog.Item) error) error { return nil }

func (s *source) Resolve(ctx context.Context, ref string) (m catalog.Manifest, err error) {
	err = s.get(ctx, "/manifest", 0, func(r io.Reader) error { return json.NewDecoder(r).Decode(&m) })
	m.Ref, m.Kind = ref, catalog.KindModel
	return m, err
}

func (s *source) Fetch(ctx context.Context, _ catalog.File, offset int64, w io.Writer) error {
	return s.get(ctx, "/file", offset, func(r io.Reader) error {
		_, err := io.Copy(w, r)
		return err
	})
}

func (s *source) get(ctx context.Context, path string, offset int64, read func(io.Reader) error) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.origin+path, http.NoBody)
	if err != nil {
		return err
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-", offset))
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("%s: %s", path, resp.Status)
	}
	return read(resp.Body)
}
