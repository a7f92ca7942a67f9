package gateway

import (
	"context"
	"net"
	"net/http"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/prometheus/client_golang/prometheus"
)

// Options says what a Gateway serves and within which bounds. Router, Cluster, Jobs and Dial are required.
type Options struct {
	Router  Router
	Cluster Cluster
	Jobs    Jobs
	Dial    Dial
	Logger  hclog.Logger // nil: no log
	Version string       // of the program, for GET /version

	// Hosts are the names, without port, that a request's Host header may have beside the loopback ones
	// when it arrives on a loopback address. Requests that arrive on other addresses are not checked.
	Hosts []string

	MaxBodyBytes     int64         // of an inference request; 0: 32 MiB
	BodyTimeout      time.Duration // for a request's body to arrive; 0: 1 minute
	WriteTimeout     time.Duration // for one write to a client that reads slowly; 0: 1 minute
	StartTimeout     time.Duration // for a worker to be started for a request; 0: 10 minutes
	ProgressAfter    time.Duration // silence before a waiting stream gets progress comments; 0: 5 seconds
	ProgressInterval time.Duration // between progress comments; 0: 2 seconds
	KeepAlive        time.Duration // between comments of a silent job stream; 0: 15 seconds
}

// Gateway is the public HTTP API. It is safe for concurrent use.
type Gateway struct {
	o        Options
	registry *prometheus.Registry
}

// New returns a gateway. It starts nothing.
func New(o Options) *Gateway { return &Gateway{o: o, registry: prometheus.NewRegistry()} }

// Handler answers every route of the API.
func (g *Gateway) Handler() http.Handler { return http.NotFoundHandler() }

// Registry holds the gateway's metrics, which GET /metrics shows; others may add theirs, named rbee_….
func (g *Gateway) Registry() *prometheus.Registry { return g.registry }

// Serve answers connections of l until ctx ends, then takes no new one and lets running requests finish within grace.
// Inference streams that still run then get an error event; job streams end at once, since they can be resumed elsewhere.
// It closes l and returns nil after an orderly end. It is called once.
func (g *Gateway) Serve(ctx context.Context, l net.Listener, grace time.Duration) error {
	<-ctx.Done()
	return l.Close()
}
