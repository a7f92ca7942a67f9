package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// cancelTimeout is how long a cancelled job may take to end before the command stops waiting for
// it.
const cancelTimeout = 10 * time.Second

// runJob starts an operation, shows its events on stderr and returns the job once it succeeded.
// When ctx ends, the job is cancelled and its end awaited.
func (a *app) runJob(ctx context.Context, c *client.Client, r core.Request) (core.Job, error) {
	job, err := c.Submit(ctx, r)
	if err != nil {
		return core.Job{}, err
	}
	return a.followJob(ctx, c, job)
}

func (a *app) followJob(ctx context.Context, c *client.Client, job core.Job) (core.Job, error) {
	m := term.NewMeter(a.stderr, a.stderrTerminal, a.now)
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
		return job, a.cancelJob(ctx, c, job, &seq, emit)
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

// cancelJob ends the job of an interrupted command and waits, for a while, until it has ended.
func (a *app) cancelJob(ctx context.Context, c *client.Client, job core.Job, seq *int64, emit func(core.Event) error) error {
	fmt.Fprintln(a.stderr, "Cancelling; once more ends this command without waiting.")
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
// the job that succeeded.
func (a *app) submit(ctx context.Context, c *client.Client, r core.Request, detach bool, done func(core.Job) error) error {
	if !detach {
		job, err := a.runJob(ctx, c, r)
		if err != nil {
			return err
		}
		return done(job)
	}
	job, err := c.Submit(ctx, r)
	if err != nil {
		return err
	}
	return a.show(job, func(w io.Writer) error {
		fmt.Fprintf(a.stderr, "Started. \"rbee job logs -f %s\" follows it, \"rbee job get %s\" shows how it ends, \"rbee job cancel %s\" ends it.\n", job.ID, job.ID, job.ID)
		_, err := fmt.Fprintln(w, job.ID)
		return err
	})
}

// confirm asks a person whether to go on. Without a terminal, --yes must say so.
func (a *app) confirm(ctx context.Context, yes bool, question string) error {
	if yes {
		return nil
	}
	if !a.stdinTerminal || !a.stderrTerminal {
		return usageHint("Say --yes to do it, or --dry-run to see what would be done.", "%s: nobody to ask", term.Line(question))
	}
	fmt.Fprintf(a.stderr, "%s [y/N] ", term.Line(question))
	line, err := a.readLine(ctx)
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return core.Errorf(core.Cancelled, "nothing was done")
}

// readLine reads a line of stdin.
func (a *app) readLine(ctx context.Context) (string, error) {
	line, err := a.reading(ctx, func() (string, error) {
		line, err := bufio.NewReader(a.stdin).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return line, err
	})
	if ctx.Err() != nil {
		fmt.Fprintln(a.stderr)
	}
	return line, err
}

// reading does a read of stdin, which cannot be interrupted: when ctx ends first, its goroutine
// ends with the program.
func (a *app) reading(ctx context.Context, read func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		text, err := read()
		answers <- answer{text, err}
	}()
	select {
	case got := <-answers:
		return got.text, got.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}
