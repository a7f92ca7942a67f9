package pluginhost_test

import (
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
)

func kill9(t testing.TB, pid int) {
	t.Helper()
	must.NoError(t, syscall.Kill(pid, syscall.SIGKILL))
}

// probeSpec returns the spec of the plugin that misbehaves as the environment asks.
func probeSpec(t testing.TB, h *pluginhost.Host) pluginhost.Spec {
	t.Helper()
	s, err := h.DefaultSpec(sdk.KindWorker, "probe")
	must.NoError(t, err)
	s.Env = []string{"PROBE"}
	return s
}
