package ssh

import (
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
)

// C-08: an accepted host key survives a loss of power: a user who is asked again might accept
// another key.
func TestPowerLossHostKeys(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		file := filepath.Join(dir, "ssh", "known_hosts")
		must.NoError(t, appendLine(file, "one ssh-ed25519 AAAA"))
		ack("the first key")
		must.NoError(t, appendLine(file, "two ssh-ed25519 AAAA"))
		ack("another key")
	}})
}
