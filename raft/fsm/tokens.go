package fsm

import (
	"bytes"
	"maps"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

// MaxTokenUses bounds the uses in one TouchTokens.
const MaxTokenUses = 10_000

// RotateToken makes the command that gives an API token another secret, by its hash. The previous
// secret stays valid for overlap, in whole seconds. Repeating it changes nothing. Result: NotFound;
// Conflict for a token that is not an API token.
func RotateToken(id string, secretHash []byte, overlap time.Duration) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_RotateToken{RotateToken: &raftv1.RotateToken{
		Token: id, SecretHash: secretHash, OverlapSeconds: int64(overlap / time.Second),
	}}}
}

// EndOverlap makes the command that refuses the previous secret of a rotated token, by its hash,
// from now on. If the token has another previous secret, or none, it changes nothing.
func EndOverlap(id string, previousSecretHash []byte) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_EndOverlap{EndOverlap: &raftv1.EndOverlap{Token: id, PreviousSecretHash: previousSecretHash}}}
}

// TouchTokens makes the command that records when tokens were last used, by Token.ID. It skips
// missing tokens, and never sets a time back.
func TouchTokens(uses map[string]time.Time) *raftv1.Command {
	op := &raftv1.TouchTokens{}
	for _, id := range slices.Sorted(maps.Keys(uses)) {
		op.Uses = append(op.Uses, &raftv1.TokenUse{Token: id, UsedUnix: unixOf(uses[id])})
	}
	return &raftv1.Command{Op: &raftv1.Command_TouchTokens{TouchTokens: op}}
}

func (e *entry) rotateToken(op *raftv1.RotateToken) error {
	t, ok := e.Token(op.GetToken())
	switch {
	case !ok:
		return core.Errorf(core.NotFound, "rotate token: there is no token %q", op.GetToken()).Hint("See all with `rbee token list`.")
	case t.Kind != core.TokenAPI:
		return core.Errorf(core.Conflict, "rotate token: %s is a join token", t.ID).Hint("Make a new one: `rbee token create --type join`.")
	case bytes.Equal(t.SecretHash, op.GetSecretHash()):
		return nil // repeated
	}
	t.PreviousSecretHash, t.Overlap = nil, core.Duration(op.GetOverlapSeconds()*second)
	if t.Overlap > 0 {
		t.PreviousSecretHash = t.SecretHash
	}
	t.SecretHash, t.RotatedAt, t.ModifyIndex = bytes.Clone(op.GetSecretHash()), e.at, e.index
	e.PutToken(t)
	return nil
}

func (e *entry) endOverlap(op *raftv1.EndOverlap) {
	t, ok := e.Token(op.GetToken())
	if !ok || len(t.PreviousSecretHash) == 0 || !bytes.Equal(t.PreviousSecretHash, op.GetPreviousSecretHash()) {
		return
	}
	t.PreviousSecretHash, t.Overlap, t.ModifyIndex = nil, 0, e.index
	e.PutToken(t)
}

func (e *entry) touchTokens(op *raftv1.TouchTokens) {
	for _, use := range op.GetUses() {
		at := timeOf(use.GetUsedUnix())
		if t, ok := e.Token(use.GetToken()); ok && at.After(t.LastUsedAt) {
			t.LastUsedAt = at
			e.PutToken(t)
		}
	}
}

// keepSecret keeps the secret of a known token that was rotated after a snapshot: the previous one
// may have been replaced because it leaked.
func (e *entry) keepSecret(known core.Token) {
	t, ok := e.Token(known.ID)
	if !ok || !known.RotatedAt.After(t.RotatedAt) {
		return
	}
	t.SecretHash, t.PreviousSecretHash = known.SecretHash, known.PreviousSecretHash
	t.RotatedAt, t.Overlap, t.ModifyIndex = known.RotatedAt, known.Overlap, e.index
	e.PutToken(t)
}
