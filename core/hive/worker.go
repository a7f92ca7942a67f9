package hive

import (
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// worker is a worker process and its known state.
type worker struct {
	handle handle
	proc   workerProcess
	// gone is closed by the supervisor when the process has exited and nothing of it is left.
	gone   chan struct{}
	sooner chan struct{} // capacity one: endBy has changed
	look   chan struct{} // capacity one: its use has changed
	// logFailed reports that a rotation of the log failed and none has succeeded since. Only the
	// supervisor uses it.
	logFailed bool

	mu       sync.Mutex // guards below
	state    core.WorkerState
	status   sdkworker.Status
	statusAt time.Time
	heard    time.Time // of the last status, by the monotonic clock; zero: none yet
	moved    time.Time // of the last sign of progress, likewise
	asked    bool      // its end was requested
	keep     bool      // and its state is to be kept
	problem  string    // why it failed
	endBy    time.Time // when running requests are cut; zero: no end requested
	now      bool      // running requests are not waited for
	forced   bool      // it did not end by itself, or not in time
	tenancy  tenancy
	readyAt  time.Time     // when it became ready, or was adopted; by the monotonic clock
	loadTook time.Duration // from the launch of its process; 0: unknown
}

func newWorker(h handle, p workerProcess, state core.WorkerState) *worker {
	now := time.Now()
	return &worker{
		handle: h, proc: p, state: state, gone: make(chan struct{}), sooner: make(chan struct{}, 1), look: make(chan struct{}, 1),
		tenancy: tenancy{used: now}, readyAt: now,
	}
}

func (w *worker) id() string { return w.handle.id() }

func (w *worker) identity() hostinfo.Identity { return w.handle.Attachment.Process }

func (w *worker) pid() int { return w.handle.Attachment.Process.PID }

// view returns the worker for the registry. keepAlive is the cluster's setting.
func (w *worker) view(hive string, keepAlive time.Duration) core.Worker {
	w.mu.Lock()
	defer w.mu.Unlock()
	v := core.Worker{
		ID: w.id(), Hive: hive, Type: w.handle.Attachment.Type, Version: w.handle.Version, Model: w.handle.Model, ModelDigest: w.handle.ModelDigest,
		Device: w.handle.Device, Slots: w.handle.Slots, ContextTokens: w.handle.ContextTokens, State: w.state, Nonce: w.handle.Attachment.Nonce,
		Replica: w.handle.Replica,
	}
	if w.statusAt.IsZero() {
		return v
	}
	// A backend may have settled for less than requested.
	if w.status.Slots > 0 {
		v.Slots = w.status.Slots
	}
	if w.status.ContextTokens > 0 {
		v.ContextTokens = w.status.ContextTokens
	}
	v.Capabilities = core.CapabilitiesOf(w.status.Capabilities)
	v.Load = core.Load{
		At: w.statusAt, Active: w.status.Active, Queued: w.status.Queued, TokensPerSecond: w.status.TokensPerSecond,
		TokensTotal: w.status.TokensTotal, KVUsedTokens: w.status.KVUsedTokens,
		DraftTokens: w.status.DraftTokensTotal, AcceptedTokens: w.status.AcceptedTokensTotal,
		Silence: core.Duration(time.Since(w.heard).Truncate(time.Millisecond)),
	}
	v.Load.Pinned, v.Load.LoadTook, v.Load.MemoryBytes = w.handle.Pinned, core.Duration(w.loadTook), w.handle.MemoryBytes
	if !w.busyLocked() {
		v.Load.Idle = core.Duration(time.Since(w.tenancy.used).Truncate(time.Millisecond))
	}
	if keep := w.tenancy.keep(w.handle.KeepAlive, keepAlive); keep >= 0 && !w.handle.Pinned {
		v.Load.Unloads, v.Load.KeepAlive = true, core.Duration(keep)
	}
	if w.status.TokensTotal > 0 || w.status.KVUsedTokens > 0 { // it reports its progress
		v.Load.Stalled = core.Duration(time.Since(w.moved).Truncate(time.Millisecond))
	}
	return v
}

func (w *worker) stateNow() core.WorkerState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// setState changes the state and reports whether it changed. A retiring worker never becomes ready
// again, and failed is final.
func (w *worker) setState(s core.WorkerState) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == s || w.state == core.WorkerFailed || (w.state == core.WorkerRetiring && s == core.WorkerReady) {
		return false
	}
	w.state = s
	return true
}

// ready notes that the model is loaded, and how long that took, and reports whether the worker
// serves now.
func (w *worker) ready(took time.Duration) bool {
	if !w.setState(core.WorkerReady) {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	w.readyAt, w.loadTook, w.tenancy.used = now, took, now
	return true
}

// expectEnd notes that the end of the process is wanted, so that it is not reported as a failure.
func (w *worker) expectEnd() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.asked = true
}

func (w *worker) wasAsked() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.asked
}

func (w *worker) deadline() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.endBy
}

func (w *worker) cutNow() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *worker) force() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.forced = true
}

// noteStatus records a status and reports whether it is news for the queens.
func (w *worker) noteStatus(s sdkworker.Status, at time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	now := time.Now()
	if w.heard.IsZero() || s.Active == 0 || s.TokensTotal != w.status.TokensTotal || s.KVUsedTokens != w.status.KVUsedTokens {
		w.moved = now
	}
	if !w.heard.IsZero() {
		w.tenancy.note(w.status.Active+w.status.Queued > 0 || s.TokensTotal != w.status.TokensTotal, now.Sub(w.heard))
	}
	if s.Active+s.Queued > 0 || w.status.Active+w.status.Queued > 0 || s.TokensTotal != w.status.TokensTotal {
		w.tenancy.used = now
	}
	news := w.statusAt.IsZero() || now.Sub(w.heard) >= silentAfter || s.Active != w.status.Active || s.Queued != w.status.Queued ||
		s.Slots != w.status.Slots || s.ContextTokens != w.status.ContextTokens || !slices.Equal(s.Capabilities, w.status.Capabilities)
	w.status, w.statusAt, w.heard = s, at, now
	return news
}

// silence returns the time since the worker last reported its state, 0 if it never did.
func (w *worker) silence() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.heard.IsZero() {
		return 0
	}
	return time.Since(w.heard)
}
