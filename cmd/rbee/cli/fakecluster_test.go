package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
)

var (
	_ gateway.Reader     = (*fakeQueen)(nil)
	_ gateway.Authorizer = (*fakeQueen)(nil)
	_ gateway.Admin      = (*fakeQueen)(nil)
)

// fakeCluster is what a fakeQueen knows of its cluster. The queen's mutex guards it.
type fakeCluster struct {
	queens   []core.Queen
	nodes    []core.Node
	tokens   []core.Token
	keys     []string // fingerprints, the primary first
	draining bool
	restored string
	changes  []string // what was asked to be changed, in order
	reads    []core.Consistency
}

func newFakeCluster() fakeCluster {
	return fakeCluster{
		queens: []core.Queen{
			{ID: "aaaaaaaa", RaftID: "aaaaaaaa.11111111", Name: "ant", Address: "10.0.0.1:7834", HTTPAddress: "10.0.0.1:7833", Version: "1.2.3", Leader: true, Voter: true, Gossip: "alive"},
			{ID: "bbbbbbbb", RaftID: "bbbbbbbb.22222222", Name: "bat", Address: "10.0.0.2:7834", HTTPAddress: "10.0.0.2:7833", Version: "1.2.3", Voter: true, Gossip: "alive"},
			{ID: "cccccccc", RaftID: "cccccccc.33333333", Name: "cat", Address: "10.0.0.3:7834", Version: "1.2.3", Voter: true, Gossip: "failed"},
		},
		nodes: []core.Node{
			{ID: "aaaaaaaa", Name: "ant", Roles: []core.Role{core.RoleQueen, core.RoleHive}, RPCAddress: "10.0.0.1:7834", CertificateExpiresAt: fakeStart.Add(48*time.Hour + 30*time.Minute), CreateIndex: 1, ModifyIndex: 1},
			{ID: "bbbbbbbb", Name: "bat", Roles: []core.Role{core.RoleQueen}, RPCAddress: "10.0.0.2:7834", CertificateExpiresAt: fakeStart.Add(-time.Hour), CreateIndex: 2, ModifyIndex: 2},
			{ID: "dddddddd", Name: "dog", Roles: []core.Role{core.RoleHive}, RPCAddress: "10.0.0.4:7834", Revoked: true, CreateIndex: 3, ModifyIndex: 3},
		},
		tokens: []core.Token{{ID: "aaaaaaaaaa", Name: "operator", Kind: core.TokenAPI, Scopes: core.Scopes(), CreatedAt: fakeStart, CreateIndex: 1, ModifyIndex: 1}},
		keys:   []string{"1111111111111111", "2222222222222222"},
	}
}

func (q *fakeQueen) change(format string, args ...any) {
	q.cluster.changes = append(q.cluster.changes, fmt.Sprintf(format, args...))
}

func (q *fakeQueen) Sync(_ context.Context, c core.Consistency) (core.ReadInfo, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.cluster.reads = append(q.cluster.reads, c)
	switch {
	case c == core.ConsistencyStale && q.down:
		return core.ReadInfo{Index: 42, LastContact: core.Duration(3 * time.Second), Stale: true}, nil
	case c == core.ConsistencyStale:
		return core.ReadInfo{Index: 42, Leader: "aaaaaaaa", LastContact: core.Duration(20 * time.Millisecond), Stale: true}, nil
	case q.down:
		return core.ReadInfo{}, core.Errorf(core.Unavailable, "there is no leader")
	}
	return core.ReadInfo{Index: 42, Leader: "aaaaaaaa"}, nil
}

func (q *fakeQueen) Authorize(_ context.Context, text string, scope core.Scope) (core.Token, error) {
	p, err := token.Parse(text)
	if err != nil {
		return core.Token{}, err
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range q.cluster.tokens {
		switch {
		case t.ID != p.ID || !p.Matches(t.SecretHash):
		case !t.Allows(scope):
			return core.Token{}, core.Errorf(core.Forbidden, "no %s", scope)
		default:
			return t, nil
		}
	}
	return core.Token{}, core.Errorf(core.Unauthenticated, "unknown token")
}

func (q *fakeQueen) Queens(context.Context) ([]core.Queen, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.cluster.queens), nil
}

func (q *fakeQueen) RemoveQueen(_ context.Context, id string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.change("remove %s", id)
	q.cluster.queens = slices.DeleteFunc(q.cluster.queens, func(x core.Queen) bool { return x.RaftID == id })
	return nil
}

func (q *fakeQueen) TransferLeadership(_ context.Context, to string) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if to == "cat" {
		return core.Errorf(core.Unavailable, "queen cat does not answer").Hint("Choose another one.")
	}
	q.change("transfer to %q", to)
	for i, x := range q.cluster.queens {
		q.cluster.queens[i].Leader = x.Name == orElse(to, "bat")
	}
	return nil
}

func (q *fakeQueen) Nodes(context.Context) ([]core.Node, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.cluster.nodes), nil
}

func (q *fakeQueen) node(id string) *core.Node {
	for i := range q.cluster.nodes {
		if q.cluster.nodes[i].ID == id {
			return &q.cluster.nodes[i]
		}
	}
	return &core.Node{}
}

func (q *fakeQueen) RevokeNode(_ context.Context, id string) (core.Node, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.change("revoke node %s", id)
	q.node(id).Revoked = true
	return *q.node(id), nil
}

func (q *fakeQueen) LeaveNode(_ context.Context, id string) (core.Node, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if id == "bbbbbbbb" {
		return core.Node{}, core.Errorf(core.Unavailable, "bat does not answer")
	}
	q.change("leave %s", id)
	return *q.node(id), nil
}

func (q *fakeQueen) Tokens(context.Context) ([]core.Token, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.cluster.tokens), nil
}

func (q *fakeQueen) CreateToken(_ context.Context, r core.TokenRequest) (core.NewToken, error) {
	id, hash, text := token.New()
	if r.Kind == core.TokenJoin {
		id, hash, text = token.NewJoin(strings.Repeat("a", 52))
		r.TTL = cmp.Or(r.TTL, core.Duration(time.Hour))
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.change("create token %s", oneLine(r))
	t := core.Token{ID: id, Name: r.Name, Kind: r.Kind, SecretHash: hash, Scopes: r.Scopes, Roles: r.Roles, CreatedAt: time.Now(), TTL: r.TTL}
	q.cluster.tokens = append(q.cluster.tokens, t)
	return core.NewToken{Token: t, Secret: text}, nil
}

func (q *fakeQueen) RevokeToken(_ context.Context, id string) (core.Token, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.change("revoke token %s", id)
	for i, t := range q.cluster.tokens {
		if t.ID == id {
			q.cluster.tokens = slices.Delete(q.cluster.tokens, i, i+1)
			return t, nil
		}
	}
	return core.Token{}, core.Errorf(core.NotFound, "no token %q", id)
}

func (q *fakeQueen) DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error) {
	q.mu.Lock()
	q.change("drain %s %v", hive, drain)
	q.cluster.draining = drain
	q.mu.Unlock()
	return q.Hive(ctx, hive)
}

func (q *fakeQueen) RefreshHive(ctx context.Context, hive string) (core.RefreshResult, error) {
	h, err := q.Hive(ctx, hive)
	return core.RefreshResult{
		Before: h.Devices, After: append([]core.Device{{ID: "cuda:0", Kind: "cuda", Name: "Some GPU", TotalBytes: 24 << 30}}, h.Devices...),
		WorkerTypesBefore: []string{"cpu", "metal"}, WorkerTypesAfter: h.WorkerTypes,
	}, err
}

func (q *fakeQueen) HiveHealth(ctx context.Context, hive string) (core.HiveHealth, error) {
	h, err := q.Hive(ctx, hive)
	return core.HiveHealth{Hive: h, Problem: "connection refused", Queens: []core.HiveSight{
		{Queen: "bbbbbbbb", Gossip: "failed", Problem: "no line for 7s"},
		{Queen: "aaaaaaaa", Linked: true, Heard: true, Silence: core.Duration(120 * time.Millisecond), Gossip: "alive"},
	}}, err
}

func (q *fakeQueen) SaveSnapshot(_ context.Context, w io.Writer) error {
	_, err := io.WriteString(w, "no snapshot at all")
	return err
}

func (q *fakeQueen) RestoreSnapshot(_ context.Context, r io.Reader) (core.SnapshotInfo, error) {
	b, err := io.ReadAll(r)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.cluster.restored = string(b)
	q.change("restore %d bytes", len(b))
	return core.SnapshotInfo{Format: 1, FSM: 2, Index: 7, Cluster: "ccc"}, err
}

func (q *fakeQueen) Keyring(context.Context) (core.Keyring, error) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return core.Keyring{Primary: q.cluster.keys[0], Keys: slices.Clone(q.cluster.keys)}, nil
}

func (q *fakeQueen) ChangeKeyring(ctx context.Context, c core.KeyringChange) (core.Keyring, error) {
	q.mu.Lock()
	q.change("keyring %s", oneLine(c))
	switch {
	case c.Action == "install":
		q.cluster.keys = append(q.cluster.keys, "3333333333333333")
	case c.Action == "remove" && c.Fingerprint == q.cluster.keys[0]:
		q.mu.Unlock()
		return core.Keyring{}, core.Errorf(core.InUse, "the key is in use").Hint("Use another one first.")
	case c.Action == "remove":
		q.cluster.keys = slices.DeleteFunc(q.cluster.keys, func(k string) bool { return k == c.Fingerprint })
	}
	q.mu.Unlock()
	return q.Keyring(ctx)
}

// secure has the queen serve a cluster: over TLS, and to tokens only. The identity is in the data
// folder of the script, and agent.json says where.
func (q *fakeQueen) secure(ts *testscript.TestScript) {
	data := filepath.Join(ts.Getenv("XDG_DATA_HOME"), "rbee")
	id, hash, text := token.New()
	operator := core.Token{ID: id, Name: "operator", Kind: core.TokenAPI, Scopes: core.Scopes(), SecretHash: hash, CreatedAt: fakeStart}
	made, err := pki.Init(data, pki.InitOptions{Name: "hill", NodeID: "aaaaaaaa", NodeName: "ant", RPCAddress: "127.0.0.1:7834", Roles: []core.Role{core.RoleQueen, core.RoleHive}, Token: operator, Now: time.Now()})
	ts.Check(err)
	reader, _, readText := token.New()
	q.mu.Lock()
	q.cluster.tokens = []core.Token{operator}
	q.mu.Unlock()
	p, err := token.Parse(readText)
	ts.Check(err)
	q.mu.Lock()
	q.cluster.tokens = append(q.cluster.tokens, core.Token{ID: reader, Name: "reader", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeRead}, SecretHash: token.Hash(p.Secret), CreatedAt: fakeStart})
	q.mu.Unlock()
	asker, askHash, askText := token.New()
	q.mu.Lock()
	q.cluster.tokens = append(q.cluster.tokens, core.Token{ID: asker, Name: "asker", Kind: core.TokenAPI, Scopes: []core.Scope{core.ScopeInfer}, SecretHash: askHash, CreatedAt: fakeStart})
	q.mu.Unlock()
	s := httptest.NewUnstartedServer(gateway.New(gateway.Options{Inference: q.answers, Cluster: q, Jobs: q, Auth: q, Reader: q, Admin: q, Version: "1.2.3"}).Handler())
	s.TLS = &tls.Config{Certificates: []tls.Certificate{*made.Identity.Certificate()}}
	s.StartTLS()
	ts.Defer(s.Close)
	record, err := json.Marshal(map[string]any{"pid": os.Getpid(), "http_address": s.Listener.Addr().String(), "scheme": "https"})
	ts.Check(err)
	ts.Check(os.WriteFile(filepath.Join(data, "agent.json"), record, 0o600))
	ts.Setenv("SECURE", s.Listener.Addr().String())
	ts.Setenv("OPERATOR", text)
	ts.Setenv("READER", readText)
	ts.Setenv("ASKER", askText)
	ts.Setenv("RBEE_ADDR", "")
}
