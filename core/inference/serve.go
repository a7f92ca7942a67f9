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
	"github.com/rbee-project/rbee/core/admission"
	"github.com/rbee-project/rbee/core/inference/conn"
	"github.com/rbee-project/rbee/core/inference/sse"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	// otherPatience bounds the dial to a worker while another worker can be asked.
	otherPatience = 250 * time.Millisecond
	// maxRetries bounds the further workers that get a request.
	maxRetries = 2
	// retryRatio and retryReserve bound the retries of requests that a worker may have begun, as a
	// share of the requests of the last half minute.
	retryRatio, retryReserve = 0.2, 10
	// maxRefusal bounds how much of a refusal is read, in bytes.
	maxRefusal = 16 << 10
	// A worker with a full queue is asked again after fullBusy. One that refuses for another reason
	// is asked again after the delay it gives, at most maxBusy, or after defaultBusy.
	fullBusy, defaultBusy, maxBusy = 250 * time.Millisecond, time.Second, 30 * time.Second

	codeOverloaded = openai.CodeOverloaded
	codeDraining   = "draining" // of a worker that is stopping
)

// Request is one inference request.
type Request struct {
	ID   string // contains no line ends
	Path string // of the worker's API: "/v1/chat/completions"
	// Method is GET for a query about the worker itself, which has Model and no Body; empty: POST.
	Method string
	Key    string // token id of the client; empty: unknown
	// Weight is the weight of Key against others in a busy model; 0: admission.NormalWeight.
	Weight int64
	Body   []byte // JSON as the client sent it
	// Form replaces Body if the request is a form, whose parts are up to the worker; nil: Body is
	// JSON and names its model.
	Form Form
	// ContentType and Model are those of Form. ContentType contains no line ends.
	ContentType, Model string
	// Otherwise is the model to use if Body names none; empty: Body must name one.
	Otherwise string
	At        time.Time
	KeepAlive *time.Duration // see Query; nil: as in Body
	// Terms holds the terms that the body does not contain; Serve adds the others.
	Terms
	// Allow returns the id of the model that a name refers to, if the key may use only some models;
	// nil: all. Errors: NotFound both for a model that is not allowed and for one that does not
	// exist, without telling which.
	Allow func(ctx context.Context, name string) (id string, err error)
	// Limited receives the key's state under its limits, before any part of the answer; nil: not
	// wanted.
	Limited func(rates []Rate)
	// Release is called when a long Body is no longer needed, before the request ends; nil: not
	// wanted.
	Release func()
}

// FormError is the error of a Form's WriteTo if the form cannot be read to its end.
type FormError = conn.BodyError

// Form is a body that is not held in memory whole.
type Form interface {
	conn.Body
	// Head returns the beginning of the body, which distinguishes it from others.
	Head() []byte
	// Again reports whether WriteTo can write the body, for the first time or once more.
	Again() bool
}

// call is one request on its way to a worker.
type call struct {
	s      *Service
	ctx    context.Context // ends with the request, with a cause if its owner cancels it
	r      Request
	facts  facts
	client Client
	record *routed

	lease      Lease
	dog        *watchdog     // watches the attempt
	attempts   int           // attempts before the current one
	queueUntil time.Time     // deadline of all waits for a free slot; zero: it has not waited
	status     int           // status that the client has seen; 0: none yet
	begun      bool          // a stream has begun: errors go into it
	sent       bool          // an event with data was passed on
	lastToken  time.Time     // zero: none yet
	firstToken time.Duration // time after r.At; 0: none yet
	events     int64         // events passed on
	tokens     int64         // tokens generated
	answered   bool          // a whole answer arrived, neither a stream nor a refusal
	usage      sse.Usage     // as the worker reported it; zero: not reported
	prompt     int64         // estimated tokens of the prompt
	queued     string        // name of the model in whose line it last waited; empty: it has not
	paid       int64         // tokens charged for it there

	print *admission.Fingerprint // set once the body was released; nil: not yet known
}

// Serve finds a worker for a request and passes its answer to the client. It returns nil once the
// client has a whole answer, including a refusal by the worker, and otherwise the error that it
// passed to Fail. ctx ends when the client no longer waits for the answer; if its cause is
// Unavailable or Conflict, the client gets that cause.
func (s *Service) Serve(ctx context.Context, r Request, client Client) error {
	f, err := facts{model: r.Model}, error(nil)
	if r.Form == nil && r.Method == "" {
		f, err = readFacts(r.Body, r.Otherwise)
	}
	if m, ok := MediaOf(r.Path); ok && err == nil && f.stream {
		err = &FieldError{Param: "stream", Code: openai.CodeNotSupported, Err: core.Errorf(core.Invalid, "%s cannot be streamed here", m.Need).Hint("Leave out stream.")}
	}
	if err != nil {
		client.Fail(err)
		return err
	}
	if r.KeepAlive != nil {
		f.keepAlive = r.KeepAlive
	}
	r.Needs, r.Prefix = f.needs(r.Path), s.prefix(&r, &f)
	f.prompt, f.tools = nil, nil // the body may be released before the request ends
	c := &call{s: s, ctx: ctx, r: r, facts: f, client: client}
	c.record = s.records.begin(core.RouteRecord{RequestID: r.ID, At: r.At, Path: r.Path, Model: clipModel(f.model), Stream: f.stream})
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
	if c.sent || c.answered {
		s.meter.Used(r.Key, c.lease.Worker.Model, c.used())
	}
	now := time.Now()
	s.records.end(c.record, c.status, problem, c.firstToken, c.events, c.tokens, now)
	if err == nil {
		s.meter.Ended(now.Sub(r.At), "")
	}
	return err
}

// clipModel truncates the model name of a request.
func clipModel(name string) string {
	const most = 128
	if r := []rune(name); len(r) > most {
		return string(r[:most]) + "…"
	}
	return name
}

// cutReason returns why a stream was cut, for metrics.
func cutReason(err error) string {
	if errors.Is(err, ErrTold) {
		return "worker_error"
	}
	return string(core.KindOf(err))
}

// run asks workers until one answers. After the first byte of an answer, or a refusal that is the
// request's own fault, it asks no other. A request goes to at most two further workers, to at most
// one after a worker was lost with it, and to none once the retry budget is spent.
func (c *call) run() error {
	if err := c.allow(); err != nil {
		return err
	}
	settle, err := c.admit()
	if err != nil {
		return err
	}
	defer settle()
	defer func() {
		if c.queued != "" {
			u := c.used()
			c.s.lines.correct(c.queued, c.r.Key, u.Prompt+u.Completion-c.paid)
		}
	}()
	if err := c.s.refuseDeadly(&c.r); err != nil {
		return err
	}
	err = c.route()
	c.s.records.picked(c.record, c.lease.Ranked, c.lease.Refused, time.Since(c.r.At))
	if err != nil {
		return err
	}
	c.s.admitted()
	left, contextOver := maxRetries, 0
	for tried := []core.Worker(nil); ; {
		began := time.Now()
		err := c.attempt(began)
		failed, again := errors.AsType[*unanswered](err)
		full, isBusy := errors.AsType[*busy](err)
		problem := core.KindOf(err)
		switch {
		case isBusy && full.short:
			problem = "" // it did answer
		case isBusy:
			problem = core.Overloaded
		}
		c.s.records.asked(c.record, c.lease.Worker, began, time.Now(), problem)
		switch {
		case again && failed.lost && c.lost():
			return err // the request kills workers
		case again:
			if failed.lost {
				left = min(left, 1)
			}
			if left == 0 || failed.sent && !c.s.mayRetry() {
				return err
			}
		case isBusy && full.full:
			if c.queueUntil.IsZero() {
				c.queueUntil = time.Now().Add(c.s.o.QueueTimeout)
			}
			if !time.Now().Before(c.queueUntil) {
				return c.waited(full.after)
			}
		case isBusy && left == 0:
			return c.refused(full)
		case !isBusy:
			if core.KindOf(err) == core.WorkerLost {
				c.lost()
			}
			return err
		}
		if c.r.Form != nil && !c.r.Form.Again() { // its bytes are gone
			if isBusy {
				return c.refused(full)
			}
			return err
		}
		if !isBusy || !full.full {
			left--
			tried = append(tried, c.lease.Worker)
		}
		if isBusy && full.short {
			contextOver = max(contextOver, c.lease.Worker.ContextTokens)
		}
		q := Query{RequestID: c.r.ID, Key: c.r.Key, Model: c.lease.Worker.Model, Terms: c.r.Terms, KeepAlive: c.facts.keepAlive, Tried: tried, ContextOver: contextOver, Other: true, Look: c.r.Method == http.MethodGet}
		next, routeErr := c.acquire(c.ctx, q)
		if routeErr != nil && c.ctx.Err() == nil && (again && !failed.sent || isBusy && full.leaving) {
			next, routeErr = c.reroute(q)
		}
		if _, waited := errors.AsType[*OverloadError](routeErr); waited && isBusy && full.full {
			return routeErr
		}
		if c.ctx.Err() != nil && routeErr != nil {
			return ended(c.ctx)
		}
		if routeErr != nil { // there is no other worker
			if isBusy {
				return c.refused(full)
			}
			return err
		}
		c.lease = next
		c.attempts++
		if !isBusy || !full.full {
			c.s.meter.Retried()
		}
	}
}

// allow checks which model the request may use, before anything is started for it.
func (c *call) allow() error {
	if c.r.Allow == nil {
		return nil
	}
	id, err := c.r.Allow(c.ctx, c.facts.model)
	if core.KindOf(err) == core.NotFound {
		return &FieldError{Err: err, Code: openai.CodeModelNotFound, Param: "model"}
	}
	if err == nil {
		c.facts.model = id
	}
	return err
}

// refused ends the request with a worker's answer that it accepts no request now.
func (c *call) refused(b *busy) error {
	if b.answer == nil || c.begun {
		return b.err
	}
	c.status = b.answer.Status
	c.client.Answer(*b.answer)
	return nil
}

// attempt asks the leased worker and releases the lease.
func (c *call) attempt(began time.Time) error {
	w := c.lease.Worker
	reason := c.lease.Reason
	if c.attempts > 0 {
		reason += "; attempt " + strconv.Itoa(c.attempts+1)
	}
	c.s.lines.began(w.Model)
	err := c.ask(reason)
	_, again := errors.AsType[*unanswered](err)
	var outcome Outcome
	if full, ok := errors.AsType[*busy](err); ok {
		outcome.Busy = full.after
	} else {
		outcome.Failed = again || core.KindOf(err) == core.WorkerLost
	}
	c.lease.Release(outcome)
	c.s.lines.ended(w.Model, time.Since(began))
	if !outcome.Failed {
		return err
	}
	c.s.workers.Drop(w)
	noConn, unreached := errors.AsType[*conn.DialError](err)
	message := "worker gave no answer"
	switch {
	case unreached:
		message = "worker cannot be reached"
	case c.sent:
		message = "worker lost under a stream"
	}
	skipped, due := c.s.notes.due(message+" "+w.Nonce, time.Now())
	if !due {
		return err
	}
	log := c.s.log.With("request", c.r.ID, "worker", w.ID, "hive", w.Hive, "model", w.Model, "skipped", skipped)
	if unreached {
		log.Warn(message, "error", noConn)
	} else { // the error may quote the worker, and the worker the prompt
		log.Warn(message, "kind", core.KindOf(err))
	}
	return err
}

func (c *call) ask(reason string) error {
	// A context per attempt: an answer that is not read to its end is cancelled at the worker.
	ctx, cancelCause := context.WithCancelCause(c.ctx)
	cancel := func() { cancelCause(nil) }
	defer cancel()
	c.dog = watch(&c.s.o, c.lease, c.facts.stream, cancelCause)
	defer c.dog.stop()
	accept := "application/json"
	if isMediaPath(c.r.Path) {
		accept = "*/*"
	}
	if c.facts.stream {
		accept = "text/event-stream, application/json"
	}
	var patience time.Duration
	if len(c.lease.Ranked) > 1 {
		patience = otherPatience
	}
	resp, err := c.s.workers.Post(ctx, c.lease.Worker, conn.Request{Method: c.r.Method, Path: c.r.Path, Accept: accept, ContentType: c.r.ContentType, ID: c.r.ID, Body: c.r.Body, Stream: c.stream(), Patience: patience})
	if err != nil {
		return c.noAnswer(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		return c.busy(resp)
	case http.StatusBadGateway, http.StatusGatewayTimeout:
		return &unanswered{err: answered(resp), sent: true}
	}
	if !c.begun {
		c.client.Asked(c.lease.Worker, reason)
	}
	if resp.StatusCode == http.StatusOK && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return c.relay(resp.Body, cancel)
	}
	return c.whole(resp)
}

// stream returns the form of a request; nil: it has none. Sending it counts as a sign of life of
// the worker.
func (c *call) stream() conn.Body {
	if c.r.Form == nil {
		return nil
	}
	return &watchedForm{c.r.Form, c.dog}
}

// watchedForm feeds the watchdog with each write.
type watchedForm struct {
	Form
	dog *watchdog
}

// WriteTo implements conn.Body.
func (f *watchedForm) WriteTo(w io.Writer) (int64, error) {
	return f.Form.WriteTo(writerFunc(func(p []byte) (int, error) {
		n, err := w.Write(p)
		f.dog.fed(time.Now(), false)
		return n, err
	}))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// answered returns the error for a status that is not passed on.
func answered(resp *http.Response) error {
	head, _ := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	return core.Errorf(core.Unavailable, "the worker answered %d: %s", resp.StatusCode,
		clip(openai.DecodeError(resp.StatusCode, head).Message, 500)).Hint(retryHint)
}

// busy reads the answer of a worker that accepts no request now. That is not a failure: the worker
// is alive.
func (c *call) busy(resp *http.Response) error {
	head, err := io.ReadAll(io.LimitReader(resp.Body, maxRefusal))
	e := openai.DecodeError(resp.StatusCode, head)
	b := &busy{after: defaultBusy}
	b.err = core.Errorf(core.Unavailable, "the worker answered %d: %s", resp.StatusCode, clip(e.Message, 500)).Hint(retryHint)
	if after, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && after > 0 {
		b.after = min(time.Duration(after)*time.Second, maxBusy)
	}
	switch {
	case resp.StatusCode == http.StatusTooManyRequests:
		b.err = core.Errorf(core.Overloaded, "the worker answered %d: %s", resp.StatusCode, clip(e.Message, 500)).Hint(retryHint)
		if err == nil && isJSONObject(head) {
			b.answer = &Answer{Status: resp.StatusCode, ContentType: resp.Header.Get("Content-Type"), RetryAfter: resp.Header.Get("Retry-After"), Body: head}
		}
	case e.Code != nil && *e.Code == codeOverloaded:
		b.full, b.after = true, fullBusy
	case e.Code != nil && *e.Code == codeDraining:
		b.leaving = true
	}
	return b
}

// noAnswer classifies the failure of a request that got no answer.
func (c *call) noAnswer(err error) error {
	if body, ok := errors.AsType[*conn.BodyError](err); ok {
		return body.Err
	}
	if c.ctx.Err() != nil {
		return ended(c.ctx)
	}
	if de, ok := errors.AsType[*conn.DialError](err); ok {
		return &unanswered{err: core.Errorf(core.Unavailable, "the worker cannot be reached: %w", de).Hint(retryHint)}
	}
	return &unanswered{err: lostBy(err), sent: true, lost: true}
}

// send passes a block of a stream on.
func (c *call) send(block []byte) error {
	c.begun, c.status = true, http.StatusOK
	if err := c.client.Send(block); err != nil {
		return core.Errorf(core.Cancelled, "the client is gone")
	}
	return nil
}
