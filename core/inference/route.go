package inference

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// route gets a worker from the router, which may start one. It reports the progress to a stream.
func (c *call) route() error {
	lease, err := c.await(Query{RequestID: c.r.ID, Key: c.r.Key, Model: c.facts.model, Terms: c.r.Terms, KeepAlive: c.facts.keepAlive, Look: c.r.Method == http.MethodGet})
	c.lease = lease
	return err
}

// reroute gets another worker from the router for a request whose worker left before it accepted
// the request, which counts as no failure.
func (c *call) reroute(q Query) (Lease, error) {
	q.Other = false
	return c.await(q)
}

// await returns a lease on a worker for the query, and waits for one to start if there is none. It
// records what it waited for and reports it to a stream.
func (c *call) await(q Query) (Lease, error) {
	q.Patience = c.s.o.StartTimeout
	ctx, note := c.ctx, func(core.Progress) {}
	if c.facts.stream {
		var cancel context.CancelFunc
		ctx, cancel = context.WithCancel(ctx)
		defer cancel()
		p := &progress{c: c, gone: cancel}
		note = p.note
		defer p.stop()
	}
	phase := ""
	q.Progress = func(p core.Progress) {
		if p.Phase != "" && p.Phase != phase {
			phase = p.Phase
			c.s.records.waits(c.record, phase)
		}
		note(p)
	}
	lease, err := c.acquire(ctx, q)
	return lease, c.routeError(ctx, err)
}

// routeError returns the failure to find a worker, as reported to clients.
func (c *call) routeError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case c.ctx.Err() != nil:
		return ended(c.ctx)
	case ctx.Err() != nil: // a comment could not be sent
		return core.Errorf(core.Cancelled, "the client is gone")
	case isOverload(err):
	case isUnable(err):
		return unable(err)
	case errors.Is(err, context.DeadlineExceeded):
		return core.Errorf(core.DeadlineExceeded, "no worker of %q was ready within %s", clip(c.facts.model, 100), c.s.o.StartTimeout).Hint(
			"It may still be starting: GET /v1/jobs shows how far it is.")
	case core.KindOf(err) == core.NotFound:
		return &FieldError{Err: err, Code: openai.CodeModelNotFound, Param: "model"}
	}
	return err
}

// progress sends comments to a client whose worker is starting. Its timer sends them, not the
// router: a request that need not wait pays for no handover between goroutines.
type progress struct {
	c    *call
	gone func() // called when a comment cannot be sent to the client

	mu     sync.Mutex // guards latest
	latest core.Progress

	writing sync.Mutex // held by the answer's writer: the timer until over, then the caller; guards below
	over    bool
	silence *time.Timer
}

// note records the worker's progress. The first call starts the timer.
func (p *progress) note(latest core.Progress) {
	p.mu.Lock()
	p.latest = latest
	p.mu.Unlock()
	if p.silence != nil { // only this goroutine sets it
		return
	}
	p.writing.Lock()
	defer p.writing.Unlock()
	p.silence = time.AfterFunc(p.c.s.o.ProgressAfter, p.comment)
}

func (p *progress) comment() {
	p.writing.Lock()
	defer p.writing.Unlock()
	if p.over {
		return
	}
	p.mu.Lock()
	text := progressText(p.latest)
	p.mu.Unlock()
	if err := p.c.send(comment(text)); err != nil {
		p.gone()
		return
	}
	p.silence.Reset(p.c.s.o.ProgressInterval)
}

// stop returns once no comment is being written and no further one will be.
func (p *progress) stop() {
	p.writing.Lock()
	defer p.writing.Unlock()
	p.over = true
	if p.silence != nil {
		p.silence.Stop()
	}
}

// comment returns a line that clients ignore. No blank line follows, since OpenAI's Go client would
// take it for an event.
func comment(text string) []byte {
	line := append([]byte(": "), strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)...)
	return append(line, '\n')
}

func progressText(p core.Progress) string {
	text := "rbee: waiting for a worker"
	if p.Phase != "" {
		text = "rbee: " + p.Phase
	}
	switch {
	case p.Total > 0:
		text += fmt.Sprintf(" %d%%", p.Done*100/p.Total)
	case p.Done > 0 && p.Unit != "":
		text += fmt.Sprintf(" %d %s", p.Done, p.Unit)
	}
	return text
}
