package pluginhost_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/confine"
	"github.com/rbee-project/rbee/core/pluginhost"
)

func TestLaunchConfined(t *testing.T) {
	t.Parallel()
	if problem := confine.Problem(); problem != "" {
		t.Skipf("not tested: %s", problem)
	}
	data := shortDir(t)
	secret := filepath.Join(data, "cluster", "key")
	must.NoError(t, os.MkdirAll(filepath.Dir(secret), 0o700))
	must.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
	for _, tc := range []struct {
		name  string
		rules confine.Rules
		want  string
	}{
		{"without rules", nil, "read\n" + os.TempDir()},
		{"elsewhere", confine.Rules{"/nowhere/at/all": confine.None}, "read\n" + os.TempDir()},
		{"hidden", confine.Rules{data: confine.None}, "open " + secret + ": permission denied\n" + filepath.Join(data, "run", "w", "p")},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHost(t, func(o *pluginhost.Options) {
				o.RunDir, o.Walls.Rules = filepath.Join(data, "run"), tc.rules
				o.Environ = func() []string { return []string{"PROBE=read:" + secret, "TMPDIR=" + os.TempDir()} }
			})
			must.Eq(t, tc.rules == nil, h.Confinement() != "")
			run := filepath.Join(data, "run", "w")
			w, err := h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: probeSpec(t, h), RunDir: run})
			must.NoError(t, err)
			t.Cleanup(func() { end(t, w) })
			said, err := os.ReadFile(filepath.Join(pluginhost.PrivateDir(run), "said"))
			must.NoError(t, err)
			must.Eq(t, tc.want, string(said))
		})
	}
}
