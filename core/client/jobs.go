package client

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	followPatience = 30 * time.Second // without an answer from any queen
	followSilence  = 45 * time.Second // a stream without even a keep-alive is broken
	firstPause     = 100 * time.Millisecond
	longestPause   = 2 * time.Second
)

// Submit starts an operation and returns its job at once. A request without an ID gets one, so that
// sending it again, also to another queen, creates no second job. The first attempt marks such an
// ID as new; an ID that the caller chose may have been sent before, so every agent is asked for it.
func (c *Client) Submit(ctx context.Context, r core.Request) (core.Job, error) {
	fresh := r.RequestID == ""
	if fresh {
		r.RequestID = rand.Text()
	}
	body, err := json.Marshal(r)
	if err != nil {
		return core.Job{}, core.Wrap(err, core.Invalid, "submit job")
	}
	return fetch[core.Job](ctx, c, call{method: http.MethodPost, path: "/v1/jobs", body: body, fresh: fresh})
}

// Jobs lists running jobs and the latest ended ones.
func (c *Client) Jobs(ctx context.Context) ([]core.Job, error) {
	return fetchList[core.Job](ctx, c, "/v1/jobs")
}

// Job returns one job.
func (c *Client) Job(ctx context.Context, id string) (core.Job, error) {
	return fetchOne[core.Job](ctx, c, "/v1/jobs/"+segment(id))
}

// CancelJob asks a job to end and returns its current state; it leaves an ended job unchanged.
func (c *Client) CancelJob(ctx context.Context, id string) (core.Job, error) {
	return fetch[core.Job](ctx, c, call{method: http.MethodDelete, path: "/v1/jobs/" + segment(id)})
}

// FollowJob calls emit for every event of the job with a number greater than after, then for new
// events as they happen, and returns nil after the end event. It reopens a broken connection, also
// to another queen, without losing or repeating an event; if no queen answers for half a minute, it
// gives up with Unavailable. It returns an error of emit unchanged.
func (c *Client) FollowJob(ctx context.Context, id string, after int64, emit func(core.Event) error) error {
	f := &follower{c: c, id: id, after: after, emit: emit}
	pause, answered := firstPause, time.Now()
	for {
		before := f.after
		err := f.once(ctx)
		switch {
		case f.ended || f.refused != nil:
			return f.refused
		case ctx.Err() != nil:
			return fmt.Errorf("follow job: %w", core.FromContext(ctx))
		case final(err):
			return err
		}
		if f.connected {
			answered = time.Now()
		}
		if f.after > before {
			pause = firstPause
		}
		if time.Since(answered) > followPatience {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("follow job: %w", core.FromContext(ctx))
		}
		pause = min(2*pause, longestPause)
	}
}

// final reports whether retrying cannot help.
func final(err error) bool {
	switch core.KindOf(err) {
	case core.NotFound, core.Invalid, core.Unauthenticated, core.Forbidden, core.Unsupported:
		return true
	}
	return false
}

type follower struct {
	c         *Client
	id        string
	after     int64
	emit      func(core.Event) error
	connected bool  // the last attempt reached a queen
	ended     bool  // the end event was emitted
	refused   error // error of emit
}

// once follows the job over one connection. Its error is the reason why the connection ended.
func (f *follower) once(ctx context.Context) error {
	f.connected = false
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	silence := time.AfterFunc(followSilence, cancel)
	defer silence.Stop()
	resp, queen, err := f.c.do(ctx, call{method: http.MethodGet, path: "/v1/jobs/" + segment(f.id) + "/stream", accept: "text/event-stream", lastEvent: strconv.FormatInt(f.after, 10)})
	if err != nil {
		f.connected = core.KindOf(err) != core.Unavailable
		return err
	}
	defer resp.Body.Close()
	f.connected = true
	defer func() {
		if !f.ended && f.refused == nil { // another connection can continue
			f.c.health.fails(queen, time.Now())
		}
	}()
	events := openai.NewEventReader(resp.Body)
	for {
		ev, err := events.Next()
		if err != nil {
			return core.Errorf(core.Unavailable, "follow job: the stream was cut: %w", err)
		}
		silence.Reset(followSilence)
		if ev.Data == nil {
			continue
		}
		if ev.Name == "error" {
			if e := openai.ErrorIn(ev.Data); e != nil {
				return errorOf(e)
			}
		}
		var event core.Event
		if err := json.Unmarshal(ev.Data, &event); err != nil {
			return foreign(core.Invalid, f.c.queens[queen], "an event of a job cannot be read")
		}
		if event.Seq <= f.after {
			continue
		}
		f.after = event.Seq
		if err := f.emit(event); err != nil {
			f.refused = err
			return err
		}
		if event.Kind == core.EventEnd {
			f.ended = true
			return nil
		}
	}
}

// Run submits r, follows the job to its end and returns its final state; emit may be nil. The error
// is the job's own if it failed or was cancelled. When ctx ends or emit fails, the job continues:
// CancelJob ends it; the returned job has its ID.
func (c *Client) Run(ctx context.Context, r core.Request, emit func(core.Event) error) (core.Job, error) {
	job, err := c.Submit(ctx, r)
	if err != nil {
		return job, err
	}
	if emit == nil {
		emit = func(core.Event) error { return nil }
	}
	if err := c.FollowJob(ctx, job.ID, 0, emit); err != nil {
		return job, err
	}
	ended, err := c.Job(ctx, job.ID)
	if err != nil {
		return job, err
	}
	if ended.State != core.JobSucceeded && ended.Error == nil {
		return ended, core.Errorf(core.Internal, "the job ended as %s without a reason", ended.State)
	}
	return ended, ended.Error.Err()
}

// Result decodes the result of a job that succeeded, for example into a core.SpawnResult. Errors:
// Invalid if the result has another type.
func Result[T any](j core.Job) (T, error) {
	var v T
	if len(j.Result) == 0 {
		return v, core.Wrap(errors.New("the job has no result"), core.Invalid, "read result of "+string(j.Operation))
	}
	return v, core.Wrap(json.Unmarshal(j.Result, &v), core.Invalid, "read result of "+string(j.Operation))
}
