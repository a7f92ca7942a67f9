package hive

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// workerType is one worker type of the hive and what its probe found.
type workerType struct {
	spec pluginhost.Spec
	gate chan struct{} // capacity one: its holder may probe
	// built marks a plugin that was built on this hive: it has no file in the plugin folder, only
	// in the store.
	built bool
	// upgrading is held while its workers are replaced.
	upgrading sync.Mutex

	mu     sync.Mutex // guards below
	found  bool       // the probe has succeeded or failed with a reason
	info   sdk.Info
	seen   sdkworker.Fingerprint
	digest string // of the executable that the probe ran, "sha256:<hex>"; empty: unreadable
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

// probedAs returns the result of probing an executable with that digest.
func (t *workerType) probedAs(digest string) (sdk.Info, sdkworker.Fingerprint, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.info, t.seen, t.found && t.digest == digest
}

// probeKnown returns the last probe's result, and the digest of the executable that it ran.
func (t *workerType) probeKnown() (info sdk.Info, seen sdkworker.Fingerprint, digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.info, t.seen, t.digest
}

// note records the result of probing an executable with that digest.
func (t *workerType) note(info sdk.Info, f sdkworker.Fingerprint, digest string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.info, t.seen, t.digest, t.found = info, f, digest, true
}

// noteDevices records the devices that a process of the type sees now. It may run other code than
// the plugin's current one.
func (t *workerType) noteDevices(f sdkworker.Fingerprint) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.seen = f
}

// typeSet is the worker types of the hive: those of its plugins, and those that were built here.
type typeSet struct {
	log      hclog.Logger
	store    shelf
	plugins  pluginHost
	beat     *beater
	life     *life
	roster   *roster
	claims   *claims
	rooms    *rooms
	discover func() bool // registers new plugins, and reports whether there are worker types among them

	engineNews chan struct{} // capacity one: a missing engine may be available now
	nameNews   chan struct{} // capacity one: the models offered by name may have changed

	mu   sync.Mutex    // guards below
	list []*workerType // replaced, never changed
}

// all returns the current worker types. Do not modify the list.
func (ts *typeSet) all() []*workerType {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.list
}

// workerType finds a worker type by name. Errors: NotFound with the existing names.
func (ts *typeSet) workerType(name string) (*workerType, error) {
	for _, t := range ts.all() {
		if t.name() == name {
			return t, nil
		}
	}
	_, err := chooseType(ts.views(), name, "", "")
	if err == nil {
		err = core.Errorf(core.NotFound, "this hive has no worker type %q", name)
	}
	return nil, err
}

// probed waits until every worker type is probed. Errors: only ctx's.
func (ts *typeSet) probed(ctx context.Context) error {
	var wg sync.WaitGroup
	types := ts.all()
	errs := make([]error, len(types))
	for i, t := range types {
		wg.Go(func() { errs[i] = ts.probe(ctx, t) })
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
func (ts *typeSet) probing() bool {
	return slices.ContainsFunc(ts.all(), func(t *workerType) bool {
		_, _, found := t.known()
		return !found
	})
}

// views returns all worker types; those that are not probed yet have no devices.
func (ts *typeSet) views() []typeView {
	out := make([]typeView, 0, len(ts.all()))
	for _, t := range ts.all() {
		info, f, _ := t.known()
		if len(f.Formats) > 0 {
			info.Formats, info.Architectures = f.Formats, f.Architectures
		}
		out = append(out, typeView{Name: t.name(), Problem: f.Problem, Devices: devicesOf(f), Formats: info.Formats, Architectures: info.Architectures, ByName: f.ByName, Models: offered(f)})
	}
	return out
}

// devices lists the devices of all usable worker types, each once, and the names of these types.
func (ts *typeSet) devices(free int64) (devices []core.Device, types []string) {
	devices, types = []core.Device{}, []string{}
	for _, v := range ts.views() {
		if v.Problem != "" {
			continue
		}
		types = append(types, v.Name)
		if v.ByName {
			continue // its devices are not room for a model's files
		}
		for _, d := range v.Devices {
			// The main memory is read on every call; other devices are refreshed by the next worker
			// on them.
			if d.Kind == kindCPU && free > 0 {
				d.FreeBytes = free
			}
			if d.Kind == kindCPU {
				room := ts.rooms.room(d)
				d.FreeBytes, d.TotalBytes = room.FreeBytes, room.TotalBytes
			}
			// Entries with the same id are one device, and the report of the type with its kind's
			// name takes precedence.
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

// replace replaces the plugins' worker types. It keeps built ones, and the known devices until the
// types are probed.
func (ts *typeSet) replace(specs []pluginhost.Spec) {
	types := newTypes(specs)
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, t := range types {
		if i := slices.IndexFunc(ts.list, func(o *workerType) bool { return o.name() == t.name() }); i >= 0 {
			_, seen, _ := ts.list[i].known()
			t.noteDevices(seen)
		}
	}
	for _, o := range ts.list {
		if o.built && !slices.ContainsFunc(types, func(t *workerType) bool { return t.name() == o.name() }) {
			types = append(types, o)
		}
	}
	ts.list = types
}

// add adds the types of plugins that are new, and reports whether there were any.
func (ts *typeSet) add(specs []pluginhost.Spec) (added bool) {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	for _, s := range specs {
		if !slices.ContainsFunc(ts.list, func(o *workerType) bool { return o.name() == s.Name }) {
			ts.list = append(slices.Clone(ts.list), newType(s))
			added = true
		}
	}
	return added
}

// addBuilt creates, or renews, the worker type of the newest intact binary of a built type.
func (ts *typeSet) addBuilt(typ string) (*workerType, error) {
	exe, _, err := ts.store.BinaryPaths(typ)
	if err != nil {
		return nil, err
	}
	spec, err := ts.plugins.FileSpec(sdk.KindWorker, typ, exe)
	if err != nil {
		return nil, err
	}
	t := newType(spec)
	t.built = true
	ts.mu.Lock()
	ts.list = append(slices.DeleteFunc(slices.Clone(ts.list), func(o *workerType) bool { return o.name() == typ }), t)
	ts.mu.Unlock()
	ts.beat.bump()
	return t, nil
}

// forgetType drops a built type whose last binary was deleted, or switches it to one of the
// remaining binaries.
func (ts *typeSet) forgetType(ctx context.Context, typ string) {
	t, err := ts.workerType(typ)
	if err != nil || !t.built {
		return
	}
	if t, err = ts.addBuilt(typ); err == nil {
		err = ts.probe(ctx, t)
	}
	if err == nil {
		return
	}
	ts.mu.Lock()
	ts.list = slices.DeleteFunc(slices.Clone(ts.list), func(o *workerType) bool { return o.name() == typ })
	ts.mu.Unlock()
	ts.beat.bump()
}

// problems lists what the hive cannot do, for the cluster's status.
func (ts *typeSet) problems() []string {
	var out []string
	var broken []string
	usable, unknown := false, false
	for _, t := range ts.all() {
		_, seen, found := t.known()
		switch {
		case !found:
			unknown = true
		case seen.Problem == "":
			usable = true
		case t.name() == kindCPU: // which every machine has
			out = append(out, "worker type "+t.name()+" cannot be used: "+seen.Problem)
		default:
			broken = append(broken, t.name()+": "+seen.Problem)
		}
		if f := t.engineFault(); f.text != "" {
			out = append(out, "worker type "+t.name()+" cannot be installed: "+f.text)
		}
	}
	switch {
	case usable || unknown:
	case len(ts.all()) == 0:
		out = append(out, "it has no worker plugin, so that it can run no model (Put worker plugins, rbee-worker-…, into the plugin folder.)")
	case len(broken) > 0:
		out = append(out, "none of its worker types can be used: "+strings.Join(broken, "; "))
	}
	return out[:min(len(out), core.MaxHiveProblems)]
}

// changed reports the result of probing a worker type to the queens, and announces that its models
// by name may have changed.
func (ts *typeSet) changed() {
	ts.beat.bump()
	wake(ts.nameNews)
}

// named is workerType, but scans for new plugins before it fails.
func (ts *typeSet) named(name string) (*workerType, error) {
	t, err := ts.workerType(name)
	if core.KindOf(err) == core.NotFound && ts.discover() {
		return ts.workerType(name)
	}
	return t, err
}

// renewNames asks the types that serve models by name which ones they offer, one probe at a time,
// until ctx ends.
func (ts *typeSet) renewNames(ctx context.Context) {
	tick := time.NewTicker(namesEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for _, t := range ts.all() {
			if _, f, found := t.known(); !found || !f.ByName {
				continue
			}
			found, err := ts.fingerprint(ctx, t.spec, "", "")
			if err != nil {
				ts.log.Warn("look at the models of a worker type", "plugin", t.name(), "error", err)
				continue
			}
			t.noteDevices(found.seen)
		}
	}
}

// namesEvery is how often such a type is asked for the models it offers.
const namesEvery = 30 * time.Second
