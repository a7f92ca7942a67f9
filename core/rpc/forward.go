package rpc

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rbee-project/rbee/core"
)

const (
	// leaderWait bounds the total time that a call waits for a leader.
	leaderWait = 5 * time.Second
	// leaderLook is the pause between lookups of the leader.
	leaderLook = 20 * time.Millisecond
	// leaderWatch is the pause between checks that a call still waits for the leader.
	leaderWatch = 100 * time.Millisecond
	// answeredKey marks the trailer of the leader's own answers.
	answeredKey = "rbee-answered"
	// notLeaderKey marks the trailer of an answer in which a queen reports that it does not lead
	// and has done nothing.
	notLeaderKey = "rbee-not-leader"
)

// Forwarder routes calls that only the leader answers.
type Forwarder struct {
	// Leader returns the leading queen as far as this node knows, without waiting. local reports
	// whether it is this node. Errors: Unavailable.
	Leader func(ctx context.Context) (nodeID, address string, local bool, err error)
	// Conn returns a connection to another queen.
	Conn func(nodeID, address string) (grpc.ClientConnInterface, error)
}

var (
	errNoLeader      = errors.New("there is no leader")
	errLeaderChanged = errors.New("another queen leads now")
)

func noLeader() error {
	return core.WithHint(core.WithKind(errNoLeader, core.Unavailable),
		"Try again shortly. If it stays so, most queens are down or cut off: \"rbee status\" says which.")
}

// route decides where to answer a call: here, or by forwarding it on the connection.
func (f *Forwarder) route(ctx context.Context, c *call, until time.Time) (leader string, conn grpc.ClientConnInterface, err error) {
	for {
		id, address, local, err := f.Leader(ctx)
		switch {
		case err == nil && local:
			return id, nil, nil
		case c.forwarded:
			// The queen that forwarded the call looks the leader up again; forwarding it once more
			// could loop.
			return "", nil, noLeader()
		case err == nil:
			if conn, err = f.Conn(id, address); err == nil {
				return id, conn, nil
			}
		case core.KindOf(err) != core.Unavailable:
			return "", nil, err
		}
		if !wait(ctx, until) {
			return "", nil, noLeader()
		}
	}
}

// follow returns a context that ends when a queen other than the asked one is known to lead: a
// queen that was stopped or cut off never answers.
func (f *Forwarder) follow(ctx context.Context, leader string) (following context.Context, cancel func()) {
	following, end := context.WithCancelCause(ctx)
	looking := make(chan struct{}, 1) // holds one token while no goroutine is looking
	var timer *time.Timer
	timer = time.AfterFunc(leaderWatch, func() {
		<-looking
		defer func() { looking <- struct{}{} }()
		if following.Err() != nil {
			return
		}
		if id, _, _, err := f.Leader(following); err == nil && id != leader {
			end(errLeaderChanged)
			return
		}
		timer.Reset(leaderWatch)
	})
	looking <- struct{}{}
	return following, func() {
		end(context.Canceled)
		timer.Stop()
		<-looking
	}
}

// wait waits until the next lookup. It returns false if it is too late for another.
func wait(ctx context.Context, until time.Time) bool {
	if time.Until(until) <= 0 {
		return false
	}
	timer := time.NewTimer(leaderLook)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// outgoing returns the context of a forwarded call.
func (c *call) outgoing(ctx context.Context) context.Context {
	return metadata.NewOutgoingContext(ctx, metadata.Pairs(forwardedKey, "1", callerKey, c.caller, callerAddressKey, c.host))
}

// attempt records what became of a forwarded call.
type attempt struct {
	trailer metadata.MD
	peer    peer.Peer
}

func (a *attempt) options() []grpc.CallOption {
	return []grpc.CallOption{grpc.Trailer(&a.trailer), grpc.Peer(&a.peer)}
}

// untouched reports whether no queen has acted on the call: it did not arrive, or the queen that
// received it does not lead.
func (a *attempt) untouched(ctx context.Context, err error) bool {
	if core.KindOf(FromStatus(err)) != core.Unavailable && !errors.Is(context.Cause(ctx), errLeaderChanged) {
		return false
	}
	return a.peer.Addr == nil || first(a.trailer, notLeaderKey) != ""
}

// lost returns the error. If the leader disconnected during the call, the error warns that the
// outcome is unknown.
func (a *attempt) lost(ctx context.Context, err error) error {
	err = FromStatus(err)
	switch {
	case first(a.trailer, answeredKey) != "":
		return err
	case errors.Is(context.Cause(ctx), errLeaderChanged):
		err = errLeaderChanged
	case core.KindOf(err) != core.Unavailable:
		return err
	}
	return core.Errorf(core.Unavailable, "the leader was lost before it answered: %w", err).Hint(
		"It is unknown whether it was done: check before you repeat it.")
}

func (f *Forwarder) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil || !c.rule.GetLeader() {
		return next(ctx, req)
	}
	until := time.Now().Add(leaderWait)
	for {
		leader, conn, err := f.route(ctx, c, until)
		if err != nil {
			if c.forwarded {
				grpc.SetTrailer(ctx, metadata.Pairs(notLeaderKey, "1")) //nolint:errcheck // without it the caller does not try again
			}
			return nil, err
		}
		if conn == nil {
			if c.forwarded {
				grpc.SetTrailer(ctx, metadata.Pairs(answeredKey, "1")) //nolint:errcheck // only makes an error's text better
			}
			return next(ctx, req)
		}
		reply, err := newMessage(c.method.Output())
		if err != nil {
			return nil, err
		}
		var a attempt
		following, cancel := f.follow(ctx, leader)
		err = conn.Invoke(c.outgoing(following), info.FullMethod, req, reply, a.options()...)
		untouched := err != nil && a.untouched(following, err)
		if err != nil && !untouched {
			err = a.lost(following, err)
		}
		cancel()
		switch {
		case err == nil:
			return reply, nil
		case !untouched:
			return nil, err
		case !wait(ctx, until):
			return nil, noLeader()
		}
	}
}

func (f *Forwarder) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	ctx := ss.Context()
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil || !c.rule.GetLeader() {
		return next(srv, ss)
	}
	var request proto.Message // the message of a call with a single request
	until := time.Now().Add(leaderWait)
	for {
		leader, conn, err := f.route(ctx, c, until)
		if err != nil {
			if c.forwarded {
				ss.SetTrailer(metadata.Pairs(notLeaderKey, "1"))
			}
			return err
		}
		if conn == nil && c.forwarded {
			ss.SetTrailer(metadata.Pairs(answeredKey, "1"))
		}
		if conn == nil && request != nil {
			return next(srv, &replay{streamOf: streamOf{ss, ctx}, first: request})
		}
		if conn == nil {
			return next(srv, ss)
		}
		if info.IsClientStream {
			if info.IsServerStream {
				return core.Errorf(core.Unsupported, "%s streams in both directions and cannot be forwarded to the leader", info.FullMethod)
			}
			following, cancel := f.follow(ctx, leader)
			defer cancel()
			return f.upload(following, c, conn, ss, info)
		}
		if request == nil {
			if request, err = newMessage(c.method.Input()); err != nil {
				return err
			}
			if err := ss.RecvMsg(request); err != nil {
				return err
			}
		}
		following, cancel := f.follow(ctx, leader)
		again, err := f.download(following, c, conn, request, ss, info)
		cancel()
		switch {
		case !again:
			return err
		case !wait(ctx, until):
			return noLeader()
		}
	}
}

// download forwards a call with one request and many answers. again reports that no queen has acted
// on it yet, so that it may be retried.
func (f *Forwarder) download(ctx context.Context, c *call, conn grpc.ClientConnInterface, request proto.Message, ss grpc.ServerStream, info *grpc.StreamServerInfo) (again bool, err error) {
	var a attempt
	cs, err := conn.NewStream(c.outgoing(ctx), &grpc.StreamDesc{ServerStreams: true}, info.FullMethod, a.options()...)
	if err != nil {
		return a.untouched(ctx, err), a.lost(ctx, err)
	}
	// io.EOF is the end of the stream: RecvMsg returns the reason
	if err := cs.SendMsg(request); err != nil && !errors.Is(err, io.EOF) {
		return false, a.lost(ctx, err)
	}
	if err := cs.CloseSend(); err != nil {
		return false, a.lost(ctx, err)
	}
	for sent := false; ; sent = true {
		answer, err := newMessage(c.method.Output())
		if err != nil {
			return false, err
		}
		switch err := cs.RecvMsg(answer); {
		case errors.Is(err, io.EOF):
			return false, nil
		case err != nil:
			return !sent && a.untouched(ctx, err), a.lost(ctx, err)
		}
		if err := ss.SendMsg(answer); err != nil {
			return false, err
		}
	}
}

// upload forwards a call with many requests and one answer. It does not retry: the requests are
// already consumed.
func (f *Forwarder) upload(ctx context.Context, c *call, conn grpc.ClientConnInterface, ss grpc.ServerStream, info *grpc.StreamServerInfo) error {
	var a attempt
	cs, err := conn.NewStream(c.outgoing(ctx), &grpc.StreamDesc{ClientStreams: true}, info.FullMethod, a.options()...)
	if err != nil {
		return a.lost(ctx, err)
	}
	for {
		request, err := newMessage(c.method.Input())
		if err != nil {
			return err
		}
		if err := ss.RecvMsg(request); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return err
		}
		if err := cs.SendMsg(request); errors.Is(err, io.EOF) { // the leader has answered already
			break
		} else if err != nil {
			return a.lost(ctx, err)
		}
	}
	if err := cs.CloseSend(); err != nil {
		return a.lost(ctx, err)
	}
	answer, err := newMessage(c.method.Output())
	if err != nil {
		return err
	}
	if err := cs.RecvMsg(answer); err != nil {
		return a.lost(ctx, err)
	}
	return ss.SendMsg(answer)
}

// replay is a stream whose only request was already read.
type replay struct {
	streamOf
	first proto.Message
}

// RecvMsg returns the request, then the stream's end.
func (r *replay) RecvMsg(m any) error {
	to, ok := m.(proto.Message)
	if r.first == nil || !ok {
		return r.ServerStream.RecvMsg(m)
	}
	proto.Merge(to, r.first)
	r.first = nil
	return nil
}

// newMessage returns an empty message of the type.
func newMessage(d protoreflect.MessageDescriptor) (proto.Message, error) {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "pass on a call")
	}
	return t.New().Interface(), nil
}
