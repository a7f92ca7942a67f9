package gateway

import (
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// response records what was answered, and bounds each write to the client. The bound starts when
// there is something to write: generating an answer may take any time.
type response struct {
	inner http.ResponseWriter
	conn  *http.ResponseController // controls inner
	c     *http.ResponseController // controls the response itself
	limit time.Duration            // for one write
	lame  *atomic.Bool             // true: the connection closes after the answer; nil: never

	id     string // request id
	route  string // route name for metrics and logs
	status int    // 0: nothing sent yet
	model  string // core.Model.ID, once known: never the client's text
	worker string
	key    string     // id of the request's token; empty: none
	by     string     // name of that token
	token  core.Token // zero: none
	job    core.Job   // job that the request started; zero: none
	body   heldBody
	// fail formats an error for another API; nil: OpenAI's.
	fail func(*openai.Error, dialect.About) (int, []byte)

	start time.Time    // start of the response
	began atomic.Int64 // nanoseconds from start to the beginning of the current write; 0: no write

	mu    sync.Mutex  // guards below
	timer *time.Timer // checks began, at least once per limit; nil: nothing was written
	ended bool
}

// newResponse returns the response to a request. The caller ends it. net/http clears the deadline
// left by the connection's previous request.
func newResponse(inner http.ResponseWriter, limit time.Duration) *response {
	w := &response{inner: inner, conn: http.NewResponseController(inner), limit: limit, start: time.Now()}
	w.c = http.NewResponseController(w)
	return w
}

// Header implements http.ResponseWriter.
func (w *response) Header() http.Header { return w.inner.Header() }

// Unwrap lets an http.ResponseController reach the server's own writer.
func (w *response) Unwrap() http.ResponseWriter { return w.inner }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	w.status = status
	if w.lame != nil && w.lame.Load() {
		w.Header().Set("Connection", "close")
	}
	w.inner.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.arm()
	defer w.disarm()
	return w.inner.Write(b)
}

// send writes b and flushes it, as one bounded write.
func (w *response) send(b []byte) error {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.arm()
	defer w.disarm()
	if _, err := w.inner.Write(b); err != nil {
		return err
	}
	if err := w.conn.Flush(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// FlushError flushes the written bytes. An http.ResponseController calls it.
func (w *response) FlushError() error {
	w.arm()
	defer w.disarm()
	return w.conn.Flush()
}

// arm starts the bound of a write. A stream writes for every token, so a write only stores the
// time, and the timer checks it.
func (w *response) arm() {
	w.began.Store(int64(max(time.Since(w.start), 1)))
	if w.timer == nil { // only this goroutine sets it
		w.mu.Lock()
		defer w.mu.Unlock()
		w.timer = time.AfterFunc(w.limit, w.look)
	}
}

func (w *response) disarm() { w.began.Store(0) }

// look ends a write that takes too long; otherwise it schedules the next check, when the current or
// the next write would expire.
func (w *response) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	next := w.limit
	if began := w.began.Load(); began != 0 {
		if next = time.Duration(began) + w.limit - time.Since(w.start); next <= 0 {
			w.deadline(time.Now())
			return
		}
	}
	if !w.ended {
		w.timer.Reset(next)
	}
}

// end gives the client one more limit to read what the server still buffers.
func (w *response) end() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ended = true
	if w.timer != nil {
		w.timer.Stop()
	}
	w.deadline(time.Now().Add(w.limit))
}

// deadline sets the write deadline of the connection or, in HTTP/2, of the stream, where it fires
// even while nothing is written. A test recorder has none.
func (w *response) deadline(t time.Time) { _ = w.conn.SetWriteDeadline(t) }
