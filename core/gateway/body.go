package gateway

import (
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// readBody reads a request's body of at most limit bytes. A longer one is not read to its end: the connection is closed instead.
func (g *Gateway) readBody(w *response, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, g.refuseBody(w, limit)
	}
	// The server's own writer is told, so that it gives the client time to read the answer before the connection is closed.
	from := http.MaxBytesReader(w.inner, r.Body, limit)
	// The stated length is not believed before its bytes are there.
	body := make([]byte, 0, max(512, min(r.ContentLength+1, 1<<20)))
	for {
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case err == io.EOF:
			_ = w.c.SetReadDeadline(time.Time{}) // from here on only the client's going away is waited for
			return body, nil
		case err != nil:
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				return nil, g.refuseBody(w, limit)
			}
			w.Header().Set("Connection", "close")
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, &apiError{status: http.StatusRequestTimeout, code: "request_timeout", err: core.Errorf("", core.DeadlineExceeded, "the request's body did not arrive within %s", g.o.BodyTimeout)}
			}
			return nil, core.Errorf("", core.Invalid, "the request's body could not be read to its end")
		case len(body) == cap(body):
			body = append(body, 0)[:len(body)]
		}
	}
}

func (g *Gateway) refuseBody(w *response, limit int64) error {
	w.Header().Set("Connection", "close")
	_ = w.c.SetReadDeadline(time.Now()) // else the server would read on, in the hope to keep the connection
	return &apiError{status: http.StatusRequestEntityTooLarge, code: openai.CodeTooLarge, err: core.WithHint(
		core.Errorf("", core.Invalid, "the request's body is larger than %d bytes", limit), "Send a shorter prompt.")}
}

func badBody(param, format string, args ...any) error {
	return &apiError{param: param, err: core.Errorf("", core.Invalid, format, args...)}
}
