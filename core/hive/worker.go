package hive

import (
	"context"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/pluginhost"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// socketDirVariable is the variable by which go-plugin tells a plugin the folder for its socket.
const socketDirVariable = "PLUGIN_UNIX_SOCKET_DIR"

const (
	pollActive  = 250 * time.Millisecond // between looks at a worker that has requests
	pollIdle    = time.Second            // between looks at one that has none
	pollTimeout = 2 * time.Second
	// refreshEvery is between looks at the free memory of the devices of a worker.
	refreshEvery = 30 * time.Second
	// silentAfter is the silence of a worker of which the queens are told at once.
	silentAfter = 3 * time.Second
	// busyShare is the least part of one core that a silent worker uses where it works.
	busyShare = 0.05
	// deafFactor is how many worker timeouts a silent worker is left that works.
	deafFactor = 10
)

// worker is one worker process and what is known of it.
type worker struct {
	handle handle
	proc   workerProcess
	// gone is closed by the supervisor when the process has ended and nothing of it is left.
	gone   chan struct{}
	sooner chan struct{} // holds one: endBy has changed
	look   chan struct{} // holds one: what it is used for has changed
	// logFailed says that a rotation of the log went wrong and none has succeeded since. The
	// supervisor's alone.
	logFailed bool

	mu       sync.Mutex // guards below
	state    core.WorkerState
	status   sdkworker.Status
	statusAt time.Time
	heard    time.Time // of the last status, by the monotonic clock; zero: there was none
	moved    time.Time // of the last sign of progress, likewise
	asked    bool      // somebody wanted the end
	keep     bool      // and its state kept
	problem  string    // why it failed
	endBy    time.Time // when running requests are cut; zero: nobody wants the end
	now      bool      // running requests are not waited for
	forced   bool      // it did not end by itself, or not in time
	tenancy  tenancy
	readyAt  time.Time     // when it was ready, or taken over; by the monotonic clock
	loadTook time.Duration // from the launch of its process; 0: unknown
}

func newWorker(h handle, p workerProcess, state core.WorkerState) *worker {
	now := time.Now()
	return &worker{
		handle: h, proc: p, state: state, gone: make(chan struct{}), sooner: make(chan struct{}, 1), look: make(chan struct{}, 1),
		tenancy: tenancy{used: now}, readyAt: now,
	}
}

func (w *worker) id() string                  { return w.handle.id() }
func (w *worker) identity() hostinfo.Identity { return w.handle.Attachment.Process }
func (w *worker) pid() int                    { return w.handle.Attachment.Process.PID }

// view is the worker for the registry. keepAlive is the cluster's setting.
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
	// A backend may have settled for less than it was asked for.
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
	if w.status.TokensTotal > 0 || w.status.KVUsedTokens > 0 { // it tells its progress
		v.Load.Stalled = core.Duration(time.Since(w.moved).Truncate(time.Millisecond))
	}
	return v
}

func (w *worker) stateNow() core.WorkerState {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.state
}

// setState changes the state and says whether that was a change. A retiring worker never becomes
// ready again, a failed one nothing else.
func (w *worker) setState(s core.WorkerState) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == s || w.state == core.WorkerFailed || (w.state == core.WorkerRetiring && s == core.WorkerReady) {
		return false
	}
	w.state = s
	return true
}

// ready notes that the model is loaded, in so much time, and says whether the worker serves now.
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

// noteStatus takes a report in and says whether it is news for the queens.
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

// silence returns the time since the worker last told its state, 0 where it never did.
func (w *worker) silence() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.heard.IsZero() {
		return 0
	}
	return time.Since(w.heard)
}

// exit is what is remembered of a worker process that ended.
type exit struct {
	WorkerID string
	Process  hostinfo.Identity
	At       time.Time
	How      string // "exit code 0", "signal killed"; empty where unknown
	Asked    bool
	Problem  string
	Log      []string // its last lines
}

// maxExits bounds how many ends are remembered.
const maxExits = 64

// supervise owns the worker until its process ends or ctx does. With ctx it lets go of the process,
// which goes on.
func (h *Hive) supervise(ctx context.Context, w *worker) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing, vigil := false, vigil{}
	refreshed := time.Now()
	var logLooked time.Time // an adopted worker may have written for long
	for {
		select {
		case <-w.proc.Done():
			h.bury(w)
			h.refreshAfter(ctx, w)
			return
		case <-ctx.Done():
			h.letGo(w.id(), w.proc)
			close(w.gone)
			return
		case <-timer.C:
		case <-w.look:
		}
		if time.Since(logLooked) >= logEvery {
			logLooked = time.Now()
			h.boundLog(w)
		}
		if w.stateNow() == core.WorkerLoading {
			timer.Reset(pollActive)
			continue
		}
		err := h.poll(ctx, w)
		if err != nil && !failing && ctx.Err() == nil {
			h.log.Warn("a worker does not tell its state", "worker", w.id(), "error", err)
		}
		failing = err != nil
		h.watchSilent(ctx, w, &vigil)
		if err == nil {
			h.unloadIdle(w)
		}
		if err == nil && time.Since(refreshed) >= refreshEvery {
			refreshed = time.Now()
			h.refresh(ctx, w)
		}
		w.mu.Lock()
		active := w.status.Active+w.status.Queued > 0
		w.mu.Unlock()
		if active {
			timer.Reset(pollActive)
		} else {
			timer.Reset(pollIdle)
		}
	}
}

// poll asks a worker for its state. One that says it has failed is ended. Busy is not dead: see
// watchSilent.
func (h *Hive) poll(ctx context.Context, w *worker) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	w.proc.Share(h.cpuWorkers())
	s, err := w.proc.Status(ctx)
	if err != nil {
		return err
	}
	if w.noteStatus(s, h.now()) {
		h.beat.bumpLoad()
	}
	if s.State == sdkworker.StateFailed && w.setState(core.WorkerFailed) {
		w.mu.Lock()
		w.problem = s.Problem
		w.mu.Unlock()
		h.log.Error("a worker has failed", "worker", w.id(), "model", w.handle.Model, "error", s.Problem)
		h.beat.bump()
		return w.proc.Kill()
	}
	return nil
}

// vigil is what is known of a worker while it is silent.
type vigil struct {
	told bool          // the queens know
	cpu  time.Duration // that the process had used when it was looked at last
	at   time.Time     // of that look; zero: there was none
}

// hangs reports whether a worker is to be killed that has been silent for so long, and has used so
// much processor time by now.
func (v *vigil) hangs(silence, cpu time.Duration, now time.Time, timeout time.Duration) bool {
	if v.at.IsZero() {
		v.at, v.cpu = now, cpu
		return false // nothing to compare with
	}
	if silence < timeout {
		return false
	}
	works := cpu-v.cpu > time.Duration(busyShare*float64(now.Sub(v.at)))
	if works && silence < deafFactor*timeout {
		v.at, v.cpu = now, cpu
		return false
	}
	return true
}

// watchSilent tells the queens of a worker that has become silent, and kills one that is silent for
// the worker timeout and does nothing. One that uses its processor may only be starved, or deaf
// while it works: it is left for ten times as long.
func (h *Hive) watchSilent(ctx context.Context, w *worker, v *vigil) {
	silence := w.silence()
	if silence < silentAfter {
		*v = vigil{}
		return
	}
	if !v.told {
		v.told = true
		h.beat.bumpLoad()
	}
	used, err := hostinfo.ReadUsage(ctx, w.identity())
	if err != nil {
		return // it ends, or ctx does
	}
	if !v.hangs(silence, used.CPUTime, time.Now(), h.opts.WorkerTimeout) {
		return
	}
	w.mu.Lock()
	w.problem = "it hung"
	w.mu.Unlock()
	h.log.Error("killed a worker that hung", "worker", w.id(), "model", w.handle.Model, "pid", w.pid(), "silence", silence.Round(time.Second))
	if err := w.proc.Kill(); err != nil {
		h.log.Error("kill a worker that hung", "worker", w.id(), "error", err)
	}
}

// bury removes what an ended process leaves. The queens are told before anything else.
func (h *Hive) bury(w *worker) {
	w.mu.Lock()
	e := exit{WorkerID: w.id(), Process: w.identity(), At: h.now(), How: w.proc.Exit(), Asked: w.asked, Problem: w.problem}
	loading := w.state == core.WorkerLoading
	w.mu.Unlock()
	var err error
	if e.Log, err = tailFile(h.disk.logFile(w.id()), failureLines); err != nil {
		h.log.Warn("read the log of an ended worker", "worker", w.id(), "error", err)
	}
	h.mu.Lock()
	delete(h.workers, w.id())
	h.exits = append(h.exits, e)
	h.exits = h.exits[max(len(h.exits)-maxExits, 0):]
	h.mu.Unlock()
	h.beat.bump()

	switch {
	case e.Asked:
		h.log.Info("worker ended", "worker", w.id(), "model", w.handle.Model, "pid", w.pid(), "exit", e.How)
	case !loading: // a failed load is the job's to tell
		h.log.Error("worker ended by itself", "worker", w.id(), "model", w.handle.Model, "pid", w.pid(), "exit", e.How)
	}
	h.letGo(w.id(), w.proc)
	h.keepState(w)
	h.clean(w.id())
	close(w.gone)
}

// letGo frees what the hive holds of a process: its connection.
func (h *Hive) letGo(id string, p workerProcess) {
	if err := p.Close(); err != nil {
		h.log.Warn("let go of a worker process", "worker", id, "error", err)
	}
}

// clean ends the processes that a dead worker left behind and removes its files.
func (h *Hive) clean(id string) {
	// Whatever a worker starts inherits this variable, also when it leaves the process group or the
	// session; the folder is the worker's alone.
	user := owner(pluginhost.PrivateDir(h.disk.runDir(id)))
	for _, dir := range []string{pluginhost.PrivateDir(h.disk.runDir(id)), h.disk.runDir(id)} { // the latter of an earlier release
		left, err := hostinfo.KillMarked(socketDirVariable+"="+dir, user)
		if err != nil {
			h.log.Warn("look for processes that a worker left", "worker", id, "error", err)
		}
		if len(left) > 0 {
			h.log.Warn("ended processes that a worker left", "worker", id, "pids", left)
		}
	}
	if err := removeFile(h.disk.handleFile(id)); err != nil {
		h.log.Error("remove the handle of a worker", "worker", id, "error", err)
	}
	if err := os.RemoveAll(h.disk.runDir(id)); err != nil {
		h.log.Error("remove the folder of a worker", "worker", id, "error", err)
	}
}

// owner is the number of the user that a folder belongs to; 0 where there is none.
func owner(dir string) uint32 {
	info, err := os.Stat(dir)
	if err != nil {
		return 0
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		return stat.Uid
	}
	return 0
}
