package state

import (
	"cmp"
	"hash/maphash"
	"maps"
	"slices"
	"strings"

	"github.com/hashicorp/go-memdb"

	"github.com/rbee-project/rbee/core"
)

// routes is a row of the routes table: the workers of one model, sorted by id, with their hives.
// Each Update derives it from the other tables at its end, so that routing finds everything it
// needs for a request in one place. Neither model nor list is empty.
type routes struct {
	Model string
	list  []route
}

type route struct {
	worker *core.Worker
	hive   *core.Hive // nil: not registered
}

// EachRoute calls yield with the registry's own entries of each worker that serves exactly the
// model and of its hive, sorted by worker id, until yield returns false. Callers must not change
// them. hive is nil if it is not registered. It copies nothing, because routing calls it for every
// request. The WatchSet fires when a worker of the model or its hive changes.
func (s *Snapshot) EachRoute(ws memdb.WatchSet, model string, yield func(worker *core.Worker, hive *core.Hive) bool) {
	for _, r := range s.routesOf(ws, model) {
		if !yield(r.worker, r.hive) {
			return
		}
	}
}

// EachWorkerOfModel is like EachRoute, without the hives.
func (s *Snapshot) EachWorkerOfModel(ws memdb.WatchSet, model string, yield func(*core.Worker) bool) {
	for _, r := range s.routesOf(ws, model) {
		if !yield(r.worker) {
			return
		}
	}
}

// WorkersOfModel returns the workers that serve exactly the model.
func (s *Snapshot) WorkersOfModel(ws memdb.WatchSet, model string) []core.Worker {
	found := s.routesOf(ws, model)
	workers := make([]core.Worker, 0, len(found))
	for _, r := range found {
		workers = append(workers, cloneWorker(*r.worker))
	}
	return workers
}

func (s *Snapshot) routesOf(ws memdb.WatchSet, model string) []route {
	var r *routes
	if ws == nil {
		r = s.routes.get(model)
	} else {
		s.watch(ws)
		r = first[routes](s.txn, ws, tableRoutes, text(model))
	}
	if r == nil {
		return nil
	}
	return r.list
}

// routeIndex finds the rows of the routes table in one step, for callers that do not watch them:
// the table's own index takes a dozen steps through cold memory. It is immutable; an update makes a
// new one that shares all but the changed parts with the old one.
type routeIndex struct {
	seed  maphash.Seed // does not affect any answer
	parts [256]map[string]*routes
}

func newRouteIndex() *routeIndex { return &routeIndex{seed: maphash.MakeSeed()} }

func (x *routeIndex) part(model string) int {
	return int(maphash.String(x.seed, model) % uint64(len(x.parts))) //nolint:gosec // below 256
}

func (x *routeIndex) get(model string) *routes { return x.parts[x.part(model)][model] }

// with returns the index with the changed rows; nil removes a row.
func (x *routeIndex) with(changed map[string]*routes) *routeIndex {
	if len(changed) == 0 {
		return x
	}
	next := *x
	var own [len(x.parts)]bool
	for model, r := range changed {
		i := x.part(model)
		if !own[i] {
			own[i] = true
			next.parts[i] = make(map[string]*routes, len(x.parts[i]))
			maps.Copy(next.parts[i], x.parts[i])
		}
		if r == nil {
			delete(next.parts[i], model)
		} else {
			next.parts[i][model] = r
		}
	}
	return &next
}

// workerID identifies a worker: worker ids are unique only within a hive.
type workerID struct{ id, hive string }

func idOf(w *core.Worker) workerID { return workerID{w.ID, w.Hive} }

// compare orders as workerKey does.
func (a workerID) compare(b workerID) int {
	return cmp.Or(strings.Compare(a.id, b.id), strings.Compare(a.hive, b.hive))
}

// touched holds an update's changes to the routes: rows by id, nil if removed.
type touched struct {
	hives   map[string]*core.Hive
	workers map[string]map[workerID]*core.Worker // by model
}

func (t *touched) hive(id string, h *core.Hive) {
	if t.hives == nil {
		t.hives = map[string]*core.Hive{}
	}
	t.hives[id] = h
}

func (t *touched) worker(id workerID, old, now *core.Worker) {
	put := func(model string, w *core.Worker) {
		if model == "" {
			return
		}
		if t.workers == nil {
			t.workers = map[string]map[workerID]*core.Worker{}
		}
		if t.workers[model] == nil {
			t.workers[model] = map[workerID]*core.Worker{}
		}
		t.workers[model][id] = w
	}
	if old != nil {
		put(old.Model, nil)
	}
	if now != nil {
		put(now.Model, now)
	}
}

// putRoutes updates the routes of the touched rows, and their index.
func (t *Txn) putRoutes(index *routeIndex) *routeIndex {
	for _, hive := range slices.Sorted(maps.Keys(t.touched.hives)) {
		each(t.txn, nil, tableWorkers, indexHive, text(hive), func(w *core.Worker) bool {
			t.touched.worker(idOf(w), nil, w)
			return true
		})
	}
	changed := map[string]*routes{}
	for _, model := range slices.Sorted(maps.Keys(t.touched.workers)) {
		var old []route
		if r := index.get(model); r != nil {
			old = r.list
		}
		rows := t.touched.workers[model]
		list := make([]route, 0, len(old)+len(rows))
		for _, id := range slices.SortedFunc(maps.Keys(rows), workerID.compare) {
			i, found := slices.BinarySearchFunc(old, id, func(r route, id workerID) int { return idOf(r.worker).compare(id) })
			list = append(list, old[:i]...)
			if old = old[i:]; found {
				old = old[1:]
			}
			if w := rows[id]; w != nil {
				list = append(list, route{worker: w, hive: t.hiveRow(w.Hive)})
			}
		}
		list = append(list, old...)
		if len(list) == 0 {
			t.delete(tableRoutes, text(model))
			changed[model] = nil
			continue
		}
		changed[model] = &routes{Model: model, list: list}
		t.insert(tableRoutes, changed[model])
	}
	return index.with(changed)
}
