package pluginhost_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// polite runs a catalog plugin beside a rude one; it must not be affected.
func polite(t *testing.T, h *pluginhost.Host) (check func()) {
	t.Helper()
	dir := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(dir, "a.gguf"), []byte("x"), 0o600))
	c := launchCatalog(t, h, dir)
	return func() {
		t.Helper()
		m, err := c.Resolve(t.Context(), "a.gguf")
		must.NoError(t, err)
		must.Eq(t, "a", m.Name)
	}
}

func TestCatalogCrashes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	check := polite(t, h)
	c := launchCatalog(t, h, t.TempDir())
	_, err := c.Resolve(t.Context(), "crash")
	must.Eq(t, core.WorkerLost, core.KindOf(err), must.Sprint(err))
	<-c.Done()
	check()
}

func TestCatalogFreezes(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	check := polite(t, h)
	c := launchCatalog(t, h, t.TempDir())
	must.NoError(t, c.Ping(t.Context()))
	frozen := make(chan error, 1)
	go func() {
		_, err := c.Resolve(t.Context(), "freeze")
		frozen <- err
	}()
	untilItIsSilent(t, c)
	must.NoError(t, c.Kill())
	must.Eq(t, core.WorkerLost, core.KindOf(<-frozen))
	<-c.Done()
	must.NoError(t, c.Kill()) // killing an exited process is not an error
	check()
}

// untilItIsSilent waits until the process no longer answers.
func untilItIsSilent(t *testing.T, c *pluginhost.Catalog) {
	t.Helper()
	for range 60 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		err := c.Ping(ctx)
		cancel()
		if err != nil {
			must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
			return
		}
	}
	t.Fatal("it still answers")
}

// A reply that is too long on the wire, or takes too much memory decoded, is refused. Not parallel:
// it measures the allocations of the whole process.
func TestCatalogReplyBounds(t *testing.T) {
	h := newHost(t)
	check := polite(t, h)
	c := launchCatalog(t, h, t.TempDir())
	for ref, kind := range map[string]core.Kind{"huge": core.TooLarge, "many": core.Internal} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err := c.Resolve(t.Context(), ref)
		runtime.ReadMemStats(&after)
		must.Eq(t, kind, core.KindOf(err), must.Sprint(ref, err))
		must.Less(t, 32<<20, after.TotalAlloc-before.TotalAlloc, must.Sprint(ref))
	}
	check()
	_, err := c.Resolve(t.Context(), "none") // it still works
	must.Eq(t, core.NotFound, core.KindOf(err))
}

func TestCatalogWithoutProtocol(t *testing.T) {
	t.Parallel()
	h := newHost(t, func(o *pluginhost.Options) {
		o.Environ = func() []string { return append(os.Environ(), "RBEE_FAKE_GARBAGE=1") }
	})
	s, err := h.DefaultSpec(sdk.KindCatalog, "fake")
	must.NoError(t, err)
	s.Env = []string{"RBEE_FAKE_GARBAGE"}
	_, err = h.LaunchCatalog(t.Context(), s)
	must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(err))
}

func TestCatalogFloodsLog(t *testing.T) {
	t.Parallel()
	var log lines
	h := newHost(t, func(o *pluginhost.Options) {
		o.Logger = hclog.New(&hclog.LoggerOptions{Level: hclog.Trace, Output: &log, JSONFormat: true})
	})
	check := polite(t, h)
	c := launchCatalog(t, h, t.TempDir())
	began := time.Now()
	_, err := c.Resolve(t.Context(), "flood")
	must.NoError(t, err)
	check()
	must.NoError(t, c.Close())
	log.mu.Lock()
	defer log.mu.Unlock()
	said := log.b.String()
	// At most 200 lines a second are passed on, of 50 000.
	most := 250 * (int(time.Since(began)/time.Second) + 2)
	must.Less(t, most, strings.Count(said, strings.Repeat("x", 1000)))
	must.StrContains(t, said, "dropped_lines")
}

type lines struct {
	mu sync.Mutex // guards below
	b  bytes.Buffer
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}
