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

// writePiece is how much is written to a client before its write deadline is renewed, in bytes.
const writePiece = 64 << 10

// saveSnapshot sends the leader's registry. A failure midway cuts the answer, so that a partial
// snapshot cannot be mistaken for a whole one.
func (g *Gateway) saveSnapshot(a Admin, w *response, r *http.Request) error {
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Disposition", `attachment; filename="rbee.snapshot"`)
	h.Set("Cache-Control", "no-store")
	h.Set("X-Content-Type-Options", "nosniff")
	if r.Method == http.MethodHead { // it would be created for nothing
		w.WriteHeader(http.StatusOK)
		return nil
	}
	err := a.SaveSnapshot(r.Context(), pieces{w})
	if err != nil && w.status == 0 {
		h.Del("Content-Disposition")
	}
	return err
}

// pieces splits long writes into pieces, each with its own deadline.
type pieces struct{ w io.Writer }

func (p pieces) Write(b []byte) (int, error) {
	n := 0
	for len(b) > 0 {
		m, err := p.w.Write(b[:min(len(b), writePiece)])
		n += m
		if err != nil {
			return n, core.Wrap(err, core.Cancelled, "write snapshot")
		}
		b = b[m:]
	}
	return n, nil
}

// restoreSnapshot replaces the registry with the snapshot that the client sends.
func (g *Gateway) restoreSnapshot(a Admin, w *response, r *http.Request) error {
	if r.ContentLength > g.o.MaxSnapshotBytes {
		return g.refuseSnapshot(w)
	}
	up := &upload{w: w, from: http.MaxBytesReader(w.inner, r.Body, g.o.MaxSnapshotBytes), timeout: g.o.BodyTimeout}
	v, err := a.RestoreSnapshot(r.Context(), up)
	if up.err != nil { // whatever error that caused
		w.Header().Set("Connection", "close")
		switch _, tooLong := errors.AsType[*http.MaxBytesError](up.err); {
		case tooLong:
			return g.refuseSnapshot(w)
		case errors.Is(up.err, os.ErrDeadlineExceeded):
			return &apiError{status: http.StatusRequestTimeout, code: "request_timeout", err: core.Errorf(core.DeadlineExceeded, "nothing of the snapshot arrived for %s", g.o.BodyTimeout)}
		default:
			return core.Errorf(core.Invalid, "the snapshot could not be read to its end")
		}
	}
	return answerOne(w, v, err)
}

func (g *Gateway) refuseSnapshot(w *response) error {
	w.Header().Set("Connection", "close")
	_ = w.c.SetReadDeadline(time.Now())
	return &apiError{status: http.StatusRequestEntityTooLarge, code: openai.CodeTooLarge, err: core.Errorf(core.Invalid, "the snapshot is larger than %d bytes", g.o.MaxSnapshotBytes).Hint("Is it a snapshot?")}
}

// upload reads a body of any length, as long as some of it arrives within timeout.
type upload struct {
	w       *response
	from    io.Reader
	timeout time.Duration
	err     error // the error that ended it early
}

func (u *upload) Read(p []byte) (int, error) {
	if u.err != nil {
		return 0, u.err
	}
	_ = u.w.c.SetReadDeadline(time.Now().Add(u.timeout)) // a test recorder has no deadline
	n, err := u.from.Read(p)
	switch {
	case err == io.EOF:
		// Applying it may take long. net/http clears the deadline as well, but does not guarantee
		// it.
		_ = u.w.c.SetReadDeadline(time.Time{})
	case err != nil:
		u.err = err
	}
	return n, err
}
