package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// maxJobBody bounds the body of a job request, in bytes.
const maxJobBody = 1 << 20

// attemptHeader numbers a client's attempts to send a request with an id of its choice. Without it
// the request may be a repeat.
const attemptHeader = "X-Rbee-Attempt"

func (g *Gateway) submit(w *response, r *http.Request) error {
	body, err := g.readBody(w, r, maxJobBody)
	if err != nil {
		return err
	}
	request, err := readJobRequest(body)
	if err != nil {
		return err
	}
	if key := r.Header.Get("Idempotency-Key"); request.RequestID == "" {
		request.RequestID = key
	}
	// The route requires the scope operate, and so does an unknown operation.
	if spec, err := operation.Find(request.Operation); err == nil && spec.Needs(request) != core.ScopeOperate {
		if err := g.authorize(w, r, spec.Needs(request)); err != nil {
			return err
		}
	}
	if len(request.RequestID) > 128 {
		return badBody("request_id", "request_id is longer than 128 bytes")
	}
	job, err := g.o.Jobs.Submit(r.Context(), request, r.Header.Get(attemptHeader) == "1")
	if err != nil {
		return err
	}
	w.job = job
	w.Header().Set("Location", "/v1/jobs/"+job.ID)
	return writeJSON(w, http.StatusAccepted, job)
}

// operations lists the operations that a job can run, and their parameters.
func (g *Gateway) operations(w *response, _ *http.Request) error {
	return answerList(w, operation.Describe(), nil)
}

func readJobRequest(body []byte) (core.Request, error) {
	var request core.Request
	if err := decodeObject(body, &request, "a job"); err != nil {
		return request, err
	}
	if request.Operation == "" {
		return request, &apiError{param: "operation", err: core.Errorf(core.Invalid, "operation is missing").Hint(
			`A job is such as {"operation":"worker_spawn","model":"rbee-tiny"}.`)}
	}
	return request, nil
}

func (g *Gateway) jobs(w *response, r *http.Request) error {
	v, err := g.o.Jobs.Jobs(r.Context())
	return answerList(w, v, err)
}

func (g *Gateway) job(w *response, r *http.Request) error {
	v, err := g.o.Jobs.Job(r.Context(), r.PathValue("id"))
	return answerOne(w, v, err)
}

func (g *Gateway) cancelJob(w *response, r *http.Request) error {
	job, err := g.o.Jobs.Cancel(r.Context(), r.PathValue("id"))
	if err != nil {
		return err
	}
	return writeJSON(w, http.StatusAccepted, job)
}

// jobStream sends a job's events as server-sent events, starting after Last-Event-ID or ?after=,
// and ends after the end event. A stream that ends without it was cut: the client asks again with
// the number of its last event.
func (g *Gateway) jobStream(w *response, r *http.Request) error {
	after, err := eventsAfter(r)
	if err != nil {
		return err
	}
	id := r.PathValue("id")
	if _, err := g.o.Jobs.Job(r.Context(), id); err != nil { // while the error can still be a status
		return err
	}
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	done, ok := g.streams.add(true, cancel)
	if !ok {
		return errRefused
	}
	defer done()

	s := &eventStream{w: w}
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	w.WriteHeader(http.StatusOK)
	if err := s.send([]byte(": rbee: events of job\n")); err != nil {
		return http.ErrAbortHandler
	}
	var wg sync.WaitGroup
	wg.Go(func() { s.keepAlive(ctx, g.o.KeepAlive, cancel) })
	err = g.o.Jobs.Events(ctx, id, after, s.event)
	stopped := ctx.Err() != nil
	cancel(nil)
	wg.Wait()
	if err != nil && !stopped {
		e, _ := envelope(err)
		_ = s.failure(e) // the client may have disconnected; there is no one else to inform
	}
	if err != nil {
		return http.ErrAbortHandler
	}
	return nil
}

func eventsAfter(r *http.Request) (int64, error) {
	s := r.Header.Get("Last-Event-ID") // a resuming client repeats the URL, so the header is newer than the query
	if s == "" {
		s = r.URL.Query().Get("after")
	}
	if s == "" {
		return 0, nil
	}
	after, err := strconv.ParseInt(s, 10, 64)
	if err != nil || after < 0 {
		return 0, core.Errorf(core.Invalid, "%q is not the number of an event", clip(s, 40))
	}
	return after, nil
}

// eventStream writes job events; a keep-alive goroutine writes concurrently with the one that emits
// the events.
type eventStream struct {
	mu  sync.Mutex // guards below
	w   *response
	buf []byte
}

func (s *eventStream) event(e core.Event) error {
	data, err := json.Marshal(e)
	if err != nil {
		return core.Wrap(err, core.Internal, "write event")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buf = append(s.buf[:0], "id: "...)
	s.buf = strconv.AppendInt(s.buf, e.Seq, 10)
	s.buf = append(s.buf, "\nevent: "...)
	s.buf = append(s.buf, e.Kind...)
	s.buf = append(s.buf, "\ndata: "...)
	s.buf = append(s.buf, data...)
	s.buf = append(s.buf, "\n\n"...)
	return s.sendLocked(s.buf)
}

// failure sends the reason why a stream is cut. It has no id, so that a client resumes after the
// last real event.
func (s *eventStream) failure(e *openai.Error) error {
	data, err := json.Marshal(map[string]*openai.Error{"error": e})
	if err != nil {
		return core.Wrap(err, core.Internal, "write event")
	}
	return s.send([]byte("event: error\ndata: " + string(data) + "\n\n"))
}

func (s *eventStream) send(b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sendLocked(b)
}

func (s *eventStream) sendLocked(b []byte) error {
	if _, err := s.w.Write(b); err != nil {
		return core.Wrap(err, core.Cancelled, "write event")
	}
	if err := s.w.c.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return core.Wrap(err, core.Cancelled, "write event")
	}
	return nil
}

// keepAlive sends comments until ctx ends, so that neither the client nor a proxy mistakes silence
// for a dead connection.
func (s *eventStream) keepAlive(ctx context.Context, every time.Duration, cancel context.CancelCauseFunc) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := s.send([]byte(": keep-alive\n")); err != nil {
				cancel(err)
				return
			}
		}
	}
}
