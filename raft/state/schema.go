package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/rbee-project/rbee/core"
)

const (
	tableCount      = "count"
	tableCluster    = "cluster"
	tableNodes      = "nodes"
	tableTokens     = "tokens"
	tableTombstones = "tombstones"
	tableRevoked    = "revoked"
	tableIntents    = "intents"
	tableHives      = "hives"
	tableWorkers    = "workers"
	tableRoutes     = "routes"
	tableStarts     = "starts"
	tableAliases    = "aliases"
	tableSettings   = "settings"

	tableDeployments = "deployments"

	indexID     = "id"
	indexPrefix = "id_prefix"
	indexHive   = "hive"
	indexName   = "name"
	indexAge    = "age"
	indexNode   = "node"
	indexServed = "served"
)

// count is the only row of its table: the numbers of rows of the bounded tables.
type count struct{ Tombstones, RevokedTokens, Starts, Aliases int }

// Tombstone holds the incarnation of a removed hive, so that this start of it never returns.
type Tombstone struct {
	Hive        string // Hive.ID
	Incarnation uint64
	Index       uint64 // raft index of the removal
}

// RevokedToken holds the id of a revoked token, so that no snapshot restores it.
type RevokedToken struct {
	Token string // Token.ID
	Index uint64 // raft index of the revocation
}

// RetireIntent records that a worker is retiring permanently. It outlives the worker's entry while
// its hive is down.
type RetireIntent struct {
	Hive  string // Hive.ID
	Nonce string // Worker.Nonce
}

// Start is the last decision on where a worker with a model is started for requests. The
// worker_spawn uses the request ID that the decision generated, so that it is one job whichever
// queen submits it.
type Start struct {
	Model      string // Model.ID
	Hive       string // Hive.ID
	Served     string // the hive's name for the model
	Request    string // Request.RequestID of the worker_spawn
	Registered bool   // the hive has since had a worker with the model in the registry
	Index      uint64 // raft index of the decision
}

// Setting is a setting of the cluster that is set. Package core/setting lists the settings.
type Setting struct {
	Name  string
	Value string
	Index uint64 // raft index of the change
}

func schema() *memdb.DBSchema {
	table := func(name string, indexes ...*memdb.IndexSchema) *memdb.TableSchema {
		t := &memdb.TableSchema{Name: name, Indexes: map[string]*memdb.IndexSchema{}}
		for _, i := range indexes {
			t.Indexes[i.Name] = i
		}
		return t
	}
	tables := []*memdb.TableSchema{
		table(tableCount, unique(func(*count) key { return text(tableCount) })),
		// one row
		table(tableCluster, unique(func(*core.Cluster) key { return text(tableCluster) })),
		table(tableNodes, unique(func(n *core.Node) key { return text(n.ID) }),
			many(indexName, func(n *core.Node) key { return text(foldName(n.Name)) })),
		table(tableTokens, unique(func(t *core.Token) key { return text(t.ID) }),
			many(indexNode, func(t *core.Token) key { return text(t.UsedBy) })),
		table(tableTombstones, unique(func(t *Tombstone) key { return text(t.Hive) }),
			many(indexAge, func(t *Tombstone) key { return number(t.Index) })),
		table(tableRevoked, unique(func(t *RevokedToken) key { return text(t.Token) }),
			many(indexAge, func(t *RevokedToken) key { return number(t.Index) })),
		table(tableIntents, unique(func(i *RetireIntent) key { return intentKey(i.Hive, i.Nonce) })),
		table(tableHives, unique(func(h *core.Hive) key { return text(h.ID) })),
		table(tableWorkers, unique(func(w *core.Worker) key { return workerKey(w.Hive, w.ID) }),
			many(indexHive, func(w *core.Worker) key { return text(w.Hive) })),
		table(tableStarts, unique(func(s *Start) key { return text(s.Model) }),
			many(indexServed, func(s *Start) key { return text(s.Served) }),
			many(indexAge, func(s *Start) key { return number(s.Index) })),
		table(tableSettings, unique(func(s *Setting) key { return text(s.Name) })),
		table(tableAliases, unique(func(a *core.Alias) key { return text(a.Name) })),
		table(tableDeployments, unique(func(d *core.Deployment) key { return text(d.Name) })),
		table(tableRoutes, unique(func(r *routes) key { return text(r.Model) })),
	}
	s := &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{}}
	for _, t := range tables {
		s.Tables[t.Name] = t
	}
	return s
}

// key is the position of a row in an index. A row with an empty key is not in the index.
type key []byte

// text returns the key of a text without NUL, or nil for an empty one.
func text(s string) key {
	if s == "" {
		return nil
	}
	return append(append(make(key, 0, len(s)+1), s...), 0)
}

// intentKey sorts by hive: the prefix of a hive's intents is its text.
func intentKey(hive, nonce string) key {
	if hive == "" || nonce == "" {
		return nil
	}
	return append(text(hive), text(nonce)...)
}

// workerKey sorts by worker id: the prefix of all workers with an id is its text.
func workerKey(hive, id string) key {
	if id == "" {
		return nil
	}
	return append(text(id), text(hive)...)
}

// number returns the key of a number; keys sort as the numbers do.
func number(n uint64) key { return binary.BigEndian.AppendUint64(nil, n) }

// foldName returns a name in lower case, for ASCII letters only: the Unicode tables differ between
// builds.
func foldName(s string) string {
	folded := []byte(s)
	for i, c := range folded {
		if 'A' <= c && c <= 'Z' {
			folded[i] = c - 'A' + 'a'
		}
	}
	return string(folded)
}

// indexer computes keys without reflection, because a power cut causes writes of rows by the
// thousand.
type indexer[T any] struct{ of func(*T) key }

func unique[T any](of func(*T) key) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: indexID, Unique: true, Indexer: &indexer[T]{of}}
}

func many[T any](name string, of func(*T) key) *memdb.IndexSchema {
	return &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: &indexer[T]{of}}
}

// FromObject implements memdb's indexer: it returns the key of a row.
func (i *indexer[T]) FromObject(row any) (bool, []byte, error) {
	r, ok := row.(*T)
	if !ok {
		return false, nil, fmt.Errorf("a %T in a table of %T", row, r)
	}
	k := i.of(r)
	return len(k) > 0, k, nil
}

// FromArgs implements memdb's indexer: queries are keys already.
func (i *indexer[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if k, ok := args[0].(key); ok && len(k) > 0 {
			return k, nil
		}
	}
	return nil, errors.New("a query takes one key")
}

// PrefixFromArgs implements memdb's indexer for all rows with a prefix.
func (i *indexer[T]) PrefixFromArgs(args ...any) ([]byte, error) {
	if len(args) == 1 {
		if k, ok := args[0].(key); ok {
			return k, nil
		}
	}
	return nil, errors.New("a query takes one prefix")
}
