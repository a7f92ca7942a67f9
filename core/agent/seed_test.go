package agent

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/raft/node"
)

// filesOf returns the files of a queen whose certificate was made by hand.
func filesOf(t *testing.T, ttl time.Duration) (config.TLS, *pki.CA) {
	t.Helper()
	ca, err := pki.NewCA("00112233445566ff", "hill", time.Now())
	must.NoError(t, err)
	key, err := pki.NewKey()
	must.NoError(t, err)
	csr, err := pki.NewRequest(key, "aaaaaaaa")
	must.NoError(t, err)
	cert, _, err := ca.Sign(csr, pki.Node{Cluster: ca.Cluster(), ID: "aaaaaaaa", Name: "ant", Roles: []core.Role{core.RoleQueen}}, []string{"127.0.0.1"}, ttl, time.Now())
	must.NoError(t, err)
	dir := t.TempDir()
	files := config.TLS{CAFile: filepath.Join(dir, "ca.pem"), CertFile: filepath.Join(dir, "ant.pem"), KeyFile: filepath.Join(dir, "ant.key")}
	for path, data := range map[string][]byte{files.CAFile: ca.CertPEM(), files.CertFile: cert, files.KeyFile: key} {
		must.NoError(t, os.WriteFile(path, data, 0o600))
	}
	return files, ca
}

// A queen with certificates from files starts together with others, by being added, or alone.
func TestBeginningWithFiles(t *testing.T) {
	t.Parallel()
	files, ca := filesOf(t, time.Hour)
	id, err := pki.LoadFiles(pki.Files{CA: files.CAFile, Certificate: files.CertFile, Key: files.KeyFile, Name: "ant", RPCAddress: "127.0.0.1:7834"})
	must.NoError(t, err)
	_, hash, text := token.New()
	_, _, joinText := token.NewJoin(ca.Fingerprint())
	file := func(content string) string {
		path := filepath.Join(t.TempDir(), "operator.token")
		must.NoError(t, os.WriteFile(path, []byte(content), 0o600))
		return path
	}
	for name, tt := range map[string]struct {
		queen config.Queen
		join  []string
		want  node.Bootstrap
		token bool
		fails bool
	}{
		"three together":          {queen: config.Queen{BootstrapExpect: 3, OperatorTokenFile: file(text + "\n")}, join: []string{"10.0.0.2"}, want: node.Later, token: true},
		"three, without a token":  {queen: config.Queen{BootstrapExpect: 3}, want: node.Later},
		"one that is added":       {queen: config.Queen{BootstrapExpect: 1}, join: []string{"10.0.0.2"}, want: node.Never},
		"one that begins":         {queen: config.Queen{BootstrapExpect: 1, OperatorTokenFile: file(text)}, want: node.Alone, token: true},
		"no such file":            {queen: config.Queen{BootstrapExpect: 1, OperatorTokenFile: filepath.Join(t.TempDir(), "x")}, fails: true},
		"not a token":             {queen: config.Queen{BootstrapExpect: 1, OperatorTokenFile: file("secret")}, fails: true},
		"a token of another kind": {queen: config.Queen{BootstrapExpect: 1, OperatorTokenFile: file(joinText)}, fails: true},
	} {
		got, seed, err := beginning(&config.Config{TLS: files, Queen: tt.queen, Gossip: config.Gossip{RetryJoin: tt.join}}, id, time.Now())
		if tt.fails {
			must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(name))
			must.StrContains(t, core.HintOf(err), "rbee tls ca create", must.Sprint(name))
			continue
		}
		must.NoError(t, err, must.Sprint(name))
		must.Eq(t, tt.want, got, must.Sprint(name))
		must.Eq(t, tt.token, seed.Token.ID != "", must.Sprint(name))
		must.Eq(t, "aaaaaaaa", seed.Node.ID)
		must.Eq(t, ca.Cluster(), seed.Cluster.ID)
		must.SliceEmpty(t, seed.Cluster.SealedCAKey)
		if tt.token {
			must.Eq(t, hash, seed.Token.SecretHash)
			must.Eq(t, core.Scopes(), seed.Token.Scopes)
		}
	}
}
