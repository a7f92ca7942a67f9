package gateway

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/klauspost/compress/zstd"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// firstBody is the initial buffer size for a body, in bytes.
const firstBody = 4 << 10

// intake receives the bodies of requests within its bounds.
type intake struct {
	bodies  *bodies // bytes in memory
	spooled *bodies // bytes of forms on the disk
	log     hclog.Logger
	byToken bool          // each token has a share of its own
	maxBody int64         // of a request
	maxForm int64         // of a form with files
	timeout time.Duration // for a body to arrive
	spool   func() (SpoolFile, error)
}

func newIntake(o Options, log hclog.Logger) intake {
	return intake{
		bodies: newBodies(o.BodyMemory, o.BodyMemory/2, o.BodyWait), spooled: newBodies(o.FormDisk, o.FormDisk/2, o.BodyWait), log: log,
		byToken: o.Auth != nil, maxBody: o.MaxBodyBytes, maxForm: o.MaxFormBytes, timeout: o.BodyTimeout, spool: o.Spool,
	}
}

// readBody reads a request body of at most limit bytes. If the body is longer, it stops reading and
// closes the connection instead. The memory is counted until w.body is released, and grows with the
// bytes received: the stated length is not trusted until its bytes arrive.
func (g *intake) readBody(w *response, r *http.Request, limit int64) ([]byte, error) {
	if r.ContentLength > limit {
		return nil, g.refuseBody(w, limit)
	}
	g.holdFor(w, r)
	// MaxBytesReader gets the server's own writer, so that the client has time to read the answer
	// before the connection closes.
	from, done, err := decoded(r.Context(), http.MaxBytesReader(w.inner, r.Body, limit), r, &w.body, limit)
	if err != nil {
		return nil, g.closeAfter(w, err)
	}
	defer done()
	length := r.ContentLength // length of the decoded body; negative: unknown
	if _, inflated := from.(*bounded); inflated {
		length = -1
	}
	body, err := g.readAll(w, r, from, length, limit)
	if err != nil {
		return nil, err
	}
	_ = w.c.SetReadDeadline(time.Time{}) // from here on, reads only detect that the client disconnects
	if encodingOf(r) == encodingZstd {
		if body, err = g.inflate(w, r, body, limit); err != nil {
			return nil, err
		}
	}
	return bytes.TrimPrefix(body, []byte("\ufeff")), nil // some editors write a byte order mark
}

// holdFor charges the memory of a request's body to its client.
func (g *intake) holdFor(w *response, r *http.Request) {
	w.body.of = g.bodies
	if g.byToken {
		if token := tokenOf(r.Header); token != "" {
			w.body.key = sha256.Sum256([]byte(token)) // only its hash is kept, as the token may be valid
		}
	}
}

// inflate decompresses a body that has arrived completely. Its window is held only during
// decompression, so that a slow sender holds only what it has sent.
func (g *intake) inflate(w *response, r *http.Request, packed []byte, limit int64) ([]byte, error) {
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

// readAll reads from to its end: at most limit bytes, of which length is the expected count unless
// negative. It charges the capacity of the result. A client that sends too much gets only the
// refusal.
func (g *intake) readAll(w *response, r *http.Request, from io.Reader, length, limit int64) ([]byte, error) {
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
				return nil, &apiError{status: http.StatusRequestTimeout, code: "request_timeout", err: core.Errorf(core.DeadlineExceeded, "the request's body did not arrive within %s", g.timeout)}
			}
			return nil, core.Errorf(core.Invalid, "the request's body could not be read to its end")
		case len(body) == cap(body):
			old := int64(cap(body))
			size := min(2*old, limit+1)
			if length >= 0 {
				size = min(size, length+1)
			}
			size = max(size, old+1)
			if err := w.body.grow(r.Context(), size); err != nil { // both buffers exist while one is copied
				return nil, g.closeAfter(w, err)
			}
			body = append(make([]byte, 0, size), body...)
			w.body.shrink(old)
		}
	}
}

// closeAfter closes the connection after the answer, without reading the rest of the body.
func (g *intake) closeAfter(w *response, err error) error {
	w.Header().Set("Connection", "close")
	_ = w.c.SetReadDeadline(time.Now()) // otherwise the server would read on to keep the connection
	return err
}

func (g *intake) refuseBody(w *response, limit int64) error {
	return g.closeAfter(w, &apiError{status: http.StatusRequestEntityTooLarge, code: openai.CodeTooLarge, err: core.Errorf(core.Invalid, "the request's body is larger than %d bytes", limit).Hint("Send a shorter prompt.")})
}

func badBody(param, format string, args ...any) error {
	return &apiError{param: param, err: core.Errorf(core.Invalid, format, args...)}
}
