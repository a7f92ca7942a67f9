package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
)

const connect = "CONNECT w-1 HTTP/1.1\r\nHost: w-1\r\n\r\n"

// workerPattern matches the valid worker ids.
var workerPattern = regexp.MustCompile(`^[A-Za-z0-9._:-]{1,128}$`) // constant

func TestReadConnect(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		in, worker, rest string
		kind             core.Kind
	}{
		{in: connect, worker: "w-1"},
		{in: connect + "POST / HTTP/1.1\r\n\r\n", worker: "w-1", rest: "POST / HTTP/1.1\r\n\r\n"},
		{in: "CONNECT w-1 HTTP/1.1\r\n\r\n", worker: "w-1"},
		{in: "CONNECT w-1 HTTP/1.1\r\nX: y\r\nhost:w-1 \r\n\r\n", worker: "w-1"},
		{in: "CONNECT w-1 HTTP/1.1\r\nHost: w-2\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT ../../x HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT w\x00 HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT  HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT w-1 w-2 HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT w-1 HTTP/1.0\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT " + strings.Repeat("w", 129) + " HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT azAZ09-_.: HTTP/1.1\r\n\r\n", worker: "azAZ09-_.:"},
		{in: "CONNECT " + strings.Repeat("w", 128) + " HTTP/1.1\r\n\r\n", worker: strings.Repeat("w", 128)},
		{in: "CONNECT ` HTTP/1.1\r\n\r\n", kind: core.Invalid}, // adjacent to letters in ASCII
		{in: "CONNECT { HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT @ HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT [ HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT / HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT ; HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "GET w-1 HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "connect w-1 HTTP/1.1\r\n\r\n", kind: core.Invalid},
		{in: "CONNECT w-1 HTTP/1.1\n\n\r\n\r\n", kind: core.Invalid},
		{in: strings.Repeat("x", 2000), kind: core.Invalid},
		{in: "\r\n\r\n", kind: core.Invalid},
		// io.ErrUnexpectedEOF: the connection is closed, so there is no one to answer
		{in: "CONNECT w-1 HTTP/1.1\r\n", kind: core.Internal},
		{in: "", kind: core.Internal},
	} {
		for name, r := range map[string]io.Reader{
			"at once": strings.NewReader(tt.in), "in bytes": iotest.OneByteReader(strings.NewReader(tt.in)), "with the end": iotest.DataErrReader(strings.NewReader(tt.in)),
		} {
			worker, rest, err := rpc.ReadConnect(r)
			must.Eq(t, tt.kind, core.KindOf(err), must.Sprintf("%s %.60q: %v", name, tt.in, err))
			must.Eq(t, tt.worker, worker)
			if err == nil {
				after, err := io.ReadAll(r)
				must.NoError(t, err)
				must.Eq(t, tt.rest, string(rest)+string(after))
			}
		}
	}
}

// Any input yields a valid worker id or an error, and no byte after the head is lost.
func FuzzConnect(f *testing.F) {
	f.Add([]byte(connect+"rest"), 3)
	f.Add([]byte("CONNECT w-1 HTTP/1.1\r\nHost: w-2\r\n\r\n"), 1)
	f.Add([]byte("CONNECT a\r\n\r\nb HTTP/1.1\r\n\r\n"), 100)
	f.Add(bytes.Repeat([]byte("\r\n\r"), 500), 7)
	f.Add([]byte{}, 0)
	f.Fuzz(func(t *testing.T, data []byte, step int) {
		r := io.Reader(bytes.NewReader(data))
		if step > 0 {
			r = &steps{data, step}
		}
		worker, rest, err := rpc.ReadConnect(r)
		if err != nil {
			must.Eq(t, "", worker)
			return
		}
		must.RegexMatch(t, workerPattern, worker)
		must.True(t, bytes.HasPrefix(data, []byte("CONNECT "+worker+" HTTP/1.1\r\n")))
		after, err := io.ReadAll(r)
		must.NoError(t, err)
		_, want, ok := bytes.Cut(data, []byte("\r\n\r\n"))
		must.True(t, ok)
		must.Eq(t, string(want), string(rest)+string(after))
	})
}

// A hive's answer parses as an answer or as an error with a kind.
func FuzzConnectAnswer(f *testing.F) {
	f.Add([]byte("HTTP/1.1 200 OK\r\n\r\nbytes"))
	f.Add([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: 38\r\n\r\n{\"kind\":\"not_found\",\"message\":\"gone\"}"))
	f.Add([]byte("HTTP/1.1 404 Not Found\r\nContent-Length: -1\r\n\r\n"))
	f.Add([]byte("HTTP/1.1 503 X\r\nContent-Length: 99999999999999999999\r\n\r\n{}"))
	f.Add([]byte("HTTP/1.1 200\r\n\r\n"))
	f.Add([]byte("\r\n\r\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		rest, err := rpc.ConnectWorker(struct {
			io.Reader
			io.Writer
		}{bytes.NewReader(data), io.Discard}, "w-1")
		if err == nil {
			must.True(t, bytes.HasPrefix(data, []byte("HTTP/1.1 200")))
			must.True(t, bytes.HasSuffix(data, rest) || len(data) > 1<<10)
			return
		}
		must.NotEq(t, "", err.Error())
	})
}

// steps returns its bytes a few at a time.
type steps struct {
	data []byte
	n    int
}

func (s *steps) Read(p []byte) (int, error) {
	if len(s.data) == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), s.n)], s.data)
	s.data = s.data[n:]
	return n, nil
}

// dataNode returns a node whose data connections a function answers.
func dataNode(t *testing.T, answer func(c net.Conn)) (*rpc.Pool, *node) {
	t.Helper()
	ca := newCA(t)
	n := listen(t, identity(t, ca, "00000001", core.RoleHive))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := n.mux.Data().Accept()
			if err != nil {
				return
			}
			answer(c)
		}
	}()
	t.Cleanup(func() { n.stop(); <-done })
	return newPool(t, ca), n
}

// endsOnCall is a context that ends with err once done is closed, so that a loaded machine cannot
// end it too early.
type endsOnCall struct {
	context.Context
	done chan struct{}
	err  error
}

func (e endsOnCall) Done() <-chan struct{} { return e.done }

func (e endsOnCall) Err() error {
	select {
	case <-e.done:
		return e.err
	default:
		return nil
	}
}

func TestDialData(t *testing.T) {
	t.Parallel()
	failure := core.Errorf(core.NotFound, "hive x has no worker %q", "gone").Hint("Look again.")
	asked := make(chan struct{}, 2)
	p, n := dataNode(t, func(c net.Conn) {
		id, _, err := rpc.ReadConnect(c)
		must.NoError(t, err)
		switch id {
		case "gone":
			must.NoError(t, rpc.AnswerConnect(c, failure))
			must.NoError(t, c.Close())
		case "cut":
			must.NoError(t, rpc.AnswerConnect(c, nil))
			_, err := c.Write([]byte("half"))
			must.NoError(t, err)
			c.(*rpc.Conn).Abort()
		case "mute":
			asked <- struct{}{}
			_, _ = c.Read(make([]byte, 1)) // until the other side closes it
			_ = c.Close()
		case "odd":
			_, err := io.WriteString(c, "SSH-2.0-x\r\n\r\n")
			must.NoError(t, err)
			must.NoError(t, c.Close())
		case "early":
			_, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\nearly")
			must.NoError(t, err)
			must.NoError(t, c.Close())
		}
	})
	dial := func(ctx context.Context, worker string) (net.Conn, error) {
		return p.DialData(ctx, "00000001", n.addr, worker)
	}

	_, err := dial(t.Context(), "gone")
	must.Eq(t, core.FailureOf(failure), core.FailureOf(err)) // the hive's error, unchanged
	c, err := dial(t.Context(), "cut")
	must.NoError(t, err)
	data, err := io.ReadAll(c)
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
	must.Eq(t, "half", string(data))
	c, err = dial(t.Context(), "early")
	must.NoError(t, err)
	data, err = io.ReadAll(c)
	must.NoError(t, err)
	must.Eq(t, "early", string(data))
	_, err = dial(t.Context(), "odd")
	must.Eq(t, core.Unavailable, core.KindOf(err))
	_, err = dial(t.Context(), "a b")
	must.Eq(t, core.Invalid, core.KindOf(err))

	for _, end := range []error{context.Canceled, context.DeadlineExceeded} {
		ctx := endsOnCall{t.Context(), make(chan struct{}), end}
		ended := make(chan error, 1)
		go func() {
			_, err := dial(ctx, "mute")
			ended <- err
		}()
		<-asked
		close(ctx.done)
		must.Eq(t, core.KindOf(end), core.KindOf(<-ended))
	}

	_, err = p.DialData(t.Context(), "00000001", "127.0.0.1:1", "w")
	must.Eq(t, core.Unavailable, core.KindOf(err))
	must.False(t, errors.Is(err, io.EOF))
}

// Open connections to a revoked node are cut.
func TestDialDataRevoked(t *testing.T) {
	t.Parallel()
	p, n := dataNode(t, func(c net.Conn) {
		_, _, err := rpc.ReadConnect(c)
		must.NoError(t, err)
		must.NoError(t, rpc.AnswerConnect(c, nil))
	})
	c, err := p.DialData(t.Context(), "00000001", n.addr, "w")
	must.NoError(t, err)
	ended := make(chan error, 1)
	go func() {
		_, err := c.Read(make([]byte, 1))
		ended <- err
	}()
	data, sessions := p.Held()
	must.Eq(t, []int{1, 1}, []int{data, sessions})
	p.Forget("00000001")
	must.Error(t, <-ended)
	data, sessions = p.Held()
	must.Eq(t, []int{0, 0}, []int{data, sessions}, must.Sprint("a session would let it in again"))
}

// A hive has one address: sessions with an earlier one are forgotten.
func TestDialDataSessions(t *testing.T) {
	t.Parallel()
	p, n := dataNode(t, func(c net.Conn) {
		_, _, err := rpc.ReadConnect(c)
		must.NoError(t, err)
		must.NoError(t, rpc.AnswerConnect(c, nil))
	})
	for _, address := range []string{n.addr, newProxy(t, n.addr).addr, newProxy(t, n.addr).addr} {
		c, err := p.DialData(t.Context(), "00000001", address, "w")
		must.NoError(t, err)
		must.NoError(t, c.Close())
		data, sessions := p.Held()
		must.Eq(t, []int{0, 1}, []int{data, sessions})
	}
}

// A revoked hive, or a pool closed during the handshake, gets no connection.
func TestDialDataTooLate(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]func(p *rpc.Pool, r *revocations){
		"revoked": func(_ *rpc.Pool, r *revocations) { r.add("00000001") },
		"closed":  func(p *rpc.Pool, _ *revocations) { must.NoError(t, p.Close()) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := newCA(t)
			n := listen(t, identity(t, ca, "00000001", core.RoleHive))
			var revoked revocations
			var p *rpc.Pool
			var asked atomic.Int64
			p = newPool(t, ca, func(o *rpc.PoolOptions) {
				o.Revoked = func(id string) bool {
					defer func() {
						if asked.Add(1) == 2 { // during the handshake
							late(p, &revoked)
						}
					}()
					return revoked.has(id)
				}
			})
			_, err := p.DialBlob(t.Context(), "00000001", n.addr)
			must.Error(t, err)
			data, _ := p.Held()
			must.Zero(t, data)
		})
	}
}

// Only hives fetch files from hives: both sides check it.
func TestDialBlob(t *testing.T) {
	t.Parallel()
	ca, other := newCA(t), newCA(t)
	n := listen(t, identity(t, ca, "00000001", core.RoleHive))
	open := echo(t, n.mux.Blobs())
	queenOnly := listen(t, identity(t, ca, "00000009", core.RoleQueen))
	pool := func(id *pki.Identity) *rpc.Pool {
		p := rpc.NewPool(rpc.PoolOptions{Identity: id, Revoked: func(id string) bool { return id == "00000008" }})
		t.Cleanup(func() { must.NoError(t, p.Close()) })
		return p
	}
	try := func(p *rpc.Pool, node, address string) error {
		c, err := p.DialBlob(t.Context(), node, address)
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err = c.Read(make([]byte, 1))
		return err
	}
	hive := pool(identity(t, ca, "00000002", core.RoleHive))
	must.NoError(t, try(hive, "00000001", n.addr))
	must.NoError(t, try(pool(identity(t, ca, "00000003", both...)), "00000001", n.addr))
	must.Error(t, try(pool(identity(t, ca, "00000004", core.RoleQueen)), "00000001", n.addr))
	must.Error(t, try(pool(identity(t, other, "00000005", core.RoleHive)), "00000001", n.addr))
	eventually(t, 10*time.Second, "the queen is counted", func() bool { return n.refused.all()[rpc.ReasonWrongRole] == 1 })

	err := try(hive, "00000007", n.addr) // another node listens at that address
	must.Eq(t, core.Unauthenticated, core.KindOf(err))
	err = try(hive, "00000008", n.addr)
	must.Eq(t, core.Forbidden, core.KindOf(err))
	// it does not offer files
	must.Eq(t, core.Unavailable, core.KindOf(try(hive, "00000009", queenOnly.addr)))
	must.Eq(t, core.Unavailable, core.KindOf(try(hive, "00000001", "127.0.0.1:1")))

	// Open connections to a revoked node are cut.
	eventually(t, 10*time.Second, "the others have ended", func() bool { return open.Load() == 0 })
	c, err := hive.DialBlob(t.Context(), "00000001", n.addr)
	must.NoError(t, err)
	hive.Forget("00000001")
	_, err = c.Read(make([]byte, 1))
	must.Error(t, err)
}
