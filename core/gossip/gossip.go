// Package gossip is the pool in which all nodes of a cluster, queens and hives, know of each other:
// which nodes exist, what they say about themselves, which fell silent and which left. It wraps
// memberlist: events, metadata, rejoining, keys. Gossip is a hint, never the truth.
//
// # Numbers
//
// They start from memberlist's settings for a LAN (memberlist.DefaultLANConfig, which Consul and
// Nomad also use): a probe every second, 0.5 s for its answer, three helpers, gossip every 200 ms
// to three nodes, a full state comparison every 30 s, 4 s from an accusation to a death
// (SuspicionMult 4), and each rumour sent 4 times by each node of a small pool (RetransmitMult 4).
// With 30 % packet loss about every fourth probe fails, and an accused node denies the accusation
// once: if all copies of its denial are lost, it counts as dead. Here the node has 8 s
// (SuspicionMult 8; in pools above ten nodes times log10 n) and a rumour is sent 8 times, which
// leaves less than one false death in 1000 accusations (measured: 3 in about 4500, three nodes). In
// addition, the pool verifies a death before it believes it: the chance that a living node answers
// none of twelve pings in three seconds is 0.51^12, or 0.03 %. The price is that a dead node is
// noticed after about 12 s instead of 6, which delays nothing: the queens themselves notice a
// broken connection in milliseconds and a missing report in seconds.
package gossip

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"

	"github.com/rbee-project/rbee/core"
)

// See the package comment.
const (
	suspicionMult  = 8
	retransmitMult = 8
	probeInterval  = time.Second
	probeTimeout   = 500 * time.Millisecond
	streamTimeout  = 5 * time.Second
	reclaimAfter   = time.Second // time until a dead node's ID may reappear at another address

	protocolVersion = 1 // version of Meta, Leave and State

	keepFailed = 24 * time.Hour // how long the pool remembers a failed node
	keepLeft   = time.Hour
	// maxMembers bounds the members: more than any tested cluster; each takes about 2 KiB here and
	// in memberlist.
	maxMembers = 16_384
)

// Options say which pool to join and as which node. Formatting them hides the keys.
type Options struct {
	Self Member // with Incarnation 0, the pool counts the starts itself, in Dir
	// Bind is the host:port to listen on, UDP and TCP. Port 0 picks a free port; an empty or
	// unspecified host means all addresses.
	Bind string
	// Advertise is the host or host:port at which others reach this node; empty: the bound address,
	// or a private address of this machine.
	Advertise string
	Keys      Keys   // the first one encrypts
	ClusterID string // the pool ignores nodes of another cluster
	// RetryJoin lists the nodes through which to find the pool, as host, host:port or DNS name; the
	// port defaults to DefaultPort.
	RetryJoin []string
	Dir       string // folder of peers.json; empty: nothing is remembered
	Logger    hclog.Logger

	// OnConflict is called when two nodes use one ID, at most once in 10 seconds per address. Run
	// calls it, so it must not wait for Run. May be nil.
	OnConflict func(Conflict)
	// Transport replaces UDP and TCP, for tests; Bind and Advertise are then unused. The pool shuts
	// it down. Pool.Move requires it to have a Move method.
	Transport memberlist.Transport
}

// Conflict describes two nodes that use one ID.
type Conflict struct {
	ID       string
	Known    string // gossip address of the first node, which is left alone
	Refused  string // gossip address of the second node
	Self     bool   // this node is one of the two
	SelfLate bool   // this node is the second one, judging by the incarnations
}

// Stats counts events since New.
type Stats struct {
	Conflicts uint64 // claims of an ID from another address
	Foreign   uint64 // packets and streams without this cluster's label
	Refused   uint64 // nodes' statements about themselves that were not believed
	Rejoins   uint64 // requests to a node to let this one rejoin
}

// DefaultPort is the port that the pool uses by default.
const DefaultPort = 7835

// Pool is this node's view of the pool. It is safe for concurrent use.
type Pool struct {
	opts  Options
	log   hclog.Logger
	net   memberlist.Transport
	own   *transport // net, unless Options.Transport is set
	ring  *memberlist.Keyring
	wake  chan struct{} // signals that Run has events to handle
	wg    sync.WaitGroup
	peers *peerFile

	conflicts, refused, rejoins atomic.Uint64

	mu       sync.Mutex // never held while memberlist is called
	self     Member
	meta     []byte
	members  map[string]*entry // other nodes, by ID
	left     map[string]uint64 // incarnation in which a node announced its leave
	changed  chan struct{}
	list     *memberlist.Memberlist // nil before and after Run
	leaving  bool
	extra    []string // addresses passed to RejoinNow
	rejoin   bool
	update   bool // self changed and has not been sent yet
	pending  []Conflict
	deaths   []death // to be verified
	looking  int     // deaths being verified
	leaves   *memberlist.TransmitLimitedQueue
	next     Keys      // replaces the present keys step by step; nil: no replacement
	nextAt   time.Time // time of the next step
	reported map[string]time.Time
	moved    time.Time           // until then, others may hold an old address of this node
	began    time.Time           // when list was created
	settled  bool                // list has heard of another node
	renewed  time.Time           // see renew
	move     string              // host to advertise from now on; empty: unchanged
	expected map[string]struct{} // see Expect
	deaf     map[string]*deaf    // members whose packets do not get through, by ID
}

type entry struct {
	Member
	since time.Time // since when status holds
	doubt int       // number of the death being verified; 0: none
	ends  int       // deaths so far
}

// New prepares a pool and binds its port; Run starts it. Errors: Invalid for invalid options,
// TooLarge if Self does not fit, Unavailable if the port is already in use.
func New(o Options) (*Pool, error) {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if err := o.Keys.check(); err != nil {
		return nil, err
	}
	if o.ClusterID == "" || len(o.ClusterID) > memberlist.LabelMaxSize {
		return nil, core.Errorf(core.Invalid, "join the gossip pool: there is no cluster id").Hint("Start a cluster with \"rbee cluster init\" or join one.")
	}
	for _, a := range o.RetryJoin {
		if _, _, err := splitAddress(a); err != nil {
			return nil, err
		}
	}
	peers, err := openPeers(o.Dir, o.Logger)
	if err != nil {
		return nil, err
	}
	if o.Self.Incarnation == 0 {
		if o.Self.Incarnation, err = peers.start(); err != nil {
			return nil, err
		}
	}
	o.Self.Status, o.Self.GossipAddress = Alive, ""
	meta, err := o.Self.encode()
	if err != nil {
		return nil, err
	}
	o.Keys = o.Keys.clone()
	ring, err := memberlist.NewKeyring(o.Keys, o.Keys[0])
	if err != nil {
		return nil, core.Wrap(err, core.Invalid, "use the gossip keys")
	}
	p := &Pool{
		opts: o, log: o.Logger, net: o.Transport, ring: ring, wake: make(chan struct{}, 1), peers: peers,
		self: o.Self, meta: meta, members: map[string]*entry{}, left: map[string]uint64{}, changed: make(chan struct{}), reported: map[string]time.Time{},
		deaf: map[string]*deaf{},
	}
	p.leaves = &memberlist.TransmitLimitedQueue{RetransmitMult: retransmitMult, NumNodes: p.size}
	if p.net == nil {
		if p.own, err = listen(o.Bind, o.Advertise, o.ClusterID, ring.GetKeys, o.Logger); err != nil {
			return nil, err
		}
		p.net = p.own
	}
	return p, nil
}

// Close releases the port of a pool that never ran.
func (p *Pool) Close() error { return p.net.Shutdown() }

// Address returns where this node listens: IP:port. Before Run the IP may be unspecified.
func (p *Pool) Address() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.self.GossipAddress == "" && p.own != nil {
		return p.own.address()
	}
	return p.self.GossipAddress
}

// Self returns this node's own entry.
func (p *Pool) Self() Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.self
}

// KnowsQueen reports whether the pool remembers another queen, from this run or an earlier one.
func (p *Pool) KnowsQueen() bool { return p.peers.queen() }

// Members returns all known nodes, including this one, sorted by ID: alive, failed (kept for 24
// hours) and left (kept for one hour).
func (p *Pool) Members() []Member {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make([]Member, 0, len(p.members)+1)
	out = append(out, p.self)
	for _, e := range p.members {
		out = append(out, e.Member)
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// nameOf returns the display name of a node; empty if unknown.
func (p *Pool) nameOf(id string) string {
	m, _ := p.Member(id)
	return m.Name
}

// Member returns one node and reports whether it is known.
func (p *Pool) Member(id string) (Member, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id == p.self.ID {
		return p.self, true
	}
	if e, ok := p.members[id]; ok {
		return e.Member, true
	}
	return Member{}, false
}

// Changed returns a channel that closes at the next change of what Members returns. To miss no
// change, call it before Members.
func (p *Pool) Changed() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.changed
}

// Update changes this node's metadata: everything but its ID, status and gossip address. It does
// not wait until other nodes know. On an error nothing changes. Errors: TooLarge, Invalid.
func (p *Pool) Update(change func(*Member)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := p.self
	change(&m)
	m.ID, m.Status, m.GossipAddress = p.self.ID, p.self.Status, p.self.GossipAddress
	if m == p.self {
		return nil
	}
	meta, err := m.encode()
	if err != nil {
		return err
	}
	p.self, p.meta, p.update = m, meta, true
	p.notify()
	p.signal()
	return nil
}

// Ping sends one UDP packet to a member and waits for the answer until ctx ends, but at most half a
// second. It does not retry. Errors: NotFound for an unknown node, Unavailable if no answer arrives
// in half a second or the pool does not run, Cancelled, DeadlineExceeded.
func (p *Pool) Ping(ctx context.Context, id string) error {
	p.mu.Lock()
	list, e := p.list, p.members[id]
	switch {
	case list == nil:
		p.mu.Unlock()
		return core.Errorf(core.Unavailable, "%s: gossip does not run", "ping "+id).Hint("Try again when the agent has started.")
	case id == p.self.ID:
		p.mu.Unlock()
		return nil
	case e == nil:
		p.mu.Unlock()
		return core.Errorf(core.NotFound, "%s: unknown to gossip", "ping "+id).Hint("\"rbee status\" shows the nodes.")
	}
	address := e.GossipAddress
	p.wg.Add(1) // under the lock: Run removes the list before it waits
	p.mu.Unlock()
	done := make(chan error, 1)
	go func() {
		defer p.wg.Done()
		_, err := list.Ping(id, udpAddress(address))
		done <- err
	}()
	select {
	case err := <-done:
		return core.WithHint(core.Wrap(err, core.Unavailable, "ping "+id), "The node may be down, or UDP between the two may be blocked.")
	case <-ctx.Done():
		return core.WithHint(fmt.Errorf("%s: %w", "ping "+id, core.FromContext(ctx)), "The node may be down, or UDP between the two may be blocked.")
	}
}

// SetKeys replaces the pool's keys; the first one encrypts. All nodes should know a key before any
// node encrypts with it, and all should encrypt with another key before any node removes it.
// Errors: Invalid.
func (p *Pool) SetKeys(keys Keys) error {
	if err := keys.check(); err != nil {
		return err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.next = nil
	return p.setKeysLocked(keys.clone())
}

// Keys returns the pool's keys; the first one encrypts.
func (p *Pool) Keys() Keys {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.opts.Keys.clone()
}

// Leave announces to the others that this node leaves, so that they do not take its silence for a
// failure. It waits until some have heard it or ctx ends. Run continues until its own context ends,
// but joins no more nodes. Errors: Unavailable if no node heard it, Cancelled, DeadlineExceeded.
func (p *Pool) Leave(ctx context.Context) error {
	p.mu.Lock()
	list := p.list
	if list == nil {
		p.mu.Unlock()
		return nil
	}
	p.leaving = true
	p.wg.Add(1) // under the lock: Run removes the list before it waits
	p.mu.Unlock()
	timeout := 5 * time.Second
	if d, ok := ctx.Deadline(); ok {
		timeout = max(time.Millisecond, min(timeout, time.Until(d)))
	}
	done := make(chan error, 1)
	go func() {
		defer p.wg.Done()
		p.peers.forgetAll()
		p.tellLeave(list)
		done <- list.Leave(timeout)
	}()
	select {
	case err := <-done:
		return core.WithHint(core.Wrap(err, core.Unavailable, "leave the gossip pool"), "The others will take this node for failed for a while.")
	case <-ctx.Done():
		return fmt.Errorf("leave the gossip pool: %w", core.FromContext(ctx))
	}
}

// RejoinNow looks for the pool at once, including at these addresses (host:port or DNS names), and
// keeps them for later.
func (p *Pool) RejoinNow(addresses ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, a := range addresses {
		if _, _, err := splitAddress(a); err == nil && !slices.Contains(p.extra, a) && len(p.extra) < maxExtra {
			p.extra = append(p.extra, a)
		}
	}
	p.rejoin = true
	p.signal()
}

// Forget drops a node that is not alive, for example one removed from the cluster.
func (p *Pool) Forget(id string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e, ok := p.members[id]; ok && e.Status != Alive {
		delete(p.members, id)
		p.notify()
	}
	p.peers.forget(id)
}

// Stats returns the pool's counters.
func (p *Pool) Stats() Stats {
	s := Stats{Conflicts: p.conflicts.Load(), Refused: p.refused.Load(), Rejoins: p.rejoins.Load()}
	if p.own != nil {
		s.Foreign = p.own.foreign.Load()
	}
	return s
}

// Format prints the pool's name and hides the keys.
func (o Options) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "gossip of node %s in cluster %s", o.Self.ID, o.ClusterID)
}

// notify wakes the callers that wait on Changed. The caller holds p.mu.
func (p *Pool) notify() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// signal wakes Run. It never blocks.
func (p *Pool) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// size returns the number of live nodes, this one included.
func (p *Pool) size() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 1
	for _, e := range p.members {
		if e.Status == Alive {
			n++
		}
	}
	return n
}

// forget drops nodes that failed or left too long ago.
func (p *Pool) forget() {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := len(p.members)
	maps.DeleteFunc(p.members, func(_ string, e *entry) bool {
		away := time.Since(e.since)
		return (e.Status == Failed && away > keepFailed) || (e.Status == Left && away > keepLeft)
	})
	maps.DeleteFunc(p.left, func(id string, _ uint64) bool { _, known := p.members[id]; return !known })
	if n != len(p.members) {
		p.notify()
	}
}

func udpAddress(address string) net.Addr { return stringAddr(address) }

// stringAddr is an address known only as text.
type stringAddr string

func (stringAddr) Network() string  { return "udp" }
func (a stringAddr) String() string { return string(a) }
