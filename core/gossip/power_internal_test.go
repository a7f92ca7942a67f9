package gossip

import (
	"path/filepath"
	"testing"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
)

// C-08: saved peers, and the removal of forgotten ones, survive a loss of power. The gossip keys
// are part of the identity (core/pki).
func TestPowerLossPeers(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		p, err := openPeers(filepath.Join(dir, "gossip"), hclog.NewNullLogger())
		must.NoError(t, err)
		for _, address := range []string{"127.0.0.1:1", "127.0.0.1:2"} {
			p.now.Peers = []peer{{ID: "a", Address: address}}
			p.keep()
			must.False(t, p.bad)
			ack("a node at " + address)
		}
		p.forgetAll()
		ack("nobody")
	}})
}
