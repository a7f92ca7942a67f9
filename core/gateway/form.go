package gateway

import (
	"bytes"
	"context"
	"errors"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	maxFormParts   = 64
	maxModelPart   = 512      // bytes
	maxPartHeader  = 64 << 10 // bytes of one part, and of what precedes the first one
	formRead       = 32 << 10 // bytes
	formMemory     = 256 << 10
	minFormRate    = 64 << 10 // bytes per second, beyond BodyTimeout
	formReadWithin = 1 << 20  // bytes after which the deadline is renewed
)

// SpoolFile is a file without a name.
type SpoolFile interface {
	io.Writer
	io.ReaderAt
	io.Closer
}

// form is a multipart form that passes from a client to a worker, byte for byte. It is read only
// until its model is known. What has arrived by then is held: formMemory bytes in memory and the
// rest in a file. What follows goes to the worker as it arrives, so that it can be sent only once.
// A form that has arrived completely by then can be sent again.
//
// It implements inference.Form, for one goroutine at a time.
type form struct {
	g     *intake
	w     *response
	ctx   context.Context // the HTTP request's
	size  int64           // bytes; negative: unknown
	limit int64
	done  func() // ends decompression

	src   io.Reader // reads what the client sends
	parts *multipart.Reader
	part  *multipart.Part // current part; nil: before the first one and after the last one
	count int             // number of parts
	buf   []byte

	model string // empty: not known yet
	found int64  // bytes read when the model was found
	whole bool   // everything was read
	sent  bool   // bytes that are not held have been sent
	err   error  // the error that ended reading

	memory  []byte
	spool   SpoolFile // nil: everything is in memory
	spooled int64     // bytes
	disk    heldBody

	sink   io.Writer // receives what is read: form.hold, then the worker
	passed int64     // bytes read so far
	head   int64     // bytes that may be read before a part begins; negative: any
	dated  int64     // bytes that had arrived when the deadline was set
	start  time.Time
}

// openForm starts reading a form. The caller closes it.
func (g *intake) openForm(w *response, r *http.Request, boundary string) (*form, error) {
	limit := g.maxForm
	f := &form{g: g, w: w, ctx: r.Context(), size: r.ContentLength, limit: limit, done: func() {}, start: time.Now()}
	if encodingOf(r) == encodingZstd { // its window is large: the whole form arrives first
		body, err := g.readBody(w, r, g.maxBody)
		if err != nil {
			return nil, err
		}
		f.src, f.size = bytes.NewReader(body), int64(len(body))
	} else {
		if r.ContentLength > limit {
			return nil, g.refuseBody(w, limit)
		}
		g.holdFor(w, r)
		src, done, err := decoded(r.Context(), http.MaxBytesReader(w.inner, r.Body, limit), r, &w.body, limit)
		if err != nil {
			return nil, g.closeAfter(w, err)
		}
		f.src, f.done = src, done
		if _, inflated := src.(*bounded); inflated {
			f.size = -1
		}
	}
	f.disk = heldBody{of: g.spooled, key: w.body.key}
	if err := w.body.grow(r.Context(), formRead); err != nil {
		f.done()
		return nil, g.closeAfter(w, err)
	}
	f.buf, f.sink = make([]byte, formRead), writerFunc(f.hold)
	f.parts = multipart.NewReader((*formSource)(f), boundary)
	return f, nil
}

// close releases what the form holds. Its memory is counted in the response's body.
func (f *form) close() {
	f.done()
	_ = f.w.c.SetReadDeadline(time.Time{})
	f.memory = nil
	if f.spool != nil {
		_ = f.spool.Close() // it has no name: closing it frees its bytes
	}
	f.disk.release()
}

// find reads until the model is known, and a little further, so that a short form, or one whose
// model comes last, is checked whole before any worker sees it, and can be sent again.
func (f *form) find() error {
	for !f.whole && !f.enough() {
		if err := f.step(); err != nil {
			f.err = err
			return f.g.closeAfter(f.w, err)
		}
	}
	return nil
}

// enough reports whether the part read so far can go to a worker. One more step always fits in
// memory.
func (f *form) enough() bool {
	switch {
	case f.model == "":
		return false
	case f.spool == nil:
		return f.passed >= formMemory-2*maxPartHeader
	}
	return f.passed >= f.found+maxPartHeader
}

// step reads a piece of the form: the header of a part, or some of its content.
func (f *form) step() error {
	if f.part == nil {
		return f.next()
	}
	switch name := f.part.FormName(); name {
	case "model", "stream":
		if err := f.field(name); err != nil {
			return err
		}
		f.part = nil
		return nil
	}
	_, err := f.part.Read(f.buf)
	if errors.Is(err, io.EOF) {
		f.part, err = nil, nil
	}
	return f.fault(err)
}

// next advances to the next part, or to the end of the form.
func (f *form) next() error {
	f.head = maxPartHeader
	part, err := f.parts.NextRawPart()
	f.head = -1
	switch {
	case errors.Is(err, io.EOF) && f.model == "":
		return badBody("model", "model is missing")
	case errors.Is(err, io.EOF):
		f.whole = true
		_, err := io.CopyBuffer(io.Discard, onlyReader{(*formSource)(f)}, f.buf) // what follows it belongs to it
		return f.fault(err)
	case err != nil:
		return f.fault(err)
	case f.count == maxFormParts:
		return badBody("", "the form has more than %d parts", maxFormParts)
	}
	f.part = part
	f.count++
	return nil
}

// field reads a part that determines where the form goes.
func (f *form) field(name string) error {
	text, err := io.ReadAll(io.LimitReader(f.part, maxModelPart+1))
	switch {
	case err != nil:
		return f.fault(err)
	case name == "stream" && string(text) == "true":
		return openai.NotSupported("stream", "this cannot be streamed here; leave out stream")
	case name == "stream" && len(text) > maxModelPart:
		return badBody("stream", "stream must be true or false")
	case name == "stream":
	case f.model != "":
		return badBody("model", "the form has a model twice")
	case len(text) == 0 || len(text) > maxModelPart || bytes.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
		return badBody("model", "model is not a name")
	default:
		f.model, f.found = string(text), f.passed
	}
	return nil
}

// fault returns the error for a form that cannot be read further. Classified errors found on the
// way pass through.
func (f *form) fault(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return f.g.refuseBody(f.w, f.limit)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return &apiError{status: http.StatusRequestTimeout, code: "request_timeout", err: core.Errorf(core.DeadlineExceeded, "the form arrived too slowly")}
	}
	if f.err != nil { // of the sink
		return f.err
	}
	return badBody("", "the request's body is not a whole form")
}

// hold stores what was read. Errors: Overloaded, TooLarge if there is no disk space.
func (f *form) hold(p []byte) (int, error) {
	n := len(p)
	if f.spool == nil {
		fits := p[:min(len(p), formMemory-len(f.memory))]
		if err := f.remember(fits); err != nil {
			return 0, err
		}
		if p = p[len(fits):]; len(p) == 0 {
			return n, nil
		}
	}
	if err := f.spill(p); err != nil {
		return 0, err
	}
	return n, nil
}

func (f *form) remember(p []byte) error {
	if need := len(f.memory) + len(p); need > cap(f.memory) {
		old, size := int64(cap(f.memory)), int64(min(max(2*cap(f.memory), need, firstBody), formMemory))
		if err := f.w.body.grow(f.ctx, size); err != nil { // both buffers exist while one is copied
			return err
		}
		f.memory = append(make([]byte, 0, size), f.memory...)
		f.w.body.shrink(old)
	}
	f.memory = append(f.memory, p...)
	return nil
}

// modelFirst is the hint for clients whose form must be held.
const modelFirst = "Put the field model before the files."

func (f *form) spill(p []byte) error {
	if f.g.spool == nil {
		return &apiError{status: http.StatusRequestEntityTooLarge, code: openai.CodeTooLarge, err: core.Errorf(core.Invalid, "the form's model comes after more than %d bytes", formMemory).Hint(modelFirst)}
	}
	if err := f.disk.grow(f.ctx, int64(len(p))); err != nil {
		return err
	}
	err := error(nil)
	if f.spool == nil {
		f.spool, err = f.g.spool()
	}
	if err == nil {
		_, err = f.spool.Write(p)
	}
	if err != nil {
		f.g.log.Warn("failed to keep a form on the disk", "request", f.w.id, "error", err)
		return &apiError{code: "disk_full", err: core.Errorf(core.TooLarge, "this queen has no room on its disk for a form whose model comes after its files").Hint(modelFirst)}
	}
	f.spooled += int64(len(p))
	return nil
}

// Size implements inference.Form.
func (f *form) Size() int64 {
	if f.whole {
		return f.passed
	}
	return f.size
}

// Head implements inference.Form.
func (f *form) Head() []byte { return f.memory }

// Again implements inference.Form.
func (f *form) Again() bool { return f.err == nil && !f.sent }

// WriteTo implements inference.Form. It also checks the rest of the form: on an error the worker
// gets no complete form.
func (f *form) WriteTo(w io.Writer) (int64, error) {
	out := &counted{w: w}
	if _, err := out.Write(f.memory); err != nil {
		return out.n, err
	}
	if f.spool != nil {
		_, err := io.CopyBuffer(onlyWriter{out}, io.NewSectionReader(f.spool, 0, f.spooled), f.buf)
		switch {
		case out.err != nil:
			return out.n, out.err
		case err != nil:
			f.g.log.Warn("failed to read a form from the disk", "request", f.w.id, "error", err)
			return out.n, &inference.FormError{Err: core.Errorf(core.Internal, "failed to read the stored form")}
		}
	}
	f.sink = out
	for !f.whole {
		f.sent = true
		if err := f.step(); err != nil {
			if out.err != nil {
				return out.n, out.err
			}
			f.err = err
			return out.n, &inference.FormError{Err: f.g.closeAfter(f.w, err)}
		}
	}
	return out.n, nil
}

// formSource is the reader for the form's parser. Everything read from it also goes to the sink.
type formSource form

func (s *formSource) Read(p []byte) (int, error) {
	if s.head == 0 {
		return 0, errors.New("the header of a part is too long")
	}
	if s.head > 0 {
		p = p[:min(int64(len(p)), s.head)]
	}
	n, err := s.src.Read(p)
	if s.head > 0 {
		s.head -= int64(n)
	}
	s.passed += int64(n)
	if s.passed-s.dated >= formReadWithin { // a steady sender may continue
		s.dated = s.passed
		_ = s.w.c.SetReadDeadline(s.start.Add(s.g.timeout + time.Duration(s.passed/minFormRate)*time.Second))
	}
	if _, sinkErr := s.sink.Write(p[:n]); sinkErr != nil {
		s.err = sinkErr
		return n, sinkErr
	}
	return n, err
}

// counted remembers its first error.
type counted struct {
	w   io.Writer
	n   int64
	err error
}

func (c *counted) Write(p []byte) (int, error) {
	n, err := c.w.Write(p)
	c.n += int64(n)
	if c.err == nil {
		c.err = err
	}
	return n, err
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// onlyReader and onlyWriter hide other methods from io.CopyBuffer, which would use its own buffer
// otherwise.
type (
	onlyReader struct{ io.Reader }
	onlyWriter struct{ io.Writer }
)
