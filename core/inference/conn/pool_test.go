package conn

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// worker serves connections on a unix socket with serve and counts them.
func worker(t *testing.T, serve func(n int, c net.Conn, r *bufio.Reader)) (p *pool, dials *atomic.Int64) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n := 0; ; n++ {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serve(n, c, bufio.NewReader(c))
			_ = c.Close()
		}
	}()
	dials = new(atomic.Int64)
	p = &pool{dial: func(ctx context.Context, _ time.Duration) (*workerConn, error) {
		dials.Add(1)
		c, err := new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
		if err != nil {
			return nil, err
		}
		return newWorkerConn(c), nil
	}}
	t.Cleanup(func() { p.close(); _ = l.Close(); <-done })
	return p, dials
}

func post(t *testing.T, ctx context.Context, p *pool, body string) (string, error) {
	t.Helper()
	resp, err := p.roundTrip(ctx, Request{Path: "/", Body: []byte(body)})
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return string(b), err
}

// read reads one request from the connection.
func read(r *bufio.Reader) bool {
	req, err := http.ReadRequest(r)
	if err != nil {
		return false
	}
	_, err = io.Copy(io.Discard, req.Body)
	return err == nil
}

const fine = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine"

func TestPoolKeepsConnection(t *testing.T) {
	t.Parallel()
	p, dials := worker(t, func(_ int, c net.Conn, r *bufio.Reader) {
		for read(r) {
			_, _ = c.Write([]byte(fine))
		}
	})
	for range 5 {
		got, err := post(t, t.Context(), p, "hello")
		must.NoError(t, err)
		must.Eq(t, "fine", got)
	}
	must.Eq(t, 1, dials.Load())
}

func TestPoolReplacesClosedIdleConnection(t *testing.T) {
	t.Parallel()
	p, dials := worker(t, func(_ int, c net.Conn, r *bufio.Reader) {
		if read(r) { // then closes without announcing it
			_, _ = c.Write([]byte(fine))
		}
	})
	for range 3 {
		got, err := post(t, t.Context(), p, strings.Repeat("long ", 100_000))
		must.NoError(t, err)
		must.Eq(t, "fine", got)
	}
	must.Eq(t, 3, dials.Load())
}

func TestPoolNeverRepeatsASentRequest(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]string{"silent": "", "half a header": "HTTP/1.1 200 O", "no HTTP": "hello\r\n\r\n"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, dials := worker(t, func(_ int, c net.Conn, r *bufio.Reader) {
				read(r)
				_, _ = c.Write([]byte(answer))
			})
			_, err := post(t, t.Context(), p, "hello")
			must.Error(t, err)
			must.Eq(t, 1, dials.Load())
		})
	}
}

// A worker that a request killed on a reused connection can no longer be dialled. That is not a
// DialError, which would mean that nothing was sent.
func TestPoolLostAfterSend(t *testing.T) {
	t.Parallel()
	far := make(chan net.Conn, 1)
	p := &pool{dial: func(context.Context, time.Duration) (*workerConn, error) {
		select {
		case c := <-far:
			return newWorkerConn(c), nil
		default:
			return nil, &DialError{errors.New("nobody listens")}
		}
	}}
	defer p.close()
	near, c := net.Pipe()
	far <- near
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer c.Close()
		r := bufio.NewReader(c)
		read(r)
		_, _ = c.Write([]byte(fine))
		read(r)
	}()
	_, err := post(t, t.Context(), p, "hello")
	must.NoError(t, err)
	_, err = post(t, t.Context(), p, "hello")
	<-done
	must.Error(t, err)
	_, unsent := errors.AsType[*DialError](err)
	must.False(t, unsent)
	_, err = post(t, t.Context(), p, "hello")
	_, unsent = errors.AsType[*DialError](err)
	must.True(t, unsent)
}

func TestPoolBoundsHeader(t *testing.T) {
	t.Parallel()
	p, _ := worker(t, func(_ int, c net.Conn, r *bufio.Reader) {
		read(r)
		_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxAnswerHeader) + "\r\nContent-Length: 0\r\n\r\n"))
	})
	_, err := post(t, t.Context(), p, "hello")
	must.ErrorIs(t, err, errAnswerHeader)
}

func TestPoolReadsEarlyRefusal(t *testing.T) {
	t.Parallel()
	p, dials := worker(t, func(_ int, c net.Conn, _ *bufio.Reader) {
		_, _ = c.Write([]byte("HTTP/1.1 413 Too Large\r\nContent-Length: 4\r\nConnection: close\r\n\r\nlong"))
	})
	got, err := post(t, t.Context(), p, "hello")
	must.NoError(t, err)
	must.Eq(t, "long", got)
	must.Eq(t, 1, dials.Load())
}

func TestPoolClosesWithContext(t *testing.T) {
	t.Parallel()
	gone := make(chan struct{})
	p, _ := worker(t, func(_ int, c net.Conn, r *bufio.Reader) {
		read(r)
		_, _ = c.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhalf"))
		_, err := r.ReadByte() // wait until the other end closes
		if errors.Is(err, io.EOF) {
			close(gone)
		}
	})
	ctx, cancel := context.WithCancel(t.Context())
	resp, err := p.roundTrip(ctx, Request{Path: "/", Body: []byte("hello")})
	must.NoError(t, err)
	defer resp.Body.Close()
	cancel()
	_, err = io.ReadAll(resp.Body)
	must.ErrorIs(t, err, context.Canceled)
	<-gone
	must.Nil(t, p.take())
}

// DropGone closes the connections to an ended worker and no others.
func TestDropGone(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	must.NoError(t, err)
	srv := &http.Server{Handler: http.NotFoundHandler(), ReadHeaderTimeout: time.Minute}
	served := make(chan struct{})
	go func() { defer close(served); _ = srv.Serve(l) }()
	defer func() { _ = srv.Close(); <-served }()
	pools := NewPools(func(ctx context.Context, _ core.Worker) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", l.Addr().String())
	}, time.Second)
	defer pools.Close()
	gone, alive := core.Worker{Hive: "h", ID: "w1", Nonce: "1"}, core.Worker{Hive: "h", ID: "w2", Nonce: "2"}
	idle := map[string]*workerConn{}
	for _, w := range []core.Worker{gone, alive} {
		resp, err := pools.Post(t.Context(), w, Request{Path: "/"})
		must.NoError(t, err)
		_, err = io.ReadAll(resp.Body)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		idle[w.ID] = pools.pool(w).idle[0]
	}
	pools.DropGone(func(w core.Worker) bool { return w.ID == "w2" })
	must.MapLen(t, 1, pools.m)
	must.ErrorIs(t, idle["w1"].SetDeadline(time.Now()), net.ErrClosed)
	must.NoError(t, idle["w2"].SetDeadline(time.Now()))
}
