package fsm

import (
	"bytes"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

func (e *entry) initCluster(op *raftv1.InitCluster) error {
	c := clusterFromProto(op.GetCluster())
	if c.ID == "" {
		return core.Errorf(core.Invalid, "init cluster: the cluster has no id")
	}
	if old, ok := e.Cluster(); ok {
		if old.ID == c.ID {
			return nil // its keys and tokens may have changed since
		}
		return core.Errorf(core.Conflict, "init cluster: this registry belongs to cluster %s (%s), not to %s (%s)", old.ID, old.Name, c.ID, c.Name).Hint(
			"A queen of another cluster starts with an empty data_dir.")
	}
	c.CreateIndex, c.ModifyIndex = e.index, e.index
	e.PutCluster(c)
	if op.GetToken() != nil {
		if err := e.putToken(op.GetToken()); err != nil {
			return err
		}
	}
	if op.GetNode() != nil {
		return e.putNode(&raftv1.PutNode{Node: op.GetNode()})
	}
	return nil
}

func (e *entry) putNode(op *raftv1.PutNode) error {
	n := nodeFromProto(op.GetNode())
	n.Revoked = false
	if n.ID == "" {
		return core.Errorf(core.Invalid, "put node: the node has no id")
	}
	token, err := e.joinToken(op, n)
	if err != nil {
		return err
	}
	old, known := e.Node(n.ID)
	switch {
	case known && old.Revoked:
		return core.Errorf(core.Conflict, "put node: node %s (%s) is revoked", old.ID, old.Name).Hint(
			"It never comes back under this id: remove the data_dir/node-id of the machine's agent and let it join with a new token.")
	case known && !bytes.Equal(old.KeyHash, n.KeyHash):
		return core.Errorf(core.Conflict, "put node: node %s (%s) is in the cluster with another key", old.ID, old.Name).Hint(
			"Two machines have one node id, or this one lost its key: remove the data_dir/node-id of its agent and let it join with a new token.")
	case known && op.GetKeepRoles() && !within(n.Roles, old.Roles):
		return widens(old, n.Roles)
	}
	if other, ok := e.NodeNamed(n.Name); ok && other.ID != n.ID && !other.Revoked {
		return core.Errorf(core.Conflict, "put node: node %s has the name %q already", other.ID, other.Name).Hint("Give this node another name.")
	}
	n.CreateIndex, n.ModifyIndex = e.index, e.index
	if known {
		n.CreateIndex, n.ModifyIndex = old.CreateIndex, old.ModifyIndex
	}
	if !known || !sameNode(n, old) {
		n.ModifyIndex = e.index
		e.PutNode(n)
	}
	if token.ID != "" && token.UsedBy == "" {
		token.UsedBy, token.UsedKeyHash, token.ModifyIndex = n.ID, n.KeyHash, e.index
		if op.GetBindToken() {
			token.UsedAt = e.at
		}
		e.PutToken(token)
	}
	return nil
}

// joinToken returns the join token that admits the node, or the zero token if none is named.
func (e *entry) joinToken(op *raftv1.PutNode, n core.Node) (core.Token, error) {
	id := op.GetJoinToken()
	if id == "" {
		return core.Token{}, nil
	}
	token, ok := e.Token(id)
	if !ok || token.Kind != core.TokenJoin {
		return core.Token{}, badToken("there is no join token %q, or no longer", id)
	}
	if op.GetBindToken() {
		old, _ := e.Node(n.ID)
		return token, CheckJoin(token, n, old, e.at)
	}
	if token.UsedBy != "" && (token.UsedBy != n.ID || !bytes.Equal(token.UsedKeyHash, n.KeyHash)) {
		return core.Token{}, badToken("join token %s was used by another machine", id)
	}
	return token, checkRoles(token, n)
}

// JoinRepeat bounds how long after its first use a join token lets the same machine repeat a call
// whose answer may have been lost.
const JoinRepeat = 5 * time.Minute

// CheckJoin returns why a join token does not admit node n at the time at, or nil if it does. The
// first use of a token binds it to the node's id, name, roles, address and key, which are in
// registered, the registry's entry with the node's id. Errors: Unauthenticated for a used token,
// unless it is a repetition within JoinRepeat; Forbidden for a role that the token does not grant,
// or that a registered node does not have.
func CheckJoin(t core.Token, n, registered core.Node, at time.Time) error {
	switch {
	case t.UsedBy != "" && (t.UsedBy != n.ID || !bytes.Equal(t.UsedKeyHash, n.KeyHash)):
		return badToken("join token %s was used already, by node %s", t.ID, t.UsedBy)
	case t.UsedBy != "" && (t.UsedAt.IsZero() || at.Sub(t.UsedAt).Abs() > JoinRepeat):
		return badToken("join token %s was used already, more than %s ago", t.ID, JoinRepeat)
	case t.UsedBy != "" && !sameMachine(n, registered):
		return badToken("join token %s was used already, by this node with another name, address or roles", t.ID)
	case registered.ID != "" && !within(n.Roles, registered.Roles):
		return widens(registered, n.Roles)
	}
	return checkRoles(t, n)
}

func checkRoles(t core.Token, n core.Node) error {
	for _, r := range n.Roles {
		if len(t.Roles) > 0 && !slices.Contains(t.Roles, r) {
			return core.Errorf(core.Forbidden, "put node: join token %s is not for a %s", t.ID, r).Hint(
				"Make one that is: `rbee token create --type join --role %s`, or join in another role.", r)
		}
	}
	return nil
}

// within reports whether every role of a node is one of those allowed.
func within(roles, allowed []core.Role) bool {
	return !slices.ContainsFunc(roles, func(r core.Role) bool { return !slices.Contains(allowed, r) })
}

func widens(old core.Node, roles []core.Role) error {
	return core.Errorf(core.Forbidden, "put node: node %s (%s) is registered as %v and cannot become %v", old.ID, old.Name, old.Roles, roles).Hint(
		"Have it leave, `rbee cluster leave %s`, and join again with a token for the new role.", old.ID)
}

// sameMachine compares what a machine reports about itself when it joins, except the certificate,
// which is new each time.
func sameMachine(a, b core.Node) bool {
	return a.ID == b.ID && a.Name == b.Name && slices.Equal(a.Roles, b.Roles) && a.RPCAddress == b.RPCAddress && bytes.Equal(a.KeyHash, b.KeyHash)
}

func badToken(format string, args ...any) error {
	return core.Errorf(core.Unauthenticated, "put node: "+format, args...).Hint("Make a new one: a join token admits one machine, for a limited time.")
}

func sameNode(a, b core.Node) bool {
	return a.ID == b.ID && a.Name == b.Name && slices.Equal(a.Roles, b.Roles) && a.RPCAddress == b.RPCAddress && bytes.Equal(a.KeyHash, b.KeyHash) &&
		a.CertificateExpiresAt.Equal(b.CertificateExpiresAt) && a.Revoked == b.Revoked
}

func (e *entry) revokeNode(id string) error {
	n, ok := e.Node(id)
	if !ok {
		return core.Errorf(core.NotFound, "revoke node: there is no node %q", id).Hint("List the nodes to see their ids.")
	}
	if !n.Revoked {
		n.Revoked, n.ModifyIndex = true, e.index
		e.PutNode(n)
	}
	e.removeHive(n.ID)
	return nil
}

func (e *entry) removeNode(id string) error {
	n, ok := e.Node(id)
	if !ok {
		return nil
	}
	if n.Revoked {
		return core.Errorf(core.Conflict, "remove node: node %s (%s) is revoked: forgetting that would let it in again", n.ID, n.Name).Hint(
			"Leave it listed: a revoked node blocks neither its name nor anything else.")
	}
	for _, t := range e.TokensUsedBy(n.ID) {
		e.DeleteToken(t.ID)
	}
	e.DeleteNode(n.ID)
	e.removeHive(n.ID)
	return nil
}

func (e *entry) putToken(p *raftv1.Token) error {
	t := tokenFromProto(p)
	t.UsedBy, t.UsedKeyHash, t.UsedAt = "", nil, time.Time{}
	t.RotatedAt, t.Overlap, t.PreviousSecretHash, t.LastUsedAt = time.Time{}, 0, nil, time.Time{}
	if t.ID == "" {
		return core.Errorf(core.Invalid, "put token: the token has no id")
	}
	if old, ok := e.Token(t.ID); ok {
		if sameToken(t, old) {
			return nil
		}
		return core.Errorf(core.Conflict, "put token: there is another token %s", t.ID).Hint("Make the token again: its id is random.")
	}
	t.CreateIndex, t.ModifyIndex = e.index, e.index
	e.PutToken(t)
	return nil
}

func (e *entry) deleteToken(op *raftv1.DeleteToken) {
	if _, ok := e.Token(op.GetToken()); !ok {
		return
	}
	e.DeleteToken(op.GetToken())
	if op.GetRevoked() {
		e.PutRevokedToken(state.RevokedToken{Token: op.GetToken(), Index: e.index})
	}
}

// sameToken compares tokens as they were created.
func sameToken(a, b core.Token) bool {
	return a.ID == b.ID && a.Name == b.Name && a.Kind == b.Kind && bytes.Equal(a.SecretHash, b.SecretHash) && slices.Equal(a.Scopes, b.Scopes) &&
		slices.Equal(a.Roles, b.Roles) && a.CreatedAt.Equal(b.CreatedAt) && a.TTL == b.TTL &&
		slices.Equal(a.Models, b.Models) && slices.Equal(a.Limits, b.Limits) && a.Priority == b.Priority
}

func (e *entry) setKeyring(op *raftv1.SetKeyring) error {
	c, ok := e.Cluster()
	if !ok {
		return core.Errorf(core.NotFound, "set keyring: the registry belongs to no cluster and has no keys")
	}
	// Not expected+1: that may be 0.
	if c.GossipVersion != 0 && c.GossipVersion-1 == op.GetExpectedVersion() && bytes.Equal(c.SealedGossipKeys, op.GetSealedKeys()) {
		return nil // the same change, repeated
	}
	if c.GossipVersion != op.GetExpectedVersion() {
		return core.Errorf(core.Conflict, "set keyring: the gossip keys are at version %d, not %d", c.GossipVersion, op.GetExpectedVersion()).Hint(
			"Somebody else changed them meanwhile: look at them and try again.")
	}
	c.SealedGossipKeys, c.GossipVersion, c.ModifyIndex = bytes.Clone(op.GetSealedKeys()), c.GossipVersion+1, e.index
	e.PutCluster(c)
	return nil
}

// putSetting stores any name: a queen that is not upgraded yet keeps what a newer one knows.
func (e *entry) putSetting(op *raftv1.PutSetting) error {
	if op.GetUnset() {
		e.DeleteSetting(op.GetName())
		return nil
	}
	old, ok := e.Setting(op.GetName())
	switch {
	case ok && old.Value == op.GetValue():
		return nil
	case !ok && e.SettingCount() >= state.MaxSettings:
		return core.Errorf(core.TooLarge, "put setting: %d settings are set already", state.MaxSettings).Hint("Reset those that are no longer needed.")
	}
	e.PutSetting(state.Setting{Name: op.GetName(), Value: op.GetValue(), Index: e.index})
	return nil
}
