package hive

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

// Files are fetched from their address by HTTP, over several connections, and from the plugin where
// that fails; wrong bytes are fetched only once.
func TestSupply(t *testing.T) {
	t.Parallel()
	tiny, err := os.ReadFile("../../plugins/catalog-builtin/rbee-tiny.gguf")
	must.NoError(t, err)
	big := make([]byte, 20<<20)
	_, _ = rand.NewChaCha8([32]byte{}).Read(big)
	sum := func(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }
	for name, tc := range map[string]struct {
		serve   func(w http.ResponseWriter, r *http.Request, body []byte)
		noURL   bool
		fetches int64 // from the plugin, for both files
		kind    core.Kind
	}{
		"by HTTP": {serve: func(w http.ResponseWriter, r *http.Request, body []byte) {
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
		}},
		"no address": {noURL: true, fetches: 2},
		"refused":    {serve: func(w http.ResponseWriter, r *http.Request, _ []byte) { http.NotFound(w, r) }, fetches: 2},
		"wrong bytes": {serve: func(w http.ResponseWriter, _ *http.Request, body []byte) {
			wrong := bytes.Clone(body)
			wrong[len(wrong)-1] ^= 1
			_, _ = w.Write(wrong)
		}, kind: core.Integrity},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			files := map[string][]byte{"/tiny.gguf": tiny, "/big.bin": big}
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Header.Get("Authorization") != "Bearer secret" {
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				tc.serve(w, r, files[r.URL.Path])
			}))
			t.Cleanup(server.Close)
			client, err := origin.New(origin.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
			must.NoError(t, err)
			t.Cleanup(client.Close)
			var m catalog.Manifest
			spec := store.ModelSpec{ID: "m", Ref: "fake:m"}
			for _, f := range []string{"tiny.gguf", "big.bin"} {
				file := catalog.File{Path: f, SizeBytes: int64(len(files["/"+f])), Digest: sum(files["/"+f]), Locator: f}
				if !tc.noURL {
					file.URL, file.Header = server.URL+"/"+f, map[string]string{"Authorization": "Bearer secret"}
				}
				m.Files = append(m.Files, file)
			}
			spec.Files = fileSpecs(m)
			var fetches atomic.Int64
			c := newCatalogs([]pluginhost.Spec{{Name: "fake"}}, nil, hclog.NewNullLogger())
			c.origins = Origins{Client: client, Connections: 2}
			p := &byPath{files: files, fetches: &fetches, shop: shop{done: make(chan struct{})}}
			c.launch = func(context.Context, pluginhost.Spec) (catalogProcess, error) { return p, nil }

			dir := t.TempDir()
			s, err := store.Open(dir, nil)
			must.NoError(t, err)
			defer s.Close()
			var said []string
			_, err = s.PutModel(t.Context(), spec, c.supply("fake:m", m, func(format string, args ...any) { said = append(said, fmt.Sprintf(format, args...)) }), nil)
			must.Eq(t, tc.kind, core.KindOf(err), must.Sprint(err))
			must.Eq(t, tc.fetches, fetches.Load())
			must.StrNotContains(t, fmt.Sprint(said, err), "secret")
			must.Eq(t, name == "refused", len(said) > 0)
			if tc.kind == "" {
				must.NoError(t, s.VerifyModel(t.Context(), "m"))
			}
			// Neither does anything on disk.
			must.NoError(t, filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
				if err != nil || d.IsDir() {
					return err
				}
				b, err := os.ReadFile(name)
				must.False(t, bytes.Contains(b, []byte("Bearer")), must.Sprint(name))
				return err
			}))
		})
	}
}

// byPath is a catalog plugin that fetches files itself.
type byPath struct {
	shop
	files   map[string][]byte
	fetches *atomic.Int64
}

func (p *byPath) Fetch(_ context.Context, f catalog.File, offset int64, w io.Writer) error {
	p.fetches.Add(1)
	_, err := w.Write(p.files["/"+f.Path][offset:])
	return err
}
