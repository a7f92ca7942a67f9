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
	discover func() bool // takes in new plugins, and reports whether there are worker types among them

	engineNews chan struct{} // holds one: an engine may be there now that was not
	nameNews   chan struct{} // holds one: other models may be offered by name

	mu   sync.Mutex    // guards below
	list []*workerType // replaced, never changed
}

// all is the worker types as they are now. The list is not changed.
func (ts *typeSet) all() []*workerType {
	ts.mu.Lock()
	defer ts.mu.Unlock()
	return ts.list
}

// workerType finds a worker type by name. Errors: NotFound naming those there are.
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

// views is the worker types as far as they are probed, those that are not without devices.
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
			continue // what it works on is no room for a model's files
		}
		for _, d := range v.Devices {
			// The memory of the machine is looked at anew every time; that of other devices by the
			// next worker on them.
			if d.Kind == kindCPU && free > 0 {
				d.FreeBytes = free
			}
			if d.Kind == kindCPU {
				room := ts.rooms.room(d)
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

// replace takes the types of these plugins for those that there are, and keeps built ones and what
// is known of devices until they are probed.
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

// add takes in the types of plugins that are not there yet, and reports whether there are any.
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

// addBuilt makes, or makes anew, the worker type of the newest sound binary of a built type.
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

// forgetType drops a built type whose last binary was deleted, and lets one that has others left
// use those.
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

// problems says what the hive cannot do, for the cluster's status.
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

// changed has the queens told of what a look at a worker type found, and of the models that it
// offers by name.
func (ts *typeSet) changed() {
	ts.beat.bump()
	wake(ts.nameNews)
}

// named is workerType that looks for new plugins before it gives up.
func (ts *typeSet) named(name string) (*workerType, error) {
	t, err := ts.workerType(name)
	if core.KindOf(err) == core.NotFound && ts.discover() {
		return ts.workerType(name)
	}
	return t, err
}

// renewNames asks the types that serve models by name which they offer, one look at a time, until
// ctx ends.
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

// namesEvery is how often such a type is asked again which models it offers.
const namesEvery = 30 * time.Second
