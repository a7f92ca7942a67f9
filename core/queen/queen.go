// Package queen is a node of the cluster: the leader's duties, the choice of workers for inference,
// and operations handed to the hives that own them.
package queen

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/queen/router"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/swarm"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// Options say what a Queen works with. Registry, ID and HiveConn are required.
type Options struct {
	Registry *registry.Registry // of a node that the caller shuts down after Run has returned
	ID       string             // of this queen, as in the raft configuration
	Version  string             // of the program
	Logger   hclog.Logger       // named by the caller; nil: no log
	// HiveConn gives the connection to the hive with this id, or for the id of this queen to its
	// own agent. Its errors must be classified, as those of rpc.Client are. The connection is the
	// caller's to close.
	HiveConn func(hive string) (grpc.ClientConnInterface, error)
	// LocalHive is the id of the hive in this process, or empty; nil: there never is one.
	LocalHive func() string
	// Jobs runs the operations that queens run, on this machine. The caller serves and closes it;
	// its owner has the id of this queen. nil: there are none.
	Jobs *job.Manager
	// Hosts are the machines that hives can be installed on; nil: none are known.
	Hosts func() []core.HiveHost
	// Infer answers a prompt, calls progress as it goes, and log while a worker is started; nil:
	// nobody does. It never logs what is asked and answered.
	Infer func(ctx context.Context, r core.Request, progress func(core.Progress), log func(line string)) (core.InferResult, error)
	// Membership makes this queen one of several nodes; nil: it is alone.
	Membership *Membership
	// Suspected is told of a hive whose workers are avoided from now on. It must not block, nor
	// call the queen. nil: nobody.
	Suspected func(hive string)
	// Pinger asks hives that went silent for a sign of life; nil: only its link leads to a hive,
	// which is then given more time.
	Pinger liveness.Pinger
	Now    func() time.Time // stamps beats and reports; nil: time.Now
	Rand   func(n int) int  // a number in [0, n); nil: math/rand
}

// Queen is one queen. It implements inference.Router and the gateway's Cluster and Jobs. Methods
// may be called concurrently; those that need the leader's knowledge (loads, last beats) answer
// from the replica without it on other queens.
type Queen struct {
	opts     Options
	log      hclog.Logger
	started  time.Time
	since    time.Time // when it was made, by the monotonic clock
	registry *registry.Registry
	liveness *liveness.Monitor
	reads    operation.Answers // not changed after New
	router   *router.Router
	leaving  atomic.Bool                // this queen leaves the cluster for good
	later    chan func(context.Context) // what Run does and waits for, beside its other work
	tokens   tokenProofs
	catching catchUps
	board    *swarm.Board // which hive has which file; only while leading
	seen     startMemory

	mu        sync.Mutex               // guards below
	aliases   map[string]alias         // learned from the hives' stores
	starts    map[string]core.Job      // by model id: the worker_spawn that requests wait for
	requests  requestMemory            // request ids → hives
	locks     map[string]chan struct{} // see lock
	proofs    map[string]proof         // of the other queens, by node id
	announced chan struct{}            // closed and replaced when a proof changed
	departing map[string]time.Time     // nodes that this queen takes out, since when
}

// New returns a queen. It starts nothing.
func New(o Options) *Queen {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.LocalHive == nil {
		o.LocalHive = func() string { return "" }
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Rand == nil {
		o.Rand = rand.IntN
	}
	q := &Queen{
		opts:      o,
		log:       o.Logger,
		started:   o.Now(),
		since:     time.Now(),
		later:     make(chan func(context.Context)),
		catching:  catchUps{turn: make(chan struct{}, 1)},
		registry:  o.Registry,
		aliases:   map[string]alias{},
		starts:    map[string]core.Job{},
		locks:     map[string]chan struct{}{},
		proofs:    map[string]proof{},
		announced: make(chan struct{}),
	}
	q.reads = q.readFuncs()
	if o.Jobs != nil {
		o.Jobs.Handle(q.operations())
	}
	q.board = swarm.NewBoard(q.swarmHive)
	q.liveness = liveness.New(liveness.Options{
		Registry: q.registry, ID: o.ID, Logger: o.Logger, MinFSM: q.MinFSM, Pinger: o.Pinger, Suspected: o.Suspected, TermChanged: q.board.Clear, Now: o.Now,
	})
	var self grpc.ClientConnInterface
	if o.Membership != nil {
		self = o.Membership.Self
	}
	q.registry.Attach(q.liveness.Leads, self)
	q.router = router.New(router.Options{Registry: q.registry, Liveness: q.liveness, Starter: starter{q}, Rand: o.Rand})
	return q
}

// Sync returns once this queen's replica is as new as c asks; see registry.Sync.
func (q *Queen) Sync(ctx context.Context, c core.Consistency) (core.ReadInfo, error) {
	return q.registry.Sync(ctx, c)
}

// Route implements inference.Router.
func (q *Queen) Route(ctx context.Context, r inference.Query) (inference.Lease, error) {
	return q.router.Route(ctx, r)
}

// Register adds the services of a queen, for hives, other queens and machines that join, to a gRPC
// server whose errors keep their kind, as those of rpc.NewServer do.
func (q *Queen) Register(s grpc.ServiceRegistrar) {
	queenv1.RegisterRegistryServiceServer(s, &registryService{q: q})
	queenv1.RegisterBlobServiceServer(s, &blobService{q: q})
	queenv1.RegisterClusterServiceServer(s, &clusterService{q: q})
	q.RegisterJoin(s)
}

// registryService answers hives. Its errors are classified; the gRPC server of core/rpc carries
// them.
type registryService struct {
	queenv1.UnimplementedRegistryServiceServer
	q *Queen
}

// Link runs the link of one hive.
func (s *registryService) Link(stream grpc.BidiStreamingServer[queenv1.LinkRequest, queenv1.LinkResponse]) error {
	return s.q.liveness.Serve(stream)
}

// RegisterJoin registers what machines without a certificate may call.
func (q *Queen) RegisterJoin(s grpc.ServiceRegistrar) {
	queenv1.RegisterJoinServiceServer(s, &joinService{q: q})
}

// Run runs the raft node, the watch over hives, and the leader's duties whenever this queen leads,
// until ctx ends. All links have ended when it returns. It is called once.
func (q *Queen) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { q.liveness.Run(ctx) })
	wg.Go(func() { q.watchView(ctx) })
	if q.opts.Membership != nil {
		wg.Go(func() { q.watchCluster(ctx) })
		if tell := q.opts.Membership.HiveDown; tell != nil {
			wg.Go(func() { q.watchDown(ctx, tell) })
		}
	}
	err := q.registry.Run(ctx, q.duties)
	ended := ctx.Err()
	cancel()
	wg.Wait()
	q.liveness.Close()
	if ended != nil && (err == nil || errors.Is(err, ended)) {
		return nil
	}
	return err
}

// lock waits for the lock with the given name and returns its release. Names are of hives and
// models, so their number is bounded.
func (q *Queen) lock(ctx context.Context, name string) (unlock func(), err error) {
	q.mu.Lock()
	l, ok := q.locks[name]
	if !ok {
		l = make(chan struct{}, 1)
		q.locks[name] = l
	}
	q.mu.Unlock()
	select {
	case l <- struct{}{}:
		return func() { <-l }, nil
	case <-ctx.Done():
		return nil, core.FromContext(ctx)
	}
}
