package rpc

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
)

// The parts of HTTP/2 frames, RFC 9113 section 6, that a meter reads.
const (
	framePreface    = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	frameHeadBytes  = 9
	frameData       = 0x0
	frameHeaders    = 0x1
	frameReset      = 0x3
	flagEndStream   = 0x1
	flagPadded      = 0x8
	streamIDMask    = 1<<31 - 1
	messageHeadSize = 5 // gRPC's: a flag and the length
)

var errPadded = errors.New("a padded frame, which gRPC does not send")

// frames parses the frames in one direction of an HTTP/2 connection. It keeps no payload bytes.
type frames struct {
	skip int // bytes of the preface to skip
	head [frameHeadBytes]byte
	have int    // bytes of head read so far
	left int    // bytes of the frame's payload still to come
	kind byte   // frame type; this and the next fields belong to the frame
	id   uint32 // stream id
	end  bool   // it ends the stream
}

// feed parses p and calls the callbacks: each frame's start, then parts of its payload, then its
// end.
func (f *frames) feed(p []byte, begin func() error, payload func(part []byte), end func()) error {
	for len(p) > 0 {
		if f.skip > 0 {
			n := min(f.skip, len(p))
			f.skip -= n
			p = p[n:]
			continue
		}
		if f.have < frameHeadBytes {
			n := copy(f.head[f.have:], p)
			f.have += n
			if p = p[n:]; f.have < frameHeadBytes {
				return nil
			}
			f.left = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
			f.kind, f.id = f.head[3], binary.BigEndian.Uint32(f.head[5:])&streamIDMask
			flags := f.head[4]
			f.end = flags&flagEndStream != 0 && (f.kind == frameData || f.kind == frameHeaders) || f.kind == frameReset
			if f.kind == frameData && flags&flagPadded != 0 {
				return errPadded
			}
			if err := begin(); err != nil {
				return err
			}
		}
		n := min(f.left, len(p))
		if n > 0 {
			payload(p[:n])
		}
		f.left -= n
		if p = p[n:]; f.left == 0 {
			f.have = 0
			end()
		}
	}
	return nil
}

// meter is a node's connection to a gRPC server. It reports the bytes of incomplete messages to a
// budget.
type meter struct {
	*Conn
	budget *budget

	mu      sync.Mutex // guards below
	in, out frames
	newest  uint32
	streams map[uint32]*incoming // those that may still send
	pending int64                // sum over streams
	closed  bool
}

// incoming is the message that a stream is sending.
type incoming struct {
	head [messageHeadSize]byte
	have int   // bytes of head read so far
	left int64 // bytes of the message still to come
	got  int64 // bytes of the message received, head included
}

func newMeter(c *Conn, b *budget) *meter {
	return &meter{Conn: c, budget: b, in: frames{skip: len(framePreface)}, streams: map[uint32]*incoming{}}
}

func (m *meter) Read(p []byte) (int, error) {
	n, err := m.Conn.Read(p)
	if n > 0 {
		if bad := m.note(func() error { return m.in.feed(p[:n], m.began, m.came, m.ended) }); bad != nil {
			m.Abort()
			return 0, bad
		}
	}
	return n, err
}

func (m *meter) Write(p []byte) (int, error) {
	n, err := m.Conn.Write(p)
	if n > 0 {
		_ = m.note(func() error { // this side writes well-formed frames
			return m.out.feed(p[:n], func() error { return nil }, func([]byte) {}, func() {
				if m.out.end {
					m.over(m.out.id)
				}
			})
		})
	}
	return n, err
}

// Close closes the connection and releases the bytes of its messages.
func (m *meter) Close() error {
	err := m.Conn.Close()
	_ = m.note(func() error {
		m.closed = true
		m.pending = 0
		m.streams = nil
		return nil
	})
	return err
}

// note runs f under the lock and reports the outcome to the budget.
func (m *meter) note(f func() error) error {
	m.mu.Lock()
	before := m.pending
	var err error
	if !m.closed {
		err = f()
	}
	change := m.pending - before
	m.mu.Unlock()
	m.budget.add(m.Conn, change)
	return err
}

func (m *meter) began() error {
	if m.in.kind == frameHeaders && m.in.id > m.newest { // later ones of a stream are its trailers
		m.newest = m.in.id
		m.streams[m.in.id] = &incoming{}
	}
	return nil
}

func (m *meter) came(part []byte) {
	s := m.streams[m.in.id]
	if m.in.kind != frameData || s == nil {
		return // the stream has ended: the server drops it too
	}
	for len(part) > 0 {
		if s.have < messageHeadSize {
			n := copy(s.head[s.have:], part)
			s.have += n
			s.got += int64(n)
			m.pending += int64(n)
			if part = part[n:]; s.have < messageHeadSize {
				return
			}
			s.left = int64(binary.BigEndian.Uint32(s.head[1:]))
		}
		n := min(s.left, int64(len(part)))
		s.left -= n
		s.got += n
		m.pending += n
		if part = part[n:]; s.left == 0 {
			m.pending -= s.got
			*s = incoming{}
		}
	}
}

func (m *meter) ended() {
	if m.in.end {
		m.over(m.in.id)
	}
}

// over drops a stream that will send no more or that the server ignores.
func (m *meter) over(id uint32) {
	if s := m.streams[id]; s != nil {
		m.pending -= s.got
		delete(m.streams, id)
	}
}

// callMeter reports to a budget what calls hold: a whole message, until the call ends or asks for
// the next one.
type callMeter struct{ budget *budget }

type callHeldKey struct{}

type callHeld struct {
	conn   *Conn
	budget *budget

	mu   sync.Mutex // guards below
	held int64
}

// set records how many bytes the call holds now.
func (c *callHeld) set(n int64) {
	c.mu.Lock()
	change := n - c.held
	c.held = n
	c.mu.Unlock()
	c.budget.add(c.conn, change)
}

// TagRPC implements stats.Handler.
func (c callMeter) TagRPC(ctx context.Context, _ *stats.RPCTagInfo) context.Context {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return ctx
	}
	if from, ok := p.AuthInfo.(fromNode); ok {
		return context.WithValue(ctx, callHeldKey{}, &callHeld{conn: from.conn, budget: c.budget})
	}
	return ctx
}

// HandleRPC implements stats.Handler.
func (callMeter) HandleRPC(ctx context.Context, s stats.RPCStats) {
	call, ok := ctx.Value(callHeldKey{}).(*callHeld)
	if !ok {
		return
	}
	switch s := s.(type) {
	case *stats.InPayload:
		call.set(int64(s.WireLength))
	case *stats.End:
		call.set(0)
	}
}

// TagConn implements stats.Handler.
func (callMeter) TagConn(ctx context.Context, _ *stats.ConnTagInfo) context.Context { return ctx }

// HandleConn implements stats.Handler.
func (callMeter) HandleConn(context.Context, stats.ConnStats) {}

// releaseHeld wraps a stream so that it holds no message while it waits for the next one.
func releaseHeld(srv any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if call, ok := ss.Context().Value(callHeldKey{}).(*callHeld); ok {
		ss = heldStream{ss, call}
	}
	return next(srv, ss)
}

type heldStream struct {
	grpc.ServerStream
	call *callHeld
}

// RecvMsg implements grpc.ServerStream.
func (s heldStream) RecvMsg(m any) error {
	s.call.set(0)
	return s.ServerStream.RecvMsg(m)
}

var (
	_ net.Conn      = (*meter)(nil)
	_ stats.Handler = callMeter{}
)
