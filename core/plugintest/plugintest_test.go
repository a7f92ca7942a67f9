package plugintest_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/plugintest"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// childArg makes the test binary run the suite.
const childArg = "run-suite"

// plugins returns the folder of the fake plugins, which are built once.
var plugins = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "pt")
	if err != nil {
		return "", err
	}
	for name, pkg := range map[string]string{"rbee-worker-fake": "fakeworker", "rbee-catalog-fake": "fakecatalog"} {
		if err := coretest.Build(filepath.Join(dir, name), "../../plugins/sdk/sdktest/"+pkg); err != nil {
			return "", err
		}
	}
	return dir, nil
})

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == childArg {
		plugintest.Child()
	}
	code := m.Run()
	if dir, err := plugins(); err == nil {
		_ = os.RemoveAll(dir)
	}
	os.Exit(code)
}

func options(t *testing.T, kind sdk.Kind) plugintest.Options {
	t.Helper()
	dir, err := plugins()
	must.NoError(t, err)
	self, err := os.Executable()
	must.NoError(t, err)
	return plugintest.Options{Self: []string{self, childArg}, Kind: kind, Executable: filepath.Join(dir, "rbee-"+string(kind)+"-fake"), Timeout: 3 * time.Minute}
}

func find(results []core.TestResult, name string) core.TestResult {
	for _, r := range results {
		if r.Name == name {
			return r
		}
	}
	return core.TestResult{}
}

func TestConformingWorker(t *testing.T) {
	t.Parallel()
	seen := 0
	report, err := plugintest.Run(t.Context(), options(t, sdk.KindWorker), func(core.TestResult) { seen++ })
	must.NoError(t, err)
	must.True(t, report.Passed, must.Sprintf("%+v", report.Results))
	must.Eq(t, seen, len(report.Results))
	for _, name := range []string{"info", "schema", "configure", "fingerprint", "life", "answers", "stop", "refused starts/no slots"} {
		must.Eq(t, core.TestPassed, find(report.Results, name).Outcome, must.Sprint(name))
	}
}

func TestWorkerNotStarted(t *testing.T) {
	t.Parallel()
	o := options(t, sdk.KindWorker)
	o.NoStart = true
	report, err := plugintest.Run(t.Context(), o, nil)
	must.NoError(t, err)
	must.True(t, report.Passed)
	must.Eq(t, core.TestPassed, find(report.Results, "fingerprint").Outcome)
	life := find(report.Results, "life")
	must.Eq(t, core.TestSkipped, life.Outcome)
	must.StrContains(t, fmt.Sprint(life.Output), "no engine or no model")
}

func TestConformingCatalog(t *testing.T) {
	t.Parallel()
	report, err := plugintest.Run(t.Context(), options(t, sdk.KindCatalog), nil)
	must.NoError(t, err)
	must.True(t, report.Passed, must.Sprintf("%+v", report.Results))
	must.Eq(t, core.TestPassed, find(report.Results, "search").Outcome)
}

// An executable that is not a plugin fails the tests, and the report names the rule.
func TestFailingPlugin(t *testing.T) {
	t.Parallel()
	o := options(t, sdk.KindWorker)
	o.NoStart = true
	o.Executable = filepath.Join(t.TempDir(), "rbee-worker-none")
	must.NoError(t, os.WriteFile(o.Executable, []byte("#!/bin/sh\necho I am no plugin\n"), 0o700))
	report, err := plugintest.Run(t.Context(), o, nil)
	must.NoError(t, err)
	must.False(t, report.Passed)
	info := find(report.Results, "info")
	must.Eq(t, core.TestFailed, info.Outcome)
	must.StrContains(t, fmt.Sprint(info.Output), "no plugin that can be used")
	must.Len(t, 1, info.Rules)
	must.Eq(t, "launch", info.Rules[0].Name)
}

// The given settings override the schema's defaults.
func TestPluginConfig(t *testing.T) {
	t.Parallel()
	o := options(t, sdk.KindWorker)
	o.NoStart, o.Config = true, json.RawMessage(`{"problem":"no words here"}`)
	report, err := plugintest.Run(t.Context(), o, nil)
	must.NoError(t, err)
	must.True(t, report.Passed, must.Sprintf("%+v", report.Results))
	o.Config = json.RawMessage(`{"token_delay":"soon"}`)
	report, err = plugintest.Run(t.Context(), o, nil)
	must.NoError(t, err)
	must.False(t, report.Passed)
	must.Eq(t, "configure-defaults", find(report.Results, "configure").Rules[0].Name)
}

// A suite that is cancelled or times out leaves no process behind.
func TestSuiteCut(t *testing.T) {
	t.Parallel()
	for name, cut := range map[string]bool{"cancelled": true, "out of time": false} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			o := options(t, sdk.KindWorker)
			o.Executable = filepath.Join(dir, "rbee-worker-hang")
			// The plugin writes its process id and hangs.
			must.NoError(t, os.WriteFile(o.Executable, fmt.Appendf(nil, "#!/bin/sh\necho $$ > %s/pid.new && mv %s/pid.new %s/pid\ncat > /dev/null\n", dir, dir, dir), 0o700))
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if !cut {
				o.Timeout = 3 * time.Second
			}
			done := make(chan error, 1)
			go func() {
				_, err := plugintest.Run(ctx, o, nil)
				done <- err
			}()
			var plugin hostinfo.Identity
			coretest.Eventually(t, 20*time.Second, func() error {
				b, err := os.ReadFile(filepath.Join(dir, "pid"))
				if err != nil {
					return err
				}
				var pid int
				if _, err := fmt.Sscan(string(b), &pid); err != nil {
					return err
				}
				plugin, err = hostinfo.Identify(pid)
				return err
			})
			want := core.DeadlineExceeded
			if cut {
				cancel()
				want = core.Cancelled
			}
			must.Eq(t, want, core.KindOf(<-done))
			coretest.Eventually(t, 20*time.Second, func() error {
				if plugin.Alive() {
					return fmt.Errorf("process %d goes on", plugin.PID)
				}
				return nil
			})
		})
	}
}

func TestSuiteCannotRun(t *testing.T) {
	t.Parallel()
	o := options(t, sdk.KindWorker)
	o.Self = []string{"/bin/sh", "-c", "echo broken; exit 3"}
	_, err := plugintest.Run(t.Context(), o, nil)
	must.Eq(t, core.Internal, core.KindOf(err))
	must.ErrorContains(t, err, "broken")
	o.Self = []string{filepath.Join(t.TempDir(), "none")}
	_, err = plugintest.Run(t.Context(), o, nil)
	must.Eq(t, core.Internal, core.KindOf(err))
}
