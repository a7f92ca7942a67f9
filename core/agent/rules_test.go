package agent_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/confine"
)

func TestPluginWalls(t *testing.T) {
	t.Parallel()
	home := filepath.Join(t.TempDir(), "home")
	must.NoError(t, os.Mkdir(home, 0o700))
	walls, err := agent.PluginWalls(&config.Config{
		DataDir: "/var/lib/rbee", StoreDir: "/var/lib/rbee/store", PluginDir: "/opt/rbee/plugins",
		TLS:    config.TLS{KeyFile: "/etc/rbee/node.key"},
		Gossip: config.Gossip{KeyFile: "/etc/rbee/gossip.key"},
		Queen:  config.Queen{OperatorTokenFile: "/etc/rbee/operator.token"},
	}, home)
	must.NoError(t, err)
	real, err := filepath.EvalSymlinks(home)
	must.NoError(t, err)
	must.SliceContains(t, walls.Homes, real)
	self, err := os.Executable()
	must.NoError(t, err)
	for path, want := range map[string]confine.Access{
		"/var/lib/rbee/cluster/seal.key":    confine.None,
		"/var/lib/rbee/raft/log.db":         confine.None,
		"/var/lib/rbee/ssh/hosts.json":      confine.None,
		"/var/lib/rbee/run/another/x.log":   confine.None,
		"/var/lib/rbee/hive/handles/x.json": confine.None,
		"/etc/rbee/node.key":                confine.None,
		"/etc/rbee/gossip.key":              confine.None,
		"/etc/rbee/operator.token":          confine.None,
		"/var/lib/rbee/.cache/mesa":         confine.None,
		"/var/lib/rbee/store/models/x":      confine.Read,
		"/opt/rbee/plugins/rbee-worker-cpu": confine.Read,
		self:                                confine.Read,
		"/etc/resolv.conf":                  confine.Read,
		"/etc/cron.d/x":                     confine.Read,
		"/var/spool/cron/x":                 confine.Read,
		"/srv/models/x.gguf":                confine.Read,
		"/dev/dri/renderD128":               confine.Full,
		"/tmp/x":                            confine.Full,
	} {
		must.Eq(t, want, walls.Rules.Access(path), must.Sprint(path))
	}
}

func TestPluginUser(t *testing.T) {
	t.Parallel()
	open := openDir(t)
	closed := filepath.Join(open, "closed")
	must.NoError(t, os.Mkdir(closed, 0o700))
	for _, tc := range []struct {
		name, user, data string
		problem          string // empty: another user
		err              string
	}{
		{"numbers", "", open + "/data", "", ""},
		{"a user", "nobody", open + "/data", "", ""},
		{"root", "root", open + "/data", "hive.plugin_user says so", ""},
		{"nobody by that name", "no-such-user", open + "/data", "", "there is no user \"no-such-user\""},
		{"a closed folder", "", closed + "/data", "plugins run as root: " + closed + " is closed to other users", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			cfg := &config.Config{DataDir: tc.data, PluginDir: open, Hive: config.Hive{PluginUser: tc.user}}
			walls, err := agent.PluginWalls(cfg, "", tc.data)
			if tc.err != "" {
				must.ErrorContains(t, err, tc.err)
				return
			}
			must.NoError(t, err)
			must.StrContains(t, walls.Problem, tc.problem)
			must.Eq(t, tc.problem == "", walls.User != nil)
			if tc.problem != "" {
				must.StrContains(t, walls.Problem, "plugins run as root")
				return
			}
			must.Eq(t, "", walls.Problem)
			cpu, file := walls.User("worker-cpu"), walls.User("catalog-file")
			must.Positive(t, cpu.UID)
			must.Eq(t, cpu, walls.User("worker-cpu"))
			must.Eq(t, cpu.GID, file.GID)
			if tc.user == "" {
				must.NotEq(t, cpu.UID, file.UID)
			}
		})
	}
}

// openDir returns a folder that every user may enter.
func openDir(t *testing.T) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("not tested: it needs root")
	}
	dir, err := os.MkdirTemp("", "open") //nolint:usetesting // t.TempDir is below a folder that only its owner may enter
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, os.RemoveAll(dir)) })
	must.NoError(t, os.Chmod(dir, 0o755))
	if err := (&confine.User{UID: 1 << 30, GID: 1 << 30}).Enters(dir); err != nil {
		t.Skipf("not tested: %v", err)
	}
	real, err := filepath.EvalSymlinks(dir)
	must.NoError(t, err)
	return real
}
