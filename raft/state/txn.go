package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/rbee-project/rbee/core"
)

// Txn changes a Store: all of it or, when fn of Update fails, nothing. Ids must not be empty.
type Txn struct {
	txn *memdb.Txn
}

// Update runs fn as the only writer and stores index as the applied one. An error of fn undoes what it changed, but not the index:
// a refused command is an applied one.
func (s *Store) Update(index uint64, fn func(*Txn) error) error {
	t := &Txn{txn: s.db.Txn(true)}
	err := fn(t)
	if err != nil {
		t.txn.Abort()
		t = &Txn{txn: s.db.Txn(true)}
	}
	t.insert(tableMeta, &meta{Key: keyApplied, Index: index})
	t.txn.Commit()
	return err
}

// Hive returns the hive with the id. Its slices are the table's own: constant.
func (t *Txn) Hive(id string) (core.Hive, bool) {
	if h, ok := first[*core.Hive](t.txn, nil, tableHives, indexID, id); ok {
		return *h, true
	}
	return core.Hive{}, false
}

// PutHive stores a hive. Its slices must not be changed afterwards.
func (t *Txn) PutHive(h core.Hive) { t.insert(tableHives, &h) }

// DeleteHive removes a hive, if it is there. Its workers stay.
func (t *Txn) DeleteHive(id string) { t.delete(tableHives, id) }

// Worker returns the worker with the id.
func (t *Txn) Worker(id string) (core.Worker, bool) {
	if w, ok := first[*core.Worker](t.txn, nil, tableWorkers, indexID, id); ok {
		return *w, true
	}
	return core.Worker{}, false
}

// WorkersOfHive returns the workers of a hive, sorted by id.
func (t *Txn) WorkersOfHive(hive string) []core.Worker {
	return list(t.txn, nil, cloneWorker, tableWorkers, indexHive, hive)
}

// PutWorker stores a worker.
func (t *Txn) PutWorker(w core.Worker) { t.insert(tableWorkers, &w) }

// DeleteWorker removes a worker, if it is there.
func (t *Txn) DeleteWorker(id string) { t.delete(tableWorkers, id) }

func (t *Txn) insert(table string, row any) {
	if err := t.txn.Insert(table, row); err != nil {
		panic(fmt.Sprintf("registry insert into %s: %v", table, err)) // an empty id: the command was not checked
	}
}

func (t *Txn) delete(table, id string) {
	if _, err := t.txn.DeleteAll(table, indexID, id); err != nil {
		panic(fmt.Sprintf("registry delete from %s: %v", table, err))
	}
}
