package pluginhost_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// speaking simulates a host of another version of rbee.
func speaking(versions ...int) func(*pluginhost.Options) {
	return func(o *pluginhost.Options) { o.Protocols = versions }
}

// oldPlugins builds the plugins from the first publication of protocol 1.
func oldPlugins(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for name, pkg := range map[string]string{"rbee-worker-old": "oldworker", "rbee-catalog-old": "oldcatalog"} {
		must.NoError(t, coretest.Build(filepath.Join(dir, name), "github.com/rbee-project/rbee/core/pluginhost/testdata/protocol1/"+pkg))
	}
	return dir
}

// oldLaunch launches the old worker, which serves the given versions of the protocol.
func oldLaunch(t *testing.T, dir, serves string, change ...func(*pluginhost.Options)) (*pluginhost.Worker, error) {
	t.Helper()
	h := newHost(t, append(change, func(o *pluginhost.Options) {
		o.PluginDir = dir
		o.Environ = func() []string { return []string{"OLD_PROTOCOLS=" + serves} }
	})...)
	spec, err := h.Spec(load(t, "worker \"old\" {\n  env = [\"OLD_PROTOCOLS\"]\n  config {\n    greeting = \"good day\"\n  }\n}").Workers[0])
	must.NoError(t, err)
	run := shortDir(t)
	return h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{
		Spec: spec, WorkerID: "w", Nonce: "n-" + run, RunDir: filepath.Join(run, "run"), LogFile: filepath.Join(run, "log"),
	})
}

// Plugins that were built from the first publication of protocol 1, and know nothing added since,
// work under today's host and under one that also speaks the next version.
func TestProtocol1(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds two plugins")
	}
	dir := oldPlugins(t)
	for name, versions := range map[string][]int{"today": nil, "next": {1, 2}} {
		t.Run("worker "+name, func(t *testing.T) {
			t.Parallel()
			w, err := oldLaunch(t, dir, "1", speaking(versions...))
			must.NoError(t, err)
			t.Cleanup(func() { end(t, w) })
			must.Eq(t, 1, w.Attachment().Protocol)
			must.Eq(t, "Speaks protocol 1.", w.Info().Summary)
			f, err := w.FingerprintOnce(t.Context())
			must.NoError(t, err)
			must.Eq(t, "old:0", f.Devices[0].ID)
			spec := startSpec(t)
			spec.Device = "old:0"
			must.NoError(t, w.Start(t.Context(), spec, nil))
			text, err := ask(t.Context(), w, "bee")
			must.NoError(t, err)
			must.StrContains(t, text, "good day bee")
			st, err := w.Status(t.Context())
			must.NoError(t, err)
			must.Eq(t, int64(1), st.TokensTotal)
			must.SliceEmpty(t, st.Capabilities) // so any feature may be requested
			must.NoError(t, w.Drain(t.Context()))
			_, err = ask(t.Context(), w, "bee")
			must.ErrorContains(t, err, "503")
			forced, err := w.Stop(t.Context(), time.Second)
			must.NoError(t, err)
			must.False(t, forced)
		})
		t.Run("catalog "+name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, speaking(versions...), func(o *pluginhost.Options) { o.PluginDir = dir })
			spec, err := h.DefaultSpec("catalog", "old")
			must.NoError(t, err)
			c, err := h.LaunchCatalog(t.Context(), spec)
			must.NoError(t, err)
			t.Cleanup(func() { must.NoError(t, c.Close()) })
			found := 0
			must.NoError(t, c.Search(t.Context(), catalog.Query{}, func(catalog.Item) error { found++; return nil }))
			must.Eq(t, 1, found)
			m, err := c.Resolve(t.Context(), "old")
			must.NoError(t, err)
			var b bytes.Buffer
			must.NoError(t, c.Fetch(t.Context(), m.Files[0], 5, &b))
			must.Eq(t, "of old", b.String())
			_, err = c.Resolve(t.Context(), "new")
			must.Eq(t, core.NotFound, core.KindOf(err))
		})
	}
	t.Run("catalog without TLS", func(t *testing.T) {
		t.Parallel()
		catalogWithoutTLS(t, dir)
	})
}

// Host and plugin agree on the newest version that both speak; if there is none, the error names
// both and has a hint.
func TestProtocolNegotiation(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds two plugins")
	}
	dir := oldPlugins(t)
	for _, c := range []struct {
		name   string
		host   []int
		plugin string
		want   int // 0: refused
		says   []string
	}{
		{"both speak two", []int{1, 2}, "1,2", 2, nil},
		{"a plugin that speaks the next as well", []int{1}, "1,2", 1, nil},
		{"a plugin of the next", []int{1, 2}, "2,3", 2, nil},
		{"a plugin that is too new", []int{1}, "2", 0, []string{"speaks plugin protocol 2", "this rbee speaks 1", "newer rbee", "Update rbee"}},
		{"a plugin that is too old", []int{2, 3}, "1", 0, []string{"speaks plugin protocol 1", "this rbee speaks 2 and 3", "too old", "Install a newer version of the plugin"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			w, err := oldLaunch(t, dir, c.plugin, speaking(c.host...))
			if c.want != 0 {
				must.NoError(t, err)
				t.Cleanup(func() { end(t, w) })
				must.Eq(t, c.want, w.Attachment().Protocol)
				return
			}
			must.Eq(t, core.Unsupported, core.KindOf(err))
			text := fmt.Sprint(err, " ", core.HintOf(err))
			for _, s := range c.says {
				must.StrContains(t, text, s)
			}
		})
	}
}

// An agent of the next version takes over the workers of the previous one: the same processes,
// still running. One that no longer speaks their version reports so, and sends no signals.
func TestReattachAcrossVersions(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds two plugins")
	}
	dir := oldPlugins(t)
	first, err := oldLaunch(t, dir, "1", speaking(1))
	must.NoError(t, err)
	t.Cleanup(func() { end(t, first) })
	spec := startSpec(t)
	spec.Device = "old:0"
	must.NoError(t, first.Start(t.Context(), spec, nil))
	a := first.Attachment()

	later := newHost(t, speaking(2, 3))
	_, err = later.Reattach(t.Context(), a)
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.ErrorContains(t, err, "speaks plugin protocol 1, and this rbee speaks 2 and 3")
	must.True(t, a.Process.Alive())

	next, err := newHost(t, speaking(1, 2)).Reattach(t.Context(), a)
	must.NoError(t, err)
	must.Eq(t, first.PID(), next.PID())
	must.True(t, a.Process.Alive())
	st, err := next.Status(context.Background())
	must.NoError(t, err)
	must.Eq(t, a.Nonce, st.Nonce)
	text, err := ask(t.Context(), next, "again")
	must.NoError(t, err)
	must.StrContains(t, text, "good day again")
	must.NoError(t, next.Close())
}
