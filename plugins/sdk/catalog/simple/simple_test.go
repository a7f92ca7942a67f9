package simple_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/catalog/simple"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

const text = "GGUF of a test"

// shelf is a source with three models; its files support seeking only if seek is set.
func shelf(seek bool) simple.Source {
	return simple.Source{
		Info: sdk.Info{Name: "shelf", Version: "1.0.0", Summary: "Has three models."},
		List: func(context.Context) (list []catalog.Manifest, err error) {
			for _, ref := range []string{"bee-small", "bee", "wasp"} {
				list = append(list, catalog.Manifest{Ref: ref, Files: []catalog.File{{
					Path: ref + ".gguf", SizeBytes: int64(len(text)), Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(text))),
				}}})
			}
			return list, nil
		},
		Open: func(context.Context, catalog.File) (io.ReadCloser, error) {
			if seek {
				return seekable{strings.NewReader(text)}, nil
			}
			return io.NopCloser(io.LimitReader(strings.NewReader(text), 1<<20)), nil
		},
	}
}

type seekable struct{ *strings.Reader }

func (seekable) Close() error { return nil }

func TestConformance(t *testing.T) {
	t.Parallel()
	for name, seek := range map[string]bool{"that seeks": true, "that reads": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sdktest.Catalog(t, sdktest.CatalogInProcess(func() catalog.Source { return shelf(seek).Source() }),
				sdktest.CatalogOptions{Ref: "bee", NoRef: "hornet", Query: "bee"})
		})
	}
}

func TestSearchOrder(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		q    catalog.Query
		want string
	}{
		"everything":        {catalog.Query{}, "bee-small bee wasp"},
		"the name first":    {catalog.Query{Text: "Bee"}, "bee bee-small"},
		"the name alone":    {catalog.Query{Text: "bee", Exact: true}, "bee"},
		"limit":             {catalog.Query{Text: "bee", Limit: 1}, "bee"},
		"nothing of a kind": {catalog.Query{Kind: catalog.KindEngine}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var got []string
			must.NoError(t, shelf(true).Source().Search(t.Context(), tc.q, func(i catalog.Item) error {
				must.Eq(t, int64(len(text)), i.SizeBytes)
				got = append(got, i.Ref)
				return nil
			}))
			must.Eq(t, tc.want, strings.Join(got, " "))
		})
	}
}

func TestFetchRefuses(t *testing.T) {
	t.Parallel()
	s := shelf(false)
	file := catalog.File{Ref: "bee", Path: "bee.gguf"}
	must.ErrorIs(t, s.Source().Fetch(t.Context(), file, 100, io.Discard), catalog.ErrInvalid)
	must.ErrorIs(t, s.Source().Fetch(t.Context(), catalog.File{Ref: "bee", Path: "x"}, 0, io.Discard), catalog.ErrNotFound)
	var rest bytes.Buffer
	must.NoError(t, s.Source().Fetch(t.Context(), file, 5, &rest))
	must.Eq(t, text[5:], rest.String())
	s.Open = nil
	must.ErrorIs(t, s.Source().Fetch(t.Context(), file, 0, io.Discard), catalog.ErrUnsupported)
}
