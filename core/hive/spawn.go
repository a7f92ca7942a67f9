package hive

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/pluginhost"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// spawn starts a worker and returns when it serves. Whatever it needs and is missing is fetched
// first. When it fails or is cancelled, no process and no file of the worker is left; what was
// fetched stays.
func (h *Hive) spawn(ctx context.Context, r core.Request, run *job.Run) (core.SpawnResult, error) {
	if r.KeepAlive != "" && r.KeepAlive != core.KeepAliveDefault {
		if _, err := core.ParseKeepAlive(r.KeepAlive); err != nil {
			return core.SpawnResult{}, err
		}
	}
	if w := h.replica(r.Replica); w != nil {
		return h.sameReplica(ctx, w)
	}
	var version string
	r.Type, version, _ = strings.Cut(r.Type, "@")
	if r.Type == "" {
		typ, err := h.typeThatOffers(ctx, r.Model, r.Device)
		if err != nil {
			return core.SpawnResult{}, err
		}
		r.Type = typ
	}
	t, err := h.typeFor(ctx, r, "")
	if err != nil {
		return core.SpawnResult{}, err
	}
	model, path, release, err := h.modelFor(ctx, t, r.Model, run)
	if err != nil {
		return core.SpawnResult{}, err
	}
	defer release()
	if r.Type == "" { // what the model is decides as well
		if t, err = h.typeFor(ctx, r, model.Architecture); err != nil {
			return core.SpawnResult{}, err
		}
	}
	binary, err := h.ensureBinary(ctx, t, version, run)
	if err != nil {
		return core.SpawnResult{}, err
	}
	if binary.Problem != "" {
		return core.SpawnResult{}, unsupported("spawn worker", t.name(), binary.Problem)
	}
	w, err := h.load(ctx, r, t, binary, model, path, run)
	if err != nil {
		return core.SpawnResult{}, err
	}
	h.tell(ctx)
	return core.SpawnResult{Worker: w.view(h.opts.ID, h.rules().keepAlive), PID: w.pid()}, nil
}

// typeFor chooses the worker type of a spawn with a model of an architecture, which is empty while
// that is not known. Only the types that can be meant are waited for.
func (h *Hive) typeFor(ctx context.Context, r core.Request, architecture string) (*workerType, error) {
	if r.Type != "" {
		t, err := h.typeNamed(r.Type)
		if err != nil {
			return nil, err
		}
		if err := h.probe(ctx, t); err != nil {
			return nil, err
		}
	} else if err := h.probed(ctx); err != nil {
		return nil, err
	}
	name, err := chooseType(h.typeViews(), r.Type, r.Device, architecture)
	if err != nil {
		return nil, err
	}
	return h.workerType(name)
}

// load launches a worker process and loads the model.
func (h *Hive) load(ctx context.Context, r core.Request, t *workerType, binary core.WorkerBinary, model core.Model, path string, run *job.Run) (*worker, error) {
	exe, engine, release, err := h.holdBinary(ctx, binary.ID)
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
	p, err := h.launch(ctx, pluginhost.WorkerLaunch{
		Spec: t.spec, Executable: exe, EngineDir: engine, WorkerID: id, Nonce: randomHex(16),
		RunDir: h.disk.runDir(id), LogFile: h.disk.logFile(id), Tethered: h.opts.StopWorkersOnExit,
	})
	if err != nil {
		return nil, errors.Join(said("launch worker "+t.name(), err), os.RemoveAll(h.disk.runDir(id)))
	}
	hd, loaded, err := h.fit(ctx, r, id, p, model, run)
	if err != nil {
		h.discard(p, id)
		return nil, err
	}
	defer loaded()
	hd.Binary, hd.Version = binary.ID, p.Info().Version
	hd.KeepAlive, hd.Pinned, hd.Replica = r.KeepAlive, r.Pin, r.Replica
	w := newWorker(hd, p, core.WorkerLoading)
	// The handle is on disk before the model is loaded: an agent that is killed now is followed by
	// one that knows of the process.
	if err := writeJSON(h.disk.handleFile(id), hd); err != nil {
		h.discard(p, id)
		return nil, err
	}
	h.mu.Lock()
	h.workers[id] = w
	h.mu.Unlock()
	if err := h.task(func(ctx context.Context) { h.supervise(ctx, w) }); err != nil {
		h.mu.Lock()
		delete(h.workers, id)
		h.mu.Unlock()
		h.discard(p, id)
		return nil, err
	}
	h.beat.bump()
	h.log.Info("worker loads", "worker", id, "model", model.ID, "device", hd.Device, "pid", w.pid())
	run.Log("worker %s (process %d) loads %s on %s: %d slots of %d tokens", id, w.pid(), model.ID, hd.Device, hd.Slots, hd.ContextTokens)

	err = p.Start(ctx, sdkworker.StartSpec{
		WorkerID: id, Nonce: hd.Attachment.Nonce, ModelPath: path, ModelID: model.ID, Device: hd.Device, Slots: hd.Slots,
		ContextTokens: hd.ContextTokens, Threads: hd.Threads, EngineDir: engine, Files: modelFiles(path),
		ModelDigest: model.Digest, StateFile: h.handState(hd), PrefixKey: h.prefixKey(model.Digest), CPUWorkers: h.cpuWorkers(),
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
		err = h.poll(ctx, w)
	}
	if err == nil && !w.ready(time.Since(began)) {
		err = core.Errorf(core.Conflict, "the worker was ended while it was loading")
	}
	if err != nil {
		return nil, h.failedLoad(ctx, w, model, err)
	}
	h.refresh(ctx, w)
	h.beat.bump()
	h.log.Info("worker is ready", "worker", id, "model", model.ID, "device", hd.Device, "pid", w.pid())
	return w, nil
}

// failedLoad ends the process of a load that went wrong and says why, in the engine's own words.
func (h *Hive) failedLoad(ctx context.Context, w *worker, model core.Model, cause error) error {
	op := "load " + model.ID + " on " + w.handle.Device
	ended := isDone(w.proc.Done())
	w.mu.Lock()
	asked := w.asked
	w.mu.Unlock()
	if !ended {
		if err := w.proc.Kill(); err != nil {
			h.log.Error("kill a worker that did not load", "worker", w.id(), "error", err)
		}
	}
	<-w.gone // the supervisor removes what is left
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %w", op, core.FromContext(ctx))
	}
	if asked {
		return core.Errorf(core.Conflict, "%s: the worker was ended while it was loading", op)
	}
	e := h.exitOf(w.id())
	h.log.Error("a model could not be loaded", "worker", w.id(), "model", model.ID, "device", w.handle.Device, "error", cause)
	err := said(op, cause)
	if core.KindOf(cause) == core.Unavailable || ended {
		// The connection broke: the process died, which the engine could not put into words.
		err = core.Errorf(core.Internal, "%s: the worker process ended while it was loading (%s)", op, cmp.Or(e.How, "exit unknown"))
	}
	if core.HintOf(err) == "" && len(e.Log) > 0 {
		err = core.WithHint(err, "The last lines of its log:\n%s", strings.Join(e.Log, "\n"))
	}
	return err
}

func (h *Hive) exitOf(id string) exit {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.exits {
		if e.WorkerID == id {
			return e
		}
	}
	return exit{}
}

// discard ends a process that never became a worker and removes its files.
func (h *Hive) discard(p workerProcess, id string) {
	if err := p.Kill(); err != nil {
		h.log.Error("kill a process that became no worker", "worker", id, "error", err)
		return
	}
	<-p.Done()
	h.letGo(id, p)
	h.clean(id)
}
