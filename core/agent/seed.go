package agent

import (
	"os"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/token"
	"github.com/rbee-project/rbee/raft/node"
)

// beginning returns how a queen's raft starts without state, and what the queen writes to the
// registry of a new cluster; nil: nothing.
func beginning(cfg *config.Config, id *pki.Identity, now time.Time) (node.Bootstrap, *membership.Seed, error) {
	if cfg.TLS.Given() {
		seed, err := seedOfFiles(cfg, id, now)
		switch {
		case cfg.Queen.BootstrapExpect > 1:
			return node.Later, seed, err
		case len(cfg.Gossip.RetryJoin) > 0: // other queens exist: one of them adds this queen
			return node.Never, seed, err
		}
		return node.Alone, seed, err
	}
	stored, err := id.Seed()
	if err != nil || stored == nil {
		return node.Never, nil, err
	}
	return node.Alone, &membership.Seed{
		Cluster: core.Cluster{ID: id.Cluster(), Name: id.ClusterName(), CACertificates: stored.CAPEM, SealedCAKey: stored.SealedCAKey, SealedGossipKeys: stored.SealedGossipKeys},
		Token:   stored.Token, Node: nodeOf(id), Planted: id.DropSeed,
	}, nil
}

// seedOfFiles returns what a queen whose certificate comes from files writes to the registry:
// itself and, if the registry holds no cluster yet and the queen was given the first operator's
// token, the cluster.
func seedOfFiles(cfg *config.Config, id *pki.Identity, now time.Time) (*membership.Seed, error) {
	s := &membership.Seed{
		Cluster: core.Cluster{ID: id.Cluster(), CACertificates: id.CAPEM()}, Node: nodeOf(id), Planted: func() error { return nil },
	}
	path := cfg.Queen.OperatorTokenFile
	if path == "" {
		return s, nil
	}
	const hint = "\"rbee tls ca create\" makes one: operator.token. Check queen { operator_token_file = … }."
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Invalid, "read the operator token"), hint)
	}
	p, err := token.Parse(strings.TrimSpace(string(b)))
	if err != nil || p.Kind != core.TokenAPI {
		return nil, core.Errorf(core.Invalid, "read the operator token: %s does not hold an API token", path).Hint(hint)
	}
	s.Token = core.Token{ID: p.ID, Name: "operator", Kind: core.TokenAPI, SecretHash: token.Hash(p.Secret), Scopes: core.Scopes(), CreatedAt: now.UTC().Truncate(time.Second)}
	return s, nil
}

// nodeOf returns this machine's entry in the registry.
func nodeOf(id *pki.Identity) core.Node {
	n := id.Node()
	return core.Node{
		ID: n.ID, Name: n.Name, Roles: n.Roles, RPCAddress: id.RPCAddress(), KeyHash: n.KeyHash, CertificateExpiresAt: n.NotAfter.UTC().Truncate(time.Second),
	}
}
