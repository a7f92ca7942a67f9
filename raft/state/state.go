// Package state is the replicated registry in memory: tables and queries of the cluster, its nodes
// and tokens, hives and workers.
//
// Any package may read a Store; only raft/fsm writes it. The caller owns what a query returns,
// unless its comment says otherwise. Time, randomness and map order do not affect a Store: the same
// updates give the same contents and the same order everywhere.
package state

import (
	"fmt"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"

	"github.com/rbee-project/rbee/core"
)

// Store is one version line of the registry. A restore from a snapshot makes a new Store and
// abandons the old one. Methods may be called concurrently.
type Store struct {
	db        *memdb.MemDB
	abandoned chan struct{}
	current   atomic.Pointer[Snapshot]
}

// New returns an empty store.
func New() *Store {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(fmt.Sprintf("registry schema: %v", err))
	}
	s := &Store{db: db, abandoned: make(chan struct{})}
	s.current.Store(&Snapshot{abandoned: s.abandoned, txn: db.Txn(false), routes: newRouteIndex()})
	return s
}

// Abandoned returns a channel that closes when a restored store replaces this one; get the current
// store again then.
func (s *Store) Abandoned() <-chan struct{} { return s.abandoned }

// Abandon closes Abandoned. raft/fsm calls it, once.
func (s *Store) Abandon() { close(s.abandoned) }

// Snapshot returns the current state, for several queries that must agree. It is cheap and needs no
// release.
func (s *Store) Snapshot() *Snapshot { return s.current.Load() }

// AppliedIndex returns the raft index of the last applied command, or 0 before the first.
func (s *Store) AppliedIndex() uint64 { return s.Snapshot().AppliedIndex() }

// Hives calls Snapshot.Hives on the current state.
func (s *Store) Hives(ws memdb.WatchSet) []core.Hive { return s.Snapshot().Hives(ws) }

// Hive calls Snapshot.Hive on the current state.
func (s *Store) Hive(ws memdb.WatchSet, id string) (core.Hive, bool) {
	return s.Snapshot().Hive(ws, id)
}

// Workers calls Snapshot.Workers on the current state.
func (s *Store) Workers(ws memdb.WatchSet) []core.Worker { return s.Snapshot().Workers(ws) }

// WorkersOfHive calls Snapshot.WorkersOfHive on the current state.
func (s *Store) WorkersOfHive(ws memdb.WatchSet, hive string) []core.Worker {
	return s.Snapshot().WorkersOfHive(ws, hive)
}

// WorkersOfModel calls Snapshot.WorkersOfModel on the current state.
func (s *Store) WorkersOfModel(ws memdb.WatchSet, model string) []core.Worker {
	return s.Snapshot().WorkersOfModel(ws, model)
}

// Worker calls Snapshot.Worker on the current state.
func (s *Store) Worker(ws memdb.WatchSet, hive, id string) (core.Worker, bool) {
	return s.Snapshot().Worker(ws, hive, id)
}

// WorkersWithPrefix calls Snapshot.WorkersWithPrefix on the current state.
func (s *Store) WorkersWithPrefix(ws memdb.WatchSet, prefix string) []core.Worker {
	return s.Snapshot().WorkersWithPrefix(ws, prefix)
}

// Snapshot is the registry at one moment. Lists are sorted by id and never nil. A non-nil WatchSet
// fires when the answer may have changed, and when the store is abandoned; a nil one is allowed.
// Methods may be called concurrently.
//
// Fields that raft does not hold are zero: Hive.LastBeat, Device.FreeBytes, Worker.Load.
type Snapshot struct {
	abandoned <-chan struct{}
	txn       *memdb.Txn // read-only: it never changes
	routes    *routeIndex
	index     uint64
}

// AppliedIndex returns the raft index of the last command in the snapshot, or 0 if there is none.
func (s *Snapshot) AppliedIndex() uint64 { return s.index }

// Hives returns all hives.
func (s *Snapshot) Hives(ws memdb.WatchSet) []core.Hive {
	s.watch(ws)
	return list(s.txn, ws, cloneHive, tableHives, indexPrefix, nil)
}

// Hive returns the hive with the id.
func (s *Snapshot) Hive(ws memdb.WatchSet, id string) (core.Hive, bool) {
	if h := s.PeekHive(ws, id); h != nil {
		return cloneHive(*h), true
	}
	return core.Hive{}, false
}

// PeekHive returns the registry's own entry of a hive, which callers must not change, or nil if
// there is none. It allocates almost nothing.
func (s *Snapshot) PeekHive(ws memdb.WatchSet, id string) *core.Hive {
	s.watch(ws)
	return first[core.Hive](s.txn, ws, tableHives, text(id))
}

// EachHive calls yield with the registry's own entry of each hive, which callers must not change,
// until yield returns false.
func (s *Snapshot) EachHive(ws memdb.WatchSet, yield func(*core.Hive) bool) {
	s.watch(ws)
	each(s.txn, ws, tableHives, indexPrefix, nil, yield)
}

// Workers returns all active workers.
func (s *Snapshot) Workers(ws memdb.WatchSet) []core.Worker {
	s.watch(ws)
	return list(s.txn, ws, cloneWorker, tableWorkers, indexPrefix, nil)
}

// EachWorker calls yield with the registry's own entry of each worker, which callers must not
// change, until yield returns false.
func (s *Snapshot) EachWorker(ws memdb.WatchSet, yield func(*core.Worker) bool) {
	s.watch(ws)
	each(s.txn, ws, tableWorkers, indexPrefix, nil, yield)
}

// WorkersOfHive returns the workers of a hive.
func (s *Snapshot) WorkersOfHive(ws memdb.WatchSet, hive string) []core.Worker {
	s.watch(ws)
	return list(s.txn, ws, cloneWorker, tableWorkers, indexHive, text(hive))
}

// EachWorkerOfHive calls yield with the registry's own entry of each worker of a hive, which
// callers must not change, until yield returns false.
func (s *Snapshot) EachWorkerOfHive(ws memdb.WatchSet, hive string, yield func(*core.Worker) bool) {
	s.watch(ws)
	each(s.txn, ws, tableWorkers, indexHive, text(hive), yield)
}

// Worker returns a hive's worker with the id. Another hive may have one with the same id.
func (s *Snapshot) Worker(ws memdb.WatchSet, hive, id string) (core.Worker, bool) {
	s.watch(ws)
	if w := first[core.Worker](s.txn, ws, tableWorkers, workerKey(hive, id)); w != nil {
		return cloneWorker(*w), true
	}
	return core.Worker{}, false
}

// WorkersWithID returns the workers with exactly the id, sorted by hive.
func (s *Snapshot) WorkersWithID(ws memdb.WatchSet, id string) []core.Worker {
	s.watch(ws)
	if id == "" {
		return []core.Worker{}
	}
	return list(s.txn, ws, cloneWorker, tableWorkers, indexPrefix, text(id))
}

// WorkersWithPrefix returns the workers whose id starts with prefix; an empty prefix matches every
// worker.
func (s *Snapshot) WorkersWithPrefix(ws memdb.WatchSet, prefix string) []core.Worker {
	s.watch(ws)
	return list(s.txn, ws, cloneWorker, tableWorkers, indexPrefix, key(prefix))
}

func (s *Snapshot) watch(ws memdb.WatchSet) { ws.Add(s.abandoned) }

// first returns the row with the id, or nil if there is none. The table owns it: do not change it.
func first[T any](txn *memdb.Txn, ws memdb.WatchSet, table string, id key) *T {
	if len(id) == 0 {
		return nil
	}
	watch, raw, err := txn.FirstWatch(table, indexID, id)
	if err != nil {
		// the schema and the query are both ours
		panic(fmt.Sprintf("registry query %s: %v", table, err))
	}
	ws.Add(watch)
	row, _ := raw.(*T)
	return row
}

// each iterates over rows, which the table owns: do not change them. An empty key finds nothing,
// except in an index of prefixes, where it finds all.
func each[T any](txn *memdb.Txn, ws memdb.WatchSet, table, index string, k key, yield func(*T) bool) {
	if len(k) == 0 && index != indexPrefix {
		return
	}
	it, err := txn.Get(table, index, k)
	if err != nil {
		// the schema and the query are both ours
		panic(fmt.Sprintf("registry query %s.%s: %v", table, index, err))
	}
	ws.Add(it.WatchCh())
	for raw := it.Next(); raw != nil; raw = it.Next() {
		if row, ok := raw.(*T); !ok || !yield(row) {
			return
		}
	}
}

func list[T any](txn *memdb.Txn, ws memdb.WatchSet, clone func(T) T, table, index string, k key) []T {
	rows := []T{}
	each(txn, ws, table, index, k, func(row *T) bool {
		rows = append(rows, clone(*row))
		return true
	})
	return rows
}

func cloneHive(h core.Hive) core.Hive {
	h.Devices = append([]core.Device{}, h.Devices...) // never nil
	h.WorkerTypes = append([]string{}, h.WorkerTypes...)
	return h
}

func cloneWorker(w core.Worker) core.Worker { return w }
