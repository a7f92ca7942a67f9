package state

import (
	"fmt"

	"github.com/hashicorp/go-memdb"

	"github.com/rbee-project/rbee/core"
)

// MaxTombstones bounds the tombstones, MaxRevokedTokens the ids of revoked tokens and MaxStarts the
// decisions on where workers start; the oldest are dropped first.
// MaxSettings bounds the settings; one more is refused.
const (
	MaxTombstones    = 10_000
	MaxRevokedTokens = 10_000
	MaxStarts        = 1_000
	MaxSettings      = 1_000
)

// Txn changes a Store: all of it or, if fn of Update fails, nothing. Ids must not be empty. Slices
// that it returns belong to the tables: do not change them, nor its arguments afterwards.
type Txn struct {
	txn     *memdb.Txn
	touched touched
	// rows read or written, nil if missing: memdb writes more slowly the more is read in between
	workers map[workerID]*core.Worker
}

// Update runs fn as the only writer and stores index as the applied one. An error of fn undoes its
// changes, but not the index: a refused command counts as applied.
func (s *Store) Update(index uint64, fn func(*Txn) error) error {
	t := &Txn{txn: s.db.Txn(true)}
	defer t.txn.Abort() // if fn panics
	now := s.current.Load()
	if err := fn(t); err != nil {
		next := *now
		next.index = index
		s.current.Store(&next)
		return err
	}
	routes := t.putRoutes(now.routes)
	// Readers woken by the commit must find the new state.
	s.current.Store(&Snapshot{abandoned: s.abandoned, txn: t.txn.Snapshot(), routes: routes, index: index})
	t.txn.Commit()
	return nil
}

// Cluster returns the cluster's row.
func (t *Txn) Cluster() (core.Cluster, bool) {
	return row[core.Cluster](t, tableCluster, tableCluster)
}

// PutCluster stores the cluster's row.
func (t *Txn) PutCluster(c core.Cluster) { t.insert(tableCluster, &c) }

// Node returns the node with the id.
func (t *Txn) Node(id string) (core.Node, bool) { return row[core.Node](t, tableNodes, id) }

// NodeNamed does what Snapshot.NodeNamed does.
func (t *Txn) NodeNamed(name string) (core.Node, bool) {
	if n := nodeNamed(t.txn, nil, name); n != nil {
		return *n, true
	}
	return core.Node{}, false
}

// PutNode stores a node.
func (t *Txn) PutNode(n core.Node) { t.insert(tableNodes, &n) }

// DeleteNode removes a node if it exists.
func (t *Txn) DeleteNode(id string) { t.delete(tableNodes, text(id)) }

// Token returns the token with the id.
func (t *Txn) Token(id string) (core.Token, bool) { return row[core.Token](t, tableTokens, id) }

// TokensUsedBy returns the join tokens that a node used, sorted by id.
func (t *Txn) TokensUsedBy(node string) []core.Token {
	return list(t.txn, nil, same[core.Token], tableTokens, indexNode, text(node))
}

// PutToken stores a token.
func (t *Txn) PutToken(token core.Token) { t.insert(tableTokens, &token) }

// DeleteToken removes a token if it exists.
func (t *Txn) DeleteToken(id string) { t.delete(tableTokens, text(id)) }

// Tombstone returns the tombstone of a removed hive.
func (t *Txn) Tombstone(hive string) (Tombstone, bool) {
	return row[Tombstone](t, tableTombstones, hive)
}

// PutTombstone stores a tombstone, and drops the oldest if there are too many.
func (t *Txn) PutTombstone(stone Tombstone) {
	t.DeleteTombstone(stone.Hive)
	t.insert(tableTombstones, &stone)
	n := t.counts()
	if n.Tombstones++; n.Tombstones > MaxTombstones {
		if old := oldest[Tombstone](t, tableTombstones); old != nil {
			t.delete(tableTombstones, text(old.Hive))
			n.Tombstones--
		}
	}
	t.insert(tableCount, &n)
}

// oldest returns the oldest row of a table, or nil if there is none.
func oldest[T any](t *Txn, table string) *T {
	_, raw, err := t.txn.FirstWatch(table, indexAge+"_prefix", key(nil))
	if err != nil {
		// the schema and the query are both ours
		panic(fmt.Sprintf("registry query %s: %v", table, err))
	}
	row, _ := raw.(*T)
	return row
}

// DeleteTombstone removes a tombstone if it exists.
func (t *Txn) DeleteTombstone(hive string) {
	if _, ok := t.Tombstone(hive); ok {
		t.delete(tableTombstones, text(hive))
		n := t.counts()
		n.Tombstones--
		t.insert(tableCount, &n)
	}
}

func (t *Txn) counts() count {
	if n := first[count](t.txn, nil, tableCount, text(tableCount)); n != nil {
		return *n
	}
	return count{}
}

// RevokedToken reports whether a token with the id was revoked.
func (t *Txn) RevokedToken(id string) bool {
	return first[RevokedToken](t.txn, nil, tableRevoked, text(id)) != nil
}

// PutRevokedToken stores a revoked token, and drops the oldest if there are too many.
func (t *Txn) PutRevokedToken(r RevokedToken) {
	if t.RevokedToken(r.Token) {
		return
	}
	t.insert(tableRevoked, &r)
	n := t.counts()
	if n.RevokedTokens++; n.RevokedTokens > MaxRevokedTokens {
		if old := oldest[RevokedToken](t, tableRevoked); old != nil {
			t.delete(tableRevoked, text(old.Token))
			n.RevokedTokens--
		}
	}
	t.insert(tableCount, &n)
}

// Start returns the last decision on where a worker with a model starts.
func (t *Txn) Start(model string) (Start, bool) { return row[Start](t, tableStarts, model) }

// StartsServing returns the decisions whose hives call the model by the name.
func (t *Txn) StartsServing(name string) []Start {
	return list(t.txn, nil, same[Start], tableStarts, indexServed, text(name))
}

// PutStart replaces the model's last decision, and drops the oldest if there are too many.
func (t *Txn) PutStart(s Start) {
	_, known := t.Start(s.Model)
	t.insert(tableStarts, &s)
	if known {
		return
	}
	n := t.counts()
	if n.Starts++; n.Starts > MaxStarts {
		if old := oldest[Start](t, tableStarts); old != nil {
			t.delete(tableStarts, text(old.Model))
			n.Starts--
		}
	}
	t.insert(tableCount, &n)
}

// Setting returns a setting that is set.
func (t *Txn) Setting(name string) (Setting, bool) { return row[Setting](t, tableSettings, name) }

// SettingCount returns the number of settings that are set.
func (t *Txn) SettingCount() int {
	return len(list(t.txn, nil, same[Setting], tableSettings, indexPrefix, nil))
}

// PutSetting stores a setting.
func (t *Txn) PutSetting(s Setting) { t.insert(tableSettings, &s) }

// DeleteSetting removes a setting if it exists.
func (t *Txn) DeleteSetting(name string) { t.delete(tableSettings, text(name)) }

// Alias returns the alias with the name.
func (t *Txn) Alias(name string) (core.Alias, bool) { return row[core.Alias](t, tableAliases, name) }

// AliasCount returns the number of aliases.
func (t *Txn) AliasCount() int { return t.counts().Aliases }

// PutAlias stores an alias.
func (t *Txn) PutAlias(a core.Alias) {
	if _, known := t.Alias(a.Name); !known {
		n := t.counts()
		n.Aliases++
		t.insert(tableCount, &n)
	}
	t.insert(tableAliases, &a)
}

// DeleteAlias removes an alias if it exists.
func (t *Txn) DeleteAlias(name string) {
	if _, known := t.Alias(name); !known {
		return
	}
	t.delete(tableAliases, text(name))
	n := t.counts()
	n.Aliases--
	t.insert(tableCount, &n)
}

// RetireIntent reports whether a worker has a retire intent.
func (t *Txn) RetireIntent(hive, nonce string) bool {
	return first[RetireIntent](t.txn, nil, tableIntents, intentKey(hive, nonce)) != nil
}

// RetireIntentsOfHive returns the intents for workers of a hive, sorted by nonce.
func (t *Txn) RetireIntentsOfHive(hive string) []RetireIntent {
	return list(t.txn, nil, same[RetireIntent], tableIntents, indexPrefix, text(hive))
}

// PutRetireIntent stores a retire intent. Its nonce must not be empty.
func (t *Txn) PutRetireIntent(i RetireIntent) { t.insert(tableIntents, &i) }

// DeleteRetireIntent removes a retire intent if it exists.
func (t *Txn) DeleteRetireIntent(i RetireIntent) {
	t.delete(tableIntents, intentKey(i.Hive, i.Nonce))
}

// Hive returns the hive with the id.
func (t *Txn) Hive(id string) (core.Hive, bool) {
	if h := t.hiveRow(id); h != nil {
		return *h, true
	}
	return core.Hive{}, false
}

func (t *Txn) hiveRow(id string) *core.Hive {
	if h, ok := t.touched.hives[id]; ok {
		return h
	}
	return first[core.Hive](t.txn, nil, tableHives, text(id))
}

// PutHive stores a hive.
func (t *Txn) PutHive(h core.Hive) {
	t.insert(tableHives, &h)
	t.touched.hive(h.ID, &h)
}

// DeleteHive removes a hive if it exists. Its workers stay.
func (t *Txn) DeleteHive(id string) {
	t.delete(tableHives, text(id))
	t.touched.hive(id, nil)
}

// Worker returns a hive's worker with the id.
func (t *Txn) Worker(hive, id string) (core.Worker, bool) {
	if w := t.workerRow(workerID{id, hive}); w != nil {
		return *w, true
	}
	return core.Worker{}, false
}

// WorkersWithID does what Snapshot.WorkersWithID does.
func (t *Txn) WorkersWithID(id string) []core.Worker {
	if id == "" {
		return nil
	}
	return list(t.txn, nil, cloneWorker, tableWorkers, indexPrefix, text(id))
}

func (t *Txn) workerRow(id workerID) *core.Worker {
	w, ok := t.workers[id]
	if !ok {
		w = first[core.Worker](t.txn, nil, tableWorkers, workerKey(id.hive, id.id))
		t.setWorkerRow(id, w)
	}
	return w
}

func (t *Txn) setWorkerRow(id workerID, w *core.Worker) {
	if t.workers == nil {
		t.workers = map[workerID]*core.Worker{}
	}
	t.workers[id] = w
}

// WorkersOfHive returns the workers of a hive, sorted by id.
func (t *Txn) WorkersOfHive(hive string) []core.Worker {
	return list(t.txn, nil, cloneWorker, tableWorkers, indexHive, text(hive))
}

// PutWorker stores a worker.
func (t *Txn) PutWorker(w core.Worker) {
	id := idOf(&w)
	t.touched.worker(id, t.workerRow(id), &w)
	t.insert(tableWorkers, &w)
	t.setWorkerRow(id, &w)
}

// DeleteWorker removes a hive's worker if it exists.
func (t *Txn) DeleteWorker(hive, id string) {
	key := workerID{id, hive}
	t.touched.worker(key, t.workerRow(key), nil)
	t.delete(tableWorkers, workerKey(hive, id))
	t.setWorkerRow(key, nil)
}

func row[T any](t *Txn, table, id string) (T, bool) {
	if r := first[T](t.txn, nil, table, text(id)); r != nil {
		return *r, true
	}
	var zero T
	return zero, false
}

func (t *Txn) insert(table string, row any) {
	if err := t.txn.Insert(table, row); err != nil {
		// an empty id: the command was not checked
		panic(fmt.Sprintf("registry insert into %s: %v", table, err))
	}
}

func (t *Txn) delete(table string, id key) {
	if len(id) == 0 {
		return
	}
	if _, err := t.txn.DeleteAll(table, indexID, id); err != nil {
		panic(fmt.Sprintf("registry delete from %s: %v", table, err))
	}
}
