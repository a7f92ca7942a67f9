package fsm_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

func tokenIn(t *testing.T, f *fsm.FSM, id string) core.Token {
	t.Helper()
	token, ok := f.State().Snapshot().Token(nil, id)
	must.True(t, ok)
	return token
}

func TestRotateToken(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	index := uint64(0)
	do := func(c *raftv1.Command) error {
		index++
		must.NoError(t, fsm.Validate(c))
		return apply(t, f, index, c).Err
	}
	must.NoError(t, do(fsm.PutToken(apiToken("t1"))))
	must.NoError(t, do(fsm.PutToken(joinToken("j1"))))
	must.NoError(t, do(fsm.RotateToken("t1", hash(5), time.Hour)))
	token := tokenIn(t, f, "t1")
	must.Eq(t, hash(5), token.SecretHash)
	must.Eq(t, hash(1), token.PreviousSecretHash)
	must.Eq(t, core.Duration(time.Hour), token.Overlap)
	must.Eq(t, born, token.RotatedAt)

	must.NoError(t, do(fsm.EndOverlap("t1", hash(7)))) // another previous secret
	must.Eq(t, hash(1), tokenIn(t, f, "t1").PreviousSecretHash)
	must.NoError(t, do(fsm.EndOverlap("t1", hash(1))))
	token = tokenIn(t, f, "t1")
	must.Nil(t, token.PreviousSecretHash)
	must.Zero(t, token.Overlap)
	must.Eq(t, hash(5), token.SecretHash)

	must.NoError(t, do(fsm.RotateToken("t1", hash(6), 0)))
	token = tokenIn(t, f, "t1")
	must.Eq(t, hash(6), token.SecretHash)
	must.Nil(t, token.PreviousSecretHash, must.Sprint("without an overlap the former one goes at once"))

	must.Eq(t, core.NotFound, core.KindOf(do(fsm.RotateToken("nobody", hash(6), 0))))
	must.Eq(t, core.Conflict, core.KindOf(do(fsm.RotateToken("j1", hash(6), 0))))
}

// Using a token wakes its watchers but does not count as a change, and its time is never set back.
func TestTouchTokens(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	must.NoError(t, apply(t, f, 1, fsm.PutToken(apiToken("t1"))).Err)
	must.NoError(t, apply(t, f, 2, fsm.TouchTokens(map[string]time.Time{"t1": born.Add(time.Hour), "gone": born})).Err)
	must.NoError(t, apply(t, f, 3, fsm.TouchTokens(map[string]time.Time{"t1": born})).Err)
	token := tokenIn(t, f, "t1")
	must.Eq(t, born.Add(time.Hour), token.LastUsedAt)
	must.Eq(t, uint64(1), token.ModifyIndex)
	must.Len(t, 1, f.State().Snapshot().Tokens(nil))
}

// A snapshot from before a rotation does not restore the previous secret.
func TestRotationOutlastsRestore(t *testing.T) {
	t.Parallel()
	f := fsm.New()
	must.NoError(t, apply(t, f, 1, fsm.PutToken(apiToken("t1"))).Err)
	before := snapshot(t, f)
	must.NoError(t, apply(t, f, 2, fsm.RotateToken("t1", hash(5), 0)).Err)
	restored, err := fsm.ReadSnapshot(bytes.NewReader(before))
	must.NoError(t, err)
	must.NoError(t, fsm.KeepRevoked(restored, f.State().Snapshot()))
	token, ok := restored.Snapshot().Token(nil, "t1")
	must.True(t, ok)
	must.Eq(t, hash(5), token.SecretHash)
	must.Nil(t, token.PreviousSecretHash)
}

func TestTokenBounds(t *testing.T) {
	t.Parallel()
	limited := func(limits ...core.Limit) core.Token {
		return with(apiToken("t1"), func(t *core.Token) { t.Limits = limits })
	}
	requests := core.Limit{Of: core.LimitRequests, Count: 5, Per: time.Minute}
	must.NoError(t, fsm.Validate(fsm.PutToken(limited(requests, core.Limit{Of: core.LimitRequests, Count: 50, Per: time.Hour}))))
	for name, token := range map[string]core.Token{
		"twice the same":       limited(requests, requests),
		"no window":            limited(core.Limit{Of: core.LimitRequests, Count: 5}),
		"window of concurrent": limited(core.Limit{Of: core.LimitConcurrent, Count: 5, Per: time.Minute}),
		"nothing":              limited(core.Limit{Of: core.LimitTokens, Per: time.Minute}),
		"unknown":              limited(core.Limit{Of: "bananas", Count: 1, Per: time.Minute}),
		"join token":           with(joinToken("j"), func(t *core.Token) { t.Models = []string{"m"} }),
		"priority":             with(apiToken("t"), func(t *core.Token) { t.Priority = "urgent" }),
		"models":               with(apiToken("t"), func(t *core.Token) { t.Models = make([]string, core.MaxTokenModels+1) }),
	} {
		must.Error(t, fsm.Validate(fsm.PutToken(token)), must.Sprint(name))
	}
	// An older queen would accept it as a token without limits.
	must.Eq(t, uint32(3), fsm.Required(fsm.PutToken(limited(requests))))
	must.Eq(t, uint32(2), fsm.Required(fsm.PutToken(apiToken("t1"))))
}
