package hive

import (
	"context"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

const (
	// adoptTimeout bounds how long a worker that an earlier agent left may take to answer.
	adoptTimeout = 30 * time.Second
	// adoptSilence is how long such a worker may use no processor time: one that is starved still
	// runs now and then, one that hangs does not.
	adoptSilence = 10 * time.Second
	// adoptLook is the interval between checks of its processor time.
	adoptLook = 250 * time.Millisecond
)

// adoptMargin is the allowance after a deadline within which an answer still counts.
const adoptMargin = 200 * time.Millisecond

// adoption takes over the workers that an earlier agent left.
type adoption struct {
	log      hclog.Logger
	now      func() time.Time
	disk     layout
	plugins  pluginHost
	roster   *roster
	binaries *binaries
	workers  *supervisor
}

// takeOver walks the handles that an earlier agent left: workers that still serve become this
// hive's, all others are ended and forgotten. Damaged handles do not stop it. Errors: Internal for
// folders that cannot be read or written.
func (ad *adoption) takeOver(ctx context.Context) ([]*worker, error) {
	handles, err := ad.disk.readHandles(func(file string, err error) {
		ad.log.Error("a handle is damaged and was set aside: its worker is ended, start another one; check the disk", "file", file, "error", err)
	})
	if err != nil {
		return nil, err
	}
	found := make([]*worker, len(handles))
	var wg sync.WaitGroup
	for i, a := range handles {
		wg.Go(func() { found[i] = ad.adopt(ctx, a) })
	}
	wg.Wait()
	var out []*worker
	for _, w := range found {
		if w != nil {
			ad.roster.add(w)
			out = append(out, w)
		}
	}
	ad.binaries.removeSuperseded()
	return out, ad.sweepRunDirs()
}

// adopt takes over one worker, or ends it and returns nil.
func (ad *adoption) adopt(ctx context.Context, a handle) *worker {
	type answer struct {
		w   *worker
		err error
	}
	answers := make(chan answer, 1)
	go func() {
		w, err := ad.reattach(ctx, a)
		answers <- answer{w, err}
	}()
	hangs, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var watching sync.WaitGroup
	defer watching.Wait()
	defer stop(nil)
	watching.Go(func() {
		stop(idle(hangs, func() time.Duration {
			u, _ := hostinfo.ReadUsage(hangs, a.Attachment.Process) // a process that has exited uses nothing more
			return u.CPUTime
		}))
	})
	var err error
	answered := true
	select {
	case got := <-answers:
		if err = got.err; err == nil {
			ad.log.Info("took over a worker", "worker", a.id(), "model", a.Model, "pid", a.Attachment.Process.PID, "state", got.w.stateNow())
			return got.w
		}
	case <-hangs.Done():
		answered = false
		err = core.Prefix(context.Cause(hangs), "ask for its state")
	}
	killed, endErr := ad.plugins.EndAttachment(ctx, a.Attachment)
	if endErr != nil {
		ad.log.Error("end a worker that cannot be taken over", "worker", a.id(), "error", endErr)
	}
	if !answered { // the connection breaks when the process exits
		if got := <-answers; got.err == nil {
			letGo(ad.log, a.id(), got.w.proc)
		}
	}
	e := exit{WorkerID: a.id(), Process: a.Attachment.Process, At: ad.now(), Problem: "lost: " + err.Error()}
	var logErr error
	if e.Log, logErr = tailFile(ad.disk.logFile(a.id()), failureLines); logErr != nil {
		ad.log.Warn("read the log of a lost worker", "worker", a.id(), "error", logErr)
	}
	ad.roster.ended(e)
	ad.log.Warn("lost a worker of the earlier agent", "worker", a.id(), "model", a.Model, "pid", a.Attachment.Process.PID, "killed", killed, "error", err)
	ad.workers.clean(a.id())
	return nil
}

// idle waits for a worker that was asked for its state, and returns why the wait ended: the worker
// used no processor time for adoptSilence, or adoptTimeout has passed. used returns the processor
// time used so far. nil: ctx ended.
func idle(ctx context.Context, used func() time.Duration) error {
	began := time.Now()
	active, last := began, used()
	tick := time.NewTicker(adoptLook)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if now := used(); now != last {
			active, last = time.Now(), now
		}
		switch {
		case time.Since(active) >= adoptSilence:
			return core.Errorf(core.Unavailable, "it does not answer, and has done nothing for %s", adoptSilence)
		case time.Since(began) >= adoptTimeout+adoptMargin:
			return core.Errorf(core.Unavailable, "it does not answer within %s", adoptTimeout)
		}
	}
}

func (ad *adoption) reattach(ctx context.Context, a handle) (*worker, error) {
	ctx, cancel := context.WithTimeout(ctx, adoptTimeout)
	defer cancel()
	p, err := ad.plugins.Reattach(ctx, a.Attachment)
	if err != nil {
		return nil, err
	}
	s, err := p.Status(ctx)
	state := core.WorkerReady
	switch {
	case err != nil:
		err = said("ask for its state", err)
	case s.WorkerID != a.id() || s.Nonce != a.Attachment.Nonce:
		err = core.Errorf(core.Conflict, "ask for its state: it answers as worker %q", s.WorkerID)
	case s.State == sdkworker.StateDraining:
		state = core.WorkerRetiring
	case s.State != sdkworker.StateReady:
		// The agent that asked for the load and would have reported its outcome no longer exists.
		err = core.Errorf(core.Conflict, "ask for its state: it is %s", s.State)
	}
	if err != nil {
		letGo(ad.log, a.id(), p)
		return nil, err
	}
	w := newWorker(a, p, state)
	w.noteStatus(s, ad.now())
	return w, nil
}

// sweepRunDirs removes the run folders that no worker of this hive owns, and ends the processes
// that still run in them.
func (ad *adoption) sweepRunDirs() error {
	entries, err := os.ReadDir(ad.disk.run)
	if err != nil {
		return core.Wrap(err, core.Internal, "clean run folder")
	}
	for _, e := range entries {
		_, mine := ad.roster.worker(e.Name())
		switch {
		case mine:
		case validID(e.Name()):
			ad.workers.clean(e.Name())
		case e.IsDir():
			// Only the agent writes here: this is a leftover probe or catalog of an agent that was
			// killed.
			if err := os.RemoveAll(filepath.Join(ad.disk.run, e.Name())); err != nil {
				ad.log.Warn("remove a leftover folder", "folder", e.Name(), "error", err)
			}
		}
	}
	return nil
}
