package gateway

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// firstBody is the room that a body begins with, in bytes.
const firstBody = 4 << 10

// readBody reads a request's body of at most limit bytes. A longer one is not read to its end: the
// connection is closed instead. What it takes is counted until w.body is released, and grows with
// what has come: the stated length is not believed before its bytes are there.
func (g *Gateway) readBody(w *response, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, g.refuseBody(w, limit)
	}
	g.holdFor(w, r)
	// The server's own writer is told, so that it gives the client time to read the answer before
	// the connection is closed.
	from, done, err := decoded(r.Context(), http.MaxBytesReader(w.inner, r.Body, limit), r, &w.body, limit)
	if err != nil {
		return nil, g.closeAfter(w, err)
	}
	defer done()
	length := r.ContentLength // of what is read; negative: unknown
	if _, inflated := from.(*bounded); inflated {
		length = -1
	}
	body, err := g.readAll(w, r, from, length, limit)
	if err != nil {
		return nil, err
	}
	_ = w.c.SetReadDeadline(time.Time{}) // from here on only the client's going away is waited for
	if encodingOf(r) == encodingZstd {
		if body, err = g.inflate(w, r, body, limit); err != nil {
			return nil, err
		}
	}
	return bytes.TrimPrefix(body, []byte("\ufeff")), nil // some editors begin a file so
}

// holdFor counts what the body of a request takes for its client.
func (g *Gateway) holdFor(w *response, r *http.Request) {
	w.body.of = g.bodies
	if g.o.Auth != nil {
		if token := tokenOf(r.Header); token != "" {
			w.body.key = sha256.Sum256([]byte(token)) // it may be a right one: it stays nowhere
		}
	}
}

// inflate decompresses a body that has come. Its window is held only meanwhile: a client that sends
// slowly holds what it sent.
func (g *Gateway) inflate(w *response, r *http.Request, packed []byte, limit int64) ([]byte, error) {
	if err := w.body.grow(r.Context(), zstdWindow); err != nil {
		return nil, err
	}
	defer w.body.shrink(zstdWindow + int64(cap(packed)))
	d, err := zstd.NewReader(bytes.NewReader(packed), zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(zstdWindow))
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "decompress the request's body")
	}
	defer d.Close()
	return g.readAll(w, r, &bounded{r: d, left: limit, limit: limit}, -1, limit)
}

// readAll reads to the end of from, of which there are at most limit bytes, and of length bytes if
// that is not negative. What it returns is counted by its capacity. Nothing is sent to a client
// that sends too much but the refusal.
func (g *Gateway) readAll(w *response, r *http.Request, from io.Reader, length, limit int64) ([]byte, error) {
	size := int64(firstBody)
	if length >= 0 {
		size = min(size, length+1)
	}
	if err := w.body.grow(r.Context(), size); err != nil {
		return nil, g.closeAfter(w, err)
	}
	body := make([]byte, 0, size)
	for {
		n, err := from.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		switch {
		case err == io.EOF:
			return body, nil
		case err != nil:
			if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
				return nil, g.refuseBody(w, limit)
			}
			w.Header().Set("Connection", "close")
			if errors.Is(err, os.ErrDeadlineExceeded) {
				return nil, &apiError{status: http.StatusRequestTimeout, code: "request_timeout", err: core.Errorf(core.DeadlineExceeded, "the request's body did not arrive within %s", g.o.BodyTimeout)}
			}
			return nil, core.Errorf(core.Invalid, "the request's body could not be read to its end")
		case len(body) == cap(body):
			old := int64(cap(body))
			size := min(2*old, limit+1)
			if length >= 0 {
				size = min(size, length+1)
			}
			size = max(size, old+1)
			if err := w.body.grow(r.Context(), size); err != nil { // both are there while one is copied
				return nil, g.closeAfter(w, err)
			}
			body = append(make([]byte, 0, size), body...)
			w.body.shrink(old)
		}
	}
}

// closeAfter has the connection closed after the answer: what is left of the body is not read.
func (g *Gateway) closeAfter(w *response, err error) error {
	w.Header().Set("Connection", "close")
	_ = w.c.SetReadDeadline(time.Now()) // else the server would read on, in the hope to keep the connection
	return err
}

func (g *Gateway) refuseBody(w *response, limit int64) error {
	return g.closeAfter(w, &apiError{status: http.StatusRequestEntityTooLarge, code: openai.CodeTooLarge, err: core.Errorf(core.Invalid, "the request's body is larger than %d bytes", limit).Hint("Send a shorter prompt.")})
}

func badBody(param, format string, args ...any) error {
	return &apiError{param: param, err: core.Errorf(core.Invalid, format, args...)}
}
