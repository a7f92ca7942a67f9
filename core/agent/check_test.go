package agent

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// memberDir returns the data folder of a machine that is in a cluster.
func memberDir(t *testing.T, roles ...core.Role) string {
	t.Helper()
	dir := t.TempDir()
	ca, err := pki.NewCA("00112233445566ff", "", time.Now())
	must.NoError(t, err)
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, "aaaaaaaa")
	must.NoError(t, err)
	cert, _, err := ca.Sign(csr, pki.Node{Cluster: ca.Cluster(), ID: "aaaaaaaa", Roles: roles}, nil, time.Hour, time.Now())
	must.NoError(t, err)
	_, err = pki.Create(dir, pki.Material{Name: "ant", RPCAddress: "127.0.0.1:7834", CAPEM: ca.CertPEM(), NodePEM: cert, Key: key, GossipKeys: [][]byte{make([]byte, 32)}})
	must.NoError(t, err)
	return dir
}

// Check reports whatever keeps an agent from starting, in the same words as Run.
func TestCheckMatchesRun(t *testing.T) {
	t.Parallel()
	files, _ := filesOf(t, time.Hour)
	tlsBlock := func(f config.TLS) string {
		return fmt.Sprintf("tls {\n ca_file = %q\n cert_file = %q\n key_file = %q\n}\n", f.CAFile, f.CertFile, f.KeyFile)
	}
	const both, queen, hive = "queen {\n enabled = true\n}\nhive {\n enabled = true\n}\n", "queen {\n enabled = true\n}\n", "hive {\n enabled = true\n}\n"
	for name, tt := range map[string]struct {
		file, dir, says string
	}{
		"open without TLS":     {both + "bind {\n address = \"0.0.0.0\"\n http_port = 0\n}\n", "", "Open without TLS"},
		"no CA file":           {queen + tlsBlock(config.TLS{CAFile: "/nowhere/ca.pem", CertFile: files.CertFile, KeyFile: files.KeyFile}), "", "/nowhere/ca.pem"},
		"no certificate":       {queen + tlsBlock(config.TLS{CAFile: files.CAFile, CertFile: "/nowhere/cert.pem", KeyFile: files.KeyFile}), "", "/nowhere/cert.pem"},
		"no key":               {queen + tlsBlock(config.TLS{CAFile: files.CAFile, CertFile: files.CertFile, KeyFile: "/nowhere/key.pem"}), "", "/nowhere/key.pem"},
		"no gossip key":        {queen + tlsBlock(files), "", "there is no gossip key"},
		"no gossip key file":   {queen + tlsBlock(files) + "gossip {\n key_file = \"/nowhere/gossip.key\"\n}\n", "", "/nowhere/gossip.key"},
		"no operator token":    {"queen {\n enabled = true\n operator_token_file = \"/nowhere/token\"\n}\n" + tlsBlock(files), "", "/nowhere/token"},
		"no plugin folder":     {both + "plugin_dir = \"/nowhere/plugins\"\n", "", "/nowhere/plugins"},
		"no plugin":            {both + "worker \"nothere\" {\n}\n", "", "rbee-worker-nothere"},
		"a hive alone":         {hive, "", "queen and hive in one"},
		"a queen alone":        {queen, "", "queen and hive in one"},
		"a hive made a queen":  {both, memberDir(t, core.RoleHive), "not a queen as queen.enabled"},
		"a queen made a hive":  {both, memberDir(t, core.RoleQueen), "not a hive as hive.enabled"},
		"a queen that ends so": {"queen {\n enabled = false\n}\n" + hive, memberDir(t, core.RoleQueen, core.RoleHive), "would still count on its vote"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := tt.dir
			if dir == "" {
				dir = t.TempDir()
			}
			cfg := configOf(t, dir, tt.file)
			plugins := pluginhost.New(pluginhost.Options{PluginDir: cfg.PluginDir, Logger: hclog.NewNullLogger()})
			found := Check(t.Context(), cfg, plugins).Err()
			must.ErrorContains(t, found, tt.says)
			err := Run(t.Context(), cfg, Options{Version: "test"})
			must.ErrorContains(t, err, tt.says)
		})
	}
}

func TestCheckFindsNothing(t *testing.T) {
	t.Parallel()
	for name, dir := range map[string]string{"alone": t.TempDir(), "in a cluster": memberDir(t, core.RoleQueen, core.RoleHive)} {
		must.Len(t, 0, Check(t.Context(), configOf(t, dir, "hive {\n slots = 2\n}\n"), nil).List, must.Sprint(name))
	}
}

func configOf(t *testing.T, dir, text string) *config.Config {
	t.Helper()
	file := filepath.Join(t.TempDir(), "rbee.hcl")
	must.NoError(t, os.WriteFile(file, []byte(fmt.Sprintf("data_dir = %q\nstore_dir = %q\n", dir, t.TempDir())+text), 0o600))
	cfg, diags := config.Load([]string{file}, func(string) (string, bool) { return "", false })
	must.NoError(t, diags.Err())
	if !strings.Contains(text, "http_port") {
		cfg.Bind.HTTPPort = 0
	}
	return cfg
}
