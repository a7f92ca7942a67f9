// Package gateway is the public HTTP API: OpenAI routes, jobs, status and metrics.
package gateway

import (
	"context"
	"net"

	"github.com/rbee-project/rbee/core"
)

// Router chooses workers for inference requests. Methods may be called concurrently.
type Router interface {
	// Pick returns the workers that can answer, best first, at least one. When the model is known but no worker serves it,
	// Pick has one started, calls progress while it waits, and returns when it is ready. Errors: NotFound for an unknown model
	// (with the nearest names as hint), Unavailable or TooLarge when no worker can be had (with the reason per hive).
	Pick(ctx context.Context, r core.RouteRequest, progress func(core.Progress)) ([]core.Candidate, error)
	// Failed tells that a worker could not be reached or died under a request, so that it is avoided until its hive confirms it.
	Failed(w core.Worker)
}

// Counter is a Router that wants to know how many requests each worker has at this moment, which reports of hives tell too late.
// A gateway whose Router is a Counter calls Begin when it sends a request to a worker and end, once or more, when the answer is over, whatever
// became of it.
type Counter interface {
	Begin(w core.Worker) (end func())
}

// Dial connects to the data socket of a worker, wherever its hive is; the wire is HTTP/1.1.
type Dial func(ctx context.Context, w core.Worker) (net.Conn, error)

// Cluster answers questions about the cluster. Hives are named by id, name or core.LocalHive. Errors: NotFound, Unavailable.
type Cluster interface {
	// Ready is nil when requests can be served; otherwise it says what is missing.
	Ready(ctx context.Context) error
	Status(ctx context.Context) (core.Status, error)
	Hives(ctx context.Context) ([]core.Hive, error)
	Hive(ctx context.Context, hive string) (core.Hive, error)
	Workers(ctx context.Context) ([]core.Worker, error)
	// Worker finds a worker by its id or a unique prefix of it.
	Worker(ctx context.Context, id string) (core.Worker, error)
	// Models lists the models of the whole cluster, those of catalog sources that were never fetched excluded.
	Models(ctx context.Context) ([]core.Model, error)
	HiveModels(ctx context.Context, hive string) ([]core.Model, error)
	HiveModel(ctx context.Context, hive, id string) (core.Model, error)
	Processes(ctx context.Context, hive string) ([]core.Process, error)
	Process(ctx context.Context, hive string, pid int) (core.Process, error)
	Binaries(ctx context.Context, hive string) ([]core.WorkerBinary, error)
	Binary(ctx context.Context, hive, id string) (core.WorkerBinary, error)
	Catalog(ctx context.Context, hive, text, kind string, limit int) ([]core.CatalogItem, error)
}

// Jobs starts operations and follows them. Errors: Invalid, NotFound, Unavailable.
type Jobs interface {
	Submit(ctx context.Context, r core.Request) (core.Job, error)
	Job(ctx context.Context, id string) (core.Job, error)
	Jobs(ctx context.Context) ([]core.Job, error)
	Cancel(ctx context.Context, id string) (core.Job, error)
	// Events calls emit for every event with a greater number than after, then for new ones as they happen,
	// and returns nil after the end event, or the error of emit or ctx.
	Events(ctx context.Context, id string, after int64, emit func(core.Event) error) error
}
