package rpc

import (
	"container/list"
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// The protocols of the RPC port, distinguished by ALPN.
const (
	ProtocolRaft = "rbee-raft/1" // queens only
	ProtocolGRPC = "h2"          // each method's rule lists its callers
	ProtocolData = "rbee-data/1" // from queens only: CONNECT to a worker, then its bytes
	ProtocolBlob = "rbee-blob/1" // from hives only: HTTP/1.1, model files

	// guestPort stands for ProtocolGRPC without a certificate.
	guestPort = "guests"
)

const (
	handshakeTimeout  = 5 * time.Second
	defaultHandshakes = 256
	defaultGuests     = 32
	defaultStreams    = 4096
	defaultGuestLife  = 30 * time.Second
	// maxKept bounds the connections of a node for gRPC and for raft, each. A node keeps one or
	// two; older ones are leftovers of a broken network.
	maxKept            = 16
	maxAcceptPause     = time.Second
	acceptKeepAlive    = 10 * time.Second
	acceptKeepInterval = 2 * time.Second
	acceptKeepCount    = 3
)

// Identity is the certificate that a node shows and its requirements for others. *pki.Identity
// implements it. The configurations follow renewals.
type Identity interface {
	Node() pki.Node
	RPCAddress() string
	ServerConfig(alpn ...string) *tls.Config
	ClientConfig(alpn string, role core.Role, nodeID string) *tls.Config
}

// MuxOptions configure a Mux.
type MuxOptions struct {
	Identity Identity
	// Revoked reports whether the certificates of a node are refused; nil refuses none. The Mux
	// calls it at each handshake and in CloseRevoked.
	Revoked func(nodeID string) bool
	// Refused is called for each refused connection; nil: not called.
	Refused func(Reason)
	Logger  hclog.Logger // nil: none
	// MaxHandshakes bounds the unauthenticated connections. A new one replaces the oldest of the
	// host with the most. 0: 256.
	MaxHandshakes int
	// MaxGuests bounds the open connections without a certificate in the same way. 0: 32.
	MaxGuests int
	// GuestLife bounds the life of a connection without a certificate: joining takes a few calls.
	// 0: 30 s.
	GuestLife time.Duration
	// MaxStreams bounds the connections of other nodes for data and files; the Mux refuses more.
	// One node gets at most half of them. 0: 4096.
	MaxStreams int
}

// Mux splits one TLS 1.3 port into raft, gRPC, inference data and files. It hands out connections
// after their handshake, each as a *Conn.
type Mux struct {
	opts    MuxOptions
	l       net.Listener
	config  *tls.Config
	tickets tickets
	ports   map[string]*port
	refused *refusals

	mu     sync.Mutex // guards below
	closed bool
	half   *crowd[*guest]
	guests *crowd[*Conn]      // connections without a certificate, until closed
	open   map[*Conn]struct{} // after the handshake, until closed
	counts map[standing]int   // number of open connections with a certificate
	seq    uint64             // order of the newest in open
}

// standing is the key by which nodes' connections are counted.
type standing struct{ node, protocol string }

// NewMux splits l; Run accepts from it and closes it. The connections of l are TCP.
func NewMux(l net.Listener, o MuxOptions) *Mux {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	if o.MaxHandshakes <= 0 {
		o.MaxHandshakes = defaultHandshakes
	}
	if o.MaxGuests <= 0 {
		o.MaxGuests = defaultGuests
	}
	if o.GuestLife <= 0 {
		o.GuestLife = defaultGuestLife
	}
	if o.MaxStreams <= 0 {
		o.MaxStreams = defaultStreams
	}
	m := &Mux{
		opts: o, l: l, ports: map[string]*port{}, refused: newRefusals(o.Logger, o.Refused),
		half: newCrowd[*guest](o.MaxHandshakes), guests: newCrowd[*Conn](o.MaxGuests), open: map[*Conn]struct{}{}, counts: map[standing]int{},
	}
	// A node offers only the protocols that it serves.
	self := o.Identity.Node()
	offer := []string{ProtocolGRPC}
	if self.Has(core.RoleQueen) {
		offer = append(offer, ProtocolRaft)
	}
	if self.Has(core.RoleHive) {
		offer = append(offer, ProtocolData, ProtocolBlob)
	}
	for _, p := range []string{ProtocolRaft, ProtocolGRPC, ProtocolData, ProtocolBlob, guestPort} {
		m.ports[p] = &port{m: m, conns: make(chan *Conn), over: make(chan struct{})}
	}
	m.config = m.serverConfig(o.Identity.ServerConfig(offer...))
	return m
}

// guest is a connection that is in its handshake or waits to be accepted.
type guest struct {
	raw   net.Conn
	out   chan struct{} // closed when it is evicted
	place *list.Element // place in Mux.half; the Mux's lock guards it
}

// both returns two checks of a connection, new or resumed. The second may be nil.
func both(first, second func(tls.ConnectionState) error) func(tls.ConnectionState) error {
	return func(s tls.ConnectionState) error {
		if err := first(s); err != nil || second == nil {
			return err
		}
		return second(s)
	}
}

// serverConfig returns c with the checks of the Mux. Data connections may be resumed, as each
// serves a single request. On resumption, the Mux's checks run again, and crypto/tls checks the
// certificate's time and CA again.
func (m *Mux) serverConfig(c *tls.Config) *tls.Config {
	strictly := c.Clone()
	strictly.VerifyConnection = both(m.check, c.VerifyConnection)
	strictly.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
		now := c
		if c.GetConfigForClient != nil {
			chosen, err := c.GetConfigForClient(h)
			if err != nil {
				return nil, err
			}
			if chosen != nil {
				now = chosen
			}
		}
		now, own := now.Clone(), now.VerifyConnection
		// By now crypto/tls has verified that a certificate belongs to this cluster and is valid.
		// The Mux's checks run first because their errors carry a reason.
		now.VerifyConnection = both(m.check, own)
		now.GetConfigForClient = nil
		if slices.Equal(h.SupportedProtos, []string{ProtocolData}) {
			now.SessionTicketsDisabled = false
			now.SetSessionTicketKeys(m.tickets.keys(time.Now()))
		}
		return now, nil
	}
	return strictly
}

// tickets holds the keys that seal the sessions of data connections. They never leave the process.
type tickets struct {
	mu    sync.Mutex // guards below
	all   [][32]byte // the newest first
	since time.Time
}

// ticketLife is how long a key seals sessions; it opens them for as long again.
const ticketLife = 6 * time.Hour

func (t *tickets) keys(now time.Time) [][32]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) == 0 || now.Sub(t.since) >= ticketLife {
		var key [32]byte
		_, _ = rand.Read(key[:]) // never fails
		t.all = append([][32]byte{key}, t.all[:min(len(t.all), 1)]...)
		t.since = now
	}
	return t.all
}

// check runs within the handshake, so that a refused peer learns of it.
func (m *Mux) check(s tls.ConnectionState) error {
	var role core.Role
	switch s.NegotiatedProtocol {
	case ProtocolGRPC:
		// Only queens serve peers without a certificate.
		if len(s.PeerCertificates) == 0 && !m.opts.Identity.Node().Has(core.RoleQueen) {
			return refuse(ReasonNoCertificate, "only queens take connections without a certificate")
		}
	case ProtocolRaft, ProtocolData:
		role = core.RoleQueen
	case ProtocolBlob:
		role = core.RoleHive
	default:
		return refuse(ReasonHandshake, "no protocol was asked for")
	}
	_, _, err := verify(&s, role, "", m.opts.Revoked)
	return err
}

// Raft returns the listener for other queens' raft connections. It is the same for every call, as
// are those of GRPC, Data and Blobs.
func (m *Mux) Raft() net.Listener { return m.ports[ProtocolRaft] }

// GRPC returns the listener for other nodes' connections to a server that NewServer or
// NewNodeServer made.
func (m *Mux) GRPC() net.Listener { return m.ports[ProtocolGRPC] }

// Guests returns the listener for connections without a certificate, for a server that
// NewGuestServer made. Each connection is cut after half a minute.
func (m *Mux) Guests() net.Listener { return m.ports[guestPort] }

// Data returns the listener for connections over which queens reach workers.
func (m *Mux) Data() net.Listener { return m.ports[ProtocolData] }

// Blobs returns the listener for connections over which other hives fetch files.
func (m *Mux) Blobs() net.Listener { return m.ports[ProtocolBlob] }

// Addr returns the address that the port listens on.
func (m *Mux) Addr() net.Addr { return m.l.Addr() }

// Run accepts connections until ctx ends. Then it closes all except those that it handed out, which
// belong to their owners. The error is nil if ctx ended it.
func (m *Mux) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, m.shut)
	defer stop()
	defer m.shut()
	pause := time.Duration(0)
	for {
		c, err := m.l.Accept()
		switch {
		case err == nil:
			pause = 0
			// Enter in the order of arrival: goroutines do not preserve it, and the latest must not
			// count as the oldest.
			if g := m.enter(c); g != nil {
				wg.Go(func() { m.admit(g) })
			}
			continue
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return core.Wrap(err, core.Unavailable, "accept rpc connections")
		}
		// For example too many open files: open connections continue, and some of them will end.
		pause = min(max(2*pause, 5*time.Millisecond), maxAcceptPause)
		m.opts.Logger.Warn("failed to accept a connection", "error", err, "again_in", pause)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
	}
}

// shut stops accepting, and closes the connections that were not handed out.
func (m *Mux) shut() {
	m.mu.Lock()
	m.closed = true
	for g, ok := m.half.evict(); ok; g, ok = m.half.evict() {
		g.send()
	}
	m.mu.Unlock()
	_ = m.l.Close()
	for _, p := range m.ports {
		_ = p.Close()
	}
}

// send evicts a guest.
func (g *guest) send() {
	close(g.out)
	_ = g.raw.Close()
}

// enter makes a connection a guest. It closes it and returns nil if the mux is closed.
func (m *Mux) enter(raw net.Conn) *guest {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		_ = raw.Close()
		return nil
	}
	g := &guest{raw: raw, out: make(chan struct{})}
	place, out, evicted := m.half.enter(hostOf(raw.RemoteAddr()), g)
	g.place = place
	if evicted { // a silent peer must not keep others out
		out.send()
	}
	return g
}

// admit runs the handshake and hands out the connection.
func (m *Mux) admit(g *guest) {
	raw := g.raw
	defer func() {
		m.mu.Lock()
		m.half.leave(g.place)
		m.mu.Unlock()
	}()

	c, err := m.shake(raw)
	if err != nil {
		_ = raw.Close()
		select {
		case <-g.out:
			err = errors.New("it sent nothing and made room for another connection")
		default:
		}
		m.mu.Lock()
		ended := m.closed
		m.mu.Unlock()
		if !ended {
			m.refused.note(reasonOf(err), raw.RemoteAddr().String(), c.node.ID, err)
		}
		return
	}
	if err := m.settle(c); err != nil {
		c.Abort()
		m.refused.note(reasonOf(err), raw.RemoteAddr().String(), c.node.ID, err)
		return
	}
	// check again after the handshake: CloseRevoked may have run before this connection was open
	if c.known && m.opts.Revoked != nil && m.opts.Revoked(c.node.ID) {
		c.Abort()
		return
	}
	p := m.ports[c.protocol]
	if !c.known {
		p = m.ports[guestPort]
	}
	select {
	case p.conns <- c:
	case <-p.over:
		c.Abort()
	case <-g.out:
		c.Abort()
	}
}

// settle finds a place for a connection after its handshake; forget frees the place. Errors: a
// *refusal.
func (m *Mux) settle(c *Conn) error {
	m.mu.Lock()
	var out *Conn
	var why string
	switch kind := (standing{c.node.ID, c.protocol}); {
	case !c.known:
		var evicted bool
		if c.place, out, evicted = m.guests.enter(hostOf(c.RemoteAddr()), c); evicted {
			why = "others without a certificate came"
		}
		c.life = time.AfterFunc(m.opts.GuestLife, c.Abort)
	case c.protocol == ProtocolData || c.protocol == ProtocolBlob:
		all := 0
		for k, n := range m.counts {
			if k.protocol == ProtocolData || k.protocol == ProtocolBlob {
				all += n
			}
		}
		if all >= m.opts.MaxStreams || m.counts[kind] >= max(m.opts.MaxStreams/2, 1) {
			m.mu.Unlock()
			return refuse(ReasonTooMany, "node %s has %d connections of this kind, all nodes %d", c.node.ID, m.counts[kind], all)
		}
	case m.counts[kind] >= maxKept:
		for other := range m.open {
			if other.node.ID == c.node.ID && other.protocol == c.protocol && other.known && (out == nil || other.order < out.order) {
				out, why = other, "the node opened more than it needs"
			}
		}
	}
	m.seq++
	c.order = m.seq
	m.open[c] = struct{}{}
	if c.known {
		m.counts[standing{c.node.ID, c.protocol}]++
	}
	m.mu.Unlock()
	if out != nil {
		out.Abort()
		m.refused.note(ReasonTooMany, out.RemoteAddr().String(), out.node.ID, errors.New(why))
	}
	return nil
}

// shake runs the handshake. The returned connection is never nil; even with an error, it may know
// its peer.
func (m *Mux) shake(raw net.Conn) (*Conn, error) {
	if t, ok := raw.(*net.TCPConn); ok {
		_ = t.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: acceptKeepAlive, Interval: acceptKeepInterval, Count: acceptKeepCount})
	}
	w := &wire{Conn: raw}
	c := &Conn{Conn: tls.Server(w, m.config), wire: w, forget: m.forget}
	if err := raw.SetDeadline(time.Now().Add(handshakeTimeout)); err != nil {
		return c, err
	}
	if err := c.Handshake(); err != nil {
		return c, err
	}
	if err := raw.SetDeadline(time.Time{}); err != nil {
		return c, err
	}
	c.state = c.ConnectionState()
	c.protocol = c.state.NegotiatedProtocol
	var err error
	c.node, c.known, err = verify(&c.state, "", "", nil)
	return c, err
}

func (m *Mux) forget(c *Conn) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.open[c]; !ok {
		return
	}
	delete(m.open, c)
	if !c.known {
		c.life.Stop()
		m.guests.leave(c.place)
		return
	}
	kind := standing{c.node.ID, c.protocol}
	if m.counts[kind]--; m.counts[kind] == 0 {
		delete(m.counts, kind)
	}
}

// CloseNode cuts every connection that the node made.
func (m *Mux) CloseNode(nodeID string) {
	m.closeIf(func(c *Conn) bool { return c.known && c.node.ID == nodeID })
}

// CloseRevoked cuts the connections of all revoked nodes. Call it after each revocation.
func (m *Mux) CloseRevoked() {
	if revoked := m.opts.Revoked; revoked != nil {
		m.closeIf(func(c *Conn) bool { return c.known && revoked(c.node.ID) })
	}
}

// Reset cuts all connections that have completed their handshake, for example when this machine's
// address changes.
func (m *Mux) Reset() { m.closeIf(func(*Conn) bool { return true }) }

func (m *Mux) closeProtocol(protocol string) {
	m.closeIf(func(c *Conn) bool { return c.protocol == protocol })
}

func (m *Mux) closeIf(condition func(*Conn) bool) {
	m.mu.Lock()
	all := make([]*Conn, 0, len(m.open))
	for c := range m.open {
		all = append(all, c)
	}
	m.mu.Unlock()
	for _, c := range all {
		if condition(c) {
			c.Abort()
		}
	}
}

// port is the listener for one protocol.
type port struct {
	m     *Mux
	conns chan *Conn
	over  chan struct{}
	once  sync.Once
}

// Accept waits for a connection, a *Conn. It fails with net.ErrClosed.
func (p *port) Accept() (net.Conn, error) {
	select {
	case <-p.over: // checked first, so that Accept returns nothing after a Close
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.over:
		return nil, net.ErrClosed
	}
}

// Close makes the Mux close all further connections for this protocol. It does not touch the other
// protocols.
func (p *port) Close() error {
	p.once.Do(func() { close(p.over) })
	return nil
}

// Addr returns the address of the whole RPC port.
func (p *port) Addr() net.Addr { return p.m.Addr() }
