// Package queen is a queen of the cluster: the leader's duties, the choice of workers for
// inference, and operations handed to the hives that own them.
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
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/deployments"
	"github.com/rbee-project/rbee/core/queen/dispatch"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/queen/limits"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/queen/placement"
	"github.com/rbee-project/rbee/core/queen/router"
	"github.com/rbee-project/rbee/core/queen/tokens"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/setting"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// Options are the dependencies of a Queen. Registry, ID and HiveConn are required.
type Options struct {
	Registry *registry.Registry // its node is shut down by the caller after Run has returned
	ID       string             // of this queen, as in the raft configuration
	Version  string             // program version
	Logger   hclog.Logger       // named by the caller; nil: no log
	// HiveConn returns the connection to the hive with this id, or, for the id of this queen, to
	// its own agent. Its errors must be classified, as those of rpc.Client are. The caller of
	// HiveConn closes the connection.
	HiveConn func(hive string) (grpc.ClientConnInterface, error)
	// LocalHive returns the id of the hive in this process, or empty; nil: there never is one.
	LocalHive func() string
	// Jobs runs the operations that queens run on this machine. The caller serves and closes it;
	// its owner has the id of this queen. nil: none.
	Jobs *job.Manager
	// Hosts returns the machines on which hives can be installed; nil: none are known.
	Hosts func() []core.HiveHost
	// Infer answers a prompt, calling progress as it proceeds and log while a worker is starting;
	// nil: not supported. It never logs prompts or answers.
	Infer func(ctx context.Context, r core.Request, progress func(core.Progress), log func(line string)) (core.InferResult, error)
	// Network makes this queen one of several nodes; nil: it is alone.
	Network *membership.Network
	// TokenGrace is how long this queen still accepts a token after its last verification while out
	// of contact with a leader; nil: an hour.
	TokenGrace *time.Duration
	// HiveDown is called when a hive is down and does not report to this queen either: it will send
	// no answers. nil: not wanted.
	HiveDown func(hive string)
	// Suspected is called when the workers of a hive start being avoided. It must not block, nor
	// call the queen. nil: not wanted.
	Suspected func(hive string)
	// Pinger asks silent hives for a sign of life; nil: the link is the only way to a hive, which
	// then gets more time.
	Pinger liveness.Pinger
	Now    func() time.Time // stamps beats and reports; nil: time.Now
	Rand   func(n int) int  // returns a number in [0, n); nil: math/rand
}

// Queen is one queen: its parts, and its answers about the hives. Methods may be called
// concurrently; on queens other than the leader, those that need the leader's knowledge (loads,
// last beats) answer from the replica without it.
type Queen struct {
	Registry *registry.Registry
	Members  *membership.Members
	Tokens   *tokens.Keeper
	Limits   *limits.Limiter
	Router   *router.Router

	Jobs *dispatch.Dispatcher

	opts     Options
	log      hclog.Logger
	started  time.Time
	liveness *liveness.Monitor
	reads    operation.Answers // not changed after New
	hives    *hives.Hives
	placer   *placement.Placer
	starter  *placement.Starter
	deploys  *deployments.Controller
	blobs    *blobService
	kept     atomic.Pointer[Kept] // nil: none set
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
	q := &Queen{Registry: o.Registry, opts: o, log: o.Logger, started: o.Now()}
	q.Members = membership.New(membership.Options{
		Registry: o.Registry, ID: o.ID, Version: o.Version, Logger: o.Logger, Network: o.Network, Now: o.Now, Rand: o.Rand,
	})
	q.blobs = newBlobService(q)
	q.liveness = liveness.New(liveness.Options{
		Registry: o.Registry, ID: o.ID, Logger: o.Logger, MinFSM: q.Members.MinFSM, Pinger: o.Pinger, Suspected: o.Suspected, TermChanged: q.blobs.board.Clear, Now: o.Now,
		Uses:    func(hive string) []liveness.Use { return q.Router.Uses(hive) },
		Tenancy: func() *queenv1.Tenancy { return tenancy(o.Registry) },
	})
	var self grpc.ClientConnInterface
	var queenConn func(node, address string, role core.Role) (grpc.ClientConnInterface, error)
	if o.Network != nil {
		self, queenConn = o.Network.Self, o.Network.Conn
	}
	o.Registry.Attach(q.liveness.Leads, self)
	grace := tokens.DefaultGrace
	if o.TokenGrace != nil {
		grace = *o.TokenGrace
	}
	q.Tokens = tokens.New(tokens.Options{Registry: o.Registry, Logger: o.Logger, Grace: grace, Now: o.Now, Target: func(ctx context.Context, name string) (string, error) {
		return q.placer.Target(ctx, name)
	}})
	q.Limits = limits.New(limits.Options{Registry: o.Registry, ID: o.ID, Leader: self, Logger: o.Logger, Now: o.Now})
	q.hives = hives.New(hives.Options{Registry: o.Registry, Liveness: q.liveness, ID: o.ID, Local: o.LocalHive, Conn: o.HiveConn})
	q.placer = placement.NewPlacer(placement.Options{Registry: o.Registry, Hives: q.hives, Liveness: q.liveness, Logger: o.Logger})
	q.Jobs = dispatch.New(dispatch.Options{
		Registry: o.Registry, Hives: q.hives, Members: q.Members, Placer: q.placer, ID: o.ID, OwnsJobs: o.Jobs != nil, QueenConn: queenConn,
	})
	q.starter = placement.NewStarter(q.placer, q.Jobs, q.Members.MinFSM)
	q.Router = router.New(router.Options{Registry: o.Registry, Liveness: q.liveness, Starter: q.starter, Rand: o.Rand})
	q.deploys = deployments.New(deployments.Options{
		Registry: o.Registry, Hives: q.hives, Placer: q.placer, Jobs: q.Jobs, Liveness: q.liveness, Logger: o.Logger.Named("deploy"),
	})
	q.reads = q.readFuncs()
	if o.Jobs != nil {
		o.Jobs.Handle(q.operations())
	}
	return q
}

// tenancy returns the cluster's settings for starting and unloading workers, for hives.
func tenancy(r *registry.Registry) *queenv1.Tenancy {
	keep, _ := registry.Setting(r, setting.KeepAlive)
	wait, _ := registry.Setting(r, setting.SwapWait)
	warm, _ := registry.Setting(r, setting.SwapWarm)
	return &queenv1.Tenancy{KeepAlive: durationpb.New(keep), SwapWait: durationpb.New(wait), SwapWarm: durationpb.New(warm)}
}

// Register adds the services of a queen, for hives, other queens and joining machines, to a gRPC
// server whose errors keep their kind, as those of rpc.NewServer do.
func (q *Queen) Register(s grpc.ServiceRegistrar) {
	queenv1.RegisterRegistryServiceServer(s, &registryService{m: q.liveness})
	queenv1.RegisterBlobServiceServer(s, q.blobs)
	queenv1.RegisterClusterServiceServer(s, &clusterService{LeaderService: q.Registry.Service(q.log), NodesService: q.Members.Service(), q: q})
	q.Members.Register(s)
}

// Run runs the raft node, the monitoring of hives, and the leader's duties whenever this queen
// leads, until ctx ends. All links have ended when it returns. Call it once.
func (q *Queen) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { q.liveness.Run(ctx) })
	wg.Go(func() { q.watchView(ctx) })
	wg.Go(func() { q.Members.Run(ctx) })
	wg.Go(func() { q.Tokens.Run(ctx) })
	wg.Go(func() { q.Limits.Run(ctx) })
	if tell := q.opts.HiveDown; tell != nil {
		wg.Go(func() { q.watchDown(ctx, tell) })
	}
	err := q.Registry.Run(ctx, q.duties)
	ended := ctx.Err()
	cancel()
	wg.Wait()
	q.liveness.Close()
	if ended != nil && (err == nil || errors.Is(err, ended)) {
		return nil
	}
	return err
}

// duties performs the leader's duties until ctx ends or one of them fails.
func (q *Queen) duties(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, duty := range append(q.Members.Duties(), q.liveness.Lead, q.Tokens.Expire, q.Limits.Lead, q.deploys.Lead) {
		wg.Go(func() {
			if err := duty(ctx); err != nil {
				cancel(err)
			}
		})
	}
	<-ctx.Done()
	wg.Wait()
	if err := context.Cause(ctx); core.KindOf(err) != core.Cancelled {
		return err
	}
	return nil
}
