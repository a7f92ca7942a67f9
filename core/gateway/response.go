package gateway

import (
	"net/http"
	"sync/atomic"
	"time"
)

// response remembers what was answered, and bounds how long a write to the client may take.
type response struct {
	inner http.ResponseWriter
	c     *http.ResponseController
	limit time.Duration // of one write
	armed time.Time     // when the limit was set last
	lame  *atomic.Bool  // the connection is to be closed after the answer; nil: never

	id     string // of the request
	route  string // its name for metrics and logs
	status int    // 0: nothing was sent yet
	model  string // core.Model.ID, once it is known: never what the client wrote
	worker string
	key    string // the id of the token that it was asked with; empty: none
}

func (w *response) Header() http.Header { return w.inner.Header() }

// Unwrap lets an http.ResponseController reach the server's own writer.
func (w *response) Unwrap() http.ResponseWriter { return w.inner }

func (w *response) WriteHeader(status int) {
	if w.status != 0 {
		return
	}
	w.status = status
	if w.lame != nil && w.lame.Load() {
		w.Header().Set("Connection", "close")
	}
	w.arm(time.Now())
	w.inner.WriteHeader(status)
}

func (w *response) Write(b []byte) (int, error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	} else if now := time.Now(); now.Sub(w.armed) > w.limit/4 {
		w.arm(now)
	}
	return w.inner.Write(b)
}

// arm gives the client until now+limit to take what is written. The limit of an earlier request on the connection ends with it.
func (w *response) arm(now time.Time) {
	w.armed = now
	_ = w.c.SetWriteDeadline(now.Add(w.limit)) // a recorder in a test has none
}
