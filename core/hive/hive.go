// Package hive runs the worker processes of one machine, keeps its models and worker binaries, and
// reports them to the queens.
package hive

import (
	"cmp"
	"context"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/store"
	"github.com/rbee-project/rbee/core/wire"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	defaultSlots     = 4
	defaultStopGrace = 10 * time.Second
	// defaultWorkerTimeout bounds the silence of a worker that does nothing.
	defaultWorkerTimeout = time.Minute
	// firstProbe is how long the first report waits for the worker types, so that a queen does not
	// learn of a hive without any.
	firstProbe = time.Second
	// exitGrace bounds the end of Run: ending jobs, then stopping workers.
	exitGrace = 10 * time.Second
	// exitStopGrace is how long the running requests of a worker may take when the agent ends and
	// stops its workers.
	exitStopGrace = time.Second
)

// Options are what a Hive needs.
type Options struct {
	ID      string // unique in the cluster; empty: kept in DataDir, created at the first start
	Name    string // for display; empty: the host name
	Version string // of rbee
	DataDir string // the hive keeps its state in hive/ and run/ below it
	Store   *store.Store
	Plugins *pluginhost.Host
	// WorkerSpecs are the worker types of this hive, CatalogSpecs its catalog sources; where names
	// clash, the first wins.
	WorkerSpecs  []pluginhost.Spec
	CatalogSpecs []pluginhost.Spec
	Origins      Origins // how to fetch files from HTTP servers
	// Jobs runs the hive's operations; Run ends them. Jobs of an owner with another id than the
	// hive's cannot be found. nil: a private manager that cannot be reached from outside.
	Jobs      *job.Manager
	Queens    Queens // where reports go; nil: nowhere
	Peers     Peers  // the files of other hives; nil: none
	KeepFiles bool   // do not share files with other hives
	// UploadLimit bounds the total rate at which other hives download from this one; nil: no limit.
	UploadLimit *download.Limiter
	RPCAddress  func() string // host:port at which queens currently reach this hive; empty or a nil func: only within the process
	Logger      hclog.Logger  // nil: none
	// StopWorkersOnExit ends all workers when Run ends; otherwise they keep running and the next
	// Run adopts them.
	StopWorkersOnExit bool
	Slots             int                                                     // per worker, unless a spawn specifies it; 0: 4
	ContextTokens     int                                                     // per slot, unless a spawn specifies it; 0: the model's own, as far as memory allows, at most 4096
	MemoryLimit       int64                                                   // bytes of main memory for all workers together; 0: all of it
	Threads           int                                                     // per worker, unless a spawn specifies it; 0: the worker's choice
	StopGrace         time.Duration                                           // how long running requests may take when a worker process is deleted; 0: 10 s
	WorkerTimeout     time.Duration                                           // after which a worker that neither reports its state nor works is killed; 0: 60 s
	Build             *BuildOptions                                           // nil: building worker plugins is disabled
	Engines           []string                                                // engines beside those that plugins name: digests, references and their beginnings; see config.Engines
	Discover          func() (workers, catalogs []pluginhost.Spec, err error) // rescans for plugins; nil: only those given
	Now               func() time.Time                                        // nil: time.Now

	logBytes int64 // size at which a worker's log is rotated; 0: maxLogBytes
}

// Hive is the hive of one agent: it assembles the parts, runs them, and reports on them to the
// queens. Each part has its own state and lock. Methods may be called concurrently.
type Hive struct {
	opts        Options
	log         hclog.Logger
	incarnation uint64
	plugins     pluginHost
	jobs        *job.Manager
	reads       operation.Answers // not changed after New
	takeAlong   atomic.Bool       // workers end with Run, whatever the options

	life     *life
	settings *settings
	beat     *beater
	roster   *roster
	claims   *claims
	rooms    *rooms
	types    *typeSet
	engines  *engines
	binaries *binaries
	builds   *builder
	catalogs *catalogs
	blobs    *blobs
	stock    *stock
	models   *models
	states   *states
	workers  *supervisor
	spawner  *spawner
	adoption *adoption
}

// New opens the hive's state on disk. It starts nothing: Run does. Errors: Invalid, Internal.
func New(opts Options) (*Hive, error) {
	return newHive(opts, opts.Store, processes{opts.Plugins})
}

func newHive(opts Options, s shelf, p pluginHost) (*Hive, error) {
	disk, err := openLayout(opts.DataDir)
	if err != nil {
		return nil, err
	}
	if opts.ID == "" {
		if opts.ID, err = disk.ownID(); err != nil {
			return nil, err
		}
	}
	if opts.Name == "" {
		if opts.Name, err = os.Hostname(); err != nil {
			return nil, core.Wrap(err, core.Internal, "name the hive")
		}
	}
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	opts.WorkerTimeout = cmp.Or(opts.WorkerTimeout, defaultWorkerTimeout)
	opts.logBytes = cmp.Or(opts.logBytes, maxLogBytes)
	h := &Hive{opts: opts, log: opts.Logger.Named("hive"), plugins: p, jobs: opts.Jobs}
	if h.incarnation, err = disk.nextIncarnation(opts.Now()); err != nil {
		return nil, err
	}
	if h.jobs == nil {
		h.jobs = job.New(job.Options{Owner: opts.ID, Version: opts.Version, Now: opts.Now})
	}
	h.assemble(disk, s)
	h.handle(h.jobs)
	h.reads = h.readFuncs()
	if err := h.builds.findBuilt(); err != nil {
		return nil, err
	}
	return h, nil
}

// assemble creates the parts of the hive in order of dependency.
func (h *Hive) assemble(disk layout, s shelf) {
	opts, log, p := h.opts, h.log, h.plugins
	h.life = newLife()
	h.settings = newSettings(Defaults{Slots: opts.Slots, ContextTokens: opts.ContextTokens, Threads: opts.Threads, MemoryLimit: opts.MemoryLimit, StopGrace: opts.StopGrace, Engines: opts.Engines})
	h.beat = newBeater(log, opts.Queens, h.report, func(id string) { h.workers.retire(id) })
	h.roster = newRoster(opts.Name)
	h.claims = newClaims(s, h.roster)
	h.rooms = newRooms(h.settings, h.roster)
	h.states = newStates(log, opts.Now, disk)
	h.catalogs = newCatalogs(opts.CatalogSpecs, p.LaunchCatalog, log.Named("catalog"))
	h.catalogs.origins = opts.Origins
	h.types = &typeSet{
		log: log, store: s, plugins: p, beat: h.beat, life: h.life, roster: h.roster, claims: h.claims, rooms: h.rooms, discover: h.discover,
		engineNews: make(chan struct{}, 1), nameNews: make(chan struct{}, 1), list: newTypes(opts.WorkerSpecs),
	}
	h.engines = &engines{log: log, store: s, catalogs: h.catalogs, beat: h.beat, types: h.types}
	h.binaries = &binaries{
		hive: opts.Name, log: log, store: s, catalogs: h.catalogs, beat: h.beat, settings: h.settings,
		roster: h.roster, claims: h.claims, types: h.types, engines: h.engines,
	}
	h.builds = &builder{
		hive: opts.Name, options: opts.Build, log: log, disk: disk, store: s, plugins: p, types: h.types, binaries: h.binaries,
		building: make(chan struct{}, 1),
	}
	h.blobs = newBlobs(opts, s, log.Named("seed"))
	named := byName{types: h.types, roster: h.roster}
	h.stock = &stock{log: log, store: s, catalogs: h.catalogs, beat: h.beat, byName: named, turn: make(chan struct{}, 1)}
	h.models = &models{
		hiveID: opts.ID, log: log, now: opts.Now, store: s, catalogs: h.catalogs, beat: h.beat, settings: h.settings, roster: h.roster,
		claims: h.claims, rooms: h.rooms, types: h.types, byName: named, stock: h.stock, states: h.states, blobs: h.blobs,
	}
	h.workers = &supervisor{
		workerTimeout: opts.WorkerTimeout, logBytes: opts.logBytes, log: log, now: opts.Now, disk: disk, beat: h.beat, life: h.life,
		settings: h.settings, roster: h.roster, types: h.types, states: h.states,
	}
	h.spawner = &spawner{
		hiveID: opts.ID, tethered: opts.StopWorkersOnExit, log: log, now: opts.Now, disk: disk, store: s, beat: h.beat, life: h.life,
		settings: h.settings, roster: h.roster, claims: h.claims, rooms: h.rooms, types: h.types, binaries: h.binaries, models: h.models,
		states: h.states, workers: h.workers,
	}
	h.adoption = &adoption{log: log, now: opts.Now, disk: disk, plugins: p, roster: h.roster, binaries: h.binaries, workers: h.workers}
	h.beat.inventory, h.beat.told, h.beat.lost = h.stock.inventory, h.workers.told, h.workers.lost
}

// ID is the hive's id in the cluster.
func (h *Hive) ID() string { return h.opts.ID }

// Name is the hive's display name.
func (h *Hive) Name() string { return h.opts.Name }

// Ready is closed when the leader has registered the hive.
func (h *Hive) Ready() <-chan struct{} { return h.beat.ready }

// Run adopts the workers that an earlier agent left, then supervises workers and reports to the
// queens until ctx ends, and returns when everything it started has ended: jobs are cancelled,
// workers stopped or left running according to Options. It is called once.
func (h *Hive) Run(ctx context.Context) error {
	// What Run starts outlives ctx for the orderly shutdown, in which workers are stopped and the
	// queens are notified.
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	found, err := h.adoption.takeOver(ctx)
	if err != nil {
		close(h.life.over)
		return err
	}
	for _, w := range found {
		wg.Go(func() { h.workers.supervise(life, w) })
	}
	close(h.life.adopted)
	for _, w := range found {
		if w.stateNow() == core.WorkerRetiring { // finish what the earlier agent began
			wg.Go(func() {
				if err := h.workers.endWorker(w, ending{grace: defaultRetireGrace}); err != nil {
					h.log.Warn("go on with a retirement", "worker", w.id(), "error", err)
				}
			})
		}
	}

	wg.Go(func() { h.catalogs.run(life) })
	wg.Go(func() { h.types.renewNames(life) })
	wg.Go(func() {
		probing, stop := context.WithTimeout(life, firstProbe)
		defer stop()
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			if err := h.types.probed(life); err != nil && life.Err() == nil {
				h.log.Warn("probe worker types", "error", err)
			}
		})
		wg.Go(func() {
			select {
			case <-done:
				h.engines.watchEngines(life)
			case <-life.Done():
			}
		})
		select {
		case <-done:
		case <-probing.Done():
		}
		if h.opts.Queens == nil {
			return
		}
		if err := h.stock.takeInventory(life); err != nil {
			return // the hive ends
		}
		wg.Go(func() { h.stock.watchInventory(life) })
		h.beat.run(life)
	})

	ended := make(chan error, 1)
	told := ctx.Done()
	for {
		select {
		case task := <-h.life.tasks:
			wg.Go(func() { task(life) })
		case <-told:
			told = nil
			close(h.life.ending)
			wg.Go(func() { ended <- h.end(life) }) // tasks are still accepted meanwhile: ending jobs need their workers supervised
		case err := <-ended:
			close(h.life.over)
			return err
		}
	}
}

// end ends the jobs and, if the options ask for it, the workers.
func (h *Hive) end(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, exitGrace)
	defer cancel()
	err := h.jobs.Close(ctx)
	if !h.opts.StopWorkersOnExit && !h.takeAlong.Load() {
		return err
	}
	var wg sync.WaitGroup
	for _, w := range h.roster.all() {
		wg.Go(func() {
			w.expectEnd()
			w.setState(core.WorkerRetiring)
			if _, err := w.proc.Stop(ctx, exitStopGrace); err != nil {
				h.log.Warn("stop a worker at the end of the agent", "worker", w.id(), "error", err)
				if err := w.proc.Kill(); err != nil {
					h.log.Error("kill a worker at the end of the agent", "worker", w.id(), "error", err)
					return
				}
			}
			<-w.gone
		})
	}
	wg.Wait()
	return err
}

// DialWorker connects to the unix socket on which a worker of this hive serves HTTP. Errors:
// NotFound; Unavailable while it loads, or if it does not accept connections.
func (h *Hive) DialWorker(ctx context.Context, workerID string) (*net.UnixConn, error) {
	w, ok := h.roster.worker(workerID)
	if !ok {
		return nil, core.Errorf(core.NotFound, "find worker: hive %s has no worker %q", h.opts.Name, workerID)
	}
	if s := w.stateNow(); s != core.WorkerReady && s != core.WorkerRetiring {
		return nil, core.Errorf(core.Unavailable, "find worker: worker %s is %s", workerID, s)
	}
	return dialData(ctx, workerID, w.proc)
}

// report returns the whole current state, for the queens.
func (h *Hive) report(ctx context.Context) *queenv1.LinkRequest {
	var free int64
	if m, err := hostinfo.ReadMemory(ctx); err == nil {
		free = m.AvailableBytes
	}
	devices, types := h.types.devices(free)
	req := &queenv1.LinkRequest{Unloads: true, Hive: wire.HiveToProto(core.Hive{
		ID: h.opts.ID, Name: h.opts.Name, Version: h.opts.Version, OS: runtime.GOOS, Arch: runtime.GOARCH, Incarnation: h.incarnation,
		Devices: devices, WorkerTypes: types, RPCAddress: h.rpcAddress(), Unconfined: h.plugins.Confinement(), Problems: h.types.problems(),
		Probing: h.types.probing(),
	})}
	for _, w := range h.roster.all() {
		req.Workers = append(req.Workers, wire.WorkerToProto(w.view(h.opts.ID, h.settings.rules().keepAlive)))
	}
	return req
}

func (h *Hive) rpcAddress() string {
	if h.opts.RPCAddress == nil {
		return ""
	}
	return h.opts.RPCAddress()
}

// Moved signals that RPCAddress has changed, which is reported to the queens at once. It does not
// block.
func (h *Hive) Moved() { h.beat.bump() }
