package hive

import (
	"context"
	"errors"
	"fmt"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// probeTimeout bounds a probe that only the agent's shutdown waits for.
const probeTimeout = 3 * time.Second

// Launching an executable that is open for writing is retried this often, with this pause.
const (
	busyTries = 50
	busyWait  = 20 * time.Millisecond
)

// probe asks the plugin of a worker type for its identity and what it finds, without an engine,
// unless the result for the executable now on disk is known. A plugin that does not start gets a
// Problem. Errors: only ctx's.
func (ts *typeSet) probe(ctx context.Context, t *workerType) error {
	select {
	case t.gate <- struct{}{}:
		defer func() { <-t.gate }()
	case <-ctx.Done():
		return fmt.Errorf("probe worker type: %w", core.FromContext(ctx))
	}
	digest, err := ts.plugins.CodeDigest(t.spec)
	if err != nil {
		t.note(sdk.Info{}, sdkworker.Fingerprint{Problem: err.Error()}, "")
		ts.changed()
		return nil
	}
	if _, _, found := t.probedAs(digest); found {
		return nil
	}
	exe, engine := "", ""
	if t.built {
		x, e, release, err := ts.claims.holdBinary(ctx, t.name())
		if err == nil {
			exe, engine = x, e
			defer release()
		}
	}
	found, err := ts.fingerprint(ctx, t.spec, exe, engine)
	if err := ctx.Err(); err != nil {
		return core.Prefix(err, "probe worker type")
	}
	if err != nil {
		ts.log.Warn("a worker type cannot be probed", "plugin", t.name(), "error", err)
		found = probeResult{seen: sdkworker.Fingerprint{Problem: err.Error()}, digest: digest}
	}
	if t.spec.Folder != "" && exe == "" {
		found.digest = digest // an install compares its copy with it
	}
	t.note(found.info, found.seen, found.digest)
	wake(ts.engineNews)
	ts.changed()
	return nil
}

// probeResult is what a probe found.
type probeResult struct {
	info   sdk.Info
	seen   sdkworker.Fingerprint
	schema core.Schema
	digest string // of the executable that ran, "sha256:<hex>"
}

// fingerprint runs a worker plugin as a probe. exe and engineDir are those of the installed binary,
// or empty.
func (ts *typeSet) fingerprint(ctx context.Context, s pluginhost.Spec, exe, engineDir string) (r probeResult, err error) {
	p, err := ts.launch(ctx, pluginhost.WorkerLaunch{Spec: s, Executable: exe, EngineDir: engineDir, Tethered: true})
	if err != nil {
		return r, said("launch "+s.Name, err)
	}
	defer func() {
		if killErr := p.Kill(); killErr != nil && err == nil {
			err = core.Wrap(killErr, core.Internal, "end the probe of "+s.Name)
		}
		<-p.Done()
		letGo(ts.log, "", p)
	}()
	r.info, r.schema, r.digest = p.Info(), p.Schema(), p.Attachment().Digest
	r.seen, err = p.FingerprintOnce(ctx)
	return r, said("probe "+s.Name, err)
}

// launch launches a worker plugin. A fresh executable may still be open for writing in a process
// that was just forked to run something else; that is over in a moment.
func (ts *typeSet) launch(ctx context.Context, l pluginhost.WorkerLaunch) (workerProcess, error) {
	for tries := 1; ; tries++ {
		p, err := ts.plugins.LaunchWorker(ctx, l)
		if !errors.Is(err, syscall.ETXTBSY) || tries == busyTries {
			return p, err
		}
		select {
		case <-time.After(busyWait):
		case <-ctx.Done():
			return nil, fmt.Errorf("%s: %w", "launch "+l.Spec.Name, core.FromContext(ctx))
		}
	}
}

// refresh asks a worker for the current free memory of its devices. If it does not answer, nothing
// changes.
func (ts *typeSet) refresh(ctx context.Context, w *worker) {
	t, err := ts.workerType(w.handle.Attachment.Type)
	if err != nil {
		return // of a type that is no longer configured
	}
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	if f, err := w.proc.FingerprintOnce(ctx); err == nil && f.Problem == "" {
		t.noteDevices(f)
		ts.changed()
	}
}

// refreshAfter refreshes the devices after a worker has ended: through another worker of its type,
// or with a probe if there is none.
func (ts *typeSet) refreshAfter(ctx context.Context, w *worker) {
	t, err := ts.workerType(w.handle.Attachment.Type)
	if err != nil || isDone(ts.life.ending) {
		return
	}
	if _, f, found := t.known(); !found || (typeView{Devices: devicesOf(f)}).onlyCPU() {
		return // main memory is read with every report
	}
	for _, other := range ts.roster.all() {
		if other.handle.Attachment.Type == t.name() {
			ts.refresh(ctx, other)
			return
		}
	}
	// A probe is short, so it is not cut in the middle of its launch when the agent ends.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	exe, engine, release, err := ts.claims.holdBinary(ctx, w.handle.Binary)
	if err != nil {
		return // removed meanwhile
	}
	defer release()
	found, err := ts.fingerprint(ctx, t.spec, exe, engine)
	if err != nil {
		ts.log.Warn("look at the devices of an ended worker", "plugin", t.name(), "error", err)
		return
	}
	t.noteDevices(found.seen)
	ts.changed()
}

// lookAgain probes a worker type anew: through one of its workers, which sees the free memory, else
// through a short-lived process, with the engine if one is installed. Errors: only ctx's.
func (ts *typeSet) lookAgain(ctx context.Context, t *workerType) error {
	for _, w := range ts.roster.all() {
		if w.handle.Attachment.Type == t.name() {
			ts.refresh(ctx, w)
			return ctx.Err()
		}
	}
	select {
	case t.gate <- struct{}{}:
		defer func() { <-t.gate }()
	case <-ctx.Done():
		return fmt.Errorf("probe worker type: %w", core.FromContext(ctx))
	}
	var exe, engine string
	if x, e, release, err := ts.claims.holdBinary(ctx, t.name()); err == nil {
		exe, engine = x, e
		defer release()
	}
	found, err := ts.fingerprint(ctx, t.spec, exe, engine)
	if ctx.Err() != nil {
		return fmt.Errorf("probe worker type: %w", core.FromContext(ctx))
	}
	if err != nil {
		ts.log.Warn("a worker type cannot be probed", "plugin", t.name(), "error", err)
		found.seen.Problem = err.Error()
	}
	t.noteDevices(found.seen)
	return nil
}
