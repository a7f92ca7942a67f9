package pluginhost_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

func launchCatalog(t testing.TB, h *pluginhost.Host, dir string) *pluginhost.Catalog {
	t.Helper()
	s, err := h.Spec(load(t, fmt.Sprintf("catalog \"fake\" {\n  config {\n    dir = %q\n  }\n}", dir)).Catalogs[0])
	must.NoError(t, err)
	c, err := h.LaunchCatalog(t.Context(), s)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, c.Close()) })
	return c
}

func TestCatalog(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 200_000) // over three messages
	must.NoError(t, os.WriteFile(filepath.Join(dir, "big.gguf"), content, 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "small.gguf"), []byte("x"), 0o600))
	c := launchCatalog(t, newHost(t), dir)

	var names []string
	must.NoError(t, c.Search(t.Context(), catalog.Query{}, func(i catalog.Item) error {
		names = append(names, i.Name)
		return nil
	}))
	must.Eq(t, []string{"big", "small"}, names)
	enough := errors.New("enough")
	must.ErrorIs(t, c.Search(t.Context(), catalog.Query{}, func(catalog.Item) error { return enough }), enough)

	m, err := c.Resolve(t.Context(), "big.gguf")
	must.NoError(t, err)
	must.Eq(t, int64(len(content)), m.Files[0].SizeBytes)
	for _, offset := range []int64{0, 1, int64(len(content)) - 1, int64(len(content))} {
		var got bytes.Buffer
		must.NoError(t, c.Fetch(t.Context(), m.Files[0], offset, &got))
		must.True(t, bytes.Equal(content[offset:], got.Bytes()))
	}
	must.Eq(t, core.Invalid, core.KindOf(c.Fetch(t.Context(), m.Files[0], -1, io.Discard)))
	full := errors.New("disk is full")
	must.ErrorIs(t, c.Fetch(t.Context(), m.Files[0], 0, failingWriter{full}), full)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must.Eq(t, core.Cancelled, core.KindOf(c.Fetch(ctx, m.Files[0], 0, io.Discard)))

	for ref, want := range map[string]core.Kind{
		"none": core.NotFound, "refused": core.Unauthenticated, "away": core.Unavailable, "": core.Invalid, "../x": core.Invalid,
	} {
		_, err := c.Resolve(t.Context(), ref)
		must.Eq(t, want, core.KindOf(err), must.Sprintf("%q: %v", ref, err))
		if ref == "refused" {
			must.Eq(t, "Set token in the config block.", core.HintOf(err))
		}
	}
}

type failingWriter struct{ err error }

func (f failingWriter) Write([]byte) (int, error) { return 0, f.err }

func TestCatalogEndsQuietlyAndIsSeenWhenItDies(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := launchCatalog(t, h, t.TempDir())
	began := time.Now()
	must.NoError(t, c.Close())
	must.Less(t, 2*time.Second, time.Since(began))
	gone(t, c.PID())
	must.NoError(t, c.Close())

	c = launchCatalog(t, h, t.TempDir())
	kill9(t, c.PID())
	<-c.Done()
	_, err := c.Resolve(t.Context(), "x")
	must.Eq(t, core.WorkerLost, core.KindOf(err))
}

func TestKindsAreNotMixedUp(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	_, err := h.LaunchCatalog(t.Context(), fakeSpec(t, h, ""))
	must.Eq(t, core.Invalid, core.KindOf(err))
}
