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

func TestPluginRules(t *testing.T) {
	t.Setenv("HOME", "/var/lib/rbee")
	t.Setenv("XDG_CACHE_HOME", "")
	rules := agent.PluginRules(&config.Config{
		DataDir: "/var/lib/rbee", StoreDir: "/var/lib/rbee/store", PluginDir: "/opt/rbee/plugins",
		TLS:    config.TLS{KeyFile: "/etc/rbee/node.key"},
		Gossip: config.Gossip{KeyFile: "/etc/rbee/gossip.key"},
		Queen:  config.Queen{OperatorTokenFile: "/etc/rbee/operator.token"},
	})
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
		"/var/lib/rbee/store/models/x":      confine.Read,
		"/opt/rbee/plugins/rbee-worker-cpu": confine.Read,
		self:                                confine.Read,
		"/var/lib/rbee/.cache/mesa":         confine.Full,
		"/etc/resolv.conf":                  confine.Full,
		filepath.Dir("/home/models/x.gguf"): confine.Full,
		"/dev/dri/renderD128":               confine.Full,
	} {
		must.Eq(t, want, rules.Access(path), must.Sprint(path))
	}
}
