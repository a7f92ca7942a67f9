package hive

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
)

const (
	// maxDataConns bounds the connections of queens to workers. A queen keeps up to 64 unused ones
	// to each worker.
	maxDataConns = 4096
	// dataSpare is the number of further connections that are answered with a refusal.
	dataSpare = 64
	// dataStart is how long a queen may take to name the worker it wants.
	dataStart = 5 * time.Second
	// dataStuck is how long a worker may leave unread what a queen sends.
	dataStuck = 30 * time.Second
	// dataLinger is how long a queen may take to read what a worker wrote before it exited.
	dataLinger = 2 * time.Second
	// dataRecord is the size of one copy: the most that a TLS record holds.
	dataRecord = 16 << 10
)

// ServeData joins the connections that queens make with the data sockets of this hive's workers,
// until ctx ends or l is closed, then cuts the remaining ones and returns. The connections of l are
// those of rpc.Mux.Data. Errors: those of l, but nil when it was closed.
func (h *Hive) ServeData(ctx context.Context, l net.Listener) error {
	return (&dataServer{worker: h.DialWorker, max: maxDataConns}).serve(ctx, l)
}

// dataServer passes bytes between queens and workers.
type dataServer struct {
	worker func(ctx context.Context, id string) (*net.UnixConn, error)
	max    int64
	active atomic.Int64
}

func (s *dataServer) serve(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	places := make(chan struct{}, s.max+dataSpare)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				abort(c)
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return nil
		case err != nil:
			return core.Wrap(err, core.Unavailable, "accept data connections")
		}
		wg.Go(func() {
			defer func() { <-places }()
			s.join(ctx, c)
		})
	}
}

// abort closes c so that the peer sees a reset instead of a clean end.
func abort(c net.Conn) {
	if t, ok := c.(interface{ Abort() }); ok {
		t.Abort()
		return
	}
	_ = c.Close()
}

// join passes bytes between a queen and the worker that it names, until one of them disconnects.
func (s *dataServer) join(ctx context.Context, queen net.Conn) {
	defer abort(queen)
	stop := context.AfterFunc(ctx, func() { abort(queen) })
	defer stop()
	worker, first, err := s.connect(ctx, queen)
	defer s.active.Add(-1)
	if err != nil {
		return
	}
	defer worker.Close()
	p := &pair{queen: queen, worker: worker}
	defer context.AfterFunc(ctx, p.cut)()

	// This goroutine reads from the queen, another one from the worker. Each blocks in a read and
	// writes what it got, without a further hand-over.
	var wg sync.WaitGroup
	wg.Go(p.fromWorker)
	p.fromQueen(first)
	wg.Wait()
}

// connect reads which worker the queen wants, connects to it, and answers. first holds what the
// queen has already sent for the worker.
func (s *dataServer) connect(ctx context.Context, queen net.Conn) (worker *net.UnixConn, first []byte, err error) {
	n := s.active.Add(1)
	if err := queen.SetDeadline(time.Now().Add(dataStart)); err != nil {
		return nil, nil, err
	}
	id, first, err := rpc.ReadConnect(queen)
	if err != nil && core.KindOf(err) != core.Invalid {
		return nil, nil, err // an error of the connection: no answer can be sent
	}
	if err == nil && n > s.max {
		err = core.Errorf(core.Overloaded, "connect to worker: the hive has %d connections to its workers", s.max).Hint("Ask again shortly, or spread the workers over more hives.")
	}
	if err == nil {
		worker, err = s.dial(ctx, id)
	}
	if err != nil {
		if rpc.AnswerConnect(queen, err) == nil {
			_ = queen.Close() // a clean close, so that the answer arrives
		}
		return nil, nil, err
	}
	if err = rpc.AnswerConnect(queen, nil); err == nil {
		err = queen.SetDeadline(time.Time{})
	}
	if err != nil {
		_ = worker.Close()
		return nil, nil, err
	}
	return worker, first, nil
}

func (s *dataServer) dial(ctx context.Context, workerID string) (*net.UnixConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dataStart)
	defer cancel()
	return s.worker(ctx, workerID)
}

// dialData connects to a worker's data socket, and authenticates as the hive.
func dialData(ctx context.Context, id string, p workerProcess) (*net.UnixConn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", p.DataSocket())
	if err == nil {
		if opening := p.DataOpening(); opening != "" { // fits into the socket's buffer: it does not block
			if _, err = io.WriteString(c, opening); err != nil {
				_ = c.Close()
			}
		}
	}
	if err != nil {
		return nil, core.Errorf(core.Unavailable, "connect to worker: worker %s does not take connections", id).Hint(
			"It may have just ended; \"rbee worker process list\" shows what runs.")
	}
	w, ok := c.(*net.UnixConn)
	if !ok {
		_ = c.Close()
		return nil, core.Errorf(core.Internal, "connect to worker: not a unix socket: %T", c)
	}
	return w, nil
}

// pair is a queen's connection and a worker's.
type pair struct {
	queen  net.Conn
	worker *net.UnixConn
	said   atomic.Bool // the worker has been sent the queen's end of input
}

// cut resets both at once.
func (p *pair) cut() {
	_ = p.worker.Close()
	abort(p.queen)
}

// fromQueen passes on what the queen sends. It returns when the queen has disconnected, and the
// worker's connection is closed then, which cancels a request that nobody waits for.
func (p *pair) fromQueen(first []byte) {
	defer p.worker.Close()
	deaf := !p.toWorker(first)
	buf := make([]byte, dataRecord/2)
	for {
		n, err := p.queen.Read(buf)
		if n > 0 && !deaf { // the rest of a dead worker's answer is still to reach the queen, so keep reading
			deaf = !p.toWorker(buf[:n])
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF):
			// The queen has sent all. Whether it still reads, only the connection below knows: that
			// has ended as well if the queen closed.
			p.said.Store(true)
			_ = p.worker.CloseWrite()
			_, _ = below(p.queen).Read(buf[:1])
		}
		return
	}
}

// toWorker returns false when the worker accepts no more data.
func (p *pair) toWorker(data []byte) bool {
	if len(data) == 0 {
		return true
	}
	err := p.worker.SetWriteDeadline(time.Now().Add(dataStuck))
	if err == nil {
		_, err = p.worker.Write(data)
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		p.cut()
	}
	return err == nil
}

// fromWorker passes on what the worker sends.
func (p *pair) fromWorker() {
	buf := make([]byte, dataRecord)
	for {
		n, err := p.worker.Read(buf)
		if n > 0 {
			if _, err := p.queen.Write(buf[:n]); err != nil {
				p.cut()
				return
			}
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, io.EOF) && p.listens():
			if q, ok := p.queen.(interface{ CloseWrite() error }); !ok || q.CloseWrite() != nil {
				p.cut()
			}
		default:
			p.workerGone()
		}
		return
	}
}

// listens reports whether a worker that sends no more still exists. Even an empty write fails on a
// socket that no process has open. A worker that has been sent the queen's end fails it in either
// case: there, its end counts as intended.
func (p *pair) listens() bool {
	if p.said.Load() {
		return true
	}
	_, err := p.worker.Write(nil)
	return err == nil
}

// workerGone makes the queen see a cut after the worker's last byte. It does not close the
// connection at once: with unread input from the queen, that would discard the rest of the answer.
func (p *pair) workerGone() {
	if t, ok := below(p.queen).(interface{ CloseWrite() error }); !ok || t.CloseWrite() != nil {
		p.cut()
		return
	}
	_ = p.queen.SetReadDeadline(time.Now().Add(dataLinger))
}

// below returns the connection that carries c.
func below(c net.Conn) net.Conn {
	if t, ok := c.(interface{ NetConn() net.Conn }); ok {
		return t.NetConn()
	}
	return c
}
