// Package hive runs the worker processes of one machine, keeps its models and worker binaries, and tells the queens about them.
package hive

import (
	"context"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/store"
)

// Options are what a Hive needs.
type Options struct {
	ID      string // unique in the cluster; empty: kept in DataDir, made at the first start
	Name    string // for people; empty: the host name
	Version string // of rbee
	DataDir string // the hive keeps its state in hive/ and run/ below it
	Store   *store.Store
	Plugins *pluginhost.Host
	// WorkerSpecs are the worker types of this hive, CatalogSpecs its catalog sources; the first that has a name of an item wins.
	WorkerSpecs  []pluginhost.Spec
	CatalogSpecs []pluginhost.Spec
	Queen        grpc.ClientConnInterface // where heartbeats go; nil: nowhere
	Logger       hclog.Logger             // nil: none
	// StopWorkersOnExit ends all workers when Run ends; otherwise they go on and the next Run takes them over.
	StopWorkersOnExit bool
	Slots             int              // of a worker, where a spawn does not say; 0: 4
	ContextTokens     int              // per slot, where a spawn does not say; 0: the model's own, as far as memory allows, at most 4096
	Threads           int              // of a worker, where a spawn does not say; 0: the worker's choice
	StopGrace         time.Duration    // how long running requests may go on when a worker is stopped; 0: 10 s
	Now               func() time.Time // nil: time.Now
}

// Hive is the hive of one agent. Methods may be called concurrently.
type Hive struct{ opts Options }

// New opens the hive's state on disk. It starts nothing: Run does. Errors: Invalid, Internal.
func New(opts Options) (*Hive, error) { return &Hive{opts: opts}, nil }

// ID is the hive's id in the cluster.
func (h *Hive) ID() string { return h.opts.ID }

// Name is the hive's name for people.
func (h *Hive) Name() string { return h.opts.Name }

// Register serves HiveService and JobService on r. Requests wait until Run has taken over the workers of an earlier agent.
func (h *Hive) Register(r grpc.ServiceRegistrar) {}

// Run takes over the workers that an earlier agent left, then supervises workers and sends heartbeats until ctx ends, and returns
// when everything it started is gone: jobs are cancelled, workers stopped or left running as Options say. It is called once.
func (h *Hive) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Ready is closed when a queen has accepted the first heartbeat.
func (h *Hive) Ready() <-chan struct{} { return nil }

// DataSocket is the path of the unix socket that a worker of this hive serves HTTP on. Errors: NotFound, Unavailable while it loads.
func (h *Hive) DataSocket(workerID string) (string, error) {
	return "", core.Errorf("", core.NotFound, "this hive has no worker %q", workerID)
}
