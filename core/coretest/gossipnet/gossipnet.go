// Package gossipnet is a network in memory for gossip pools in tests: packets that get lost,
// streams that get slow, nodes that cannot reach each other. It has no goroutines of its own and
// only timers, so it works within testing/synctest.
//
//	net := gossipnet.New(1)
//	pool, err := gossip.New(gossip.Options{Transport: net.Listen("10.0.0.1:7835"), …})
package gossipnet

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"
)

// queueLen is the number of packets that can wait for a node; further ones are lost, as in a
// socket's buffer.
const queueLen = 1024

// Network joins transports. It is safe for concurrent use.
type Network struct {
	mu    sync.Mutex
	rand  *rand.Rand
	nodes map[string]*Transport
	loss  float64
	cut   map[[2]string]bool // from, to
	deaf  map[[2]string]bool // as cut, but for packets only
}

// New returns a network without losses. The seed determines which packets are lost once SetLoss is
// called.
func New(seed uint64) *Network {
	return &Network{rand: rand.New(rand.NewPCG(seed, 1)), nodes: map[string]*Transport{}, cut: map[[2]string]bool{}, deaf: map[[2]string]bool{}}
}

// Listen returns the transport of a node at an address (IP:port). It panics if the address is in
// use; the address of a transport that was shut down is free again.
func (n *Network) Listen(address string) *Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[address] != nil {
		panic("gossipnet: " + address + " is in use")
	}
	t := &Transport{
		net: n, address: netip.MustParseAddrPort(address), packets: make(chan *memberlist.Packet, queueLen), streams: make(chan net.Conn, queueLen),
		done: make(chan struct{}), conns: map[*conn]struct{}{},
	}
	n.nodes[address] = t
	return t
}

// SetLoss sets the fraction of all packets that are lost, 0 to 1. Streams lose packets as well and
// resend them as TCP does, which takes time.
func (n *Network) SetLoss(part float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = part
}

// Cut drops everything that one node sends to the other. Cut both ways for a broken cable.
func (n *Network) Cut(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]string{from, to}] = true
}

// CutPackets drops every packet that one node sends to the other; streams still work.
func (n *Network) CutPackets(from, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.deaf[[2]string{from, to}] = true
}

// Partition cuts both ways between all nodes of different groups. Nodes in no group reach all
// others.
func (n *Network) Partition(groups ...[]string) {
	for i, g := range groups {
		for _, other := range groups[i+1:] {
			for _, a := range g {
				for _, b := range other {
					n.Cut(a, b)
					n.Cut(b, a)
				}
			}
		}
	}
}

// Heal undoes every Cut, CutPackets and Partition.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	clear(n.cut)
	clear(n.deaf)
}

// Inject delivers a packet to a node as if another had sent it. It is lost if the node's queue is
// full.
func (n *Network) Inject(from, to string, packet []byte) {
	n.mu.Lock()
	t := n.nodes[to]
	n.mu.Unlock()
	if t != nil {
		t.take(packet, netip.MustParseAddrPort(from))
	}
}

// reach returns the transport of a node if another node can send to it.
func (n *Network) reach(from, to string) *Transport {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cut[[2]string{from, to}] {
		return nil
	}
	return n.nodes[to]
}

// hears reports whether packets get through.
func (n *Network) hears(from, to string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !n.deaf[[2]string{from, to}]
}

// loses decides randomly whether one packet is lost.
func (n *Network) loses() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.loss > 0 && n.rand.Float64() < n.loss
}

// delay returns how long TCP needs to get data to the other side and an answer back, when it first
// resends after the given time and doubles that time with every further attempt.
func (n *Network) delay(first time.Duration) time.Duration {
	var d time.Duration
	for wait := first; ; wait *= 2 {
		there, back := n.loses(), n.loses()
		if !there && !back {
			break
		}
		if d += wait; d > time.Minute {
			break
		}
	}
	return d
}

// Transport is one node's end of a Network.
type Transport struct {
	net     *Network
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{}
	tap     func(packet []byte)

	mu      sync.Mutex
	address netip.AddrPort
	conns   map[*conn]struct{}
	shut    bool
}

// Address returns the transport's IP:port.
func (t *Transport) Address() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.address.String()
}

// Lose removes the node's address: nothing sent to it arrives, as on a machine that lost its
// address. The node can still send, and Move gives it another address.
func (t *Transport) Lose() {
	address := t.Address()
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	delete(t.net.nodes, address)
}

// Move changes the node's IP address and keeps its port.
func (t *Transport) Move(_ context.Context, ip string) error {
	parsed, err := netip.ParseAddr(ip)
	if err != nil {
		return err
	}
	t.Lose()
	t.mu.Lock()
	t.address = netip.AddrPortFrom(parsed, t.address.Port())
	t.mu.Unlock()
	address := t.Address()
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	t.net.nodes[address] = t
	return nil
}

// Tap calls see for every packet that is sent from here. Call it before the transport is used.
func (t *Transport) Tap(see func(packet []byte)) { t.tap = see }

// FinalAdvertiseAddr returns the transport's address.
func (t *Transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.address.Addr().AsSlice(), int(t.address.Port()), nil
}

// WriteTo sends a packet, which may get lost.
func (t *Transport) WriteTo(b []byte, addr string) (time.Time, error) {
	if t.closed() {
		return time.Time{}, net.ErrClosed
	}
	if t.tap != nil {
		t.tap(append([]byte(nil), b...))
	}
	if to := t.net.reach(t.Address(), addr); to != nil && t.net.hears(t.Address(), addr) && !t.net.loses() {
		to.take(b, netip.MustParseAddrPort(t.Address()))
	}
	return time.Now(), nil
}

// PacketCh returns the channel of packets that arrived.
func (t *Transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh returns the channel of streams that others opened.
func (t *Transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout opens a stream.
func (t *Transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	if t.closed() {
		return nil, net.ErrClosed
	}
	wait := t.net.delay(time.Second) // the cost of a lost SYN
	to, back := t.net.reach(t.Address(), addr), t.net.reach(addr, t.Address())
	if t.exists(addr) && (to == nil || back == nil) {
		wait = timeout // no answer returns through a cut
	}
	if !t.sleep(min(wait, timeout)) {
		return nil, net.ErrClosed
	}
	if wait >= timeout {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errTimeout}
	}
	if to == nil || back == nil || to.closed() {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errRefused}
	}
	here, there := net.Pipe()
	a, b := &conn{Conn: here, from: t, to: to}, &conn{Conn: there, from: to, to: t}
	if !t.track(a) || !to.track(b) {
		here.Close()
		there.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errRefused}
	}
	select {
	case to.streams <- b:
		return a, nil
	default:
		a.Close()
		b.Close()
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errRefused}
	}
}

// Shutdown removes the node from the network. It may be called again.
func (t *Transport) Shutdown() error {
	t.mu.Lock()
	if t.shut {
		t.mu.Unlock()
		return nil
	}
	t.shut = true
	close(t.done)
	open := make([]*conn, 0, len(t.conns))
	for c := range t.conns {
		open = append(open, c)
	}
	t.mu.Unlock()
	for _, c := range open {
		c.Close()
	}
	address := t.Address()
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	if t.net.nodes[address] == t {
		delete(t.net.nodes, address)
	}
	return nil
}

func (t *Transport) exists(addr string) bool {
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	return t.net.nodes[addr] != nil
}

func (t *Transport) take(b []byte, from netip.AddrPort) {
	p := &memberlist.Packet{Buf: append([]byte(nil), b...), From: net.UDPAddrFromAddrPort(from), Timestamp: time.Now()}
	select {
	case t.packets <- p:
	default:
	}
}

func (t *Transport) sleep(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-t.done:
		return false
	}
}

func (t *Transport) closed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.shut
}

func (t *Transport) track(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.shut {
		return false
	}
	t.conns[c] = struct{}{}
	return true
}

var (
	errTimeout = os.ErrDeadlineExceeded // a net.Error whose Timeout is true
	errRefused = errors.New("gossipnet: nobody listens there")
)

// conn is one end of a stream.
type conn struct {
	net.Conn
	from, to *Transport

	mu       sync.Mutex
	deadline time.Time
}

// Write sends data with TCP's delay; nothing passes a cut.
func (c *conn) Write(b []byte) (int, error) {
	wait := c.from.net.delay(200 * time.Millisecond) // Linux's minimum retransmission timeout
	if c.from.net.reach(c.from.Address(), c.to.Address()) == nil {
		wait = time.Minute
	}
	c.mu.Lock()
	deadline := c.deadline
	c.mu.Unlock()
	if left := time.Until(deadline); !deadline.IsZero() && wait > left {
		c.from.sleep(max(0, left))
		return 0, &net.OpError{Op: "write", Net: "tcp", Err: errTimeout}
	}
	if wait > 0 && !c.from.sleep(wait) {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(b)
}

// SetDeadline bounds reads and writes.
func (c *conn) SetDeadline(d time.Time) error {
	c.mu.Lock()
	c.deadline = d
	c.mu.Unlock()
	return c.Conn.SetDeadline(d)
}

// Close closes the stream at both ends.
func (c *conn) Close() error {
	c.from.mu.Lock()
	delete(c.from.conns, c)
	c.from.mu.Unlock()
	return c.Conn.Close()
}
