package gateway

import (
	"context"
	"fmt"
	"net/http"
	"runtime/debug"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
)

// Options holds the backends and bounds of a Gateway. Inference, Cluster and Jobs are required.
type Options struct {
	Inference *inference.Service // its owner closes it
	Metrics   *Metrics           // the Metrics that Inference uses; nil: new ones
	Cluster   Cluster
	Jobs      Jobs
	Logger    hclog.Logger // nil: no log
	Version   string       // program version, for GET /version

	// Auth checks tokens; nil: everything is allowed, for a single agent on loopback.
	Auth Authorizer
	// Elsewhere asks the other queens about an answer of the Responses API that this one does not
	// have; nil: there are no other queens.
	Elsewhere func(ctx context.Context, act core.KeptAct, id, key string) (answer []byte, found bool, err error)
	// Reader makes registry reads as fresh as the client wants; nil: they are as fresh as the
	// replica.
	Reader Reader
	// Admin performs admin operations; nil: its routes answer Unsupported.
	Admin Admin

	// Hosts are the host names, without port, that are accepted in the Host header besides the
	// loopback ones when a request arrives on a loopback address. Requests on other addresses are
	// not checked.
	Hosts []string
	// Origins are the origins of web pages that may call the API, besides its own; "*": all.
	Origins []string

	// Spool creates the file for a form whose model comes late; nil: such forms are refused. The
	// file disappears when it is closed or the process ends.
	Spool func() (SpoolFile, error)

	// Hurry is closed when a stopping server should not wait for the end of its grace period; nil:
	// never.
	Hurry <-chan struct{}

	MaxBodyBytes     int64         // bytes of an inference request; 0: 16 MiB
	MaxFormBytes     int64         // bytes of a form with files; 0: 256 MiB
	FormDisk         int64         // for forms whose model comes late, half of it for one token; 0: 1 GiB
	BodyMemory       int64         // for the bodies of all running requests, half of it for one token; 0: 256 MiB
	MaxConns         int           // open at a time, half of them from one address; 0: 4096
	BodyWait         time.Duration // for a body to get memory; 0: 2 seconds
	MaxSnapshotBytes int64         // bytes of a restored snapshot; 0: 4 GiB
	BodyTimeout      time.Duration // for a request's body to arrive; 0: 1 minute
	WriteTimeout     time.Duration // for one write to a client that reads slowly; 0: 1 minute
	KeepAlive        time.Duration // between comments of a silent job stream; 0: 15 seconds
	LameDuck         time.Duration // quiet time before a stopping server closes kept-alive connections; 0: 1 second
}

// Gateway is the public HTTP API. It is safe for concurrent use.
//
// It has many methods, because each handler of a route is one. Handlers have no state: a file for
// each subject is the wall between them. What has state is a part of its own, embedded below.
type Gateway struct {
	o       Options
	log     hclog.Logger
	mux     *http.ServeMux
	metrics *Metrics
	streams streams
	guesses *guesses

	guard
	intake
	kept
}

// New returns a gateway. It starts nothing.
func New(o Options) *Gateway {
	for _, d := range []struct {
		v *time.Duration
		d time.Duration
	}{
		{&o.BodyTimeout, time.Minute},
		{&o.BodyWait, 2 * time.Second},
		{&o.WriteTimeout, time.Minute},
		{&o.KeepAlive, 15 * time.Second},
		{&o.LameDuck, time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.d
		}
	}
	if o.MaxBodyBytes == 0 {
		o.MaxBodyBytes = 16 << 20
	}
	if o.MaxFormBytes == 0 {
		o.MaxFormBytes = 256 << 20
	}
	if o.FormDisk == 0 {
		o.FormDisk = 1 << 30
	}
	if o.MaxConns == 0 {
		o.MaxConns = 4096
	}
	if o.BodyMemory == 0 {
		o.BodyMemory = 256 << 20
	}
	if o.MaxSnapshotBytes == 0 {
		o.MaxSnapshotBytes = 4 << 30
	}
	g := &Gateway{o: o, log: o.Logger, metrics: o.Metrics, guesses: newGuesses()}
	if g.metrics == nil {
		g.metrics = NewMetrics()
	}
	if g.log == nil {
		g.log = hclog.NewNullLogger()
	}
	g.guard, g.intake, g.kept.others = newGuard(o, g.metrics), newIntake(o, g.log), o.Elsewhere
	g.bodies.spare = g.answers.Spare
	g.answers.Room = &room{heldBody{of: g.bodies}}
	g.mux = g.buildMux(routes())
	return g
}

// Handler handles every route of the API. Serve uses it with the timeouts that a public server
// needs.
func (g *Gateway) Handler() http.Handler { return http.HandlerFunc(g.serve) }

// Registry returns the registry of the gateway's metrics, which GET /metrics shows; others may add
// metrics named rbee_….
func (g *Gateway) Registry() *prometheus.Registry { return g.metrics.registry }

// serve handles every request: it assigns an id, applies the guard, dispatches to the routes, and
// records the request in metrics and the log. Bodies, prompts, paths with names and the client's
// name for a model are never logged.
func (g *Gateway) serve(inner http.ResponseWriter, r *http.Request) {
	start := time.Now()
	w := newResponse(inner, g.o.WriteTimeout)
	tidyPath(r.URL)
	w.id, w.route, w.lame, w.fail = requestID(r), "unknown", &g.streams.lame, failer(r)
	defer w.end()
	defer w.body.release()
	w.Header().Set("X-Request-Id", w.id)
	if r.ContentLength != 0 {
		_ = w.c.SetReadDeadline(start.Add(g.o.BodyTimeout)) // a test recorder has no deadline
	}
	if framedTwice(r) {
		w.Header().Set("Connection", "close")
	}
	g.metrics.inFlight.Inc()
	g.streams.enter()
	cut := g.run(w, r)
	g.streams.leave()
	g.metrics.inFlight.Dec()
	took := time.Since(start)
	g.metrics.request(w.route, w.status, took)
	if g.log.IsDebug() {
		g.log.Debug("request", "request", w.id, "route", w.route, "status", w.status, "model", w.model, "worker", w.worker, "took", took, "cut", cut)
	}
	if cut {
		panic(http.ErrAbortHandler) // closes the connection without marking the answer complete
	}
}

// run answers the request and reports whether the answer must be cut.
func (g *Gateway) run(w *response, r *http.Request) (cut bool) {
	defer func() {
		v := recover()
		switch {
		case v == nil:
		case v == http.ErrAbortHandler: //nolint:errorlint // it is compared as net/http does
			cut = true
		default:
			g.log.Error("a request handler panicked", "request", w.id, "route", w.route, "error", fmt.Sprint(v), "stack", string(debug.Stack()))
			if cut = w.status != 0; !cut {
				fail(w, core.Errorf(core.Internal, "the server has a defect and could not answer").Hint("Its log has the details under request id %s.", w.id))
			}
		}
	}()
	switch err := g.check(w, r); {
	case err != nil:
		fail(w, err)
	case g.preflight(w, r):
	case r.RequestURI == "*" || !cleanPath(r.URL.EscapedPath()):
		fail(w, noRoute(r))
	default:
		g.mux.ServeHTTP(w, r)
	}
	return false
}
