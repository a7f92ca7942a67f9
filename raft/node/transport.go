package node

import (
	"bytes"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
)

// heartbeatPoll is the interval of checks for a server's return.
const heartbeatPoll = 10 * time.Millisecond

// fullPoll is the interval of checks whether a server with a full disk has room.
const fullPoll = 200 * time.Millisecond

// keptConns is the number of idle connections kept to a server; anewWithin is how long a request is
// retried on other connections when one is broken.
const (
	keptConns  = 3
	anewWithin = 50 * time.Millisecond
)

// transport sits between raft and the network. Raft waits for its disk in its only loop, so the
// transport does what must happen in the meantime:
//   - a node whose disk hangs sends nothing, so that the others continue without it;
//   - a node whose disk hangs or is full does not stand for election;
//   - an answer counts only if it is from the server that was asked: a machine that lost its disk
//     is another one, at the same address;
//   - raft can be told to stand now, and to look at its log again after it installed a snapshot.
type transport struct {
	inner   raft.Transport
	preVote raft.WithPreVote
	log     hclog.Logger
	mute    func() error // returns why nothing may be sent
	abstain func() error // returns why this node may not stand for election
	full    func() error // returns why this node may not accept entries
	// reports whether this node leads in that term, with the server as a member
	leads     func(id raft.ServerID, term uint64) bool
	addressOf func(raftID string) string // see Options
	anybody   bool                       // in tests: any answer counts
	noAlign   bool                       // in tests: raft does not look at its log again

	out   chan raft.RPC
	done  chan struct{}
	wg    sync.WaitGroup
	pipes sync.WaitGroup // pipelines, which raft closes; Close waits for them
	once  sync.Once
	err   error // result of Close

	mu        sync.Mutex // guards below
	ending    bool       // nothing may be added to wg any more
	contacts  map[raft.ServerID]contact
	strangers map[raft.ServerID]string // raft ids that answered instead
}

// contact is the last answer of a server that accepted this node as its leader.
type contact struct {
	at      time.Time // when the request was sent
	term    uint64
	lastLog uint64 // index of the server's last entry
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

func newTransport(inner raft.Transport, mute, abstain, full func() error, log hclog.Logger) (*transport, error) {
	preVote, ok := inner.(raft.WithPreVote)
	if !ok {
		return nil, core.Errorf(core.Invalid, "open raft node: a %T cannot ask for votes beforehand", inner)
	}
	t := &transport{
		inner: inner, preVote: preVote, log: log, mute: mute, abstain: abstain, full: full, out: make(chan raft.RPC), done: make(chan struct{}),
		contacts: map[raft.ServerID]contact{}, strangers: map[raft.ServerID]string{},
	}
	t.spawn(t.relay)
	return t, nil
}

func (t *transport) Consumer() <-chan raft.RPC     { return t.out }
func (t *transport) LocalAddr() raft.ServerAddress { return t.inner.LocalAddr() }
func (t *transport) EncodePeer(id raft.ServerID, a raft.ServerAddress) []byte {
	return t.inner.EncodePeer(id, a)
}
func (t *transport) DecodePeer(b []byte) raft.ServerAddress { return t.inner.DecodePeer(b) }
func (t *transport) SetHeartbeatHandler(handle func(rpc raft.RPC)) {
	t.inner.SetHeartbeatHandler(handle)
}

// spawn runs fn, and does nothing after Close. Close waits for fn.
func (t *transport) spawn(fn func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.ending {
		t.wg.Go(fn)
	}
	return !t.ending
}

// Close ends all running requests. It may be called more than once.
func (t *transport) Close() error {
	t.once.Do(func() {
		t.mu.Lock()
		t.ending = true
		t.mu.Unlock()
		close(t.done)
		if c, ok := t.inner.(raft.WithClose); ok {
			t.err = c.Close()
		}
		t.wg.Wait()
	})
	return t.err
}

func (t *transport) closed() error {
	select {
	case <-t.done:
		return raft.ErrTransportShutdown
	default:
		return nil
	}
}

// relay passes on requests from other nodes.
func (t *transport) relay() {
	in := t.inner.Consumer()
	for {
		select {
		case rpc := <-in:
			t.deliver(rpc)
		case <-t.done:
			return
		}
	}
}

func (t *transport) deliver(rpc raft.RPC) {
	switch c := rpc.Command.(type) {
	case *raft.AppendEntriesRequest:
		// Raft would refuse without a reason.
		if err := t.full(); err != nil && len(c.Entries) > 0 {
			rpc.Respond(&raft.AppendEntriesResponse{}, err)
			return
		}
	case *raft.TimeoutNowRequest:
		if err := t.abstain(); err != nil {
			rpc.Respond(&raft.TimeoutNowResponse{}, err)
			return
		}
	case *raft.InstallSnapshotRequest:
		answer := rpc.RespChan
		result := make(chan raft.RPCResponse, 1)
		rpc.RespChan = result
		t.spawn(func() { t.install(c, result, answer) })
	}
	select {
	case t.out <- rpc:
	case <-t.done:
	}
}

// install makes raft look at its log again before the leader learns that its snapshot is installed:
// see snapshots.go.
func (t *transport) install(c *raft.InstallSnapshotRequest, result <-chan raft.RPCResponse, answer chan<- raft.RPCResponse) {
	var r raft.RPCResponse
	select {
	case r = <-result:
	case <-t.done:
		return
	}
	if resp, ok := r.Response.(*raft.InstallSnapshotResponse); ok && r.Error == nil && resp.Success && !t.noAlign {
		_, err := t.inject(&raft.AppendEntriesRequest{
			RPCHeader: c.RPCHeader, Term: c.Term, Entries: []*raft.Log{standIn(c.LastLogIndex, c.LastLogTerm)},
		}, nil)
		if err != nil {
			t.log.Debug("the log was not aligned with the snapshot", "error", err)
		}
	}
	answer <- r // buffered by its creator
}

// inject passes raft a request that no node sent.
func (t *transport) inject(command any, data io.Reader) (any, error) {
	answer := make(chan raft.RPCResponse, 1)
	select {
	case t.out <- raft.RPC{Command: command, Reader: data, RespChan: answer}:
	case <-t.done:
		return nil, raft.ErrTransportShutdown
	}
	select {
	case r := <-answer:
		return r.Response, r.Error
	case <-t.done:
		return nil, raft.ErrTransportShutdown
	}
}

// locate returns the address at which a server was last seen, or else raft's.
func (t *transport) locate(id raft.ServerID, target raft.ServerAddress) raft.ServerAddress {
	if t.addressOf != nil {
		if a := t.addressOf(string(id)); a != "" {
			return raft.ServerAddress(a)
		}
	}
	return target
}

// check returns why a request must not be sent to a server.
func (t *transport) check(refuse func() error) error {
	if err := t.closed(); err != nil {
		return err
	}
	return refuse()
}

func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := t.check(t.mute); err != nil {
		return err
	}
	var start time.Time
	var r raft.AppendEntriesResponse
	var err error
	for {
		start, target = time.Now(), t.locate(id, target)
		err = t.inner.AppendEntries(id, target, req, &r)
		// Raft would wait longer each time, and go back in the log. Errors arrive as text.
		if err == nil || !strings.Contains(err.Error(), errFull.Error()) || !t.leadsFor(id, req.Term, fullPoll) {
			break
		}
	}
	if err == nil {
		err = t.answered(id, target, r.RPCHeader)
	}
	if err != nil {
		if req.PrevLogEntry > 0 || len(req.Entries) > 0 { // not a heartbeat
			t.awaitHeartbeat(id, req.Term, time.Now())
		}
		return err
	}
	t.note(id, start, req, &r)
	*resp = r
	return nil
}

// awaitHeartbeat returns when a heartbeat of this term was answered after an append failed. Raft
// waits longer after each failure, up to 10 s, which is longer than needed once the server is back;
// heartbeats try more often.
func (t *transport) awaitHeartbeat(id raft.ServerID, term uint64, since time.Time) {
	for t.leadsFor(id, term, heartbeatPoll) {
		if c, ok := t.contact(id, term); ok && c.at.After(since) {
			return
		}
	}
}

// leadsFor waits, then reports whether this node still leads in the term with the server as a
// follower.
func (t *transport) leadsFor(id raft.ServerID, term uint64, wait time.Duration) bool {
	select {
	case <-time.After(wait):
	case <-t.done:
		return false
	}
	return t.leads != nil && t.leads(id, term)
}

func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := t.check(t.abstain); err != nil {
		return err
	}
	target = t.locate(id, target)
	var r raft.RequestVoteResponse
	if err := t.anew(func() error { return t.inner.RequestVote(id, target, req, &r) }); err != nil {
		return err
	}
	if err := t.answered(id, target, r.RPCHeader); err != nil {
		return err
	}
	*resp = r
	return nil
}

func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, req *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := t.check(t.abstain); err != nil {
		return err
	}
	target = t.locate(id, target)
	var r raft.RequestPreVoteResponse
	if err := t.anew(func() error { return t.preVote.RequestPreVote(id, target, req, &r) }); err != nil {
		return err
	}
	if err := t.answered(id, target, r.RPCHeader); err != nil {
		return err
	}
	*resp = r
	return nil
}

func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, req *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := t.check(t.mute); err != nil {
		return err
	}
	// The answer to a snapshot does not name its sender. Raft asks something else before it sends a
	// snapshot.
	t.mu.Lock()
	other := t.strangers[id]
	t.mu.Unlock()
	if other != "" {
		return stranger(id, target, other)
	}
	return t.inner.InstallSnapshot(id, t.locate(id, target), req, resp, data)
}

func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, req *raft.TimeoutNowRequest, resp *raft.TimeoutNowResponse) error {
	if err := t.closed(); err != nil {
		return err
	}
	target = t.locate(id, target)
	return t.anew(func() error { return t.inner.TimeoutNow(id, target, req, resp) })
}

// anew retries a request that failed at once: kept connections to a restarted server fail one after
// another, and an election has no time to find that out.
func (t *transport) anew(ask func() error) error {
	start := time.Now()
	for tries := 0; ; tries++ {
		err := ask()
		broken := errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, net.ErrClosed)
		if !broken || tries == keptConns || time.Since(start) > anewWithin || t.closed() != nil {
			return err
		}
	}
}

func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := t.check(t.mute); err != nil {
		return nil, err
	}
	target = t.locate(id, target)
	inner, err := t.inner.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err
	}
	p := &pipeline{AppendPipeline: inner, t: t, id: id, target: target, out: make(chan raft.AppendFuture), done: make(chan struct{})}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ending {
		return nil, errors.Join(raft.ErrTransportShutdown, inner.Close())
	}
	t.pipes.Go(p.run)
	return p, nil
}

// pipeline checks which server the answers are from.
type pipeline struct {
	raft.AppendPipeline
	t      *transport
	id     raft.ServerID
	target raft.ServerAddress
	out    chan raft.AppendFuture
	done   chan struct{}
	once   sync.Once
}

func (p *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := p.t.check(p.t.mute); err != nil {
		return nil, err
	}
	return p.AppendPipeline.AppendEntries(req, resp)
}

func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.out }

func (p *pipeline) Close() error {
	p.once.Do(func() { close(p.done) })
	return p.AppendPipeline.Close()
}

// run passes on answers until raft closes the pipeline. It always accepts them: raft stops reading
// after a bad one, may still send once more, and would then wait forever for its own transport to
// accept the earlier answers.
func (p *pipeline) run() {
	in := p.AppendPipeline.Consumer()
	var queue []raft.AppendFuture
	for {
		var out chan<- raft.AppendFuture // nil: nothing to pass on
		var next raft.AppendFuture
		if len(queue) > 0 {
			out, next = p.out, queue[0]
		}
		select {
		case f := <-in:
			// A failed request has an empty answer, which raft takes for a refusal, like this one.
			if r := f.Response(); len(r.ID) > 0 && p.t.answered(p.id, p.target, r.RPCHeader) != nil {
				*r = raft.AppendEntriesResponse{}
			} else if len(r.ID) > 0 {
				p.t.note(p.id, f.Start(), f.Request(), r)
			}
			queue = append(queue, f)
		case out <- next:
			queue = queue[1:]
		case <-p.done:
			return
		}
	}
}

// answered reports whether the answer is from the asked server.
func (t *transport) answered(id raft.ServerID, target raft.ServerAddress, by raft.RPCHeader) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if bytes.Equal(by.ID, []byte(id)) || t.anybody {
		delete(t.strangers, id)
		return nil
	}
	t.strangers[id] = string(by.ID)
	return stranger(id, target, string(by.ID))
}

func stranger(id raft.ServerID, target raft.ServerAddress, other string) error {
	return core.Errorf(core.Conflict, "reach queen: address %s belongs to %q, not %s", target, other, id)
}

func (t *transport) note(id raft.ServerID, start time.Time, req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) {
	if resp.Term != req.Term {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	c := t.contacts[id]
	if req.Term > c.term || start.After(c.at) {
		c.at = start
	}
	// The follower reports its last entry from before the request.
	last := resp.LastLog
	if n := len(req.Entries); n > 0 && resp.Success {
		last = max(last, req.Entries[n-1].Index)
	}
	c.term, c.lastLog = req.Term, last
	t.contacts[id] = c
}

// contact returns the server's last answer in the term.
func (t *transport) contact(id raft.ServerID, term uint64) (contact, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	c, ok := t.contacts[id]
	return c, ok && c.term == term
}

// quorumContact returns the latest time such that a majority of the voters accepted this node as
// the leader of the term in answer to requests sent at that time or later.
func (t *transport) quorumContact(voters []raft.ServerID, self raft.ServerID, term uint64) time.Time {
	var at []time.Time
	for _, id := range voters {
		if id == self {
			at = append(at, time.Now())
		} else if c, ok := t.contact(id, term); ok {
			at = append(at, c.at)
		}
	}
	need := len(voters)/2 + 1
	if len(at) < need {
		return time.Time{}
	}
	slices.SortFunc(at, func(a, b time.Time) int { return b.Compare(a) })
	return at[need-1]
}
