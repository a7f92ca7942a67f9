// Package gateway is the public HTTP API: OpenAI routes, jobs, status and metrics.
package gateway

import (
	"context"

	"github.com/rbee-project/rbee/core"
)

// Cluster answers questions about the cluster. Errors: NotFound, Unavailable.
type Cluster interface {
	// Answer answers the operations that only read; see operation.Answerer. It checks the request.
	Answer(ctx context.Context, r core.Request) (any, error)
	// Ready is nil when requests can be served; otherwise it says what is missing.
	Ready(ctx context.Context) error
	Status(ctx context.Context) (core.Status, error)
	Workers(ctx context.Context) ([]core.Worker, error)
	// Models lists the models of the whole cluster, those of catalog sources that were never
	// fetched excluded.
	Models(ctx context.Context) ([]core.Model, error)
}

// Jobs starts operations and follows them. Errors: Invalid, NotFound, Unavailable.
type Jobs interface {
	// Submit starts the job of a request. first says that the request was never sent before, so
	// that no agent can have its id already.
	Submit(ctx context.Context, r core.Request, first bool) (core.Job, error)
	Job(ctx context.Context, id string) (core.Job, error)
	Jobs(ctx context.Context) ([]core.Job, error)
	Cancel(ctx context.Context, id string) (core.Job, error)
	// Events calls emit for every event with a greater number than after, then for new ones as they
	// happen, and returns nil after the end event, or the error of emit or ctx.
	Events(ctx context.Context, id string, after int64, emit func(core.Event) error) error
}
