// Package inference answers one inference request: it reads the request's facts, has a worker
// chosen, asks it, asks another one where that helps, relays the answer and records what happened.
//
// It knows nothing of the server in front of it. The answer goes to a Client, what happens to a
// Meter. Bytes of events pass through as they are.
package inference

import (
	"context"
	"fmt"
	"hash/maphash"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/admission"
	"github.com/rbee-project/rbee/core/inference/conn"
	"github.com/rbee-project/rbee/core/inference/sse"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Terms are what a request demands of any worker that answers it, also of one that is asked after
// another one failed. A routing rule that looks at the request has its field here.
type Terms struct {
	// Needs are the capabilities without which a worker cannot answer; see core.Capabilities. A
	// worker that does not say what it can do is not refused for them.
	Needs []string
	// Prefix are the marks of the prompt: hashes of ever longer beginnings of it, with who asks and
	// its tools, made with a secret of this process. A worker that was sent the same ones lately
	// need not read that part again. None: it is short.
	Prefix []uint64
}

// Query is what a Router must know of a request to choose a worker for it.
type Query struct {
	RequestID string
	Model     string // as the client wrote it: an id or an alias
	Key       string // who asks: the id of a token; empty: unknown
	Terms
	// Tried are the workers that this request was sent to in vain: they are not chosen.
	Tried []core.Worker
	// ContextOver asks for a worker with more positions per slot than that; 0: any. A shorter one
	// has refused the request.
	ContextOver int
	// KeepAlive is how long the worker is to be kept after the request, negative: for good; nil:
	// the request does not say.
	KeepAlive *time.Duration
	// Other asks for a worker that is ready now: Route neither waits nor starts one.
	Other bool
	// Look asks for a worker that is loaded, whatever it has to do: it is told nothing but a
	// question about itself, which is no use of it. Route neither waits nor starts one, and its
	// error is *NotLoaded where none is.
	Look bool
	// Patience bounds the wait for a worker to be started.
	Patience time.Duration
	// Progress is called on Route's goroutine while it waits, first with the zero value when the
	// wait begins. nil: not wanted.
	Progress func(core.Progress)
}

// Router chooses workers. It is safe for concurrent use.
type Router interface {
	// Route returns a lease on the best worker for the query. Where the model is known and no
	// worker serves it, Route has one started and waits for it. Errors: NotFound for an unknown
	// model (with the nearest names as hint), Unavailable or TooLarge when no worker can be had
	// (with the reason per hive), DeadlineExceeded after Patience, those of ctx. With an error the
	// lease holds only the refusals, and there is nothing to release. *Busy where all workers of
	// the model have as many requests as they should have: Route does not wait for a free slot.
	// *Unable where they lack a capability that the query needs.
	Route(ctx context.Context, q Query) (Lease, error)
}

// Busy is Route's error where every worker that could answer is busy.
type Busy struct{ Model string } // core.Model.ID

func (e *Busy) Error() string { return "all workers with " + e.Model + " are busy" }

// Unwrap returns the error as a classified one.
func (e *Busy) Unwrap() error {
	return core.Errorf(core.Overloaded, "all workers with %s are busy", e.Model).Hint("Try again in a while, or start another worker with `rbee worker spawn`.")
}

// NotLoaded is Route's error for a look at a model that no worker has loaded, or that is not there.
type NotLoaded struct{ Model string } // as the query has it

func (e *NotLoaded) Error() string { return "no worker has loaded " + clip(e.Model, 100) }

// Unwrap returns the error as a classified one.
func (e *NotLoaded) Unwrap() error { return core.Errorf(core.Unavailable, "%s", e.Error()) }

// Unable is Route's error where workers serve the model, and none of them can do what the request
// needs.
type Unable struct {
	Model string // core.Model.ID
	Need  string // a capability
}

func (e *Unable) Error() string {
	return fmt.Sprintf("no worker of %s can do %s", clip(e.Model, 100), e.Need)
}

// Unwrap returns the error as a classified one.
func (e *Unable) Unwrap() error { return core.Errorf(core.Invalid, "%s", e.Error()) }

// Lease is a worker that one request may be sent to. The worker counts it as in flight until it
// is released.
type Lease struct {
	Worker core.Worker
	Reason string // for the choice, short: "least busy of 2"
	// Ranked are the workers that could answer, best first, Worker among them.
	Ranked  []core.Candidate
	Refused []core.RouteRefusal // the model's other workers
	signs   func() Signs
	release func(Outcome)
}

// Signs are a worker's signs of life beside its answers.
type Signs struct {
	Silence  time.Duration // since it last told its state
	Stalled  time.Duration // since it last made progress, with requests in its hands
	Progress bool          // it tells its progress at all
}

// NewLease returns a lease on the first of the ranked workers. signs may be called at any time,
// also concurrently; nil: there are none. release is called once.
func NewLease(ranked []core.Candidate, refused []core.RouteRefusal, signs func() Signs, release func(Outcome)) Lease {
	if signs == nil {
		signs = func() Signs { return Signs{} }
	}
	return Lease{Worker: ranked[0].Worker, Reason: ranked[0].Reason, Ranked: ranked, Refused: refused, signs: signs, release: release}
}

// Signs returns the worker's signs of life.
func (l Lease) Signs() Signs { return l.signs() }

// Release ends the lease. It is called once.
func (l Lease) Release(o Outcome) { l.release(o) }

// Outcome says what a request tells of its worker. The zero value says nothing against it.
type Outcome struct {
	Failed bool          // it could not be reached, or was lost with the request in its hands
	Busy   time.Duration // it said that it takes no request for so long; 0: it did not
}

// Dialer connects to the data socket of a worker, wherever its hive is. The wire is HTTP/1.1.
type Dialer func(ctx context.Context, w core.Worker) (net.Conn, error)

// Client is where the answer of one request goes. Its methods are called by one goroutine at a
// time.
type Client interface {
	// Asked tells which worker gives the answer that follows, and why it was chosen. Another call
	// may follow as long as nothing of an answer came.
	Asked(w core.Worker, reason string)
	// Send passes on whole events or comments of a stream. The first call begins the stream. An
	// error means that the client is gone.
	Send(block []byte) error
	// Answer passes on a whole answer that is not a stream. Nothing follows it.
	Answer(a Answer)
	// Fail ends the answer with an error and returns the HTTP status that the client sees; 0: none.
	// Where the stream has begun, the error goes into it; for ErrTold it is there already. Nothing
	// follows it.
	Fail(err error) (status int)
}

// Answer is an answer that is not a stream, as the worker gave it.
type Answer struct {
	Status      int
	ContentType string
	RetryAfter  string // empty: none
	Body        []byte
	// Error replaces the body of a refusal that was not JSON; nil otherwise.
	Error *openai.Error
}

// Meter counts what happens. Its methods do not block.
type Meter interface {
	// Began counts a stream of which the first event was passed on.
	Began(model string)
	// Events counts events that were passed on.
	Events(n int)
	// FirstToken observes the time from the request to its first token.
	FirstToken(d time.Duration)
	// Tokens observes n further tokens with each the time since the one before.
	Tokens(n int, each time.Duration)
	// Retried counts a request that is given to another worker.
	Retried()
	// Waits counts a request that waits for a free slot.
	Waits()
	// Ended observes the time from the request to its whole answer, or, where reason is not empty,
	// counts a stream that was cut.
	Ended(took time.Duration, cut string)
	// Used counts what a request took of a model, as the worker told it or else about. key is empty
	// where nobody's token was sent. A request that no worker answered took nothing, and is not
	// counted.
	Used(key, model string, u Usage)
	// Limited counts a request that was refused for a limit of who asked.
	Limited()
}

// Options say what a Service works with. Router and Dial are required.
type Options struct {
	Router  Router
	Dial    Dialer
	Limiter Limiter      // nil: there are no limits
	Meter   Meter        // nil: nothing is counted
	Logger  hclog.Logger // nil: no log

	DialTimeout      time.Duration // for the connection to a worker; 0: 5 seconds
	StartTimeout     time.Duration // for a worker to be started for a request; 0: 10 minutes
	ProgressAfter    time.Duration // silence before a waiting stream gets progress comments; 0: 5 seconds
	ProgressInterval time.Duration // between progress comments; 0: 2 seconds

	// FirstTokenTimeout bounds the time until the first byte of an answer in which the worker makes
	// no progress either; 0: 5 minutes. For an answer that is not streamed it is the whole of it.
	FirstTokenTimeout time.Duration
	TokenTimeout      time.Duration // between two events of a stream; 0: 1 minute
	HungTimeout       time.Duration // for a worker that neither sends anything nor tells its state; 0: 15 seconds

	AnswerMemory int64         // bytes of all answers that are not streamed, while they arrive; 0: 256 MiB
	QueueLimit   int           // requests that wait for a free slot of one model; 0: 128
	QueueTimeout time.Duration // for such a wait; 0: 2 minutes, as answers on a CPU take long
	RefuseDeadly time.Duration // how long a request is refused that killed two workers; 0: 5 minutes
}

// Service answers inference requests. It is safe for concurrent use.
type Service struct {
	o         Options
	log       hclog.Logger
	meter     Meter
	workers   *conn.Pools
	records   *Records
	splitters sync.Pool // *sse.Splitter
	lines     lines
	notes     notes
	answers   atomic.Int64 // bytes of answers that are not streamed
	seed      maphash.Seed // of Terms.Prefix

	mu       sync.Mutex // guards below
	budget   *admission.Budget
	suspects *admission.Suspects
}

// New returns a Service. It starts nothing.
func New(o Options) *Service {
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&o.DialTimeout, 5 * time.Second},
		{&o.StartTimeout, 10 * time.Minute},
		{&o.ProgressAfter, 5 * time.Second},
		{&o.ProgressInterval, 2 * time.Second},
		{&o.QueueTimeout, 2 * time.Minute},
		{&o.FirstTokenTimeout, 5 * time.Minute},
		{&o.TokenTimeout, time.Minute},
		{&o.HungTimeout, 15 * time.Second},
		{&o.RefuseDeadly, 5 * time.Minute},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if o.AnswerMemory == 0 {
		o.AnswerMemory = 256 << 20
	}
	if o.QueueLimit == 0 {
		o.QueueLimit = 128
	}
	s := &Service{
		budget: admission.NewBudget(retryRatio, retryReserve), suspects: admission.NewSuspects(o.RefuseDeadly),
		o: o, log: o.Logger, meter: o.Meter, workers: conn.NewPools(o.Dial, o.DialTimeout), records: newRecords(), seed: maphash.MakeSeed(),
	}
	s.lines.limit = o.QueueLimit
	if s.log == nil {
		s.log = hclog.NewNullLogger()
	}
	if s.meter == nil {
		s.meter = noMeter{}
	}
	s.splitters.New = func() any { return sse.NewSplitter() }
	return s
}

// Records returns what is remembered of the latest requests.
func (s *Service) Records() *Records { return s.records }

// Waiting returns how many requests wait for a free slot, by core.Model.ID.
func (s *Service) Waiting() map[string]int { return s.lines.waiting() }

// DropHive closes the idle connections to the workers of a hive, by its id: where the hive is
// suspect, they may lead nowhere. Running requests are not touched.
func (s *Service) DropHive(hive string) { s.workers.DropHive(hive) }

// DropGone closes the idle connections to workers of which alive says no. Running requests are not
// touched.
func (s *Service) DropGone(alive func(core.Worker) bool) { s.workers.DropGone(alive) }

// Close closes the idle connections to workers.
func (s *Service) Close() { s.workers.Close() }

type noMeter struct{}

func (noMeter) Began(string)                {}
func (noMeter) Events(int)                  {}
func (noMeter) FirstToken(time.Duration)    {}
func (noMeter) Tokens(int, time.Duration)   {}
func (noMeter) Retried()                    {}
func (noMeter) Waits()                      {}
func (noMeter) Ended(time.Duration, string) {}
func (noMeter) Used(string, string, Usage)  {}
func (noMeter) Limited()                    {}
