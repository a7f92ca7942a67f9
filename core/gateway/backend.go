// Package gateway is the public HTTP API: OpenAI routes, jobs, status and metrics.
package gateway

import (
	"context"

	"github.com/rbee-project/rbee/core"
)

// Cluster answers questions about the cluster. Errors: NotFound, Unavailable.
type Cluster interface {
	// Answer answers read-only operations; see operation.Answerer. It validates the request.
	Answer(ctx context.Context, r core.Request) (any, error)
	// Ready returns nil once requests can be served; otherwise the error names what is missing.
	Ready(ctx context.Context) error
	Status(ctx context.Context) (core.Status, error)
	Workers(ctx context.Context) ([]core.Worker, error)
	// Models lists the models of the whole cluster, except catalog entries that were never fetched.
	Models(ctx context.Context) ([]core.Model, error)
}

// Jobs starts operations and follows them. Errors: Invalid, NotFound, Unavailable.
type Jobs interface {
	// Submit starts the job of a request. first reports that the request is sent for the first
	// time, so that no agent can know its id yet.
	Submit(ctx context.Context, r core.Request, first bool) (core.Job, error)
	Job(ctx context.Context, id string) (core.Job, error)
	Jobs(ctx context.Context) ([]core.Job, error)
	Cancel(ctx context.Context, id string) (core.Job, error)
	// Events calls emit for every event numbered above after, then for new ones as they happen. It
	// returns nil after the end event, or the error of emit or ctx.
	Events(ctx context.Context, id string, after int64, emit func(core.Event) error) error
}
