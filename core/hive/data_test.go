package hive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
)

// socketOnly is a worker that consists of only a data socket.
type socketOnly struct {
	workerProcess
	path string
}

func (s socketOnly) DataSocket() string { return s.path }

func (socketOnly) DataOpening() string { return "" }

// dataRig is a hive's data port with a worker behind it, and a queen.
type dataRig struct {
	queen  *rpc.Pool
	addr   string
	server *dataServer
	worker chan *net.UnixConn // what the worker accepts
	socket string
	stop   func() error
}

func newDataRig(t testing.TB) *dataRig {
	t.Helper()
	return dataRigOf(t, nil)
}

// dataRigOf returns a rig, with the workers of a real hive if h is not nil.
func dataRigOf(t testing.TB, h *Hive) *dataRig {
	t.Helper()
	ca, err := pki.NewCA("00c0ffee00c0ffee", "test", time.Now())
	must.NoError(t, err)
	identity := func(id string, role core.Role) *pki.Identity {
		key, err := pki.NewKey()
		must.NoError(t, err)
		csr, err := pki.NewRequest(key, id)
		must.NoError(t, err)
		cert, _, err := ca.Sign(csr, pki.Node{Cluster: ca.Cluster(), ID: id, Roles: []core.Role{role}}, nil, time.Hour, time.Now())
		must.NoError(t, err)
		i, err := pki.Create(t.TempDir(), pki.Material{Name: id, RPCAddress: "127.0.0.1:1", CAPEM: ca.CertPEM(), NodePEM: cert, Key: key})
		must.NoError(t, err)
		return i
	}
	r := &dataRig{worker: make(chan *net.UnixConn, 100), socket: filepath.Join(t.TempDir(), "s")}
	sockets, err := net.ListenUnix("unix", &net.UnixAddr{Name: r.socket, Net: "unix"})
	must.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := sockets.AcceptUnix()
			if err != nil {
				return
			}
			r.worker <- c
		}
	})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	r.addr = l.Addr().String()
	mux := rpc.NewMux(l, rpc.MuxOptions{Identity: identity("00000001", core.RoleHive)})
	ctx, cancel := context.WithCancel(context.Background())
	wg.Go(func() { must.NoError(t, mux.Run(ctx)) })
	r.server = &dataServer{max: maxDataConns, worker: func(ctx context.Context, id string) (*net.UnixConn, error) {
		switch id {
		case "w":
			return dialData(ctx, id, socketOnly{path: r.socket})
		case "loading":
			return nil, core.Errorf(core.Unavailable, "find worker: worker loading is loading")
		case "dead":
			return dialData(ctx, id, socketOnly{path: r.socket + "-gone"})
		}
		return nil, core.Errorf(core.NotFound, "find worker: hive x has no worker %q", id).Hint("Look again.")
	}}
	serving, end := context.WithCancel(ctx)
	served := make(chan error, 1)
	serve := r.server.serve
	if h != nil {
		serve = h.ServeData
	}
	go func() { served <- serve(serving, mux.Data()) }()
	var once sync.Once
	var result error
	r.stop = func() error {
		once.Do(func() {
			end()
			result = <-served
		})
		return result
	}
	r.queen = rpc.NewPool(rpc.PoolOptions{Identity: identity("00000002", core.RoleQueen)})
	t.Cleanup(func() {
		must.NoError(t, r.queen.Close())
		must.NoError(t, r.stop())
		cancel()
		_ = sockets.Close()
		wg.Wait()
	})
	return r
}

// join connects the queen to the worker.
func (r *dataRig) join(t testing.TB) (queen net.Conn, worker *net.UnixConn) {
	t.Helper()
	c, err := r.queen.DialData(t.Context(), "00000001", r.addr, "w")
	must.NoError(t, err)
	w := <-r.worker
	must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	must.NoError(t, w.SetDeadline(time.Now().Add(20*time.Second)))
	t.Cleanup(func() { _ = c.Close(); _ = w.Close() })
	return c, w
}

// none waits until no pair is joined.
func (r *dataRig) none(t testing.TB, within time.Duration) {
	t.Helper()
	for end := time.Now().Add(within); r.server.active.Load() != 0; {
		must.True(t, time.Now().Before(end), must.Sprintf("%d connections are left after %s", r.server.active.Load(), within))
		timer := time.NewTimer(time.Millisecond)
		<-timer.C
	}
}

func TestDataBytes(t *testing.T) {
	t.Parallel()
	r := newDataRig(t)
	queen, worker := r.join(t)
	data := make([]byte, 5<<20+17)
	for i := range data {
		data[i] = byte(i * i >> 3)
	}
	var wg sync.WaitGroup
	wg.Go(func() { // the worker's echo, which ends when the queen has sent all
		_, err := io.Copy(worker, worker)
		must.NoError(t, err)
		must.NoError(t, worker.CloseWrite())
	})
	wg.Go(func() {
		_, err := queen.Write(data)
		must.NoError(t, err)
		must.NoError(t, queen.(interface{ CloseWrite() error }).CloseWrite())
	})
	back, err := io.ReadAll(queen)
	must.NoError(t, err) // a clean end
	must.True(t, bytes.Equal(data, back))
	wg.Wait()
	must.NoError(t, queen.Close())
	r.none(t, time.Second)
}

// Either side may end before the other.
func TestDataHalfClose(t *testing.T) {
	t.Parallel()
	r := newDataRig(t)
	queen, worker := r.join(t)
	must.NoError(t, queen.(interface{ CloseWrite() error }).CloseWrite())
	_, err := worker.Read(make([]byte, 1))
	must.ErrorIs(t, err, io.EOF)
	for range 3 { // the worker keeps sending
		_, err = worker.Write([]byte("more"))
		must.NoError(t, err)
		_, err = io.ReadFull(queen, make([]byte, 4))
		must.NoError(t, err)
	}
	must.NoError(t, queen.Close())
	r.none(t, time.Second)

	queen, worker = r.join(t)
	must.NoError(t, worker.CloseWrite())
	_, err = queen.Read(make([]byte, 1))
	must.ErrorIs(t, err, io.EOF)
	_, err = queen.Write([]byte("still there"))
	must.NoError(t, err)
	_, err = io.ReadFull(worker, make([]byte, 11))
	must.NoError(t, err)
	must.NoError(t, queen.Close())
	_, err = worker.Read(make([]byte, 1))
	must.ErrorIs(t, err, io.EOF)
	r.none(t, time.Second)
}

// When a queen disconnects, the worker's socket is closed at once, whatever is in flight.
func TestDataQueenGoes(t *testing.T) {
	t.Parallel()
	for _, abort := range []bool{false, true} {
		for _, after := range []string{"", "half a request", "a half-close"} {
			t.Run(fmt.Sprint(abort, after), func(t *testing.T) {
				t.Parallel()
				r := newDataRig(t)
				queen, worker := r.join(t)
				_, err := queen.Write([]byte("x"))
				must.NoError(t, err)
				_, err = worker.Read(make([]byte, 1))
				must.NoError(t, err)
				if after == "a half-close" {
					must.NoError(t, queen.(interface{ CloseWrite() error }).CloseWrite())
					_, err = worker.Read(make([]byte, 1))
					must.ErrorIs(t, err, io.EOF)
				}
				gone := make(chan time.Time, 1)
				go func() { // it writes until it cannot, like one that streams tokens
					for {
						if _, err := worker.Write([]byte("token ")); err != nil {
							gone <- time.Now()
							return
						}
						timer := time.NewTimer(time.Millisecond)
						<-timer.C
					}
				}()
				_, err = io.ReadFull(queen, make([]byte, 30))
				must.NoError(t, err)
				begin := time.Now()
				if abort {
					queen.(*rpc.Conn).Abort()
				} else {
					must.NoError(t, queen.Close())
				}
				took := (<-gone).Sub(begin)
				must.Less(t, 3*time.Second, took)
				r.none(t, time.Second)
			})
		}
	}
}

// A worker that is not writing, such as one that processes a prompt, sees the end as well.
func TestDataCancelReachesAReader(t *testing.T) {
	t.Parallel()
	r := newDataRig(t)
	for range 20 {
		queen, worker := r.join(t)
		gone := make(chan time.Time, 1)
		go func() {
			_, _ = worker.Read(make([]byte, 1))
			gone <- time.Now()
		}()
		begin := time.Now()
		must.NoError(t, queen.Close())
		must.Less(t, 3*time.Second, (<-gone).Sub(begin))
	}
	r.none(t, time.Second)
}

// The death of a worker is not mistaken for a complete answer, and what it sent before still
// arrives.
func TestDataWorkerGoes(t *testing.T) {
	t.Parallel()
	for _, unread := range []bool{false, true} {
		r := newDataRig(t)
		queen, worker := r.join(t)
		if unread { // the worker has not read its request, and the hive has not passed all of it on
			go func() { _, _ = queen.Write(make([]byte, 4<<20)) }()
			timer := time.NewTimer(50 * time.Millisecond)
			<-timer.C
		}
		last := bytes.Repeat([]byte("last words "), 1000)
		_, err := worker.Write(last)
		must.NoError(t, err)
		must.NoError(t, worker.Close())
		begin := time.Now()
		data, err := io.ReadAll(queen)
		must.Error(t, err, must.Sprint(unread))
		must.False(t, errors.Is(err, io.EOF))
		must.True(t, bytes.Equal(last, data), must.Sprintf("%d bytes, unread %t", len(data), unread))
		must.Less(t, 5*time.Second, time.Since(begin))
		must.NoError(t, queen.Close())
		r.none(t, time.Second)
	}
}

// A queen that does not notice does not hold on to what a dead worker left.
func TestDataLinger(t *testing.T) {
	t.Parallel()
	r := newDataRig(t)
	_, worker := r.join(t)
	must.NoError(t, worker.Close())
	r.none(t, dataLinger+time.Second)
}

// The hive reports why it does not connect.
func TestDataRefuses(t *testing.T) {
	t.Parallel()
	r := newDataRig(t)
	for worker, want := range map[string]core.Failure{
		"other":   {Kind: core.NotFound, Message: `find worker: hive x has no worker "other"`, Hint: "Look again."},
		"loading": {Kind: core.Unavailable, Message: "find worker: worker loading is loading"},
		"dead":    {Kind: core.Unavailable, Message: "connect to worker: worker dead does not take connections", Hint: `It may have just ended; "rbee worker process list" shows what runs.`},
	} {
		_, err := r.queen.DialData(t.Context(), "00000001", r.addr, worker)
		must.Eq(t, &want, core.FailureOf(err))
	}
	r.none(t, time.Second)

	r.server.max = 1
	queen, _ := r.join(t)
	_, err := r.queen.DialData(t.Context(), "00000001", r.addr, "w")
	must.Eq(t, core.Overloaded, core.KindOf(err))
	must.NoError(t, queen.Close())
	r.none(t, time.Second)
	r.join(t)
}

// Ending the hive cuts open connections, and waits for them.
func TestDataEnds(t *testing.T) {
	t.Parallel()
	r := newDataRig(t)
	queen, worker := r.join(t)
	begin := time.Now()
	must.NoError(t, r.stop())
	must.Less(t, 5*time.Second, time.Since(begin))
	must.Zero(t, r.server.active.Load())
	_, err := queen.Read(make([]byte, 1))
	must.Error(t, err)
	must.False(t, errors.Is(err, io.EOF))
	_, err = worker.Read(make([]byte, 1))
	must.ErrorIs(t, err, io.EOF)
}

// A queen that does not name a worker has a few seconds.
func TestDataStart(t *testing.T) {
	t.Parallel()
	a, b := net.Pipe()
	s := &dataServer{max: 1, worker: func(context.Context, string) (*net.UnixConn, error) { return nil, errors.New("not asked for") }}
	var done atomic.Bool
	go func() { s.join(t.Context(), a); done.Store(true) }()
	begin := time.Now()
	_, err := b.Read(make([]byte, 1))
	must.Error(t, err)
	must.Between(t, dataStart-100*time.Millisecond, time.Since(begin), dataStart+time.Second)
}

// A real worker, asked by a queen on another machine, and killed while it answers.
func TestDataWorkerProcess(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	w := r.spawn("fake")
	d := dataRigOf(t, r.hive)
	_, err := d.queen.DialData(t.Context(), "00000001", d.addr, "nobody")
	must.Eq(t, core.NotFound, core.KindOf(err))

	c, err := d.queen.DialData(t.Context(), "00000001", d.addr, w.Worker.ID)
	must.NoError(t, err)
	defer c.Close()
	must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	body := `{"model":"tiny","prompt":"one two"}`
	in := bufio.NewReader(c)
	for range 3 { // on one connection
		_, err = fmt.Fprintf(c, "POST /v1/completions HTTP/1.1\r\nHost: worker\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
		must.NoError(t, err)
		resp, err := http.ReadResponse(in, nil)
		must.NoError(t, err)
		must.Eq(t, http.StatusOK, resp.StatusCode)
		answer, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		must.StrContains(t, string(answer), "one two")
	}

	p, err := os.FindProcess(r.processes()[0].PID)
	must.NoError(t, err)
	must.NoError(t, p.Kill())
	_, err = in.ReadByte()
	must.Error(t, err)
	must.False(t, errors.Is(err, io.EOF))           // a cut, not a clean end
	coretest.Eventually(t, patience, func() error { // the kernel closes the sockets of a killed process one after the other
		c, err := d.queen.DialData(t.Context(), "00000001", d.addr, w.Worker.ID)
		if err == nil {
			c.Close()
			return errors.New("the worker can be reached")
		}
		return nil
	})
	r.told(patience, count(0))
}

// BenchmarkDataRoundTrip is a token-sized exchange with a worker: over its socket, and over TLS and
// the hive.
func BenchmarkDataRoundTrip(b *testing.B) {
	r := newDataRig(b)
	direct, err := net.Dial("unix", r.socket)
	must.NoError(b, err)
	b.Cleanup(func() { _ = direct.Close() })
	remote, err := r.queen.DialData(b.Context(), "00000001", r.addr, "w")
	must.NoError(b, err)
	b.Cleanup(func() { _ = remote.Close() })
	var wg sync.WaitGroup
	for range 2 {
		w := <-r.worker
		wg.Go(func() { _, _ = io.Copy(w, w) })
		b.Cleanup(func() { _ = w.Close() })
	}
	for _, c := range []struct {
		name string
		conn net.Conn
	}{{"socket", direct}, {"hive", remote}} {
		b.Run(c.name, func(b *testing.B) {
			buf := make([]byte, 200)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := c.conn.Write(buf); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c.conn, buf); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkDataDial is a new connection to a worker; all but the first are resumed.
func BenchmarkDataDial(b *testing.B) {
	r := newDataRig(b)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for w := range r.worker {
			go func() { _, _ = io.Copy(w, w); _ = w.Close() }()
		}
	}()
	b.Cleanup(func() { close(r.worker); <-done })
	for _, fresh := range []bool{false, true} {
		b.Run(map[bool]string{false: "resumed", true: "full"}[fresh], func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if fresh {
					r.queen.Forget("00000001")
				}
				c, err := r.queen.DialData(b.Context(), "00000001", r.addr, "w")
				if err != nil {
					b.Fatal(err)
				}
				_, err = c.Write([]byte("x"))
				must.NoError(b, err)
				_, err = io.ReadFull(c, make([]byte, 1))
				must.NoError(b, err)
				_ = c.Close()
			}
		})
	}
}
