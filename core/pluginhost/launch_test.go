package pluginhost_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

func misbehaving(t *testing.T, mode string, change ...func(*pluginhost.Options)) (*pluginhost.Host, pluginhost.Spec) {
	t.Helper()
	h := newHost(t, append(change, func(o *pluginhost.Options) {
		o.Environ = func() []string { return append(os.Environ(), "PROBE="+mode) }
	})...)
	return h, probeSpec(t, h)
}

// Every way in which an executable can fail to be a plugin is explained, with its output and a
// hint, and leaves no process behind.
func TestLaunchFailures(t *testing.T) {
	t.Parallel()
	soon := func(o *pluginhost.Options) { o.StartTimeout, o.CallTimeout = 3*time.Second, 500*time.Millisecond }
	for mode, tc := range map[string]struct {
		kind core.Kind
		want []string
	}{
		"silent-exit": {core.Unavailable, []string{"exit code 7", "It said nothing"}},
		"complain":    {core.Unavailable, []string{"exit code 127", "libfoo.so.1", "shared library"}},
		"hang":        {core.Unavailable, []string{"did not answer within 3s", "waiting for something"}},
		"chatter":     {core.Unsupported, []string{"is no rbee plugin", "hello, I am no plugin"}},
		"cookie":      {core.Unavailable, []string{"is not run by hand"}},
		"protocol":    {core.Unsupported, []string{"speaks plugin protocol 7, and this rbee speaks 1", "install a version"}},
		"info-hang":   {core.Unavailable, []string{"does not answer Info within 500ms"}},
		"info-panic":  {core.Internal, []string{"out of honey"}},
		"kind":        {core.Invalid, []string{"says that it is a catalog plugin", "rbee-catalog-probe"}},
		"schema":      {core.Internal, []string{"broken schema", "strnig", "Report this"}},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			h, spec := misbehaving(t, mode, soon)
			for _, logFile := range []string{"", filepath.Join(t.TempDir(), "log")} {
				began := time.Now()
				_, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec, LogFile: logFile, Tethered: true})
				must.Eq(t, tc.kind, core.KindOf(err), must.Sprintf("%v", err))
				text := err.Error() + " " + core.HintOf(err)
				for _, want := range tc.want {
					must.StrContains(t, text, want)
				}
				must.Less(t, 10*time.Second, time.Since(began))
			}
			noChildren(t, "PROBE="+mode)
		})
	}
}

func noChildren(t testing.TB, mark string) {
	t.Helper()
	entries, err := filepath.Glob("/proc/[0-9]*/environ")
	must.NoError(t, err)
	for _, e := range entries {
		b, err := os.ReadFile(e)
		if err == nil && slices.Contains(strings.Split(string(b), "\x00"), mark) {
			t.Errorf("%s is still there", filepath.Dir(e))
		}
	}
}

func TestLaunchEndsWithItsContext(t *testing.T) {
	t.Parallel()
	h, spec := misbehaving(t, "hang:ctx")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	began := time.Now()
	_, err := h.LaunchWorker(ctx, pluginhost.WorkerLaunch{Spec: spec})
	must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
	must.Less(t, 3*time.Second, time.Since(began))
	noChildren(t, "PROBE=hang:ctx")
}

func TestStartFailures(t *testing.T) {
	t.Parallel()
	for mode, tc := range map[string]struct {
		kind core.Kind
		want string
	}{
		"start-crash":     {core.WorkerLost, "the engine fell over"},
		"start-nil":       {core.Internal, "neither a handler nor an error"},
		"start-too-large": {core.TooLarge, "12 GiB"},
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			h, spec := misbehaving(t, mode)
			w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec, WorkerID: "w", Nonce: "n-" + mode, LogFile: filepath.Join(t.TempDir(), "log")})
			must.NoError(t, err)
			t.Cleanup(func() { end(t, w) })
			err = w.Start(t.Context(), startSpec(t), nil)
			must.Eq(t, tc.kind, core.KindOf(err), must.Sprintf("%v", err))
			must.StrContains(t, err.Error(), tc.want)
			if tc.kind == core.TooLarge {
				must.Eq(t, "Use fewer slots.", core.HintOf(err))
			}
		})
	}
	h, spec := misbehaving(t, "mute")
	w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec})
	must.NoError(t, err)
	t.Cleanup(func() { end(t, w) })
	_, err = w.FingerprintOnce(t.Context())
	must.StrContains(t, err.Error(), "reported nothing")
	must.Eq(t, core.Conflict, core.KindOf(w.Start(t.Context(), worker.StartSpec{}, nil))) // a probe
}

func TestEnvironmentIsAnAllowList(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "env")
	canary := "RBEE_TOKEN=canary-value"
	h := newHost(t, func(o *pluginhost.Options) {
		o.Environ = func() []string {
			return []string{
				"PROBE=env:" + file, canary, "AWS_SECRET_ACCESS_KEY=canary-value", "HOME=/home/me", "PATH=" + os.Getenv("PATH"), "LC_ALL=C", "CUDA_VISIBLE_DEVICES=0",
				"NAMED=yes", "HTTPS_PROXY=canary-value", "LANGUAGE=canary-value",
			}
		}
	})
	spec := probeSpec(t, h)
	spec.Env = append(spec.Env, "NAMED")
	w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec})
	must.NoError(t, err)
	t.Cleanup(func() { end(t, w) })
	seen, err := os.ReadFile(file)
	must.NoError(t, err)
	must.StrNotContains(t, string(seen), "canary-value")
	for _, want := range []string{"HOME=/home/me", "LC_ALL=C", "CUDA_VISIBLE_DEVICES=0", "NAMED=yes"} {
		must.StrContains(t, string(seen), want)
	}
}

func TestChecksum(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	spec := fakeSpec(t, h, "")
	b, err := os.ReadFile(spec.Executable)
	must.NoError(t, err)
	sum := sha256.Sum256(b)
	spec.SHA256 = hex.EncodeToString(sum[:])
	w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec})
	must.NoError(t, err)
	must.Eq(t, "sha256:"+spec.SHA256, w.Attachment().Digest)
	end(t, w)
	spec.SHA256 = strings.Repeat("0", 64)
	_, err = h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec})
	must.Eq(t, core.Integrity, core.KindOf(err))
}

// S-08: a modified plugin is not started, even if its modification time was set back.
func TestModifiedPluginNotStarted(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	for _, name := range []string{"rbee-worker-fake", "rbee-catalog-fake"} {
		b, err := os.ReadFile(filepath.Join(built, name))
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), b, 0o700))
	}
	h := newHost(t, func(o *pluginhost.Options) { o.PluginDir = dir })
	launch := func(kind sdk.Kind, spec pluginhost.Spec) error {
		if kind == sdk.KindCatalog {
			c, err := h.LaunchCatalog(t.Context(), spec)
			if err == nil {
				err = c.Close()
			}
			return err
		}
		w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec})
		if err == nil {
			end(t, w)
		}
		return err
	}
	for _, kind := range []sdk.Kind{sdk.KindWorker, sdk.KindCatalog} {
		spec, err := h.DefaultSpec(kind, "fake")
		must.NoError(t, err)
		b, err := os.ReadFile(spec.Executable)
		must.NoError(t, err)
		sum := sha256.Sum256(b)
		spec.SHA256 = hex.EncodeToString(sum[:])
		must.NoError(t, launch(kind, spec))
		info, err := os.Stat(spec.Executable)
		must.NoError(t, err)
		// The same file, size and time, with one byte changed.
		f, err := os.OpenFile(spec.Executable, os.O_WRONLY, 0)
		must.NoError(t, err)
		_, err = f.WriteAt([]byte{b[len(b)-1] ^ 1}, int64(len(b)-1))
		must.NoError(t, err)
		must.NoError(t, f.Close())
		must.NoError(t, os.Chtimes(spec.Executable, info.ModTime(), info.ModTime()))
		err = launch(kind, spec)
		must.Eq(t, core.Integrity, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "sha256")
	}
}

func TestFindAndList(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{
		"rbee-worker-good": 0o755, "rbee-worker-open": 0o777, "rbee-worker-plain": 0o644, "rbee-catalog-x": 0o755, "rbee-worker-BAD": 0o755, "rbee-worker-": 0o755, "other": 0o755,
	} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("x"), 0o600))
		must.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	must.NoError(t, os.Symlink("rbee-worker-good", filepath.Join(dir, "rbee-worker-link")))
	must.NoError(t, os.Mkdir(filepath.Join(dir, "rbee-worker-dir"), 0o755))
	h := newHost(t, func(o *pluginhost.Options) { o.PluginDir = dir })
	list, err := h.List()
	must.NoError(t, err)
	var got []string
	for _, e := range list {
		got = append(got, fmt.Sprintf("%s/%s %v", e.Kind, e.Name, e.Problem == ""))
	}
	must.Eq(t, []string{"catalog/x true", "worker/dir false", "worker/good true", "worker/link false", "worker/open false", "worker/plain false"}, got)

	for name, want := range map[string]core.Kind{
		"good": "", "open": core.Forbidden, "plain": core.Unsupported, "link": core.Unsupported, "dir": core.Unsupported, "BAD": core.Invalid, "../x": core.Invalid, "": core.Invalid, "goood": core.NotFound,
	} {
		_, err := h.Find(sdk.KindWorker, name)
		must.Eq(t, want, core.KindOf(err), must.Sprintf("%s: %v", name, err))
	}
	_, err = h.Find(sdk.KindWorker, "goood")
	must.StrContains(t, core.HintOf(err), `Did you mean "good"?`)
	_, err = h.DefaultSpec(sdk.KindWorker, "good")
	must.NoError(t, err)

	none := newHost(t, func(o *pluginhost.Options) { o.PluginDir = filepath.Join(dir, "none") })
	list, err = none.List()
	must.NoError(t, err)
	must.Len(t, 0, list)
	_, err = none.Find(sdk.KindCatalog, "npm")
	must.StrContains(t, core.HintOf(err), "plugin_dir")

	// An executable that the operating system cannot run.
	spec, err := h.DefaultSpec(sdk.KindWorker, "good")
	must.NoError(t, err)
	_, err = h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec})
	must.Eq(t, core.Unsupported, core.KindOf(err), must.Sprintf("%v", err))
	// A script whose interpreter is missing.
	must.NoError(t, os.WriteFile(filepath.Join(dir, "rbee-worker-good"), []byte("#!/no/such/interpreter\n"), 0o600))
	_, err = h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec})
	must.Eq(t, core.Unsupported, core.KindOf(err), must.Sprintf("%v", err))
}

func BenchmarkLaunch(b *testing.B) {
	h := newHost(b, func(o *pluginhost.Options) { o.Logger = nil })
	spec := fakeSpec(b, h, "")
	var times []time.Duration
	for b.Loop() {
		began := time.Now()
		w, err := h.LaunchWorker(b.Context(), pluginhost.WorkerLaunch{Spec: spec})
		must.NoError(b, err)
		times = append(times, time.Since(began))
		b.StopTimer()
		end(b, w)
		b.StartTimer()
	}
	slices.Sort(times)
	b.ReportMetric(float64(times[len(times)/2].Microseconds())/1000, "p50-ms")
	b.ReportMetric(float64(times[len(times)*99/100].Microseconds())/1000, "p99-ms")
}
