package cli

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest/disktrace"
)

// C-08: a saved snapshot and written keys are on disk when the command ends.
func TestPowerLossFiles(t *testing.T) {
	disktrace.Check(t, disktrace.Scenario{Run: func(t *testing.T, dir string, ack func(string)) {
		for _, force := range []bool{false, true} {
			f, err := os.CreateTemp(dir, ".registry-*")
			must.NoError(t, err)
			_, err = f.WriteString("snapshot")
			must.NoError(t, err)
			must.NoError(t, publishSnapshot(f, filepath.Join(dir, "registry"), force))
			must.NoError(t, f.Close())
			ack("a snapshot")
		}
		_, err := writeNewFiles(filepath.Join(dir, "tls", "ca"), []file{{"ca-key.pem", []byte("key"), 0o600}, {"ca.pem", []byte("cert"), 0o644}})
		must.NoError(t, err)
		ack("keys")
		must.NoError(t, replaceFile(filepath.Join(dir, "tls", "ca", "ca.pem"), []byte("new")))
		ack("a certificate")
	}})
}
