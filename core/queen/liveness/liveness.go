// Package liveness tracks the hives as one queen hears them: their links and reports, and the
// consequences of silence. A leading queen also writes these to the registry.
package liveness

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// The timing of reports and of the consequences of silence, for queens and hives on one local
// network. A hive reports early when something changes.
//
// Each queen on its own avoids the workers of a hive whose link broke, that is shutting down, or
// that is silent for its interval plus SuspectGrace. This is only in its memory, and the next
// report undoes it. The leader then asks the hive for a sign of life by another way
// (Options.Pinger). It writes that the hive is down, which removes its workers from the registry,
// after DownAfter with neither a report nor a sign, or after SilentAlive without a report despite
// signs. Busy is not dead: a report, however late, undoes that as well.
//
// All of this is measured with the monotonic clock: the wall clock may jump.
const (
	ReportInterval      = time.Second             // between reports, as long as MaxReportsPerSecond allows
	MaxReportsPerSecond = 50                      // to one queen, of all hives together; above it the interval grows with the number of hives
	SuspectGrace        = 300 * time.Millisecond  // silence beyond the announced interval
	DownAfter           = 2800 * time.Millisecond // since the last report, plus the excess of the interval over ReportInterval; or since the last sign of life
	SilentAlive         = 30 * time.Second        // for a hive that gives signs of life but does not report: TCP alone may delay reports that long
	DownAlone           = 10 * time.Second        // since the last report, without a Pinger; or twice the interval and 5 s, if that is longer
	LinkGrace           = 10 * time.Second        // for hives without a link, from the moment a queen leads; for routing, from its start
	ForgetAfter         = 24 * time.Hour          // after which a hive that is down is removed from the registry
	SilentWorker        = 3 * time.Second         // since a worker's last state report: it gets no requests
	PingInterval        = 50 * time.Millisecond   // between two pings to one suspect hive
)

// Registry is the part of the replicated registry that a Monitor needs.
type Registry interface {
	// View returns the registry in this queen's current state.
	View() *state.Snapshot
	// Apply commits a command and returns once this queen has applied it. Only the leader can.
	Apply(ctx context.Context, requestID string, c *raftv1.Command) (fsm.Result, error)
	// Replaced returns a channel that is closed when a snapshot replaces the registry.
	Replaced() <-chan struct{}
}

// Pinger reaches a hive by another way than its link, such as gossip. It may be called
// concurrently.
type Pinger interface {
	// Ping returns nil as soon as the hive has answered, and an error if it has not answered when
	// ctx ends, or earlier.
	Ping(ctx context.Context, hive string) error
}

// Options are the dependencies of a Monitor. Registry is required.
type Options struct {
	Registry Registry
	ID       string // of the queen, for messages
	Logger   hclog.Logger
	// MinFSM returns the lowest state machine version among the queens that answer; 0 or nil: none
	// answers.
	MinFSM func() uint32
	// Pinger asks silent hives for a sign of life; nil: the link is the only way to a hive, which
	// then gets more time.
	Pinger Pinger
	// Suspected is called when the workers of a hive start being avoided. It must not block, nor
	// call the Monitor. nil: not wanted.
	Suspected func(hive string)
	// TermChanged drops what was learned while another queen led. It is called before this queen
	// takes over, also when a snapshot has replaced the registry, and after it has stepped down.
	TermChanged func()
	// Uses returns how this queen uses the workers of a hive. It is called without a lock. nil:
	// hives are not told.
	Uses func(hive string) []Use
	// Tenancy returns the cluster's settings for starting and unloading workers; nil: hives are not
	// told.
	Tenancy func() *queenv1.Tenancy
	Now     func() time.Time // stamps reports; nil: time.Now
}

// Use is how a queen uses one start of a worker.
type Use struct {
	Worker, Nonce string
	InFlight      int            // requests that have not ended
	Last          time.Time      // when one began or ended
	KeepAlive     *time.Duration // how long the latest request wants the worker kept, negative: indefinitely; nil: not given
}

// Monitor tracks the links and reports of all hives at one queen. It is safe for concurrent use.
// What it knows about one hive is a View, which readers get without its lock.
type Monitor struct {
	opts    Options
	log     hclog.Logger
	unheard *View         // View of hives without any information
	views   sync.Map      // hive id → *View; written under mu, read without it
	alarm   chan struct{} // the first alarm has moved forward; holds one, as does the next
	doubt   chan struct{} // there is a silent hive
	ended   chan struct{} // closed by Close
	readers sync.WaitGroup

	// mu guards below, the peers and their links. It is one lock because a report is one step: it
	// replaces what was known about the hive, clears suspicions, moves deadlines and queues a
	// write, and no reader may see a partial step. Each of these concerns has a separate type,
	// without a lock.
	mu       sync.Mutex
	leading  bool
	peers    map[string]*peer // by hive id
	links    int              // open links
	alarms   alarms
	stock    stock
	failures failures
	backlog  backlog              // only while leading, as is silent
	silent   map[string]*peer     // hives to ask for a sign of life
	told     *queenv1.ClusterView // view to send to hives; nil: none
	changed  chan struct{}        // closed and replaced when workers may have become usable or unusable
}

// New returns a monitor that has received no reports.
func New(o Options) *Monitor {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.MinFSM == nil {
		o.MinFSM = func() uint32 { return 0 }
	}
	if o.TermChanged == nil {
		o.TermChanged = func() {}
	}
	return &Monitor{
		opts:     o,
		log:      o.Logger,
		unheard:  &View{since: time.Now()},
		alarm:    make(chan struct{}, 1),
		doubt:    make(chan struct{}, 1),
		ended:    make(chan struct{}),
		peers:    map[string]*peer{},
		stock:    stock{of: map[string]*Inventory{}, ids: map[string]int{}},
		failures: failures{},
		backlog:  backlog{wake: make(chan struct{}, 1)},
		silent:   map[string]*peer{},
		changed:  make(chan struct{}),
	}
}

// Run acts on silence until ctx ends.
func (m *Monitor) Run(ctx context.Context) { m.watchAlarms(ctx) }

// Close ends all links and returns once none is being read.
func (m *Monitor) Close() {
	m.mu.Lock()
	close(m.ended)
	m.mu.Unlock()
	m.readers.Wait()
}

// Changed returns a channel that is closed when workers may have become usable or unusable for a
// reason outside the registry. Take it before reading a View.
func (m *Monitor) Changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.changed
}

func (m *Monitor) changedLocked() {
	close(m.changed)
	m.changed = make(chan struct{})
}

// wake puts a wake-up into a channel that holds one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
