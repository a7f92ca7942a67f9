package gateway

import (
	"context"
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

// brokenAuth cannot tell.
type brokenAuth struct{}

func (brokenAuth) Authorize(_ context.Context, token string, _ core.Scope) (core.Token, error) {
	return core.Token{}, core.Errorf(core.Unavailable, "no answer about %s", token)
}
