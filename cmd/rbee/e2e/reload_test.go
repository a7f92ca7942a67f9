package e2e

import (
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
)

func TestReloadOnHangup(t *testing.T) {
	t.Parallel()
	plugins := t.TempDir()
	put := func(from, to string) {
		data, err := os.ReadFile(filepath.Join(binDir(t), "plugins", from))
		must.NoError(t, err)
		must.NoError(t, os.WriteFile(filepath.Join(plugins, to), data, 0o700))
	}
	put("rbee-worker-cpu", "rbee-worker-cpu")
	put("rbee-catalog-builtin", "rbee-catalog-builtin")
	put("rbee-catalog-npm", "rbee-catalog-npm")
	// Under nohup the agent would inherit the ignored signal. A signal caught here has its default
	// action there.
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	defer signal.Stop(hangups)
	a := startAgent(t, agentOptions{config: oneMachine, args: []string{"-plugin-dir", plugins}})
	file := filepath.Join(a.home, "rbee.hcl")
	reload := func(config, says string) {
		t.Helper()
		must.NoError(t, os.WriteFile(file, []byte(config), 0o600))
		before := strings.Count(a.log.String(), says)
		must.NoError(t, a.cmd.Process.Signal(syscall.SIGHUP))
		coretest.Eventually(t, patience, func() error {
			if strings.Count(a.log.String(), says) == before {
				return fmt.Errorf("the agent does not say %q:\n%s", says, a.log)
			}
			return nil
		})
	}
	a.must("status")

	t.Log("a new plugin, another log level, and what needs a restart")
	put("rbee-worker-cpu", "rbee-worker-late")
	reload("log_level = \"debug\"\nqueen {\n  enabled = true\n}\nhive {\n  enabled      = true\n  keep_workers = false\n}\n", "reloaded the configuration")
	coretest.Eventually(t, patience, func() error {
		if !strings.Contains(a.log.String(), "hive.keep_workers") || !strings.Contains(a.log.String(), "[DEBUG]") {
			return fmt.Errorf("no word of hive.keep_workers, or no debug line:\n%s", a.log)
		}
		return nil
	})
	coretest.Eventually(t, patience, func() error {
		if shown := a.rbee("hive", "list", "--format", "json").stdout; !strings.Contains(shown, `"late"`) {
			return fmt.Errorf("the new type is not there:\n%s", shown)
		}
		return nil
	})

	t.Log("a configuration that is wrong changes nothing")
	reload("hive {\n  enabled = maybe\n}\n", "the configuration is not reloaded")
	a.must("status")
}
