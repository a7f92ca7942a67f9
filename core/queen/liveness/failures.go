package liveness

import (
	"slices"

	"github.com/rbee-project/rbee/core"
)

// failures holds the workers avoided because they failed a request, each with the reason. There are
// few at a time.
type failures map[instance]string

// instance identifies one start of a worker. The nonce alone would not: a hive can report the nonce
// of another hive's worker.
type instance struct{ hive, nonce string }

// of returns the failures of a hive's workers by nonce; nil: none.
func (f failures) of(hive string) map[string]string {
	var found map[string]string
	for at, why := range f {
		if at.hive == hive {
			if found == nil {
				found = map[string]string{}
			}
			found[at.nonce] = why
		}
	}
	return found
}

// confirm drops the failures of a hive's workers that its report lists, and reports whether there
// were any. With all it also drops those of workers not in the report: the registry does not have
// them either.
func (f failures) confirm(hive string, r *Report, all bool) bool {
	found := false
	for at := range f {
		if at.hive == hive && (all || slices.ContainsFunc(r.Workers, func(w core.Worker) bool { return w.Nonce == at.nonce })) {
			delete(f, at)
			found = true
		}
	}
	return found
}

// Fail avoids a worker that could not be reached, or was lost during a request, until the next
// report of its hive still lists this very start of it. A hive reports the end of a process at
// once: what it still lists is alive.
func (m *Monitor) Fail(w core.Worker) {
	key := instance{w.Hive, w.Nonce}
	if now, ok := m.opts.Registry.View().Worker(nil, w.Hive, w.ID); !ok || now.Nonce != w.Nonce {
		return // already removed, and with it the reason to avoid it
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.failures[key]; ok {
		return
	}
	m.failures[key] = "it failed a request a moment ago"
	if p, ok := m.peers[w.Hive]; ok && p.link != nil { // request an immediate report
		p.link.hurry = true
		p.link.wakeUp()
	}
	m.publishLocked(w.Hive)
	m.changedLocked()
	m.log.Warn("worker failed a request, it is avoided until its hive confirms it", "worker", w.ID, "hive", w.Hive, "model", w.Model)
}

// Failed returns the number of workers avoided because they failed a request.
func (m *Monitor) Failed() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.failures)
}
