// Package inference answers one inference request: it reads the request's facts, gets a worker from
// the router, asks it, retries with another one if that helps, relays the answer and records what
// happened.
//
// It does not depend on the server in front of it. Answers go to a Client, measurements to a Meter.
// Events pass through byte for byte.
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

// Terms are the demands of a request on any worker that answers it, including one that is asked
// after another failed. A routing rule that inspects the request adds its field here.
type Terms struct {
	// Needs are the capabilities that the worker must have; see core.Capabilities. A worker that
	// does not report its capabilities is not refused for them.
	Needs []string
	// Prefix holds the marks of the prompt: hashes of ever longer prefixes of it, combined with the
	// key and the tools, keyed with a secret of this process. A worker that recently received the
	// same marks need not evaluate that part again. Empty: the prompt is short.
	Prefix []uint64
}

// Query is what a Router needs to know to choose a worker for a request.
type Query struct {
	RequestID string
	Model     string // as the client wrote it: an id or an alias
	Key       string // token id of the client; empty: unknown
	Terms
	// Tried are workers that have already failed this request: they are not chosen.
	Tried []core.Worker
	// ContextOver asks for a worker with more positions per slot than this; 0: any. A worker with a
	// shorter context has refused the request.
	ContextOver int
	// KeepAlive is how long to keep the worker after the request, negative: indefinitely; nil: not
	// given.
	KeepAlive *time.Duration
	// Other asks for a worker that is ready now: Route neither waits nor starts one.
	Other bool
	// Look asks for any loaded worker, however busy: the request only asks the worker about itself
	// and does not count as use. Route neither waits nor starts one, and returns *NotLoaded if
	// there is none.
	Look bool
	// Patience bounds the wait for a worker to start.
	Patience time.Duration
	// Progress is called on Route's goroutine while it waits, first with the zero value when the
	// wait begins. nil: not wanted.
	Progress func(core.Progress)
}

// Router chooses workers. It is safe for concurrent use.
type Router interface {
	// Route returns a lease on the best worker for the query. If the model is known and no worker
	// serves it, Route starts one and waits for it. Errors: NotFound for an unknown model (with the
	// nearest names as hint), Unavailable or TooLarge when no worker is available (with the reason
	// per hive), DeadlineExceeded after Patience, those of ctx. On error the lease holds only the
	// refusals, and need not be released. *Busy when all workers of the model are at capacity:
	// Route does not wait for a free slot. *Unable when they lack a capability that the query
	// needs.
	Route(ctx context.Context, q Query) (Lease, error)
}

// Busy is Route's error when every suitable worker is busy.
type Busy struct{ Model string } // core.Model.ID

func (e *Busy) Error() string { return "all workers with " + e.Model + " are busy" }

// Unwrap returns the classified error.
func (e *Busy) Unwrap() error {
	return core.Errorf(core.Overloaded, "all workers with %s are busy", e.Model).Hint("Try again in a while, or start another worker with `rbee worker spawn`.")
}

// NotLoaded is Route's error for a Look at a model that does not exist or that no worker has
// loaded.
type NotLoaded struct{ Model string } // as in the query

func (e *NotLoaded) Error() string { return "no worker has loaded " + clip(e.Model, 100) }

// Unwrap returns the classified error.
func (e *NotLoaded) Unwrap() error { return core.Errorf(core.Unavailable, "%s", e.Error()) }

// Unable is Route's error when workers serve the model but none can do what the request needs.
type Unable struct {
	Model string // core.Model.ID
	Need  string // missing capability
}

func (e *Unable) Error() string {
	return fmt.Sprintf("no worker of %s can do %s", clip(e.Model, 100), e.Need)
}

// Unwrap returns the classified error.
func (e *Unable) Unwrap() error { return core.Errorf(core.Invalid, "%s", e.Error()) }

// Lease is a worker to which one request may be sent. The request counts as in flight until the
// lease is released.
type Lease struct {
	Worker core.Worker
	Reason string // reason for the choice, short: "least busy of 2"
	// Ranked are the workers that could answer, best first, including Worker.
	Ranked  []core.Candidate
	Refused []core.RouteRefusal // the model's other workers
	signs   func() Signs
	release func(Outcome)
}

// Signs are a worker's signs of life besides its answers.
type Signs struct {
	Silence  time.Duration // time since its last state report
	Stalled  time.Duration // time since it last made progress, with requests in flight
	Progress bool          // it reports progress at all
}

// NewLease returns a lease on the first of the ranked workers. signs may be called at any time,
// also concurrently; nil: there are no signs. release is called once.
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

// Outcome is what a request reveals about its worker. The zero value is a success.
type Outcome struct {
	Failed bool          // it could not be reached, or was lost during the request
	Busy   time.Duration // how long it refuses requests, as it reported; 0: it did not
}

// Dialer connects to the data socket of a worker on any hive. The wire protocol is HTTP/1.1.
type Dialer func(ctx context.Context, w core.Worker) (net.Conn, error)

// Client receives the answer of one request. Its methods are called by one goroutine at a time.
type Client interface {
	// Asked reports which worker gives the answer that follows, and why it was chosen. It may be
	// called again until the first byte of an answer arrives.
	Asked(w core.Worker, reason string)
	// Send passes on whole events or comments of a stream. The first call begins the stream. An
	// error means that the client has disconnected.
	Send(block []byte) error
	// Answer passes on a whole, non-streamed answer. Nothing follows it.
	Answer(a Answer)
	// Fail ends the answer with an error and returns the HTTP status that the client sees; 0: none.
	// If the stream has begun, the error is written into it, except ErrTold, which it already
	// contains. Nothing follows it.
	Fail(err error) (status int)
}

// Answer is a non-streamed answer, as the worker gave it.
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
	// Began counts a stream whose first event was passed on.
	Began(model string)
	// Events counts events that were passed on.
	Events(n int)
	// FirstToken observes the time from the request to its first token.
	FirstToken(d time.Duration)
	// Tokens observes n further tokens, each at the given time after the one before.
	Tokens(n int, each time.Duration)
	// Retried counts a request that goes to another worker.
	Retried()
	// Waits counts a request that waits for a free slot.
	Waits()
	// Ended observes the time from the request to its whole answer or, if cut is not empty, counts
	// a stream that was cut.
	Ended(took time.Duration, cut string)
	// Used counts the usage of a request, as the worker reported it or else an estimate. key is
	// empty for a client without a token. Requests that no worker answered are not counted.
	Used(key, model string, u Usage)
	// Limited counts a request refused because of its key's limits.
	Limited()
}

// Options are the dependencies and limits of a Service. Router and Dial are required.
type Options struct {
	Router  Router
	Dial    Dialer
	Limiter Limiter      // nil: no limits
	Meter   Meter        // nil: no metrics
	Logger  hclog.Logger // nil: no log

	DialTimeout      time.Duration // for the connection to a worker; 0: 5 seconds
	StartTimeout     time.Duration // for a worker to start for a request; 0: 10 minutes
	ProgressAfter    time.Duration // silence before a waiting stream gets progress comments; 0: 5 seconds
	ProgressInterval time.Duration // between progress comments; 0: 2 seconds

	// FirstTokenTimeout bounds the time to the first byte of an answer while the worker makes no
	// progress; 0: 5 minutes. For an answer that is not streamed it bounds the whole answer.
	FirstTokenTimeout time.Duration
	TokenTimeout      time.Duration // between two events of a stream; 0: 1 minute
	HungTimeout       time.Duration // for a worker that neither sends nor reports; 0: 15 seconds

	AnswerMemory int64         // bytes of all non-streamed answers in transit; 0: 256 MiB
	QueueLimit   int           // requests that wait for a free slot of one model; 0: 128
	QueueTimeout time.Duration // for such a wait; 0: 2 minutes, as answers on a CPU take long
	RefuseDeadly time.Duration // for refusing a request that killed two workers; 0: 5 minutes
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

// Records returns the records of the latest requests.
func (s *Service) Records() *Records { return s.records }

// Waiting returns how many requests wait for a free slot, by core.Model.ID.
func (s *Service) Waiting() map[string]int { return s.lines.waiting() }

// DropHive closes the idle connections to the workers of a hive, by its id: those of a suspect hive
// may be dead. Running requests are unaffected.
func (s *Service) DropHive(hive string) { s.workers.DropHive(hive) }

// DropGone closes the idle connections to workers for which alive returns false. Running requests
// are unaffected.
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
