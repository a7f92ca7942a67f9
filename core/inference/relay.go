package inference

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference/sse"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	// drainTime bounds how long a stream may continue after its [DONE] before its connection is
	// closed.
	drainTime = 100 * time.Millisecond
	// maxAnswer bounds an answer that is not streamed, in bytes.
	maxAnswer = 16 << 20
	// firstAnswer is the initial buffer size for such an answer, in bytes.
	firstAnswer = 4 << 10
)

// relay passes the events of a worker's stream on, byte for byte, each as soon as it is complete.
// It returns nil after [DONE], ErrTold after the worker's own error event, *unanswered if only
// comments arrived, so that another worker is asked, and otherwise why the answer is incomplete.
func (c *call) relay(body io.Reader, cancel context.CancelFunc) error {
	sp, _ := c.s.splitters.Get().(*sse.Splitter)
	defer func() {
		sp.Reset()
		c.s.splitters.Put(sp)
	}()
	for {
		n, readErr := sp.Fill(body)
		block, events := sp.Next()
		now := time.Now() // once per read: reading the clock costs as much as splitting
		if n > 0 {
			c.dog.fed(now, events > 0)
		}
		if len(block) > 0 {
			if err := c.send(block); err != nil {
				cancel()
				return err
			}
			if events > 0 { // counted after they were sent
				c.count(sp, events, now)
			}
		}
		switch {
		case sp.Ending() == sse.Whole:
			drain(body, cancel)
			return nil
		case sp.Ending() == sse.Failed:
			cancel()
			return ErrTold
		case readErr == nil:
		case c.ctx.Err() != nil:
			return ended(c.ctx)
		case errors.Is(readErr, sse.ErrEventTooLarge):
			return core.WithHint(core.WithKind(readErr, core.Internal), "The worker's engine sends what is no event stream: see its log.")
		case errors.Is(readErr, io.EOF):
			if end := sp.Rest(); end != nil {
				_ = c.send(end) // if the client has disconnected, there is no one to inform
				return nil
			}
			return c.cutOff(readErr)
		default:
			return c.cutOff(readErr)
		}
	}
}

// cutOff returns the error for a stream whose worker was lost. Another worker is asked if the
// client has seen nothing of the answer.
func (c *call) cutOff(err error) error {
	if !c.sent {
		return &unanswered{err: lostBy(err), sent: true, lost: true}
	}
	return lostBy(err)
}

// count meters the events of one read, which ended at now.
func (c *call) count(sp *sse.Splitter, events int, now time.Time) {
	m := c.s.meter
	if !c.sent {
		c.sent = true
		c.releaseBody()
		m.Began(c.lease.Worker.Model)
	}
	m.Events(events)
	c.events += int64(events)
	c.tokens, c.usage = sp.Tokens(), sp.Usage()
	if !sp.Token() {
		return
	}
	if c.lastToken.IsZero() {
		c.firstToken = now.Sub(c.r.At)
		m.FirstToken(c.firstToken)
		events--
		c.lastToken = now
	}
	m.Tokens(events, now.Sub(c.lastToken)/time.Duration(max(events, 1)))
	c.lastToken = now
}

// drain reads past [DONE], where the stream must end: then the connection can be reused. Otherwise
// the caller closes it unread.
func drain(body io.Reader, cancel context.CancelFunc) {
	timer := time.AfterFunc(drainTime, cancel)
	defer timer.Stop()
	_, _ = body.Read(make([]byte, 1))
}

// whole relays an answer that is not a stream. It reads the whole answer before it passes on the
// first byte, so that the loss of the worker can still be reported.
func (c *call) whole(resp *http.Response) error {
	var held heldAnswer
	defer func() { c.s.answers.Add(-held.bytes) }()
	body, err := c.readAnswer(resp, &held)
	switch {
	case err != nil && c.ctx.Err() != nil:
		return ended(c.ctx)
	case held.refused:
		return err
	case err != nil:
		return &unanswered{err: lostBy(err), sent: true, lost: true}
	}
	a := Answer{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"), RetryAfter: resp.Header.Get("Retry-After"), Body: body}
	isJSON := isJSONObject(body)
	switch {
	case a.Status < 200 || a.Status >= 300 && a.Status < 400:
		return core.Errorf(core.Internal, "unexpected status %d from the worker", a.Status)
	case a.Status < 300 && !isJSON && !isMediaPath(c.r.Path) && (c.r.Method == "" || !ValidJSON(body)): // without a length or chunks, truncation leaves no other trace
		return &unanswered{err: lost(), sent: true, lost: true}
	case a.Status == http.StatusBadRequest && isJSON && tooShort(a):
		return &busy{err: lateAnswer(a), short: true, answer: &a}
	case c.begun:
		return lateAnswer(a)
	case a.Status >= 400 && !isJSON:
		e := openai.DecodeError(a.Status, nil)
		e.Message = fmt.Sprintf("the worker answered %d %s", a.Status, http.StatusText(a.Status))
		a = Answer{Status: a.Status, Error: e}
	}
	c.status, c.tokens = a.Status, sse.CompletionTokens(body)
	if c.answered = a.Status < 300; c.answered {
		c.usage = sse.UsageOf(body)
	}
	c.client.Answer(a)
	return nil
}

func isMediaPath(path string) bool {
	_, ok := MediaOf(path)
	return ok
}

// tooShort reports whether a worker refused a request because its context is too short for it.
func tooShort(a Answer) bool {
	e := openai.DecodeError(a.Status, a.Body)
	return e.Code != nil && *e.Code == openai.CodeContextLength
}

// lateAnswer returns the error for a non-streamed answer that arrives after the stream has begun
// with comments.
func lateAnswer(a Answer) error {
	if a.Status < 400 {
		return core.Errorf(core.Internal, "the worker did not stream its answer")
	}
	e := openai.DecodeError(a.Status, a.Body)
	if e.Kind == "" {
		e.Kind = string(KindOfStatus(a.Status))
	}
	return &Refusal{e}
}

// heldAnswer is the share of the answer memory that one request holds.
type heldAnswer struct {
	bytes   int64
	refused bool // there was no room for the answer
}

// readAnswer reads an answer to its end. Its buffer grows with the bytes received: the stated
// length is not trusted until its bytes arrive.
func (c *call) readAnswer(resp *http.Response, held *heldAnswer) ([]byte, error) {
	var body []byte
	for size := int64(firstAnswer); ; size = min(2*size, maxAnswer+1) {
		if err := c.holdAnswer(held, size); err != nil { // both buffers exist while one is copied
			return nil, err
		}
		old := int64(cap(body))
		body = append(make([]byte, 0, size), body...)
		held.bytes -= old
		c.s.answers.Add(-old)
		for len(body) < cap(body) {
			n, err := resp.Body.Read(body[len(body):cap(body)])
			body = body[:len(body)+n]
			switch {
			case len(body) > maxAnswer:
				held.refused = true
				return nil, core.Errorf(core.TooLarge, "the worker's answer is longer than %d bytes", maxAnswer).Hint("Ask for a stream, or for fewer tokens.")
			case err == io.EOF:
				return body, nil
			case err != nil:
				return nil, err
			}
		}
	}
}

// holdAnswer reserves n bytes of the answer memory. Errors: Overloaded.
func (c *call) holdAnswer(held *heldAnswer, n int64) error {
	if c.s.answers.Add(n) > c.s.o.AnswerMemory {
		c.s.answers.Add(-n)
		held.refused = true
		return core.Errorf(core.Overloaded, "the answers in transit use too much memory").Hint("Ask again in a moment, or ask for a stream.")
	}
	held.bytes += n
	return nil
}
