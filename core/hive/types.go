package hive

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// probeTimeout bounds a probe that nobody waits for but the end of the agent.
const probeTimeout = 3 * time.Second

// An executable that is open for writing is tried again so often, with so much time between.
const (
	busyTries = 50
	busyWait  = 20 * time.Millisecond
)

// workerType is one worker type of the hive and what its probe found.
type workerType struct {
	spec pluginhost.Spec
	gate chan struct{} // holds one: its taker may probe
	// built says that the plugin was built on this hive: it has no file in the plugin folder, and
	// lies in the store alone.
	built bool
	// upgrading is held while its workers are replaced.
	upgrading sync.Mutex

	mu     sync.Mutex // guards below
	found  bool       // the probe has answered, or said why it does not
	info   sdk.Info
	seen   sdkworker.Fingerprint
	digest string // of the executable that the probe ran, "sha256:<hex>"; empty: it could not be read
	engine engineFault
}

func newTypes(specs []pluginhost.Spec) []*workerType {
	out := make([]*workerType, 0, len(specs))
	for _, s := range specs {
		out = append(out, newType(s))
	}
	return out
}

func newType(s pluginhost.Spec) *workerType {
	return &workerType{spec: s, gate: make(chan struct{}, 1)}
}

func (t *workerType) name() string { return t.spec.Name }

func (t *workerType) known() (sdk.Info, sdkworker.Fingerprint, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.info, t.seen, t.found
}

// probedAs returns what the probe of an executable of that digest found.
func (t *workerType) probedAs(digest string) (sdk.Info, sdkworker.Fingerprint, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.info, t.seen, t.found && t.digest == digest
}

// probeKnown returns what the last probe found, and the digest of the executable that it ran.
func (t *workerType) probeKnown() (info sdk.Info, seen sdkworker.Fingerprint, digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.info, t.seen, t.digest
}

// note keeps what the probe of an executable of that digest found.
func (t *workerType) note(info sdk.Info, f sdkworker.Fingerprint, digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.info, t.seen, t.digest, t.found = info, f, digest, true
}

// noteDevices keeps what a process of the type sees now. It may run other code than the plugin is
// by now.
func (t *workerType) noteDevices(f sdkworker.Fingerprint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = f
}

// probe asks the plugin of a worker type who it is and what it finds, without an engine, unless
// that is known of the executable as it is on the disk now. A plugin that does not start has a
// Problem that says so. Errors: only ctx's.
func (h *Hive) probe(ctx context.Context, t *workerType) error {
	select {
	case t.gate <- struct{}{}:
		defer func() { <-t.gate }()
	case <-ctx.Done():
		return fmt.Errorf("probe worker type: %w", core.FromContext(ctx))
	}
	digest, err := h.plugins.CodeDigest(t.spec)
	if err != nil {
		t.note(sdk.Info{}, sdkworker.Fingerprint{Problem: err.Error()}, "")
		h.typesChanged()
		return nil
	}
	if _, _, found := t.probedAs(digest); found {
		return nil
	}
	exe, engine := "", ""
	if t.built {
		x, e, release, err := h.holdBinary(ctx, t.name())
		if err == nil {
			exe, engine = x, e
			defer release()
		}
	}
	found, err := h.fingerprint(ctx, t.spec, exe, engine)
	if err := ctx.Err(); err != nil {
		return core.Prefix(err, "probe worker type")
	}
	if err != nil {
		h.log.Warn("a worker type cannot be probed", "plugin", t.name(), "error", err)
		found = probeResult{seen: sdkworker.Fingerprint{Problem: err.Error()}, digest: digest}
	}
	if t.spec.Folder != "" && exe == "" {
		found.digest = digest // an install compares what it copies with it
	}
	t.note(found.info, found.seen, found.digest)
	wake(h.engineNews)
	h.typesChanged()
	return nil
}

// probeResult is what a probe found.
type probeResult struct {
	info   sdk.Info
	seen   sdkworker.Fingerprint
	schema core.Schema
	digest string // of the executable that ran, "sha256:<hex>"
}

// fingerprint runs a worker plugin as a probe. exe and engineDir are the installed binary's, or
// empty.
func (h *Hive) fingerprint(ctx context.Context, s pluginhost.Spec, exe, engineDir string) (r probeResult, err error) {
	p, err := h.launch(ctx, pluginhost.WorkerLaunch{Spec: s, Executable: exe, EngineDir: engineDir, Tethered: true})
	if err != nil {
		return r, said("launch "+s.Name, err)
	}
	defer func() {
		if killErr := p.Kill(); killErr != nil && err == nil {
			err = core.Wrap(killErr, core.Internal, "end the probe of "+s.Name)
		}
		<-p.Done()
		h.letGo("", p)
	}()
	r.info, r.schema, r.digest = p.Info(), p.Schema(), p.Attachment().Digest
	r.seen, err = p.FingerprintOnce(ctx)
	return r, said("probe "+s.Name, err)
}

// launch launches a worker plugin. A fresh executable may still be open for writing in a process
// that is just being forked off to run something else; that is over in a moment.
func (h *Hive) launch(ctx context.Context, l pluginhost.WorkerLaunch) (workerProcess, error) {
	for tries := 1; ; tries++ {
		p, err := h.plugins.LaunchWorker(ctx, l)
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

// refresh asks a worker what is free on its devices now. What it does not answer stays as it was.
func (h *Hive) refresh(ctx context.Context, w *worker) {
	t, err := h.workerType(w.handle.Attachment.Type)
	if err != nil {
		return // of a type that is not configured any more
	}
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	if f, err := w.proc.FingerprintOnce(ctx); err == nil && f.Problem == "" {
		t.noteDevices(f)
		h.typesChanged()
	}
}

// refreshAfter looks at the devices again once the last worker of a type has ended and nobody else
// can tell what became free.
func (h *Hive) refreshAfter(ctx context.Context, w *worker) {
	t, err := h.workerType(w.handle.Attachment.Type)
	if err != nil || isDone(h.ending) {
		return
	}
	if _, f, found := t.known(); !found || (typeView{Devices: devicesOf(f)}).onlyCPU() {
		return // main memory is read with every report
	}
	for _, other := range h.all() {
		if other.handle.Attachment.Type == t.name() {
			h.refresh(ctx, other)
			return
		}
	}
	// A probe is short: it is not cut in the middle of its launch when the agent ends.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), probeTimeout)
	defer cancel()
	exe, engine, release, err := h.holdBinary(ctx, w.handle.Binary)
	if err != nil {
		return // removed meanwhile
	}
	defer release()
	found, err := h.fingerprint(ctx, t.spec, exe, engine)
	if err != nil {
		h.log.Warn("look at the devices of an ended worker", "plugin", t.name(), "error", err)
		return
	}
	t.noteDevices(found.seen)
	h.typesChanged()
}

// typeList is the worker types as they are now. The list is not changed.
func (h *Hive) typeList() []*workerType {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.types
}

// workerType finds a worker type by name. Errors: NotFound naming those there are.
func (h *Hive) workerType(name string) (*workerType, error) {
	for _, t := range h.typeList() {
		if t.name() == name {
			return t, nil
		}
	}
	_, err := chooseType(h.typeViews(), name, "", "")
	if err == nil {
		err = core.Errorf(core.NotFound, "this hive has no worker type %q", name)
	}
	return nil, err
}

// probed waits until every worker type is probed. Errors: only ctx's.
func (h *Hive) probed(ctx context.Context) error {
	var wg sync.WaitGroup
	types := h.typeList()
	errs := make([]error, len(types))
	for i, t := range types {
		wg.Go(func() { errs[i] = h.probe(ctx, t) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// probing reports whether a worker type has not been probed yet.
func (h *Hive) probing() bool {
	return slices.ContainsFunc(h.typeList(), func(t *workerType) bool {
		_, _, found := t.known()
		return !found
	})
}

// typeViews is the worker types as far as they are probed, those that are not without devices.
func (h *Hive) typeViews() []typeView {
	out := make([]typeView, 0, len(h.typeList()))
	for _, t := range h.typeList() {
		info, f, _ := t.known()
		if len(f.Formats) > 0 {
			info.Formats, info.Architectures = f.Formats, f.Architectures
		}
		out = append(out, typeView{Name: t.name(), Problem: f.Problem, Devices: devicesOf(f), Formats: info.Formats, Architectures: info.Architectures, ByName: f.ByName, Models: offered(f)})
	}
	return out
}

// devices lists the devices of all usable worker types, each once, and the names of these types.
func (h *Hive) devices(free int64) (devices []core.Device, types []string) {
	devices, types = []core.Device{}, []string{}
	for _, v := range h.typeViews() {
		if v.Problem != "" {
			continue
		}
		types = append(types, v.Name)
		if v.ByName {
			continue // what it works on is no room for a model's files
		}
		for _, d := range v.Devices {
			// The memory of the machine is looked at anew every time; that of other devices by the
			// next worker on them.
			if d.Kind == kindCPU && free > 0 {
				d.FreeBytes = free
			}
			if d.Kind == kindCPU {
				h.mu.Lock()
				room := h.roomLocked(d)
				h.mu.Unlock()
				d.FreeBytes, d.TotalBytes = room.FreeBytes, room.TotalBytes
			}
			// Devices of one id are one device, and the type that has its kind's name knows it
			// best.
			switch i := slices.IndexFunc(devices, func(o core.Device) bool { return o.ID == d.ID }); {
			case i < 0:
				devices = append(devices, d)
			case v.owns(d.ID):
				devices[i] = d
			}
		}
	}
	slices.Sort(types)
	return devices, types
}

func devicesOf(f sdkworker.Fingerprint) []core.Device {
	out := make([]core.Device, 0, len(f.Devices))
	for _, d := range f.Devices {
		out = append(out, core.Device{ID: d.ID, Kind: d.Kind, Name: d.Name, TotalBytes: d.TotalBytes, FreeBytes: d.FreeBytes, Problem: d.Problem})
	}
	return out
}
