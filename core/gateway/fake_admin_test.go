package gateway

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// fakeAuth knows some tokens. Its errors repeat the token, which the gateway must not.
type fakeAuth struct {
	mu     sync.Mutex // guards below
	tokens map[string]core.Token
	asked  int
}

func (f *fakeAuth) Authorize(_ context.Context, token string, scope core.Scope) (core.Token, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.asked++
	t, ok := f.tokens[token]
	switch {
	case !ok || t.Kind != core.TokenAPI:
		return core.Token{}, core.Errorf(core.Unauthenticated, "no token %s", token).Hint("What is %s?", token)
	case !t.Allows(scope):
		return core.Token{}, core.Errorf(core.Forbidden, "%s may not", token)
	}
	return t, nil
}

func (f *fakeAuth) looks() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.asked
}

// fakeReader has a leader unless gone is set.
type fakeReader struct {
	mu    sync.Mutex // guards below
	gone  error      // of every read but stale ones
	hang  bool       // such reads end with their context
	asked []core.Consistency
}

func (f *fakeReader) Sync(ctx context.Context, c core.Consistency) (core.ReadInfo, error) {
	f.mu.Lock()
	f.asked = append(f.asked, c)
	gone, hang := f.gone, f.hang
	f.mu.Unlock()
	switch {
	case c == core.ConsistencyStale && gone == nil:
		return core.ReadInfo{Index: 7, Leader: "q1", LastContact: core.Duration(20 * time.Millisecond), Stale: true}, nil
	case c == core.ConsistencyStale:
		return core.ReadInfo{Index: 7, LastContact: core.Duration(3 * time.Second), Stale: true}, nil
	case hang:
		<-ctx.Done()
		return core.ReadInfo{}, ctx.Err()
	case gone != nil:
		return core.ReadInfo{}, gone
	}
	return core.ReadInfo{Index: 9, Leader: "q1", LastContact: core.Duration(20 * time.Millisecond)}, nil
}

func (f *fakeReader) reads() []core.Consistency {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.asked)
}

// fakeAdmin does nothing, and writes down what.
type fakeAdmin struct {
	mu       sync.Mutex // guards below
	done     []string
	err      error // of everything
	snapshot func(w io.Writer) error
	restored []byte
}

func (f *fakeAdmin) note(what string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.done = append(f.done, what)
	return f.err
}

func (f *fakeAdmin) log() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.done)
}

func (f *fakeAdmin) Queens(context.Context) ([]core.Queen, error) {
	return []core.Queen{{ID: "q1", Leader: true}}, f.note("queens")
}

func (f *fakeAdmin) RemoveQueen(_ context.Context, id string) error { return f.note("remove " + id) }

func (f *fakeAdmin) TransferLeadership(_ context.Context, to string) error {
	return f.note("transfer " + to)
}

func (f *fakeAdmin) Nodes(context.Context) ([]core.Node, error) {
	return []core.Node{{ID: "n1", KeyHash: []byte("hidden")}}, f.note("nodes")
}

func (f *fakeAdmin) RevokeNode(_ context.Context, id string) (core.Node, error) {
	return core.Node{ID: id, Revoked: true}, f.note("revoke node " + id)
}

func (f *fakeAdmin) LeaveNode(_ context.Context, id string) (core.Node, error) {
	return core.Node{ID: id}, f.note("leave " + id)
}

func (f *fakeAdmin) Tokens(context.Context) ([]core.Token, error) {
	return []core.Token{{ID: "t1", SecretHash: []byte("hidden")}}, f.note("tokens")
}

func (f *fakeAdmin) CreateToken(_ context.Context, r core.TokenRequest) (core.NewToken, error) {
	return core.NewToken{Token: core.Token{ID: "t2", Kind: r.Kind, Scopes: r.Scopes, TTL: r.TTL}, Secret: "rbee_t2_secret"}, f.note("create " + r.Name)
}

func (f *fakeAdmin) RevokeToken(_ context.Context, id string) (core.Token, error) {
	return core.Token{ID: id}, f.note("revoke token " + id)
}

func (f *fakeAdmin) DrainHive(_ context.Context, hive string, drain bool) (core.Hive, error) {
	what := "fill "
	if drain {
		what = "drain "
	}
	return core.Hive{ID: hive, Draining: drain}, f.note(what + hive)
}

func (f *fakeAdmin) RefreshHive(_ context.Context, hive string) (core.RefreshResult, error) {
	return core.RefreshResult{After: []core.Device{{ID: "cpu"}}}, f.note("refresh " + hive)
}

func (f *fakeAdmin) HiveHealth(_ context.Context, hive string) (core.HiveHealth, error) {
	return core.HiveHealth{Hive: core.Hive{ID: hive}, Reachable: true, Queens: []core.HiveSight{{Queen: "q1"}}}, f.note("health " + hive)
}

func (f *fakeAdmin) SaveSnapshot(_ context.Context, w io.Writer) error {
	if err := f.note("save"); err != nil {
		return err
	}
	if f.snapshot != nil {
		return f.snapshot(w)
	}
	_, err := io.WriteString(w, "snapshot")
	return err
}

func (f *fakeAdmin) RestoreSnapshot(_ context.Context, r io.Reader) (core.SnapshotInfo, error) {
	if err := f.note("restore"); err != nil {
		return core.SnapshotInfo{}, err
	}
	b, err := io.ReadAll(r)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.restored = b
	return core.SnapshotInfo{Format: 2, Index: uint64(len(b))}, core.WithKind(err, core.Integrity)
}

func (f *fakeAdmin) Keyring(context.Context) (core.Keyring, error) {
	return core.Keyring{Primary: "k1", Keys: []string{"k1", "k2"}}, f.note("keyring")
}

func (f *fakeAdmin) ChangeKeyring(_ context.Context, c core.KeyringChange) (core.Keyring, error) {
	return core.Keyring{Primary: c.Fingerprint}, f.note(c.Action + " " + c.Fingerprint)
}

// brokenAuth cannot tell.
type brokenAuth struct{}

func (brokenAuth) Authorize(_ context.Context, token string, _ core.Scope) (core.Token, error) {
	return core.Token{}, core.Errorf(core.Unavailable, "no answer about %s", token)
}
