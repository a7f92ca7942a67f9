package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// otherPatience is how long the connection to a worker may take while another worker can be asked.
const otherPatience = 250 * time.Millisecond

// maxAnswer bounds an answer that is not streamed, in bytes.
const maxAnswer = 64 << 20

func (g *Gateway) chat(w *response, r *http.Request) error {
	return g.infer(w, r, "/v1/chat/completions")
}

func (g *Gateway) completion(w *response, r *http.Request) error {
	return g.infer(w, r, "/v1/completions")
}

func (g *Gateway) embeddings(*response, *http.Request) error {
	return core.WithHint(core.Errorf("", core.Unsupported, "embeddings are not supported yet"),
		"Supported are POST /v1/chat/completions and POST /v1/completions.")
}

// inference is one request to a model on its way to a worker.
type inference struct {
	g     *Gateway
	w     *response
	r     *http.Request
	ctx   context.Context // of r, and ended with a cause when the server stops; it lives as long as the request
	path  string
	body  []byte
	facts facts
	start time.Time
	begun bool // status 200 and the headers of a stream are out: errors go into it

	worker core.Worker // that was asked last
	label  string      // of its model, for metrics

	memory     *routed
	problem    core.Kind     // why a stream that had begun was cut
	firstToken time.Duration // after start; 0: none came
	events     int64         // that were passed on
}

// infer finds a worker for a request and relays its answer.
func (g *Gateway) infer(w *response, r *http.Request, path string) error {
	start := time.Now()
	body, err := g.readBody(w, r, g.o.MaxBodyBytes)
	if err != nil {
		return err
	}
	facts, err := readFacts(body)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	done, ok := g.streams.add(false, cancel)
	if !ok {
		return errRefused
	}
	defer done()
	in := &inference{g: g, w: w, r: r, ctx: ctx, path: path, body: body, facts: facts, start: start}
	in.memory = g.memory.begin(core.RouteRecord{RequestID: w.id, At: start, Path: path, Stream: facts.stream})
	candidates, refused, err := in.pick()
	g.memory.picked(in.memory, candidates, refused, time.Since(start))
	if err == nil {
		err = in.ask(candidates)
	}
	in.remember(err)
	if err != nil {
		return in.fail(err)
	}
	g.metrics.endToEnd.Observe(time.Since(start).Seconds())
	return nil
}

// remember has the route memory know how the request ended.
func (in *inference) remember(err error) {
	status, problem := in.w.status, core.KindOf(err)
	switch {
	case err == http.ErrAbortHandler: //nolint:errorlint // it was told already
		problem = in.problem
	case err != nil && status == 0: // it is answered after this
		_, a := envelope(err)
		status = a.status
	case err == nil && status >= 400: // the worker's own refusal was passed on
		problem = kindOfStatus(status)
	}
	in.g.memory.end(in.memory, status, problem, in.firstToken, in.events, time.Now())
}

// fail tells the client err: as the answer, or inside the stream that has begun.
func (in *inference) fail(err error) error {
	if !in.begun || err == http.ErrAbortHandler { //nolint:errorlint // it was told already
		return err
	}
	e, _ := envelope(err)
	return in.failWith(e, core.KindOf(err))
}

// failWith ends a stream that has begun with an error event and without the mark of a whole answer.
func (in *inference) failWith(e *openai.Error, why core.Kind) error {
	in.problem = why
	in.g.metrics.broken.WithLabelValues(string(why)).Inc()
	if why != core.Cancelled {
		events := openai.NewEventWriter(in.w)
		_ = events.Error(e) // the client may be gone; there is nobody else to tell
	}
	return http.ErrAbortHandler
}

// ended is why in.ctx has ended: the client is gone, or the server stops.
func (in *inference) ended() error {
	if in.r.Context().Err() == nil {
		if err := context.Cause(in.ctx); core.KindOf(err) == core.Unavailable {
			return errStopping
		}
	}
	return core.Errorf("", core.Cancelled, "the client is gone")
}

// readyPicker is a Router that can say which workers can answer at this moment, best first, where Pick might wait. What waits needs contexts and
// timers; nearly no request does.
type readyPicker interface {
	// PickReadyWhy also says why the model's other workers cannot.
	PickReadyWhy(model string) ([]core.Candidate, []core.RouteRefusal)
}

// pick asks the router for workers. While one is being started, a stream is told how far that is.
func (in *inference) pick() (found []core.Candidate, refused []core.RouteRefusal, err error) {
	if ready, ok := in.g.o.Router.(readyPicker); ok {
		if found, refused = ready.PickReadyWhy(in.facts.model); len(found) > 0 {
			return found, refused, nil
		}
	}
	found, err = in.wait()
	return found, refused, err
}

// wait has the router find workers, or start one.
func (in *inference) wait() ([]core.Candidate, error) {
	ctx, cancel := context.WithTimeout(in.ctx, in.g.o.StartTimeout)
	defer cancel()
	request := core.RouteRequest{RequestID: in.w.id, Model: in.facts.model}
	var candidates []core.Candidate
	var err error
	if in.facts.stream {
		candidates, err = in.pickWithProgress(ctx, request)
	} else {
		candidates, err = in.g.o.Router.Pick(ctx, request, func(core.Progress) {})
	}
	switch {
	case in.ctx.Err() != nil:
		return nil, in.ended()
	case err != nil && ctx.Err() != nil:
		return nil, core.WithHint(core.Errorf("", core.DeadlineExceeded, "no worker of %q was ready within %s", clip(in.facts.model, 100), in.g.o.StartTimeout),
			"It may still be starting: GET /v1/jobs shows how far it is.")
	case core.KindOf(err) == core.NotFound:
		return nil, &apiError{err: err, code: openai.CodeModelNotFound, param: "model"}
	case err == nil && len(candidates) == 0:
		return nil, core.Errorf("", core.Internal, "the router gave no worker and no reason")
	}
	return candidates, err
}

// pickWithProgress asks the router and sends comments from a timer, not the other way round: a request that need not wait pays for no handover between goroutines.
func (in *inference) pickWithProgress(ctx context.Context, request core.RouteRequest) ([]core.Candidate, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var (
		mu      sync.Mutex // guards latest
		latest  core.Progress
		writing sync.Mutex // held by the one that writes the answer: the timer until over, then the caller; guards below
		over    bool
		silence *time.Timer
	)
	writing.Lock()
	silence = time.AfterFunc(in.g.o.ProgressAfter, func() {
		writing.Lock()
		defer writing.Unlock()
		if over {
			return
		}
		mu.Lock()
		text := progressText(latest)
		mu.Unlock()
		if err := in.comment(text); err != nil {
			cancel()
			return
		}
		silence.Reset(in.g.o.ProgressInterval)
	})
	writing.Unlock()
	defer func() {
		writing.Lock() // waits for a comment that is being written
		defer writing.Unlock()
		over = true
		silence.Stop()
	}()
	return in.g.o.Router.Pick(ctx, request, func(p core.Progress) {
		mu.Lock()
		defer mu.Unlock()
		latest = p
	})
}

// comment sends a line that clients ignore; the first one begins the stream.
func (in *inference) comment(text string) error {
	in.beginStream()
	in.begun = true
	line := append([]byte(": "), strings.Map(func(r rune) rune {
		if r < ' ' {
			return ' '
		}
		return r
	}, text)...)
	return in.send(append(line, "\n\n"...))
}

func (in *inference) beginStream() {
	if in.w.status != 0 {
		return
	}
	h := in.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	in.w.WriteHeader(http.StatusOK)
}

// send writes and flushes, so that nothing waits in a buffer.
func (in *inference) send(b []byte) error {
	if _, err := in.w.Write(b); err != nil {
		return err
	}
	if err := in.w.c.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
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

// unanswered is why a worker gave no answer that counts, so that the next one is asked.
type unanswered struct{ err error }

func (e *unanswered) Error() string { return e.err.Error() }
func (e *unanswered) Unwrap() error { return e.err }

// ask tries the candidates in order until one answers. After the first byte of an answer, or a refusal that is the request's own fault, no other is tried.
func (in *inference) ask(candidates []core.Candidate) error {
	in.label = in.g.metrics.model(candidates[0].Worker.Model)
	in.w.model = candidates[0].Worker.Model
	var last error
	for i, c := range candidates {
		if i > 0 {
			in.g.metrics.failovers.Inc()
			c.Reason += "; attempt " + strconv.Itoa(i+1)
		}
		in.worker, in.w.worker = c.Worker, c.Worker.ID
		var patience time.Duration
		if i < len(candidates)-1 {
			patience = otherPatience
		}
		began := time.Now()
		err := in.askOne(c, patience)
		_, again := errors.AsType[*unanswered](err)
		in.g.memory.asked(in.memory, c.Worker, began, time.Now(), in.attemptProblem(err))
		if !again {
			return err
		}
		last = err
		in.g.o.Router.Failed(c.Worker)
		in.g.workersUp.drop(c.Worker)
		log := in.g.log.With("request", in.w.id, "worker", c.Worker.ID, "hive", c.Worker.Hive, "model", c.Worker.Model)
		if noConn, ok := errors.AsType[*dialError](err); ok {
			log.Warn("worker cannot be reached", "error", noConn)
		} else { // the error may have the worker's words, and they the prompt
			log.Warn("worker gave no answer", "kind", core.KindOf(err))
		}
	}
	return last
}

// attemptProblem is why a worker gave no whole answer; empty: it gave one, if only a refusal.
func (in *inference) attemptProblem(err error) core.Kind {
	if err == http.ErrAbortHandler { //nolint:errorlint // it was told already
		return in.problem
	}
	return core.KindOf(err)
}

func (in *inference) askOne(c core.Candidate, patience time.Duration) error {
	if counter, ok := in.g.o.Router.(Counter); ok {
		defer counter.Begin(c.Worker)()
	}
	// Its own context: an answer that is not read to its end is cancelled at the worker.
	ctx, cancel := context.WithCancel(in.ctx)
	defer cancel()
	accept := "application/json"
	if in.facts.stream {
		accept = "text/event-stream, application/json"
	}
	resp, err := in.g.workersUp.post(ctx, c.Worker, question{path: in.path, accept: accept, id: in.w.id, body: in.body, patience: patience})
	if err != nil {
		return in.noAnswer(err)
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		head, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<10))
		return &unanswered{core.WithHint(core.Errorf("", core.Unavailable, "the worker answered %d: %s", resp.StatusCode, clip(openai.DecodeError(resp.StatusCode, head).Message, 500)), retryHint)}
	}
	if !in.begun {
		h := in.w.Header()
		h.Set("X-Rbee-Worker", c.Worker.ID)
		h.Set("X-Rbee-Route", c.Reason)
	}
	if resp.StatusCode == http.StatusOK && strings.HasPrefix(resp.Header.Get("Content-Type"), "text/event-stream") {
		return in.relay(resp.Body, cancel)
	}
	return in.whole(resp)
}

const retryHint = "Ask again; GET /v1/workers shows which workers there are."

// noAnswer classifies the failure of a request that got no answer at all.
func (in *inference) noAnswer(err error) error {
	if in.ctx.Err() != nil {
		return in.ended()
	}
	if de, ok := errors.AsType[*dialError](err); ok {
		return &unanswered{core.WithHint(core.Errorf("", core.Unavailable, "the worker cannot be reached: %w", de.err), retryHint)}
	}
	return &unanswered{in.lost()}
}

func (in *inference) lost() error {
	return core.WithHint(core.Errorf("", core.WorkerLost, "the worker was lost before its answer was whole"), retryHint)
}

// whole relays an answer that is not a stream. It is read to its end before the first byte goes out, so that the death of the worker can still be told.
func (in *inference) whole(resp *http.Response) error {
	body, err := readAnswer(resp)
	switch {
	case err != nil && in.ctx.Err() != nil:
		return in.ended()
	case core.KindOf(err) == core.TooLarge:
		return err
	case err != nil:
		return &unanswered{in.lost()}
	}
	status, isJSON := resp.StatusCode, isJSONObject(body)
	switch {
	case status < 200 || status >= 300 && status < 400:
		return core.Errorf("", core.Internal, "the worker answered with status %d, which is none of OpenAI's API", status)
	case status < 300 && !isJSON: // cut without a trace where neither length nor chunks tell
		return &unanswered{in.lost()}
	case in.begun:
		return in.lateAnswer(status, body)
	case status >= 400 && !isJSON:
		e := openai.DecodeError(status, nil)
		e.Message = fmt.Sprintf("the worker answered %d %s", status, http.StatusText(status))
		openai.WriteError(in.w, status, e)
		return nil
	}
	h := in.w.Header()
	for _, name := range []string{"Content-Type", "Retry-After"} {
		if v := resp.Header.Get(name); v != "" {
			h.Set(name, v)
		}
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	in.w.WriteHeader(status)
	_, _ = in.w.Write(body) // where the client is gone there is nobody to tell
	return nil
}

// lateAnswer tells an answer that is no stream inside a stream that has begun with comments.
func (in *inference) lateAnswer(status int, body []byte) error {
	if status >= 400 {
		e := openai.DecodeError(status, body)
		if e.Kind == "" {
			e.Kind = string(kindOfStatus(status))
		}
		return in.failWith(e, core.Kind(e.Kind))
	}
	return core.Errorf("", core.Internal, "the worker did not stream its answer")
}

func readAnswer(resp *http.Response) ([]byte, error) {
	if resp.ContentLength > maxAnswer {
		return nil, tooLong()
	}
	body := make([]byte, 0, max(512, min(resp.ContentLength+1, 1<<20)))
	for {
		n, err := resp.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case len(body) > maxAnswer:
			return nil, tooLong()
		case err == io.EOF:
			return body, nil
		case err != nil:
			return nil, err
		case len(body) == cap(body):
			body = append(body, 0)[:len(body)]
		}
	}
}

func tooLong() error {
	return core.WithHint(core.Errorf("", core.TooLarge, "the worker's answer is longer than %d bytes", maxAnswer), "Ask for a stream, or for fewer tokens.")
}

// isJSONObject says whether body is one, by the same strict reading as a request's.
func isJSONObject(body []byte) bool {
	s := scanner{b: body}
	s.space()
	return s.i < len(body) && body[s.i] == '{' && s.whole()
}

// kindOfStatus is the kind that fits a status best, for answers of workers, which know no kinds.
func kindOfStatus(status int) core.Kind {
	switch status {
	case http.StatusNotFound:
		return core.NotFound
	case http.StatusTooManyRequests:
		return core.Overloaded
	case http.StatusNotImplemented:
		return core.Unsupported
	}
	if status < 500 {
		return core.Invalid
	}
	return core.Internal
}
