package swarm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
)

const (
	blobPath = "/v1/blobs/"
	// maxUploads bounds the concurrent uploads of a hive.
	maxUploads = 8
	// maxConns bounds the connections of other hives, most of which only receive the answer that
	// there are too many.
	maxConns = 256
	// uploadPart is the size of a read and write, so that inference gets its turn in between.
	uploadPart = 256 << 10
	// uploadIdle is how long an upload waits for bytes that this hive does not have yet.
	uploadIdle = time.Minute
	// uploadStuck is how long the other hive may fail to read.
	uploadStuck = 30 * time.Second
	serveHeader = 5 * time.Second
	maxHeader   = 8 << 10
)

// Shelf finds a hive's files.
type Shelf interface {
	// OpenBlob opens a file that is present or being fetched. Errors: NotFound.
	OpenBlob(digest string) (Blob, error)
}

// Blob is a file that is present or being fetched. It is safe for concurrent use.
type Blob interface {
	io.ReaderAt
	io.Closer
	// Size returns the size of the whole file, in bytes; 0 if unknown.
	Size() int64
	// Wait waits until there are bytes from offset on, and returns where they end. Errors: io.EOF
	// at the file's end, ctx's, and any other if no more bytes will arrive or earlier ones have
	// been removed.
	Wait(ctx context.Context, offset int64) (end int64, err error)
}

// Limiter bounds the upload rate. *download.Limiter implements it.
type Limiter interface {
	// Writer returns w behind the limiter, until ctx ends.
	Writer(ctx context.Context, w io.Writer) io.Writer
}

// Server serves this hive's files to other hives.
type Server struct {
	shelf  Shelf
	limit  Limiter // nil: no limit
	log    hclog.Logger
	places chan struct{}
	part   sync.Pool
}

// NewServer returns a server for the files of shelf. limit bounds all uploads together; nil: no
// limit. log may be nil.
func NewServer(shelf Shelf, limit Limiter, log hclog.Logger) *Server {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return &Server{
		shelf: shelf, limit: limit, log: log, places: make(chan struct{}, maxUploads),
		part: sync.Pool{New: func() any { return new([uploadPart]byte) }},
	}
}

// Serve serves the connections of l, those of rpc.Mux.Blobs, until ctx ends or l is closed. Then it
// cuts the remaining connections and returns when all uploads have ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var open sync.WaitGroup
	srv := &http.Server{
		Handler:           http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { s.upload(ctx, w, r) }),
		ReadHeaderTimeout: serveHeader, IdleTimeout: uploadIdle, MaxHeaderBytes: maxHeader,
		ErrorLog: s.log.StandardLogger(&hclog.StandardLoggerOptions{ForceLevel: hclog.Debug}),
		ConnState: func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew: // reported by Serve itself
				open.Add(1)
			case http.StateClosed: // reported by the connection's goroutine, at its end
				open.Done()
			}
		},
	}
	defer open.Wait()
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	err := srv.Serve(limited{l, make(chan struct{}, maxConns)})
	cancel()
	_ = srv.Close()
	if errors.Is(err, http.ErrServerClosed) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return core.Wrap(err, core.Unavailable, "give files to other hives")
}

// limited bounds the open connections.
type limited struct {
	net.Listener
	places chan struct{}
}

func (l limited) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		select {
		case l.places <- struct{}{}:
			return &counted{Conn: c, leave: sync.OnceFunc(func() { <-l.places })}, nil
		default:
			_ = c.Close()
		}
	}
}

type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	c.leave()
	return c.Conn.Close()
}

// upload answers one request.
func (s *Server) upload(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.Context(), cancel)()
	control := http.NewResponseController(w)
	if err := control.SetWriteDeadline(time.Now().Add(uploadStuck)); err != nil {
		return
	}
	b, from, to, err := s.open(r)
	if err != nil {
		refuse(w, err)
		return
	}
	defer b.Close()
	select {
	case s.places <- struct{}{}:
		defer func() { <-s.places }()
	default:
		refuse(w, core.Errorf(core.Overloaded, "this hive gives %d files to others already", maxUploads))
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/octet-stream")
	h.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", from, to-1, b.Size()))
	h.Set("Content-Length", strconv.FormatInt(to-from, 10))
	w.WriteHeader(http.StatusPartialContent)
	if err := control.Flush(); err != nil {
		return
	}
	if err := s.send(ctx, w, control, b, from, to); err != nil {
		s.log.Debug("an upload was cut", "error", err)
		panic(http.ErrAbortHandler) // the other hive sees that it is incomplete
	}
}

// open opens the requested file.
func (s *Server) open(r *http.Request) (b Blob, from, to int64, err error) {
	digest, ok := strings.CutPrefix(r.URL.Path, blobPath)
	if r.Method != http.MethodGet || !ok || !ValidDigest(digest) {
		return nil, 0, 0, core.Errorf(core.Invalid, "only GET %ssha256:<hex> is answered here", blobPath)
	}
	if b, err = s.shelf.OpenBlob(digest); err != nil {
		return nil, 0, 0, err
	}
	size := b.Size()
	if size <= 0 {
		err = core.Errorf(core.NotFound, "the size of the file is not known yet")
	} else {
		from, to, err = parseRange(r.Header.Get("Range"), size)
	}
	if err != nil {
		_ = b.Close()
		return nil, 0, 0, err
	}
	return b, from, to, nil
}

// parseRange parses "bytes=FROM-" and "bytes=FROM-LAST"; an empty text means the whole file. The
// result is a part that is not empty and within size. Errors: Invalid.
func parseRange(text string, size int64) (from, to int64, err error) {
	if text == "" {
		return 0, size, nil
	}
	spec, ok := strings.CutPrefix(text, "bytes=")
	first, last, ok2 := strings.Cut(spec, "-")
	from, err = strconv.ParseInt(first, 10, 64)
	to = size
	if err == nil && last != "" {
		to, err = strconv.ParseInt(last, 10, 64)
		to = min(to, size-1) + 1
	}
	if !ok || !ok2 || err != nil || from < 0 || from >= to {
		return 0, 0, core.Errorf(core.Invalid, "%q is not a range of a file of %d bytes", text[:min(len(text), 64)], size)
	}
	return from, to, nil
}

// send sends bytes as they arrive.
func (s *Server) send(ctx context.Context, rw io.Writer, control *http.ResponseController, b Blob, from, to int64) error {
	var w io.Writer = timely{rw, control}
	if s.limit != nil {
		w = s.limit.Writer(ctx, w)
	}
	buf, _ := s.part.Get().(*[uploadPart]byte)
	defer s.part.Put(buf)
	for from < to {
		end, err := waitFor(ctx, b, from)
		if err != nil {
			return err
		}
		for end = min(end, to); from < end; {
			part := buf[:min(end-from, uploadPart)]
			if n, err := b.ReadAt(part, from); n < len(part) {
				return cmp.Or(err, io.ErrUnexpectedEOF)
			}
			if _, err := w.Write(part); err != nil {
				return err
			}
			from += int64(len(part))
		}
		if err := control.Flush(); err != nil { // send the available bytes before the next wait
			return err
		}
	}
	return nil
}

// timely aborts a write that the other hive does not read.
type timely struct {
	w       io.Writer
	control *http.ResponseController
}

func (t timely) Write(b []byte) (int, error) {
	if err := t.control.SetWriteDeadline(time.Now().Add(uploadStuck)); err != nil {
		return 0, err
	}
	return t.w.Write(b)
}

func waitFor(ctx context.Context, b Blob, offset int64) (end int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, uploadIdle)
	defer cancel()
	return b.Wait(ctx, offset)
}

// refuse answers with the error.
func refuse(w http.ResponseWriter, err error) {
	status := http.StatusServiceUnavailable
	switch core.KindOf(err) {
	case core.Invalid:
		status = http.StatusBadRequest
	case core.NotFound:
		status = http.StatusNotFound
	}
	body, marshalErr := json.Marshal(core.FailureOf(err))
	if marshalErr != nil {
		body = nil // the status alone is an answer
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(body) // a disconnected client needs no answer
}
