package state

import (
	"bytes"
	"slices"

	"github.com/hashicorp/go-memdb"

	"github.com/rbee-project/rbee/core"
)

// Cluster calls Snapshot.Cluster on the current state.
func (s *Store) Cluster(ws memdb.WatchSet) (core.Cluster, bool) { return s.Snapshot().Cluster(ws) }

// Node calls Snapshot.Node on the current state.
func (s *Store) Node(ws memdb.WatchSet, id string) (core.Node, bool) {
	return s.Snapshot().Node(ws, id)
}

// Nodes calls Snapshot.Nodes on the current state.
func (s *Store) Nodes(ws memdb.WatchSet) []core.Node { return s.Snapshot().Nodes(ws) }

// Token calls Snapshot.Token on the current state.
func (s *Store) Token(ws memdb.WatchSet, id string) (core.Token, bool) {
	return s.Snapshot().Token(ws, id)
}

// Tokens calls Snapshot.Tokens on the current state.
func (s *Store) Tokens(ws memdb.WatchSet) []core.Token { return s.Snapshot().Tokens(ws) }

// Cluster returns the data that all nodes share, or false if the registry belongs to no cluster.
func (s *Snapshot) Cluster(ws memdb.WatchSet) (core.Cluster, bool) {
	s.watch(ws)
	if c := first[core.Cluster](s.txn, ws, tableCluster, text(tableCluster)); c != nil {
		return cloneCluster(*c), true
	}
	return core.Cluster{}, false
}

// Node returns the node with the id.
func (s *Snapshot) Node(ws memdb.WatchSet, id string) (core.Node, bool) {
	s.watch(ws)
	if n := first[core.Node](s.txn, ws, tableNodes, text(id)); n != nil {
		return cloneNode(*n), true
	}
	return core.Node{}, false
}

// Revoked reports whether the node's certificates are refused. An unknown node is not revoked.
func (s *Snapshot) Revoked(ws memdb.WatchSet, node string) bool {
	s.watch(ws)
	n := first[core.Node](s.txn, ws, tableNodes, text(node))
	return n != nil && n.Revoked
}

// NodeNamed returns the node with the name, ignoring the case of ASCII letters. It finds a revoked
// node only if no other has its name.
func (s *Snapshot) NodeNamed(ws memdb.WatchSet, name string) (core.Node, bool) {
	s.watch(ws)
	if n := nodeNamed(s.txn, ws, name); n != nil {
		return cloneNode(*n), true
	}
	return core.Node{}, false
}

// Nodes returns all nodes, including revoked ones.
func (s *Snapshot) Nodes(ws memdb.WatchSet) []core.Node {
	s.watch(ws)
	return list(s.txn, ws, cloneNode, tableNodes, indexPrefix, nil)
}

// Token returns the token with the id.
func (s *Snapshot) Token(ws memdb.WatchSet, id string) (core.Token, bool) {
	s.watch(ws)
	if t := first[core.Token](s.txn, ws, tableTokens, text(id)); t != nil {
		return cloneToken(*t), true
	}
	return core.Token{}, false
}

// Tokens returns all tokens, including used join tokens.
func (s *Snapshot) Tokens(ws memdb.WatchSet) []core.Token {
	s.watch(ws)
	return list(s.txn, ws, cloneToken, tableTokens, indexPrefix, nil)
}

// Tombstones returns the tombstones of removed hives, sorted by hive.
func (s *Snapshot) Tombstones(ws memdb.WatchSet) []Tombstone {
	s.watch(ws)
	return list(s.txn, ws, same[Tombstone], tableTombstones, indexPrefix, nil)
}

// RevokedTokens returns the revoked tokens, sorted by id.
func (s *Snapshot) RevokedTokens(ws memdb.WatchSet) []RevokedToken {
	s.watch(ws)
	return list(s.txn, ws, same[RevokedToken], tableRevoked, indexPrefix, nil)
}

// Start returns the last decision on where a worker with a model starts.
func (s *Snapshot) Start(ws memdb.WatchSet, model string) (Start, bool) {
	s.watch(ws)
	if found := first[Start](s.txn, ws, tableStarts, text(model)); found != nil {
		return *found, true
	}
	return Start{}, false
}

// Starts returns the last decisions on where workers start, sorted by model.
func (s *Snapshot) Starts(ws memdb.WatchSet) []Start {
	s.watch(ws)
	return list(s.txn, ws, same[Start], tableStarts, indexPrefix, nil)
}

// Setting returns a setting that is set.
func (s *Snapshot) Setting(ws memdb.WatchSet, name string) (Setting, bool) {
	s.watch(ws)
	if found := first[Setting](s.txn, ws, tableSettings, text(name)); found != nil {
		return *found, true
	}
	return Setting{}, false
}

// Settings returns the settings that are set, sorted by name.
func (s *Snapshot) Settings(ws memdb.WatchSet) []Setting {
	s.watch(ws)
	return list(s.txn, ws, same[Setting], tableSettings, indexPrefix, nil)
}

// Alias returns the alias with exactly this name. It allocates almost nothing if there is none.
func (s *Snapshot) Alias(ws memdb.WatchSet, name string) (core.Alias, bool) {
	s.watch(ws)
	if a := first[core.Alias](s.txn, ws, tableAliases, text(name)); a != nil {
		return *a, true
	}
	return core.Alias{}, false
}

// Aliases returns all aliases, sorted by name.
func (s *Snapshot) Aliases(ws memdb.WatchSet) []core.Alias {
	s.watch(ws)
	return list(s.txn, ws, same[core.Alias], tableAliases, indexPrefix, nil)
}

// RetireIntents returns all retire intents, sorted by hive and nonce.
func (s *Snapshot) RetireIntents(ws memdb.WatchSet) []RetireIntent {
	s.watch(ws)
	return list(s.txn, ws, same[RetireIntent], tableIntents, indexPrefix, nil)
}

func nodeNamed(txn *memdb.Txn, ws memdb.WatchSet, name string) *core.Node {
	var found *core.Node
	each(txn, ws, tableNodes, indexName, text(foldName(name)), func(n *core.Node) bool {
		if found == nil || !n.Revoked {
			found = n
		}
		return found.Revoked
	})
	return found
}

func cloneCluster(c core.Cluster) core.Cluster {
	c.CACertificates = bytes.Clone(c.CACertificates)
	c.SealedCAKey = bytes.Clone(c.SealedCAKey)
	c.SealedGossipKeys = bytes.Clone(c.SealedGossipKeys)
	return c
}

func cloneNode(n core.Node) core.Node {
	n.Roles = append([]core.Role{}, n.Roles...) // never nil
	n.KeyHash = bytes.Clone(n.KeyHash)
	return n
}

func cloneToken(t core.Token) core.Token {
	t.SecretHash = bytes.Clone(t.SecretHash)
	t.Scopes = slices.Clone(t.Scopes)
	t.Roles = slices.Clone(t.Roles)
	t.UsedKeyHash = bytes.Clone(t.UsedKeyHash)
	t.Models = slices.Clone(t.Models)
	t.Limits = slices.Clone(t.Limits)
	t.PreviousSecretHash = bytes.Clone(t.PreviousSecretHash)
	return t
}

func same[T any](row T) T { return row }
