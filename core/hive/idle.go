package hive

import (
	"math"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/sched"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// tenancy decides how long a worker stays. The hive owns that clock: it sees what the worker does
// whichever queen sent it there, and keeps counting without any queen. worker.mu guards it.
type tenancy struct {
	used   time.Time      // of the last sign of a request, by the monotonic clock
	queens map[string]int // requests in flight, as reported by each queen
	// wanted is how long the latest reported request wants the worker kept, negative: for good;
	// nil: unspecified.
	wanted   *time.Duration
	wantedAt time.Time // when that request began or ended
	// share is the recent share of time in which the worker had requests, from 0 to 1, as an
	// exponentially decaying average.
	share float64
}

// shareTime is the age at which past time counts for a third in tenancy.share.
const shareTime = 10 * time.Minute

// note counts the time since the last check, in which the worker had requests or not.
func (t *tenancy) note(busy bool, since time.Duration) {
	keep := math.Exp(-since.Seconds() / shareTime.Seconds())
	t.share *= keep
	if busy {
		t.share += 1 - keep
	}
}

// tell records a queen's use of the worker and reports whether that changes anything.
func (t *tenancy) tell(queen string, u *queenv1.Use, now time.Time) bool {
	at := now.Add(-max(u.GetSince().AsDuration(), 0))
	before := t.queens[queen]
	if n := int(u.GetInFlight()); n > 0 {
		if t.queens == nil {
			t.queens = map[string]int{}
		}
		t.queens[queen], t.used = n, now
	} else {
		delete(t.queens, queen)
		if at.After(t.used) {
			t.used = at
		}
	}
	news := before != t.queens[queen]
	if at.After(t.wantedAt) {
		t.wantedAt = at
		var wanted *time.Duration
		if k := u.GetKeepAlive(); k != nil {
			wanted = new(k.AsDuration())
		}
		news = news || (wanted == nil) != (t.wanted == nil) || wanted != nil && *wanted != *t.wanted
		t.wanted = wanted
	}
	return news
}

// forget drops the report of a queen whose line broke. Its requests still show in the worker's own
// state.
func (t *tenancy) forget(queen string) { delete(t.queens, queen) }

// inFlight reports whether a queen has a request that has not ended.
func (t *tenancy) inFlight() bool { return len(t.queens) > 0 }

// keep returns how long the worker stays after its last request, negative: for good. own is the
// value of its handle, cluster the cluster's setting.
func (t *tenancy) keep(own string, cluster time.Duration) time.Duration {
	if t.wanted != nil {
		return *t.wanted
	}
	switch own {
	case "":
		return core.KeepForever
	case core.KeepAliveDefault:
		return cluster
	}
	keep, err := core.ParseKeepAlive(own)
	if err != nil { // from a handle that another version wrote
		return core.KeepForever
	}
	return keep
}

// busyLocked reports whether the worker is known to have a request.
func (w *worker) busyLocked() bool {
	return w.status.Active+w.status.Queued > 0 || w.tenancy.inFlight()
}

// overstays reports whether the worker is to be unloaded: it serves, has been idle for its
// keep-alive time, and may unload by itself.
func (w *worker) overstays(cluster time.Duration, now time.Time) (idle time.Duration, due bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	keep := w.tenancy.keep(w.handle.KeepAlive, cluster)
	if w.state != core.WorkerReady || w.handle.Pinned || keep < 0 || w.busyLocked() {
		return 0, false
	}
	idle = now.Sub(w.tenancy.used)
	return idle, idle >= keep
}

// unloadIdle retires a worker that has been idle for its keep-alive time. Its state was polled just
// before.
func (sv *supervisor) unloadIdle(w *worker) {
	idle, due := w.overstays(sv.settings.rules().keepAlive, time.Now())
	if !due {
		return
	}
	sv.log.Info("unloads a worker that nobody uses", "worker", w.id(), "model", w.handle.Model, "idle", idle.Round(time.Second))
	if err := sv.endWorker(w, ending{grace: defaultRetireGrace, keep: true}); err != nil {
		sv.log.Debug("unload a worker", "worker", w.id(), "error", err) // the hive ends
	}
}

// told records a queen's report of its use of workers and of the cluster's settings.
func (sv *supervisor) told(queen string, resp *queenv1.LinkResponse) {
	if t := resp.GetTenancy(); t.GetKeepAlive() != nil {
		now := *sv.settings.rules()
		now.keepAlive = t.GetKeepAlive().AsDuration()
		if t.GetSwapWait() != nil && t.GetSwapWarm() != nil {
			now.swap = sched.Swap{MaxWait: t.GetSwapWait().AsDuration(), MinWarm: t.GetSwapWarm().AsDuration()}
		}
		sv.settings.cluster.Store(&now)
	}
	now := time.Now()
	for _, u := range resp.GetUses() {
		w, ok := sv.roster.worker(u.GetWorker())
		if !ok || w.handle.Attachment.Nonce != u.GetNonce() {
			continue
		}
		w.mu.Lock()
		news := w.tenancy.tell(queen, u, now)
		w.mu.Unlock()
		if news {
			wake(w.look)
		}
	}
}

// lost forgets the reports of a queen whose line broke.
func (sv *supervisor) lost(queen string) {
	for _, w := range sv.roster.all() {
		w.mu.Lock()
		w.tenancy.forget(queen)
		w.mu.Unlock()
	}
}
