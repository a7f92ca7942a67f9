package inference

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference/conn"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// otherPatience bounds the dial to a worker while another worker can be asked.
const otherPatience = 250 * time.Millisecond

// Request is one inference request.
type Request struct {
	ID   string // without line ends
	Path string // of the worker's API: "/v1/chat/completions"
	Body []byte // JSON as the client sent it
	At   time.Time
}

// call is one request on its way to a worker.
type call struct {
	s      *Service
	ctx    context.Context // ends with the request, and with a cause when its owner gives it up
	r      Request
	facts  facts
	client Client
	record *routed

	lease      Lease
	status     int           // that the client has seen; 0: none yet
	begun      bool          // a stream has begun: errors go into it
	sent       bool          // an event with data was passed on
	lastToken  time.Time     // zero: none yet
	firstToken time.Duration // after r.At; 0: none came
	events     int64         // that were passed on
}

// Serve finds a worker for a request and passes its answer to the client. It returns nil once the
// client has a whole answer, a refusal by the worker included, and otherwise the error that the
// client was told with Fail. ctx ends when nobody waits for the answer any more; where its cause is
// Unavailable, the client is told that cause.
func (s *Service) Serve(ctx context.Context, r Request, client Client) error {
	f, err := readFacts(r.Body)
	if err != nil {
		client.Fail(err)
		return err
	}
	c := &call{s: s, ctx: ctx, r: r, facts: f, client: client}
	c.record = s.records.begin(core.RouteRecord{RequestID: r.ID, At: r.At, Path: r.Path, Stream: f.stream})
	err = c.run()
	problem := core.KindOf(err)
	switch {
	case err != nil:
		if c.begun {
			s.meter.Ended(0, cutReason(err))
		}
		c.status = client.Fail(err)
	case c.status >= http.StatusBadRequest: // the worker's own refusal was passed on
		problem = KindOfStatus(c.status)
	}
	now := time.Now()
	s.records.end(c.record, c.status, problem, c.firstToken, c.events, now)
	if err == nil {
		s.meter.Ended(now.Sub(r.At), "")
	}
	return err
}

// cutReason is why a stream was cut, for metrics.
func cutReason(err error) string {
	if errors.Is(err, ErrTold) {
		return "worker_error"
	}
	return string(core.KindOf(err))
}

// run has workers asked until one answers. After the first byte of an answer, or a refusal that is
// the request's own fault, it asks no other.
func (c *call) run() error {
	err := c.route()
	c.s.records.picked(c.record, c.lease.Ranked, c.lease.Refused, time.Since(c.r.At))
	if err != nil {
		return err
	}
	for tried := []core.Worker(nil); ; {
		began := time.Now()
		answer := c.attempt(len(tried) + 1)
		_, again := errors.AsType[*unanswered](answer)
		c.s.records.asked(c.record, c.lease.Worker, began, time.Now(), core.KindOf(answer))
		if !again {
			return answer
		}
		tried = append(tried, c.lease.Worker)
		next, err := c.s.o.Router.Route(c.ctx, Query{RequestID: c.r.ID, Model: c.lease.Worker.Model, Tried: tried})
		if err != nil {
			return answer // there is no other worker
		}
		c.lease = next
		c.s.meter.Retried()
	}
}

// attempt asks the worker of the lease and releases it.
func (c *call) attempt(n int) error {
	w := c.lease.Worker
	reason := c.lease.Reason
	if n > 1 {
		reason += "; attempt " + strconv.Itoa(n)
	}
	err := c.ask(reason)
	_, again := errors.AsType[*unanswered](err)
	if !again && core.KindOf(err) != core.WorkerLost {
		c.lease.Release(Fine)
		return err
	}
	c.lease.Release(Failed)
	c.s.workers.Drop(w)
	log := c.s.log.With("request", c.r.ID, "worker", w.ID, "hive", w.Hive, "model", w.Model)
	noConn, unreached := errors.AsType[*conn.DialError](err)
	switch {
	case unreached:
		log.Warn("worker cannot be reached", "error", noConn)
	case c.sent:
		log.Warn("worker lost under a stream")
	default: // the error may repeat the worker's words, and they the prompt
		log.Warn("worker gave no answer", "kind", core.KindOf(err))
	}
	return err
}

func (c *call) ask(reason string) error {
	// Its own context: an answer that is not read to its end is cancelled at the worker.
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	accept := "application/json"
	if c.facts.stream {
		accept = "text/event-stream, application/json"
	}
	var patience time.Duration
	if len(c.lease.Ranked) > 1 {
		patience = otherPatience
	}
	resp, err := c.s.workers.Post(ctx, c.lease.Worker, conn.Request{Path: c.r.Path, Accept: accept, ID: c.r.ID, Body: c.r.Body, Patience: patience})
	if err != nil {
		return c.noAnswer(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		head, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
		return &unanswered{core.WithHint(core.Errorf("", core.Unavailable, "the worker answered %d: %s", resp.StatusCode,
			clip(openai.DecodeError(resp.StatusCode, head).Message, 500)), retryHint)}
	}
	if !c.begun {
		c.client.Asked(c.lease.Worker, reason)
	}
	if resp.StatusCode == http.StatusOK && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return c.relay(resp.Body, cancel)
	}
	return c.whole(resp)
}

// noAnswer classifies the failure of a request that got no answer at all.
func (c *call) noAnswer(err error) error {
	if c.ctx.Err() != nil {
		return ended(c.ctx)
	}
	if de, ok := errors.AsType[*conn.DialError](err); ok {
		return &unanswered{core.WithHint(core.Errorf("", core.Unavailable, "the worker cannot be reached: %w", de), retryHint)}
	}
	return &unanswered{lost()}
}

// send passes a block of a stream on.
func (c *call) send(block []byte) error {
	c.begun, c.status = true, http.StatusOK
	if err := c.client.Send(block); err != nil {
		return core.Errorf("", core.Cancelled, "the client is gone")
	}
	return nil
}
