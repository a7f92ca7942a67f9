// Package gateway is the public HTTP API: OpenAI routes, jobs, status and metrics.
package gateway

import (
	"context"

	"github.com/rbee-project/rbee/core"
)

// Cluster answers questions about the cluster. Hives are named by id, name or core.LocalHive.
// Errors: NotFound, Unavailable.
type Cluster interface {
	// Ready is nil when requests can be served; otherwise it says what is missing.
	Ready(ctx context.Context) error
	Status(ctx context.Context) (core.Status, error)
	Hives(ctx context.Context) ([]core.Hive, error)
	Hive(ctx context.Context, hive string) (core.Hive, error)
	Workers(ctx context.Context) ([]core.Worker, error)
	// Worker finds a worker by its id or a unique prefix of it.
	Worker(ctx context.Context, id string) (core.Worker, error)
	// Models lists the models of the whole cluster, those of catalog sources that were never
	// fetched excluded.
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
	// Events calls emit for every event with a greater number than after, then for new ones as they
	// happen, and returns nil after the end event, or the error of emit or ctx.
	Events(ctx context.Context, id string, after int64, emit func(core.Event) error) error
}
