package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// cancelTimeout is how long a cancelled job may take to end before the command stops waiting for
// it.
const cancelTimeout = 10 * time.Second

// runJob starts an operation, shows its events on stderr and returns the job once it has succeeded.
// When ctx ends, it cancels the job and waits for its end.
func (con *console) runJob(ctx context.Context, c *client.Client, r core.Request) (core.Job, error) {
	job, err := c.Submit(ctx, r)
	if err != nil {
		return core.Job{}, err
	}
	return con.followJob(ctx, c, job)
}

func (con *console) followJob(ctx context.Context, c *client.Client, job core.Job) (core.Job, error) {
	m := term.NewMeter(con.stderr, con.stderrTerminal, con.now)
	defer m.Close()
	seq := int64(0)
	emit := func(e core.Event) error {
		seq = e.Seq
		switch e.Kind {
		case core.EventProgress:
			if e.Progress != nil {
				m.Show(*e.Progress)
			}
		case core.EventLog:
			m.Log(e.Message)
		case core.EventEnd:
			job.State, job.Error = e.State, e.Error
		case core.EventResult:
			job.Result = e.Result
		}
		return nil
	}
	err := c.FollowJob(ctx, job.ID, 0, emit)
	if ctx.Err() != nil && job.State == core.JobRunning {
		m.Close()
		return job, con.cancelJob(ctx, c, job, &seq, emit)
	}
	if err != nil {
		return job, core.WithHint(fmt.Errorf("follow job %s: %w", job.ID, err), "It may go on: \"rbee job get %s\" shows how it ended.", job.ID)
	}
	if job.State != core.JobSucceeded {
		if err := job.Error.Err(); err != nil {
			return job, err
		}
		return job, core.Errorf(core.Cancelled, "job %s was cancelled", job.ID).Hint("Somebody else cancelled it; run the command again if it was not you.")
	}
	return job, nil
}

// cancelJob cancels the job of an interrupted command and waits for its end, for at most
// cancelTimeout.
func (con *console) cancelJob(ctx context.Context, c *client.Client, job core.Job, seq *int64, emit func(core.Event) error) error {
	fmt.Fprintln(con.stderr, "Cancelling; once more ends this command without waiting.")
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), cancelTimeout)
	defer cancel()
	if _, err := c.CancelJob(late, job.ID); err != nil {
		return core.WithHint(fmt.Errorf("cancel job %s: %w", job.ID, err), "It may go on: \"rbee job cancel %s\" tries again.", job.ID)
	}
	if err := c.FollowJob(late, job.ID, *seq, emit); err != nil {
		return core.WithHint(fmt.Errorf("wait for the end of job %s: %w", job.ID, err), "\"rbee job get %s\" shows how it ended.", job.ID)
	}
	return ctx.Err()
}

// submit starts an operation; with detach it only shows the job, otherwise done shows the result of
// the succeeded job.
func (con *console) submit(ctx context.Context, c *client.Client, r core.Request, detach bool, done func(core.Job) error) error {
	if !detach {
		job, err := con.runJob(ctx, c, r)
		if err != nil {
			return err
		}
		return done(job)
	}
	job, err := c.Submit(ctx, r)
	if err != nil {
		return err
	}
	return con.show(job, func(w io.Writer) error {
		fmt.Fprintf(con.stderr, "Started. \"rbee job logs -f %s\" follows it, \"rbee job get %s\" shows how it ends, \"rbee job cancel %s\" ends it.\n", job.ID, job.ID, job.ID)
		_, err := fmt.Fprintln(w, job.ID)
		return err
	})
}
