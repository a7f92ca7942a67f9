package hive

import (
	"cmp"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// roster lists the workers of the hive and the exits of earlier ones.
type roster struct {
	hive string // display name

	mu      sync.Mutex // guards below
	workers map[string]*worker
	exits   []exit // oldest first
}

func newRoster(hive string) *roster { return &roster{hive: hive, workers: map[string]*worker{}} }

// add adds a worker.
func (r *roster) add(w *worker) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.workers[w.id()] = w
}

// drop removes a worker that never ran.
func (r *roster) drop(id string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.workers, id)
}

// ended removes a worker, if it was listed, and records how it ended.
func (r *roster) ended(e exit) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.workers, e.WorkerID)
	r.exits = append(r.exits, e)
	r.exits = r.exits[max(len(r.exits)-maxExits, 0):]
}

// byID returns the current workers. The caller owns the map.
func (r *roster) byID() map[string]*worker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.workers)
}

// all returns the workers, ordered by id.
func (r *roster) all() []*worker {
	return slices.SortedFunc(maps.Values(r.byID()), func(a, b *worker) int { return strings.Compare(a.id(), b.id()) })
}

// worker finds a worker by its whole id.
func (r *roster) worker(id string) (*worker, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	w, ok := r.workers[id]
	return w, ok
}

// exit records a worker process that ended.
type exit struct {
	WorkerID string
	Process  hostinfo.Identity
	At       time.Time
	How      string // "exit code 0", "signal killed"; empty where unknown
	Asked    bool
	Problem  string
	Log      []string // its last lines
}

// maxExits bounds how many exits are kept.
const maxExits = 64

// replica returns the worker of a deployment's replica, if this hive has it: one that outlived the
// agent that started it is not started again. nil: none.
func (r *roster) replica(label string) *worker {
	if label == "" {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if w.handle.Replica == label && !isDone(w.gone) {
			return w
		}
	}
	return nil
}

// exitOf returns how a worker ended; the zero exit: unknown.
func (r *roster) exitOf(id string) exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, e := range r.exits {
		if e.WorkerID == id {
			return e
		}
	}
	return exit{}
}

// findProcess finds the worker with a pid; it is nil when that worker has ended, and the exit is
// set. Errors: NotFound.
func (r *roster) findProcess(pid int) (*worker, exit, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, w := range r.workers {
		if w.pid() == pid {
			return w, exit{}, nil
		}
	}
	for _, e := range slices.Backward(r.exits) {
		if e.Process.PID != pid {
			continue
		}
		if now, err := hostinfo.Identify(pid); err == nil && now != e.Process {
			break // the pid has been reused
		}
		return nil, e, nil
	}
	return nil, exit{}, core.Errorf(core.NotFound, "find worker process: process %d is not a worker of hive %s", pid, r.hive).Hint(
		"The process list of the hive shows its workers; no other process is ever touched.")
}

// findWorker finds a worker by its id or a unique prefix of it; it is nil when that worker has
// ended. Errors: NotFound, Invalid for a prefix of several.
func (r *roster) findWorker(prefix string) (*worker, exit, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []*worker
	var ids []string
	for id, w := range r.workers {
		if strings.HasPrefix(id, prefix) {
			found = append(found, w)
		}
		ids = append(ids, id)
	}
	slices.Sort(ids)
	switch {
	case len(found) == 1:
		return found[0], exit{}, nil
	case len(found) > 1:
		return nil, exit{}, core.Errorf(core.Invalid, "find worker: %q begins the ids of %d workers", prefix, len(found)).Hint("Give more of the id.")
	}
	for _, e := range slices.Backward(r.exits) {
		if strings.HasPrefix(e.WorkerID, prefix) {
			return nil, e, nil
		}
	}
	return nil, exit{}, core.Errorf(core.NotFound, "find worker: hive %s has no worker %q", r.hive, prefix).Hint(
		"Workers of this hive: %s.", cmp.Or(strings.Join(ids, ", "), "none"))
}

// cpuWorkers returns how many workers compute on this machine's processor, including those that
// load: they share its cores.
func (r *roster) cpuWorkers() int {
	n := 0
	for _, w := range r.all() {
		if deviceKind(w.handle.Device) == kindCPU {
			n++
		}
	}
	return n
}

// loadedDigests returns the digests of the models that workers of this hive have loaded.
func (r *roster) loadedDigests() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, w := range r.workers {
		out = append(out, w.handle.ModelDigest)
	}
	return out
}

// withUsers adds the workers that run from a worker binary.
func (r *roster) withUsers(b core.WorkerBinary) core.WorkerBinary {
	b.InUseBy = []string{}
	for _, w := range r.all() {
		if w.handle.Binary == b.ID {
			b.InUseBy = append(b.InUseBy, w.id())
		}
	}
	return b
}

// withLoaders adds the workers that have a model loaded.
func (r *roster) withLoaders(m core.Model) core.Model {
	m.LoadedBy = []string{}
	for _, w := range r.all() {
		if w.handle.Model == m.ID {
			m.LoadedBy = append(m.LoadedBy, w.id())
		}
	}
	return m
}
