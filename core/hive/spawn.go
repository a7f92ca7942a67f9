package hive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/pluginhost"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// spawner starts workers: it finds or fetches what one needs, reserves room for it, launches it and
// loads its model.
type spawner struct {
	hiveID   string
	tethered bool // workers end with this process
	log      hclog.Logger
	now      func() time.Time
	disk     layout
	store    shelf
	beat     *beater
	life     *life
	settings *settings
	roster   *roster
	claims   *claims
	rooms    *rooms
	types    *typeSet
	binaries *binaries
	models   *models
	states   *states
	workers  *supervisor
}

// spawn starts a worker and returns when it serves. It first fetches whatever is missing. If it
// fails or is cancelled, no process and no file of the worker is left; what was fetched stays.
func (sp *spawner) spawn(ctx context.Context, r core.Request, run *job.Run) (core.SpawnResult, error) {
	if r.KeepAlive != "" && r.KeepAlive != core.KeepAliveDefault {
		if _, err := core.ParseKeepAlive(r.KeepAlive); err != nil {
			return core.SpawnResult{}, err
		}
	}
	if w := sp.roster.replica(r.Replica); w != nil {
		return sp.sameReplica(ctx, w)
	}
	var version string
	r.Type, version, _ = strings.Cut(r.Type, "@")
	if r.Type == "" {
		typ, err := sp.typeThatOffers(ctx, r.Model, r.Device)
		if err != nil {
			return core.SpawnResult{}, err
		}
		r.Type = typ
	}
	t, err := sp.typeFor(ctx, r, "")
	if err != nil {
		return core.SpawnResult{}, err
	}
	model, path, release, err := sp.modelFor(ctx, t, r.Model, run)
	if err != nil {
		return core.SpawnResult{}, err
	}
	defer release()
	if r.Type == "" { // the type also depends on the model
		if t, err = sp.typeFor(ctx, r, model.Architecture); err != nil {
			return core.SpawnResult{}, err
		}
	}
	binary, err := sp.binaries.ensureBinary(ctx, t, version, run)
	if err != nil {
		return core.SpawnResult{}, err
	}
	if binary.Problem != "" {
		return core.SpawnResult{}, unsupported("spawn worker", t.name(), binary.Problem)
	}
	w, err := sp.load(ctx, r, t, binary, model, path, run)
	if err != nil {
		return core.SpawnResult{}, err
	}
	sp.workers.tell(ctx)
	return core.SpawnResult{Worker: w.view(sp.hiveID, sp.settings.rules().keepAlive), PID: w.pid()}, nil
}

// typeFor chooses the worker type of a spawn with a model of an architecture, which is empty while
// unknown. It waits only for the candidate types.
func (sp *spawner) typeFor(ctx context.Context, r core.Request, architecture string) (*workerType, error) {
	if r.Type != "" {
		t, err := sp.types.named(r.Type)
		if err != nil {
			return nil, err
		}
		if err := sp.types.probe(ctx, t); err != nil {
			return nil, err
		}
	} else if err := sp.types.probed(ctx); err != nil {
		return nil, err
	}
	name, err := chooseType(sp.types.views(), r.Type, r.Device, architecture)
	if err != nil {
		return nil, err
	}
	return sp.types.workerType(name)
}

// load launches a worker process and loads the model.
func (sp *spawner) load(ctx context.Context, r core.Request, t *workerType, binary core.WorkerBinary, model core.Model, path string, run *job.Run) (*worker, error) {
	exe, engine, release, err := sp.claims.holdBinary(ctx, binary.ID)
	if err != nil {
		return nil, err
	}
	defer release()
	if sum := t.spec.SHA256; t.spec.Folder != "" && sum != "" && binary.Digest != "sha256:"+sum {
		return nil, core.Errorf(core.Integrity, "launch worker %s: %s is another plugin than the configuration's sha256 allows", t.name(), binary.ID).Hint(
			"Run \"rbee worker download %s\", or mend sha256 in the block worker %q.", t.name(), t.name())
	}
	began := time.Now()
	id := newID()
	p, err := sp.types.launch(ctx, pluginhost.WorkerLaunch{
		Spec: t.spec, Executable: exe, EngineDir: engine, WorkerID: id, Nonce: randomHex(16),
		RunDir: sp.disk.runDir(id), LogFile: sp.disk.logFile(id), Tethered: sp.tethered,
	})
	if err != nil {
		return nil, errors.Join(said("launch worker "+t.name(), err), os.RemoveAll(sp.disk.runDir(id)))
	}
	hd, loaded, err := sp.fit(ctx, r, id, p, model, run)
	if err != nil {
		sp.discard(p, id)
		return nil, err
	}
	defer loaded()
	hd.Binary, hd.Version = binary.ID, p.Info().Version
	hd.KeepAlive, hd.Pinned, hd.Replica = r.KeepAlive, r.Pin, r.Replica
	w := newWorker(hd, p, core.WorkerLoading)
	// The handle is on disk before the model is loaded: if the agent is killed now, the next one
	// knows of the process.
	if err := writeJSON(sp.disk.handleFile(id), hd); err != nil {
		sp.discard(p, id)
		return nil, err
	}
	sp.roster.add(w)
	if err := sp.life.task(func(ctx context.Context) { sp.workers.supervise(ctx, w) }); err != nil {
		sp.roster.drop(id)
		sp.discard(p, id)
		return nil, err
	}
	sp.beat.bump()
	sp.log.Info("worker loads", "worker", id, "model", model.ID, "device", hd.Device, "pid", w.pid())
	run.Log("worker %s (process %d) loads %s on %s: %d slots of %d tokens", id, w.pid(), model.ID, hd.Device, hd.Slots, hd.ContextTokens)

	err = p.Start(ctx, sdkworker.StartSpec{
		WorkerID: id, Nonce: hd.Attachment.Nonce, ModelPath: path, ModelID: model.ID, Device: hd.Device, Slots: hd.Slots,
		ContextTokens: hd.ContextTokens, Threads: hd.Threads, EngineDir: engine, Files: modelFiles(path),
		ModelDigest: model.Digest, StateFile: sp.states.hand(hd), PrefixKey: sp.states.prefixKey(model.Digest), CPUWorkers: sp.roster.cpuWorkers(),
	}, func(x sdkworker.Progress) error {
		if x.Message != "" {
			run.Log("%s", x.Message)
		}
		if x.Phase != "" {
			run.Progress(core.Progress{Phase: x.Phase, Done: x.Done, Total: x.Total, Unit: x.Unit})
		}
		return nil
	})
	if err == nil {
		err = sp.workers.poll(ctx, w)
	}
	if err == nil && !w.ready(time.Since(began)) {
		err = core.Errorf(core.Conflict, "the worker was ended while it was loading")
	}
	if err != nil {
		return nil, sp.failedLoad(ctx, w, model, err)
	}
	sp.types.refresh(ctx, w)
	sp.beat.bump()
	sp.log.Info("worker is ready", "worker", id, "model", model.ID, "device", hd.Device, "pid", w.pid())
	return w, nil
}

// failedLoad ends the process of a failed load and returns the reason, in the engine's own words.
func (sp *spawner) failedLoad(ctx context.Context, w *worker, model core.Model, cause error) error {
	op := "load " + model.ID + " on " + w.handle.Device
	ended := isDone(w.proc.Done())
	w.mu.Lock()
	asked := w.asked
	w.mu.Unlock()
	if !ended {
		if err := w.proc.Kill(); err != nil {
			sp.log.Error("kill a worker that did not load", "worker", w.id(), "error", err)
		}
	}
	<-w.gone // the supervisor removes the rest
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, core.FromContext(ctx))
	}
	if asked {
		return core.Errorf(core.Conflict, "%s: the worker was ended while it was loading", op)
	}
	e := sp.roster.exitOf(w.id())
	sp.log.Error("a model could not be loaded", "worker", w.id(), "model", model.ID, "device", w.handle.Device, "error", cause)
	err := said(op, cause)
	if core.KindOf(cause) == core.Unavailable || ended {
		// The connection broke: the process died before the engine could report an error.
		err = core.Errorf(core.Internal, "%s: the worker process ended while it was loading (%s)", op, cmp.Or(e.How, "exit unknown"))
	}
	if core.HintOf(err) == "" && len(e.Log) > 0 {
		err = core.WithHint(err, "The last lines of its log:\n%s", strings.Join(e.Log, "\n"))
	}
	return err
}

// discard ends a process that never became a worker and removes its files.
func (sp *spawner) discard(p workerProcess, id string) {
	if err := p.Kill(); err != nil {
		sp.log.Error("kill a process that became no worker", "worker", id, "error", err)
		return
	}
	<-p.Done()
	letGo(sp.log, id, p)
	sp.workers.clean(id)
}

// typeThatOffers returns the worker type that offers a model by its name, if the store has no model
// of that name; empty: none. Errors: only ctx's.
func (sp *spawner) typeThatOffers(ctx context.Context, name, device string) (string, error) {
	if _, _, err := sp.store.Model(name); core.KindOf(err) != core.NotFound {
		return "", nil
	}
	if err := sp.types.probed(ctx); err != nil {
		return "", err
	}
	for _, v := range sp.types.views() {
		if v.usable() && slices.Contains(v.Models, name) && (device == "" || v.has(device)) {
			return v.Name, nil
		}
	}
	return "", nil
}

// modelFor returns the model for a worker of a type, and its path. For a type that serves models by
// name, the model is only a name; otherwise see takeModel.
func (sp *spawner) modelFor(ctx context.Context, t *workerType, name string, run *job.Run) (m core.Model, path string, release func(), err error) {
	if _, f, _ := t.known(); !f.ByName {
		return sp.models.takeModel(ctx, name, run)
	}
	if !validName(name) {
		return m, "", nil, core.Errorf(core.Invalid, "spawn worker: %q cannot name a model", name).Hint("Write at most %d bytes without white space.", sdkworker.MaxModelBytes)
	}
	return core.Model{ID: name}, "", func() {}, nil
}
