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

// response remembers what was answered, and bounds how long a write to the client may take. The
// bound begins when there is something to write: an answer may take as long as it takes.
type response struct {
	inner http.ResponseWriter
	conn  *http.ResponseController // of inner
	c     *http.ResponseController // of the response itself
	limit time.Duration            // of one write
	lame  *atomic.Bool             // the connection is to be closed after the answer; nil: never

	id     string // of the request
	route  string // its name for metrics and logs
	status int    // 0: nothing was sent yet
	model  string // core.Model.ID, once it is known: never what the client wrote
	worker string
	key    string     // the id of the token that it was asked with; empty: none
	by     string     // the name of that token
	token  core.Token // zero: none
	job    core.Job   // that it began; zero: none
	body   heldBody
	// fail tells an error in the words of another API; nil: OpenAI's.
	fail func(*openai.Error, dialect.About) (int, []byte)

	start time.Time    // of the response
	began atomic.Int64 // nanoseconds from start to when the write that runs began; 0: none runs

	mu    sync.Mutex  // guards below
	timer *time.Timer // looks at began, a limit after it last did at most; nil: nothing was written
	ended bool
}

// newResponse returns the response to a request. The caller ends it. net/http clears the deadline
// of the connection's earlier request.
func newResponse(inner http.ResponseWriter, limit time.Duration) *response {
	w := &response{inner: inner, conn: http.NewResponseController(inner), limit: limit, start: time.Now()}
	w.c = http.NewResponseController(w)
	return w
}

// Header is part of http.ResponseWriter.
func (w *response) Header() http.Header { return w.inner.Header() }

// Unwrap lets an http.ResponseController reach the server's own writer.
func (w *response) Unwrap() http.ResponseWriter { return w.inner }

// WriteHeader is part of http.ResponseWriter.
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

// Write is part of http.ResponseWriter.
func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	w.arm()
	defer w.disarm()
	return w.inner.Write(b)
}

// send writes b and flushes it, as one write of the bound.
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

// FlushError sends what was written. An http.ResponseController calls it.
func (w *response) FlushError() error {
	w.arm()
	defer w.disarm()
	return w.conn.Flush()
}

// arm bounds the write that begins. A stream writes for every token, so that a write only leaves
// the time and the timer looks for it.
func (w *response) arm() {
	w.began.Store(int64(max(time.Since(w.start), 1)))
	if w.timer == nil { // nobody else sets it
		w.mu.Lock()
		defer w.mu.Unlock()
		w.timer = time.AfterFunc(w.limit, w.look)
	}
}

func (w *response) disarm() { w.began.Store(0) }

// look ends a write that runs too long, and comes back when the one that runs, or the next, would.
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

// end gives the client the limit to take what the server has still in its buffers.
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
// whether something is written or not. A recorder in a test has none.
func (w *response) deadline(t time.Time) { _ = w.conn.SetWriteDeadline(t) }
