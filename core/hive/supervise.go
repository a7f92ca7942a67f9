package hive

import (
	"context"
	"os"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/pluginhost"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

const (
	pollActive  = 250 * time.Millisecond // between polls of a worker that has requests
	pollIdle    = time.Second            // between polls of an idle one
	pollTimeout = 2 * time.Second
	// refreshEvery is the interval between polls of the free memory of a worker's devices.
	refreshEvery = 30 * time.Second
	// silentAfter is the silence after which a worker is reported to the queens.
	silentAfter = 3 * time.Second
	// busyShare is the least share of one core that a silent worker must use to count as working.
	busyShare = 0.05
	// deafFactor is how many worker timeouts a silent worker gets while it works.
	deafFactor = 10
)

// supervisor watches the workers of the hive from their launch to their end, and ends them.
type supervisor struct {
	workerTimeout time.Duration // after which one that neither reports its state nor works is killed
	logBytes      int64         // size at which a worker's log is rotated
	log           hclog.Logger
	now           func() time.Time
	disk          layout
	beat          *beater
	life          *life
	settings      *settings
	roster        *roster
	types         *typeSet
	states        *states
}

// supervise owns the worker until its process exits or ctx ends. When ctx ends, it detaches and
// leaves the process running.
func (sv *supervisor) supervise(ctx context.Context, w *worker) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	failing, vigil := false, vigil{}
	refreshed := time.Now()
	var logLooked time.Time // zero: check at once, as an adopted worker may have a long log
	for {
		select {
		case <-w.proc.Done():
			sv.bury(w)
			sv.types.refreshAfter(ctx, w)
			return
		case <-ctx.Done():
			letGo(sv.log, w.id(), w.proc)
			close(w.gone)
			return
		case <-timer.C:
		case <-w.look:
		}
		if time.Since(logLooked) >= logEvery {
			logLooked = time.Now()
			sv.boundLog(w)
		}
		if w.stateNow() == core.WorkerLoading {
			timer.Reset(pollActive)
			continue
		}
		err := sv.poll(ctx, w)
		if err != nil && !failing && ctx.Err() == nil {
			sv.log.Warn("a worker does not tell its state", "worker", w.id(), "error", err)
		}
		failing = err != nil
		sv.watchSilent(ctx, w, &vigil)
		if err == nil {
			sv.unloadIdle(w)
		}
		if err == nil && time.Since(refreshed) >= refreshEvery {
			refreshed = time.Now()
			sv.types.refresh(ctx, w)
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

// poll asks a worker for its state. It ends one that reports a failure. Busy is not dead: see
// watchSilent.
func (sv *supervisor) poll(ctx context.Context, w *worker) error {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	w.proc.Share(sv.roster.cpuWorkers())
	s, err := w.proc.Status(ctx)
	if err != nil {
		return err
	}
	if w.noteStatus(s, sv.now()) {
		sv.beat.bumpLoad()
	}
	if s.State == sdkworker.StateFailed && w.setState(core.WorkerFailed) {
		w.mu.Lock()
		w.problem = s.Problem
		w.mu.Unlock()
		sv.log.Error("a worker has failed", "worker", w.id(), "model", w.handle.Model, "error", s.Problem)
		sv.beat.bump()
		return w.proc.Kill()
	}
	return nil
}

// vigil tracks a worker while it is silent.
type vigil struct {
	told bool          // the queens have been notified
	cpu  time.Duration // processor time at the last check
	at   time.Time     // time of that check; zero: none
}

// hangs reports whether to kill a worker that has been silent for so long, and has used so much
// processor time so far.
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

// watchSilent reports a worker that has become silent to the queens, and kills one that is silent
// for the worker timeout and does nothing. One that uses its processor may only be starved, or deaf
// while it works: it gets ten times as long.
func (sv *supervisor) watchSilent(ctx context.Context, w *worker, v *vigil) {
	silence := w.silence()
	if silence < silentAfter {
		*v = vigil{}
		return
	}
	if !v.told {
		v.told = true
		sv.beat.bumpLoad()
	}
	used, err := hostinfo.ReadUsage(ctx, w.identity())
	if err != nil {
		return // the worker is ending, or ctx has ended
	}
	if !v.hangs(silence, used.CPUTime, time.Now(), sv.workerTimeout) {
		return
	}
	w.mu.Lock()
	w.problem = "it hung"
	w.mu.Unlock()
	sv.log.Error("killed a worker that hung", "worker", w.id(), "model", w.handle.Model, "pid", w.pid(), "silence", silence.Round(time.Second))
	if err := w.proc.Kill(); err != nil {
		sv.log.Error("kill a worker that hung", "worker", w.id(), "error", err)
	}
}

// bury removes what an ended process leaves. It notifies the queens first.
func (sv *supervisor) bury(w *worker) {
	w.mu.Lock()
	e := exit{WorkerID: w.id(), Process: w.identity(), At: sv.now(), How: w.proc.Exit(), Asked: w.asked, Problem: w.problem}
	loading := w.state == core.WorkerLoading
	w.mu.Unlock()
	var err error
	if e.Log, err = tailFile(sv.disk.logFile(w.id()), failureLines); err != nil {
		sv.log.Warn("read the log of an ended worker", "worker", w.id(), "error", err)
	}
	sv.roster.ended(e)
	sv.beat.bump()

	switch {
	case e.Asked:
		sv.log.Info("worker ended", "worker", w.id(), "model", w.handle.Model, "pid", w.pid(), "exit", e.How)
	case !loading: // the job reports a failed load
		sv.log.Error("worker ended by itself", "worker", w.id(), "model", w.handle.Model, "pid", w.pid(), "exit", e.How)
	}
	letGo(sv.log, w.id(), w.proc)
	sv.states.keep(w)
	sv.clean(w.id())
	close(w.gone)
}

// letGo releases what the hive holds of a process: its connection.
func letGo(log hclog.Logger, id string, p workerProcess) {
	if err := p.Close(); err != nil {
		log.Warn("let go of a worker process", "worker", id, "error", err)
	}
}

// clean ends the processes that a dead worker left behind and removes its files.
func (sv *supervisor) clean(id string) {
	// Every descendant of a worker inherits this variable, even if it leaves the process group or
	// the session; the folder belongs to this worker only.
	user := owner(pluginhost.PrivateDir(sv.disk.runDir(id)))
	for _, dir := range []string{pluginhost.PrivateDir(sv.disk.runDir(id)), sv.disk.runDir(id)} { // the second for workers of earlier releases
		left, err := hostinfo.KillMarked(socketDirVariable+"="+dir, user)
		if err != nil {
			sv.log.Warn("look for processes that a worker left", "worker", id, "error", err)
		}
		if len(left) > 0 {
			sv.log.Warn("ended processes that a worker left", "worker", id, "pids", left)
		}
	}
	if err := removeFile(sv.disk.handleFile(id)); err != nil {
		sv.log.Error("remove the handle of a worker", "worker", id, "error", err)
	}
	if err := os.RemoveAll(sv.disk.runDir(id)); err != nil {
		sv.log.Error("remove the folder of a worker", "worker", id, "error", err)
	}
}

// owner returns the uid of the owner of a folder; 0 if there is none.
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

// socketDirVariable is the variable in which go-plugin passes a plugin the folder for its socket.
const socketDirVariable = "PLUGIN_UNIX_SOCKET_DIR"
