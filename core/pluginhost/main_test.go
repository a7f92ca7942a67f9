package pluginhost_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// built is the folder of the plugins that TestMain builds.
var built string

func TestMain(m *testing.M) {
	if os.Getenv("RBEE_TEST_HELPER") != "" {
		helper()
		return
	}
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "rbee-pluginhost")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	built = dir
	for name, pkg := range map[string]string{
		"rbee-worker-fake":  "github.com/rbee-project/rbee/plugins/sdk/sdktest/fakeworker",
		"rbee-catalog-fake": "github.com/rbee-project/rbee/plugins/sdk/sdktest/fakecatalog",
		"rbee-worker-probe": "github.com/rbee-project/rbee/core/pluginhost/testdata/probe",
	} {
		if err := coretest.Build(filepath.Join(dir, name), pkg); err != nil {
			return 1, err
		}
		if err := os.Chmod(filepath.Join(dir, name), 0o755); err != nil {
			return 1, err
		}
	}
	code := m.Run()
	// Every launched process has ended by now, and so has everything that watched it.
	if err := goleak.Find(); err != nil && code == 0 {
		return 1, err
	}
	return code, nil
}

// shortDir returns a temporary folder with a path short enough for sockets; that of t.TempDir
// contains the test's name.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ph") //nolint:usetesting // see above
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func newHost(t testing.TB, change ...func(*pluginhost.Options)) *pluginhost.Host {
	t.Helper()
	o := pluginhost.Options{PluginDir: built, RunDir: shortDir(t), Logger: coretest.Logger(t)}
	for _, c := range change {
		c(&o)
	}
	return pluginhost.New(o)
}

// load parses a configuration, with both roles added.
func load(t testing.TB, src string) *config.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rbee.hcl")
	must.NoError(t, os.WriteFile(file, []byte(src+"\nqueen { enabled = true }\nhive { enabled = true }\n"), 0o600))
	c, diags := config.Load([]string{file}, func(name string) (string, bool) { return os.LookupEnv(name) })
	must.NoError(t, diags.Err())
	return c
}

// fakeSpec returns the spec of the fake worker with the lines in its config block.
func fakeSpec(t testing.TB, h *pluginhost.Host, lines string) pluginhost.Spec {
	t.Helper()
	s, err := h.Spec(load(t, fmt.Sprintf("worker \"fake\" {\n  config {\n%s\n  }\n}", lines)).Workers[0])
	must.NoError(t, err)
	return s
}

// launched returns a running fake worker and its folders; it ends with the test.
func launched(t testing.TB, h *pluginhost.Host, lines string, change ...func(*pluginhost.WorkerLaunch)) *pluginhost.Worker {
	t.Helper()
	dir := shortDir(t)
	l := pluginhost.WorkerLaunch{
		Spec: fakeSpec(t, h, lines), WorkerID: "w1", Nonce: fmt.Sprintf("nonce-%d", time.Now().UnixNano()), RunDir: filepath.Join(dir, "run"), LogFile: filepath.Join(dir, "log"),
	}
	for _, c := range change {
		c(&l)
	}
	w, err := h.LaunchWorker(t.Context(), l)
	must.NoError(t, err)
	t.Cleanup(func() { end(t, w) })
	return w
}

func end(t testing.TB, w *pluginhost.Worker) {
	t.Helper()
	_ = w.Kill()
	select {
	case <-w.Done():
	case <-time.After(5 * time.Second):
		t.Errorf("worker process %d is still there 5 s after it was killed", w.PID())
	}
	_ = w.Close()
}

func startSpec(t testing.TB) worker.StartSpec {
	t.Helper()
	model := filepath.Join(t.TempDir(), "m.gguf")
	must.NoError(t, os.WriteFile(model, []byte("GGUF"), 0o600))
	return worker.StartSpec{ModelPath: model, ModelID: "m", Device: "fake:0", Slots: 2}
}

// ask sends a chat message over the worker's data socket and returns the answer's body.
func ask(ctx context.Context, w *pluginhost.Worker, prompt string) (string, error) {
	return askOver(ctx, w.DataSocket(), w.DataOpening(), prompt)
}

// askOver is ask over a connection that begins with an opening.
func askOver(ctx context.Context, socket, opening, prompt string) (string, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
			if err == nil {
				_, err = io.WriteString(c, opening)
			}
			return c, err
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://worker/v1/chat/completions",
		strings.NewReader(fmt.Sprintf(`{"model":"m","messages":[{"role":"user","content":%q}]}`, prompt)))
	if err != nil {
		return "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode != http.StatusOK {
		return "", errors.Join(err, fmt.Errorf("%s: %s", resp.Status, body))
	}
	return string(body), err
}

func gone(t testing.TB, pid int) {
	t.Helper()
	coretest.Eventually(t, 5*time.Second, func() error {
		// A zombie counts as gone: its parent reaps it.
		if _, err := hostinfo.Identify(pid); core.KindOf(err) == core.NotFound {
			return nil
		}
		return fmt.Errorf("process %d is there", pid)
	})
}
