package agent

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/config"
)

func TestNeedRestart(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rbee.hcl")
	load := func(hive string) *config.Config {
		must.NoError(t, os.WriteFile(file, []byte("data_dir = \"data\"\nqueen {\n  enabled = true\n}\n"+hive), 0o600))
		cfg, diags := config.Load([]string{file}, func(string) (string, bool) { return "", false })
		must.NoError(t, diags.Err())
		return cfg
	}
	running := load("hive {\n  enabled = true\n}\n")
	must.SliceEmpty(t, needRestart(running, running))
	all := load(`log_level = "debug"
hive {
  enabled      = true
  slots        = 9
  keep_workers = false
  download {
    rate_limit  = "1MiB"
    connections = 7
  }
}
`)
	must.Eq(t, []string{"hive.keep_workers", "hive.download.connections"}, needRestart(running, all))
}
