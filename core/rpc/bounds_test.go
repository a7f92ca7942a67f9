package rpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

const (
	joinMethod   = "/rbee.queen.v1.JoinService/Join"
	submitMethod = "/rbee.job.v1.JobService/Submit"
)

// rawClient speaks raw HTTP/2, well-formed or not.
type rawClient struct {
	conn net.Conn
	*http2.Framer
	next uint32
}

// rawDial connects with the identity's certificate; no certificate if it is nil.
func rawDial(t testing.TB, addr string, id *pki.Identity) *rawClient {
	t.Helper()
	config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{rpc.ProtocolGRPC}}
	if id != nil {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.Certificate(), nil }
	}
	raw, err := net.Dial("tcp", addr)
	must.NoError(t, err)
	c := tls.Client(raw, config)
	t.Cleanup(func() { _ = c.Close() })
	must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	_, err = io.WriteString(c, http2.ClientPreface)
	must.NoError(t, err)
	f := http2.NewFramer(c, c)
	f.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	must.NoError(t, f.WriteSettings())
	return &rawClient{conn: c, Framer: f, next: 1}
}

// call starts a call and returns its stream.
func (c *rawClient) call(t testing.TB, method string) uint32 {
	t.Helper()
	id, err := c.tryCall(t, method)
	must.NoError(t, err)
	return id
}

// tryCall is call on a connection that the server may have closed.
func (c *rawClient) tryCall(t testing.TB, method string) (uint32, error) {
	t.Helper()
	var head bytes.Buffer
	enc := hpack.NewEncoder(&head)
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", method}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		must.NoError(t, enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}))
	}
	id := c.next
	c.next += 2
	return id, c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head.Bytes(), EndHeaders: true})
}

// begin sends the start of a message: its header, which announces length bytes, and the first sent
// of them.
func (c *rawClient) begin(stream uint32, length, sent int) error {
	head := make([]byte, 5)
	binary.BigEndian.PutUint32(head[1:], uint32(length))
	if err := c.WriteData(stream, false, head); err != nil {
		return err
	}
	part := make([]byte, 16<<10)
	for sent > 0 {
		n := min(sent, len(part))
		if err := c.WriteData(stream, false, part[:n]); err != nil {
			return err
		}
		sent -= n
	}
	return nil
}

// answer waits for the end of a stream and returns the gRPC status, or the code that the stream was
// reset with.
func (c *rawClient) answer(stream uint32) (status string, reset http2.ErrCode, err error) {
	for {
		f, err := c.ReadFrame()
		if err != nil {
			return "", 0, err
		}
		if f.Header().StreamID != stream {
			continue
		}
		switch f := f.(type) {
		case *http2.RSTStreamFrame:
			return "", f.ErrCode, nil
		case *http2.MetaHeadersFrame:
			if f.StreamEnded() {
				for _, field := range f.Fields {
					if field.Name == "grpc-status" {
						return field.Value, 0, nil
					}
				}
			}
		}
	}
}

// gone waits until the other end closes the connection.
func (c *rawClient) gone(t testing.TB) {
	t.Helper()
	for {
		if _, err := c.ReadFrame(); err != nil {
			timeout, ok := errors.AsType[net.Error](err)
			must.False(t, ok && timeout.Timeout(), must.Sprint("the connection stands"))
			return
		}
	}
}

func queenNode(t *testing.T, change ...func(*rpc.MuxOptions)) (*node, *pki.CA) {
	t.Helper()
	ca := newCA(t)
	return listen(t, identity(t, ca, "00000001", both...), change...), ca
}

// Admission is decided before any byte of the call's message has arrived.
func TestAdmissionBeforeBody(t *testing.T) {
	t.Parallel()
	n, ca := queenNode(t)
	n.serve(t, rpc.ServerOptions{}, nil, registerAll)
	for name, id := range map[string]*pki.Identity{"guest": nil, "hive": identity(t, ca, "00000002", core.RoleHive)} {
		want := map[bool]codes.Code{true: codes.Unauthenticated, false: codes.PermissionDenied}[id == nil]
		c := rawDial(t, n.addr, id)
		got, reset, err := c.answer(c.call(t, submitMethod)) // for queens
		must.NoError(t, err, must.Sprint(name))
		must.Eq(t, http2.ErrCode(0), reset)
		must.Eq(t, strconv.Itoa(int(want)), got, must.Sprint(name))
	}
}

// A caller without a certificate may send only small messages, and few at once.
func TestGuestCallBounds(t *testing.T) {
	t.Parallel()
	n, _ := queenNode(t)
	n.serve(t, rpc.ServerOptions{}, nil, registerAll)
	c := rawDial(t, n.addr, nil)
	for range 4 {
		must.NoError(t, c.begin(c.call(t, joinMethod), 1000, 10)) // never finished
	}
	_, reset, err := c.answer(c.call(t, joinMethod))
	must.NoError(t, err)
	must.Eq(t, http2.ErrCodeRefusedStream, reset)

	c = rawDial(t, n.addr, nil)
	stream := c.call(t, joinMethod)
	must.NoError(t, c.begin(stream, 64<<10+1, 1))
	got, _, err := c.answer(stream)
	must.NoError(t, err)
	must.Eq(t, strconv.Itoa(int(codes.ResourceExhausted)), got)
}

// A connection without a certificate occupies one of a few places until it is closed. When all are
// taken, a new connection replaces the oldest.
func TestGuestPlaces(t *testing.T) {
	t.Parallel()
	n, _ := queenNode(t, func(o *rpc.MuxOptions) { o.MaxGuests = 3 })
	n.serve(t, rpc.ServerOptions{}, nil, registerAll)
	var all []*rawClient
	for range 5 {
		c := rawDial(t, n.addr, nil)
		_, _, err := c.answer(c.call(t, submitMethod)) // it occupies a place now
		must.NoError(t, err)
		all = append(all, c)
	}
	all[0].gone(t)
	all[1].gone(t)
	for _, c := range all[2:] {
		_, _, err := c.answer(c.call(t, submitMethod))
		must.NoError(t, err)
	}
	eventually(t, time.Second, "counted", func() bool { return n.refused.all()[rpc.ReasonTooMany] == 2 })
}

func TestGuestLife(t *testing.T) {
	t.Parallel()
	n, ca := queenNode(t, func(o *rpc.MuxOptions) { o.GuestLife = 200 * time.Millisecond })
	n.serve(t, rpc.ServerOptions{}, nil, registerAll)
	known := rawDial(t, n.addr, identity(t, ca, "00000002", core.RoleQueen))
	guest := rawDial(t, n.addr, nil)
	must.NoError(t, guest.begin(guest.call(t, joinMethod), 1000, 10))
	guest.gone(t)
	_, _, err := known.answer(known.call(t, "/rbee/nothing"))
	must.NoError(t, err)
}

// Only queens serve callers without a certificate.
func TestGuestAtHive(t *testing.T) {
	t.Parallel()
	n := listen(t, identity(t, newCA(t), "00000001", core.RoleHive))
	raw, err := net.Dial("tcp", n.addr)
	must.NoError(t, err)
	t.Cleanup(func() { _ = raw.Close() })
	c := tls.Client(raw, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{rpc.ProtocolGRPC}})
	must.NoError(t, raw.SetDeadline(time.Now().Add(10*time.Second)))
	_ = c.Handshake() // a server's refusal comes after a client's handshake
	_, err = c.Read(make([]byte, 1))
	must.ErrorContains(t, err, "tls:")
	eventually(t, time.Second, "counted", func() bool { return n.refused.all()[rpc.ReasonNoCertificate] == 1 })
}

// A node's connections for calls are bounded, and a new one replaces the oldest. Connections for
// data and files beyond the bound are refused.
func TestNodeConnectionBounds(t *testing.T) {
	t.Parallel()
	n, ca := queenNode(t, func(o *rpc.MuxOptions) { o.MaxStreams = 4 })
	n.serve(t, rpc.ServerOptions{}, nil, registerAll)
	queen := identity(t, ca, "00000002", core.RoleQueen)
	var all []*rawClient
	for range 18 {
		c := rawDial(t, n.addr, queen)
		_, _, err := c.answer(c.call(t, "/rbee/nothing"))
		must.NoError(t, err)
		all = append(all, c)
	}
	all[0].gone(t)
	all[1].gone(t)
	_, _, err := all[2].answer(all[2].call(t, "/rbee/nothing"))
	must.NoError(t, err)

	open := echo(t, n.mux.Data())
	for range 2 {
		_, err := shake(t, n.addr, queen.ClientConfig(rpc.ProtocolData, core.RoleHive, "00000001"))
		must.NoError(t, err)
	}
	_, err = shake(t, n.addr, queen.ClientConfig(rpc.ProtocolData, core.RoleHive, "00000001"))
	must.Error(t, err)
	other := identity(t, ca, "00000003", core.RoleQueen)
	for range 2 {
		_, err = shake(t, n.addr, other.ClientConfig(rpc.ProtocolData, core.RoleHive, "00000001"))
		must.NoError(t, err)
	}
	third := identity(t, ca, "00000004", core.RoleQueen)
	_, err = shake(t, n.addr, third.ClientConfig(rpc.ProtocolData, core.RoleHive, "00000001"))
	must.Error(t, err) // all places are taken
	must.Eq(t, 4, open.Load())
	eventually(t, time.Second, "counted", func() bool { return n.refused.all()[rpc.ReasonTooMany] == 4 })
	n.mux.CloseNode("00000003")
	eventually(t, time.Second, "there is a place again", func() bool {
		_, err := shake(t, n.addr, third.ClientConfig(rpc.ProtocolData, core.RoleHive, "00000001"))
		return err == nil
	})
}

// A node whose unfinished messages take too much memory loses its connection; other nodes keep
// theirs.
func TestUnfinishedMessages(t *testing.T) {
	t.Parallel()
	n, ca := queenNode(t)
	n.serve(t, rpc.ServerOptions{MaxHeldBytes: 4 << 20}, nil, registerAll)
	good := rawDial(t, n.addr, identity(t, ca, "00000002", core.RoleQueen))
	waiting := good.call(t, submitMethod)
	must.NoError(t, good.begin(waiting, 160<<10, 80<<10)) // within the window of a stream

	bad := rawDial(t, n.addr, identity(t, ca, "00000003", core.RoleQueen))
	var err error
	for range 8 { // 8 × 240 KiB: twice what one node may hold
		var stream uint32
		if stream, err = bad.tryCall(t, submitMethod); err == nil {
			err = bad.begin(stream, 1<<20, 240<<10)
		}
		if err != nil {
			break
		}
	}
	bad.gone(t)
	eventually(t, time.Second, "counted", func() bool { return n.refused.all()[rpc.ReasonTooMany] == 1 })

	part := make([]byte, 16<<10)
	for range 5 {
		must.NoError(t, good.WriteData(waiting, false, part))
	}
	got, _, err := good.answer(waiting) // the message is malformed, but it was read
	must.NoError(t, err)
	must.Eq(t, strconv.Itoa(int(codes.Internal)), got)
	must.Eq(t, map[rpc.Reason]int{rpc.ReasonTooMany: 1}, n.refused.all())

	// A closed connection releases what it held.
	for range 4 {
		c := rawDial(t, n.addr, identity(t, ca, "00000003", core.RoleQueen))
		for range 3 {
			must.NoError(t, c.begin(c.call(t, submitMethod), 1<<20, 240<<10))
		}
		_, _, err := c.answer(c.call(t, "/rbee/nothing")) // everything before it has been read
		must.NoError(t, err)
		must.NoError(t, c.conn.Close())
	}
	_, _, err = good.answer(good.call(t, "/rbee/nothing"))
	must.NoError(t, err)
}

// A call's messages count until the call ends: messages in handlers take memory too.
func TestHeldMessages(t *testing.T) {
	t.Parallel()
	n, ca := queenNode(t)
	end, entered := make(chan struct{}), make(chan struct{}, 10)
	finish := sync.OnceFunc(func() { close(end) })
	n.serve(t, rpc.ServerOptions{MaxHeldBytes: 4 << 20}, nil, func(s *grpc.Server) {
		jobv1.RegisterJobServiceServer(s, &slowJobs{end: end, entered: entered})
	})
	t.Cleanup(finish)
	pool := rpc.NewPool(rpc.PoolOptions{Identity: identity(t, ca, "00000002", core.RoleQueen)})
	t.Cleanup(func() { _ = pool.Close() })
	conn, err := pool.Conn("00000001", n.addr, core.RoleHive)
	must.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	failed := make(chan error, 3)
	for i := range 3 { // 400 KiB each; a node may hold 1 MiB
		go func() {
			_, err := jobv1.NewJobServiceClient(conn).Submit(ctx, &jobv1.SubmitRequest{RequestJson: make([]byte, 400<<10)})
			failed <- err
		}()
		if i < 2 {
			<-entered
		}
	}
	for range 3 {
		must.Eq(t, core.Unavailable, core.KindOf(<-failed))
	}
	eventually(t, time.Second, "counted", func() bool { return n.refused.all()[rpc.ReasonTooMany] == 1 })
	finish()
	eventually(t, 5*time.Second, "there is room again", func() bool {
		_, err := jobv1.NewJobServiceClient(conn).Submit(t.Context(), &jobv1.SubmitRequest{RequestJson: make([]byte, 800<<10)})
		return err == nil
	})
}

type slowJobs struct {
	jobv1.UnimplementedJobServiceServer
	end, entered chan struct{}
}

func (s *slowJobs) Submit(context.Context, *jobv1.SubmitRequest) (*jobv1.SubmitResponse, error) {
	s.entered <- struct{}{}
	<-s.end
	return &jobv1.SubmitResponse{}, nil
}

// Two bytes on the wire decode to a worker of two hundred bytes in memory.
func TestCodecBoundsMemory(t *testing.T) {
	t.Parallel()
	empty := func(field protowire.Number, n int) []byte {
		var b []byte
		for range n {
			b = protowire.AppendBytes(protowire.AppendTag(b, field, protowire.BytesType), nil)
		}
		return b
	}
	decode := func(b []byte, m any) error {
		return rpc.Codec().Unmarshal(mem.BufferSlice{mem.SliceBuffer(b)}, m)
	}
	var report queenv1.LinkRequest
	must.Eq(t, codes.ResourceExhausted, status.Code(decode(empty(3, 2<<20), &report)))
	must.SliceEmpty(t, report.GetWorkers())
	var response queenv1.LinkResponse
	must.Eq(t, codes.ResourceExhausted, status.Code(decode(empty(4, 2<<20), &response)), must.Sprint("strings"))
	var events jobv1.ListResponse
	must.Eq(t, codes.ResourceExhausted, status.Code(decode(empty(1, 2<<20), &events)))
	// Nested messages.
	deep := []byte{}
	for range 100 {
		deep = protowire.AppendBytes(protowire.AppendTag(nil, 5, protowire.BytesType), deep)
	}
	_ = decode(append(deep, make([]byte, 32<<10)...), &response) // no crash

	// The messages of a large cluster stay well below the bound.
	full := queenv1.LinkRequest{Hive: &queenv1.Hive{Id: "00000001"}}
	for range 2000 {
		full.Workers = append(full.Workers, &queenv1.Worker{Id: strings.Repeat("w", 26), Model: strings.Repeat("m", 100), ModelDigest: strings.Repeat("d", 71), Load: &queenv1.Load{Active: 1}})
	}
	data, err := rpc.Codec().Marshal(&full)
	must.NoError(t, err)
	must.NoError(t, decode(data.Materialize(), &report))
	must.Len(t, 2000, report.GetWorkers())
}
