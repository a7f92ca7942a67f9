package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/memberlist"

	"github.com/rbee-project/rbee/core"
)

const (
	packetBytes   = 64 << 10 // the largest UDP packet
	receiveBytes  = 2 << 20  // receive buffer of the socket
	maxStreams    = 128      // streams that others may have open at a time
	headerTimeout = 5 * time.Second
	hasLabel      = 244 // first byte of a labelled packet or stream in memberlist's protocol
	bindTries     = 10
)

// transport serves UDP and TCP on one port. Unlike memberlist's own, it binds before it runs,
// checks the label and the key before anything else (a packet or connection without them costs
// neither memory nor a log line), and bounds the connections that others may open and what they
// send.
type transport struct {
	log     hclog.Logger
	header  []byte // required start of all packets and streams
	tcp     *net.TCPListener
	udp     *net.UDPConn
	sealed  opener
	frames  frames
	handed  chan struct{} // one slot for each stream that memberlist handles
	packets chan *memberlist.Packet
	streams chan net.Conn
	foreign atomic.Uint64
	done    chan struct{}
	close   sync.Once
	wg      sync.WaitGroup
	dial    func(address string, timeout time.Duration) (net.Conn, error) // set by run

	mu        sync.Mutex
	conns     map[net.Conn]struct{}
	advertise string     // as configured, or as set by Move
	ip        netip.Addr // advertised address
	port      uint16
	closed    bool
}

// listen binds a port. Errors: Invalid, Unavailable.
func listen(bind, advertise, label string, keys func() [][]byte, log hclog.Logger) (*transport, error) {
	host, port, err := net.SplitHostPort(bind)
	if err != nil {
		return nil, core.Errorf(core.Invalid, "%q is not an address to listen on", bind).Hint("Say address:port, as in 0.0.0.0:%d.", DefaultPort)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, core.Errorf(core.Invalid, "%q is not an address to listen on", bind).Hint("The port is a number up to 65535.")
	}
	var ip netip.Addr
	if host != "" {
		if host == "localhost" {
			host = "127.0.0.1"
		}
		if ip, err = netip.ParseAddr(host); err != nil {
			return nil, core.Errorf(core.Invalid, "%q is not an address to listen on", bind).Hint("Say an IP address of this machine, or 0.0.0.0 for all.")
		}
	}
	t := &transport{
		log: log, advertise: advertise, packets: make(chan *memberlist.Packet), streams: make(chan net.Conn), done: make(chan struct{}),
		conns: map[net.Conn]struct{}{}, header: append([]byte{hasLabel, byte(len(label))}, label...),
		sealed: opener{[]byte(label), keys}, handed: make(chan struct{}, maxHanded),
	}
	for try := 1; ; try++ {
		err := t.bind(ip, int(n))
		if err == nil {
			break
		}
		// A free TCP port may be in use for UDP.
		if n != 0 || try == bindTries {
			return nil, core.WithHint(core.Wrap(err, core.Unavailable, "listen for gossip"), "Another program may use the port: choose another with gossip_port, or stop it.")
		}
	}
	_ = t.udp.SetReadBuffer(receiveBytes) // as much as the system allows
	return t, nil
}

func (t *transport) bind(ip netip.Addr, port int) error {
	var netIP net.IP
	if ip.IsValid() {
		netIP = ip.AsSlice()
	}
	tcp, err := net.ListenTCP("tcp", &net.TCPAddr{IP: netIP, Port: port, Zone: ip.Zone()})
	if err != nil {
		return err
	}
	udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: netIP, Port: tcp.Addr().(*net.TCPAddr).Port, Zone: ip.Zone()})
	if err != nil {
		tcp.Close()
		return err
	}
	t.tcp, t.udp = tcp, udp
	return nil
}

// address returns the bound address.
func (t *transport) address() string { return t.tcp.Addr().String() }

// run chooses the address to advertise and starts to listen. Errors: those of ctx; Invalid if no
// address can be advertised.
func (t *transport) run(ctx context.Context) error {
	if err := t.choose(ctx); err != nil {
		return err
	}
	t.dial = func(address string, timeout time.Duration) (net.Conn, error) {
		d := net.Dialer{Timeout: timeout}
		c, err := d.DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		return t.track(c, nil)
	}
	t.wg.Go(t.readPackets)
	t.wg.Go(t.accept)
	return nil
}

// choose decides which address to advertise.
func (t *transport) choose(ctx context.Context) error {
	bound := t.tcp.Addr().(*net.TCPAddr).AddrPort()
	t.mu.Lock()
	advertise := t.advertise
	t.mu.Unlock()
	port, host := bound.Port(), advertise
	if h, p, err := net.SplitHostPort(advertise); err == nil {
		n, err := strconv.ParseUint(p, 10, 16)
		if err != nil {
			return core.Errorf(core.Invalid, "%q is not an address to advertise", advertise).Hint("Say host or host:port.")
		}
		if host = h; n != 0 {
			port = uint16(n)
		}
	}
	use := func(ip netip.Addr) {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.ip, t.port = ip.Unmap(), port
	}
	switch {
	case host == "" && !bound.Addr().IsUnspecified():
		use(bound.Addr())
		return nil
	case host == "":
		ip, err := privateAddress()
		use(ip)
		return err
	}
	for wait := time.Second; ; wait = min(2*wait, rejoinInterval) {
		if ip, err := netip.ParseAddr(host); err == nil {
			if ip.IsUnspecified() {
				return core.Errorf(core.Invalid, "%q is not an address that others could reach", advertise).Hint("Set advertise to an address of this machine.")
			}
			use(ip)
			return nil
		}
		ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		if err == nil && len(ips) > 0 {
			use(ips[0])
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("look up the advertised address: %w", core.FromContext(ctx))
		}
		t.log.Warn("the advertised address cannot be looked up: gossip waits", "host", host, "error", err)
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-timer.C:
		}
		timer.Stop()
	}
}

// privateAddress returns one of this machine's network addresses, private ones first.
func privateAddress() (netip.Addr, error) {
	var found []netip.Addr
	addrs, err := net.InterfaceAddrs()
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap().IsGlobalUnicast() {
				found = append(found, ip.Unmap())
			}
		}
	}
	if len(found) == 0 {
		return netip.Addr{}, core.Errorf(core.Invalid, "choose an address to advertise: this machine has none that others could reach (%v)", err).Hint("Say one in advertise.")
	}
	rank := func(a netip.Addr) int {
		switch {
		case a.Is4() && a.IsPrivate():
			return 0
		case a.IsPrivate():
			return 1
		case a.Is4():
			return 2
		}
		return 3
	}
	slices.SortStableFunc(found, func(a, b netip.Addr) int { return rank(a) - rank(b) })
	return found[0], nil
}

// FinalAdvertiseAddr returns the advertised address.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ip.AsSlice(), int(t.port), nil
}

// WriteTo sends a packet.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.udp.WriteToUDPAddrPort(b, netip.AddrPortFrom(to.Addr().Unmap(), to.Port()))
	return time.Now(), err
}

// PacketCh returns the channel of received packets.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// StreamCh returns the channel of accepted connections.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout opens a connection to another node.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	return t.dial(addr, timeout)
}

// Shutdown closes everything and waits for it. It may be called again.
func (t *transport) Shutdown() error {
	t.close.Do(func() {
		close(t.done)
		t.tcp.Close()
		t.udp.Close()
		t.mu.Lock()
		t.closed = true
		for c := range t.conns {
			c.Close()
		}
		t.mu.Unlock()
	})
	t.wg.Wait()
	return nil
}

func (t *transport) readPackets() {
	buf := make([]byte, packetBytes)
	for {
		n, from, err := t.udp.ReadFromUDPAddrPort(buf)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !t.pause() {
				return
			}
			continue
		}
		if !bytes.HasPrefix(buf[:n], t.header) || !t.sealed.check(nil, buf[len(t.header):n]) {
			t.foreign.Add(1)
			continue
		}
		p := &memberlist.Packet{
			Buf:       bytes.Clone(buf[:n]),
			From:      net.UDPAddrFromAddrPort(netip.AddrPortFrom(from.Addr().Unmap(), from.Port())),
			Timestamp: time.Now(),
		}
		select {
		case t.packets <- p:
		case <-t.done:
			return
		}
	}
}

func (t *transport) accept() {
	slots := make(chan struct{}, maxStreams)
	for {
		c, err := t.tcp.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || !t.pause() {
				return
			}
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			t.foreign.Add(1)
			c.Close()
			continue
		}
		tracked, err := t.track(c, func() { <-slots })
		if err != nil {
			return
		}
		t.wg.Go(func() { t.greet(tracked) })
	}
}

// greet passes a connection to memberlist once a whole message of this cluster has arrived on it.
func (t *transport) greet(c *trackedConn) {
	got := make([]byte, len(t.header))
	_ = c.SetDeadline(time.Now().Add(headerTimeout))
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, t.header) {
		t.foreign.Add(1)
		c.Close()
		return
	}
	frame, took, err := t.frames.read(c)
	c.held.Store(int64(took))
	if err != nil || !t.sealed.check(frame[:5], frame[5:]) {
		t.foreign.Add(1)
		c.Close()
		return
	}
	c.first = slices.Concat(got, frame)
	select {
	case t.handed <- struct{}{}:
	case <-t.done:
		c.Close()
		return
	}
	c.handed.Store(true)
	select {
	case t.streams <- c:
	case <-t.done:
		c.Close()
	}
}

// pause waits a moment after a temporary error. It reports whether to continue.
func (t *transport) pause() bool {
	timer := time.NewTimer(10 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-t.done:
		return false
	case <-timer.C:
		return true
	}
}

// track registers a connection for Shutdown to close.
func (t *transport) track(c net.Conn, closed func()) (*trackedConn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		c.Close()
		return nil, net.ErrClosed
	}
	t.conns[c] = struct{}{}
	return &trackedConn{Conn: c, t: t, closed: closed}, nil
}

// trackedConn is a connection registered with the transport.
type trackedConn struct {
	net.Conn
	t      *transport
	first  []byte       // bytes already read
	held   atomic.Int64 // bytes held from transport.frames
	handed atomic.Bool  // the connection holds a slot in transport.handed
	once   sync.Once
	closed func()
}

func (c *trackedConn) Read(b []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(b, c.first)
		if c.first = c.first[n:]; len(c.first) == 0 {
			c.first = nil
		}
		return n, nil
	}
	return c.Conn.Read(b)
}

func (c *trackedConn) Close() error {
	c.once.Do(func() {
		c.t.mu.Lock()
		delete(c.t.conns, c.Conn)
		c.t.mu.Unlock()
		c.t.frames.give(int(c.held.Load()))
		if c.handed.Load() {
			<-c.t.handed
		}
		if c.closed != nil {
			c.closed()
		}
	})
	return c.Conn.Close()
}
