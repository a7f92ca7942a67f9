package router

import (
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/liveness"
)

// forgetUse is how long a worker's last request is remembered. By then its hive has been informed
// many times.
const forgetUse = time.Minute

// uses records what this queen sends to workers, by hive and by nonce of the worker.
type uses map[string]map[string]*liveness.Use

// begin counts a request to a worker.
func (u uses) begin(w *core.Worker, keepAlive *time.Duration, now time.Time) *liveness.Use {
	of := u[w.Hive]
	if of == nil {
		of = map[string]*liveness.Use{}
		u[w.Hive] = of
	}
	use := of[w.Nonce]
	if use == nil {
		use = &liveness.Use{Worker: w.ID, Nonce: w.Nonce}
		of[w.Nonce] = use
	}
	use.InFlight++
	use.Last, use.KeepAlive = now, keepAlive
	return use
}

// inFlight returns the number of requests to a worker that have not ended.
func (u uses) inFlight(w *core.Worker) int {
	if use := u[w.Hive][w.Nonce]; use != nil {
		return use.InFlight
	}
	return 0
}

// of returns the uses of a hive's workers, and forgets old ones.
func (u uses) of(hive string, now time.Time) []liveness.Use {
	var list []liveness.Use
	for nonce, use := range u[hive] {
		if use.InFlight == 0 && now.Sub(use.Last) > forgetUse {
			delete(u[hive], nonce)
			continue
		}
		list = append(list, *use)
	}
	if len(u[hive]) == 0 {
		delete(u, hive)
	}
	return list
}

// Uses returns how this queen uses the workers of a hive, for the hive.
func (r *Router) Uses(hive string) []liveness.Use {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.uses.of(hive, time.Now())
}
