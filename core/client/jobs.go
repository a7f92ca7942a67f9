package client

import (
	"context"
	"encoding/json"

	"github.com/rbee-project/rbee/core"
)

// Submit starts an operation and returns its job at once.
func (c *Client) Submit(ctx context.Context, r core.Request) (core.Job, error) {
	return core.Job{}, nil
}

// Jobs lists running jobs and the latest ended ones.
func (c *Client) Jobs(ctx context.Context) ([]core.Job, error) { return nil, nil }

// Job returns one job.
func (c *Client) Job(ctx context.Context, id string) (core.Job, error) { return core.Job{}, nil }

// CancelJob asks a job to end and returns it as it is then; a job that has ended is left as it is.
func (c *Client) CancelJob(ctx context.Context, id string) (core.Job, error) { return core.Job{}, nil }

// FollowJob calls emit for every event of the job with a greater number than after, then for new ones as they happen, and returns nil after
// the end event. A connection that breaks is opened again, also to another queen, without an event lost or repeated.
// An error of emit or ctx ends it.
func (c *Client) FollowJob(ctx context.Context, id string, after int64, emit func(core.Event) error) error {
	return nil
}

// Run submits r, follows the job to its end and returns it as it ended; emit may be nil. The error is the job's own where it failed or was cancelled.
// When ctx ends the job goes on: CancelJob ends it.
func (c *Client) Run(ctx context.Context, r core.Request, emit func(core.Event) error) (core.Job, error) {
	return core.Job{}, nil
}

// Result decodes the result of a job that succeeded, for example into a core.SpawnResult. Errors: Invalid where it is of another type.
func Result[T any](j core.Job) (T, error) {
	var v T
	if err := json.Unmarshal(j.Result, &v); err != nil {
		return v, core.Errorf("read result of "+string(j.Operation), core.Invalid, "%w", err)
	}
	return v, nil
}
