// Package state is the replicated registry in memory: tables and queries of hives and workers.
//
// A Store is read by anybody and written by raft/fsm alone. What a query returns belongs to the caller. Time, randomness and map order
// have no part in it: the same updates give the same contents and the same order everywhere.
package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/rbee-project/rbee/core"
)

const (
	tableMeta    = "meta"
	tableHives   = "hives"
	tableWorkers = "workers"

	indexID     = "id"
	indexPrefix = "id_prefix"
	indexHive   = "hive"
	indexModel  = "model"

	keyApplied = "applied"
)

// Store is one version line of the registry. A restore from a snapshot makes a new Store; the old one is then abandoned.
// Methods may be called concurrently.
type Store struct {
	db        *memdb.MemDB
	abandoned chan struct{}
}

// meta is a row of the meta table.
type meta struct {
	Key   string
	Index uint64
}

// New returns an empty store.
func New() *Store {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(fmt.Sprintf("registry schema: %v", err))
	}
	return &Store{db: db, abandoned: make(chan struct{})}
}

func schema() *memdb.DBSchema {
	id := func(field string) *memdb.IndexSchema {
		return &memdb.IndexSchema{Name: indexID, Unique: true, Indexer: &memdb.StringFieldIndex{Field: field}}
	}
	by := func(name, field string) *memdb.IndexSchema {
		return &memdb.IndexSchema{Name: name, AllowMissing: true, Indexer: &memdb.StringFieldIndex{Field: field}}
	}
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tableMeta:  {Name: tableMeta, Indexes: map[string]*memdb.IndexSchema{indexID: id("Key")}},
		tableHives: {Name: tableHives, Indexes: map[string]*memdb.IndexSchema{indexID: id("ID")}},
		tableWorkers: {Name: tableWorkers, Indexes: map[string]*memdb.IndexSchema{
			indexID: id("ID"), indexHive: by(indexHive, "Hive"), indexModel: by(indexModel, "Model"),
		}},
	}}
}

// Abandoned is closed when the store was replaced by a restored one: ask for the current store again.
func (s *Store) Abandoned() <-chan struct{} { return s.abandoned }

// Abandon closes Abandoned. raft/fsm calls it, once.
func (s *Store) Abandon() { close(s.abandoned) }

// Snapshot returns the store as it is now, for several queries that must agree. It costs next to nothing and needs no release.
func (s *Store) Snapshot() *Snapshot {
	return &Snapshot{store: s, txn: s.db.Txn(false)}
}

// AppliedIndex is the raft index of the last applied command; 0 before the first.
func (s *Store) AppliedIndex() uint64 { return s.Snapshot().AppliedIndex() }

// Hives is Snapshot.Hives of now.
func (s *Store) Hives(ws memdb.WatchSet) []core.Hive { return s.Snapshot().Hives(ws) }

// Hive is Snapshot.Hive of now.
func (s *Store) Hive(ws memdb.WatchSet, id string) (core.Hive, bool) {
	return s.Snapshot().Hive(ws, id)
}

// Workers is Snapshot.Workers of now.
func (s *Store) Workers(ws memdb.WatchSet) []core.Worker { return s.Snapshot().Workers(ws) }

// WorkersOfHive is Snapshot.WorkersOfHive of now.
func (s *Store) WorkersOfHive(ws memdb.WatchSet, hive string) []core.Worker {
	return s.Snapshot().WorkersOfHive(ws, hive)
}

// WorkersOfModel is Snapshot.WorkersOfModel of now.
func (s *Store) WorkersOfModel(ws memdb.WatchSet, model string) []core.Worker {
	return s.Snapshot().WorkersOfModel(ws, model)
}

// Worker is Snapshot.Worker of now.
func (s *Store) Worker(ws memdb.WatchSet, id string) (core.Worker, bool) {
	return s.Snapshot().Worker(ws, id)
}

// WorkersWithPrefix is Snapshot.WorkersWithPrefix of now.
func (s *Store) WorkersWithPrefix(ws memdb.WatchSet, prefix string) []core.Worker {
	return s.Snapshot().WorkersWithPrefix(ws, prefix)
}

// Snapshot is the registry at one moment. Lists are sorted by id and never nil. A non-nil WatchSet fires when the answer may have changed,
// and when the store is abandoned; a nil one is allowed. One snapshot is for one goroutine.
//
// What raft does not hold is zero: Hive.LastBeat, Device.FreeBytes, Worker.Load.
type Snapshot struct {
	store *Store
	txn   *memdb.Txn
}

// AppliedIndex is the raft index of the last command in the snapshot; 0: none.
func (s *Snapshot) AppliedIndex() uint64 {
	if m, ok := first[*meta](s.txn, nil, tableMeta, indexID, keyApplied); ok {
		return m.Index
	}
	return 0
}

// Hives returns all hives.
func (s *Snapshot) Hives(ws memdb.WatchSet) []core.Hive {
	s.watch(ws)
	return list(s.txn, ws, cloneHive, tableHives, indexID)
}

// Hive returns the hive with the id.
func (s *Snapshot) Hive(ws memdb.WatchSet, id string) (core.Hive, bool) {
	s.watch(ws)
	if h, ok := first[*core.Hive](s.txn, ws, tableHives, indexID, id); ok {
		return cloneHive(*h), true
	}
	return core.Hive{}, false
}

// Workers returns all active workers.
func (s *Snapshot) Workers(ws memdb.WatchSet) []core.Worker {
	s.watch(ws)
	return list(s.txn, ws, cloneWorker, tableWorkers, indexID)
}

// WorkersOfHive returns the workers of a hive.
func (s *Snapshot) WorkersOfHive(ws memdb.WatchSet, hive string) []core.Worker {
	s.watch(ws)
	return list(s.txn, ws, cloneWorker, tableWorkers, indexHive, hive)
}

// WorkersOfModel returns the workers that serve exactly the model.
func (s *Snapshot) WorkersOfModel(ws memdb.WatchSet, model string) []core.Worker {
	s.watch(ws)
	return list(s.txn, ws, cloneWorker, tableWorkers, indexModel, model)
}

// Worker returns the worker with the id.
func (s *Snapshot) Worker(ws memdb.WatchSet, id string) (core.Worker, bool) {
	s.watch(ws)
	if w, ok := first[*core.Worker](s.txn, ws, tableWorkers, indexID, id); ok {
		return cloneWorker(*w), true
	}
	return core.Worker{}, false
}

// WorkersWithPrefix returns the workers whose id begins with prefix; an empty one is every worker's.
func (s *Snapshot) WorkersWithPrefix(ws memdb.WatchSet, prefix string) []core.Worker {
	s.watch(ws)
	return list(s.txn, ws, cloneWorker, tableWorkers, indexPrefix, prefix)
}

func (s *Snapshot) watch(ws memdb.WatchSet) { ws.Add(s.store.abandoned) }

// first returns one row. The row is the table's own: constant.
func first[T any](txn *memdb.Txn, ws memdb.WatchSet, table, index string, args ...any) (row T, ok bool) {
	watch, raw, err := txn.FirstWatch(table, index, args...)
	if err != nil {
		panic(fmt.Sprintf("registry query %s.%s: %v", table, index, err)) // the schema and the query are both ours
	}
	ws.Add(watch)
	row, ok = raw.(T)
	return row, ok
}

func list[T any](txn *memdb.Txn, ws memdb.WatchSet, clone func(T) T, table, index string, args ...any) []T {
	rows := []T{}
	it, err := txn.Get(table, index, args...)
	if err != nil {
		panic(fmt.Sprintf("registry query %s.%s: %v", table, index, err)) // the schema and the query are both ours
	}
	ws.Add(it.WatchCh())
	for raw := it.Next(); raw != nil; raw = it.Next() {
		rows = append(rows, clone(*raw.(*T)))
	}
	return rows
}

func cloneHive(h core.Hive) core.Hive {
	h.Devices = append([]core.Device{}, h.Devices...) // never nil
	h.WorkerTypes = append([]string{}, h.WorkerTypes...)
	return h
}

func cloneWorker(w core.Worker) core.Worker { return w }
