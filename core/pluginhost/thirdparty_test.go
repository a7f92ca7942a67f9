package pluginhost_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

const modulePath = "github.com/rbee-project/rbee"

// forbidden lists modules that a plugin must not depend on through the SDK.
func forbidden() []string {
	return []string{
		"github.com/hashicorp/hcl/v2", "github.com/zclconf/go-cty", "github.com/hashicorp/raft", "github.com/hashicorp/memberlist", "github.com/hashicorp/go-memdb",
		"go.etcd.io/bbolt", "github.com/shirou/gopsutil/v4", "github.com/spf13/cobra", "github.com/hybridgroup/yzma", "github.com/prometheus/client_golang",
	}
}

// stranger is a third-party module outside the repository.
type stranger struct{ dir string }

func newStranger(t *testing.T, source string) stranger {
	t.Helper()
	return stranger{dir: coretest.Module(t, "../..", "example.com/stranger", source)}
}

func (s stranger) run(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", args...)
	cmd.Dir = s.dir
	// Offline: everything is in the module cache, since this test was built from it.
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOSUMDB=off", "GOWORK=off", "CGO_ENABLED=0")
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		t.Fatalf("go %s: %v\n%s", strings.Join(args, " "), err, exit.Stderr)
	}
	must.NoError(t, err)
	return string(out)
}

func (s stranger) build(t *testing.T, name string) string {
	t.Helper()
	exe := filepath.Join(s.dir, name)
	s.run(t, "build", "-trimpath", "-tags", "grpcnotrace", "-ldflags", "-s -w", "-o", exe, ".")
	must.NoError(t, os.Chmod(exe, 0o755))
	return exe
}

// modules lists the modules that the third-party program is built from.
func (s stranger) modules(t *testing.T) []string {
	t.Helper()
	var out []string
	for line := range strings.Lines(s.run(t, "list", "-deps", "-f", "{{if .Module}}{{.Module.Path}} {{.ImportPath}}{{end}}", ".")) {
		module, pkg, ok := strings.Cut(strings.TrimSpace(line), " ")
		if rest, ours := strings.CutPrefix(pkg, modulePath+"/"); ours && !strings.HasPrefix(rest, "plugins/sdk") && !strings.HasPrefix(rest, "proto/") {
			t.Errorf("a plugin pulls in %s", pkg)
		}
		if ok && !slices.Contains(out, module) {
			out = append(out, module)
		}
	}
	return out
}

// A third-party module outside the repository that imports only plugins/sdk/… builds a worker that
// fulfils the contract, without rbee's own dependencies.
func TestThirdPartyWorker(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a module of its own")
	}
	s := newStranger(t, "testdata/thirdparty/bee/main.go")
	exe := s.build(t, "rbee-worker-bee")
	modules := s.modules(t)
	must.SliceContains(t, modules, "github.com/hashicorp/go-plugin")
	for _, m := range forbidden() {
		must.SliceNotContains(t, modules, m)
	}
	must.Less(t, 20, len(modules), must.Sprintf("%q", modules))
	size, err := os.Stat(exe)
	must.NoError(t, err)
	t.Logf("%d modules, %d bytes", len(modules), size.Size())

	sdktest.Worker(t, sdktest.WorkerBinary(exe), sdktest.WorkerOptions{
		BadConfig: json.RawMessage(`{"hum":"bz bz"}`), LongConfig: json.RawMessage(`{"pause_ms":5}`),
	})
}

// This is the smallest useful worker, used by a host the way a hive does.
func TestThirdPartyProxy(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("builds a module of its own")
	}
	upstream := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "upstream saw %s", r.URL.Path)
	}))
	t.Cleanup(upstream.Close)
	s := newStranger(t, "testdata/thirdparty/proxy/main.go")
	s.build(t, "rbee-worker-proxy")
	h := newHost(t, func(o *pluginhost.Options) { o.PluginDir = s.dir })
	launch := func(lines string) (*pluginhost.Worker, error) {
		spec, err := h.Spec(load(t, "worker \"proxy\" {\n  config {\n"+lines+"\n  }\n}").Workers[0])
		must.NoError(t, err)
		dir := shortDir(t)
		return h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec, WorkerID: "w", Nonce: "n-" + dir, RunDir: dir})
	}
	_, err := launch("")
	must.StrContains(t, err.Error(), `The argument "url" is required`)
	_, err = launch(`url = "nowhere"`)
	must.StrContains(t, err.Error(), "Write http://HOST:PORT.")
	w, err := launch(fmt.Sprintf("url = %q", upstream.URL))
	must.NoError(t, err)
	t.Cleanup(func() { end(t, w) })
	spec := startSpec(t)
	spec.Device = "remote"
	must.NoError(t, w.Start(t.Context(), spec, nil))
	answer, err := ask(t.Context(), w, "hello")
	must.NoError(t, err)
	must.Eq(t, "upstream saw /v1/chat/completions", answer)
	forced, err := w.Stop(t.Context(), time.Second)
	must.NoError(t, err)
	must.False(t, forced)
}
