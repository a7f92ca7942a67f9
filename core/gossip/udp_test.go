package gossip_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/gossip"
)

// startUDP runs a pool on real sockets.
func startUDP(t *testing.T, i int, change ...func(*gossip.Options)) *node {
	t.Helper()
	n := &node{conflicts: &conflicts{}}
	o := gossip.Options{
		Self: gossip.Member{ID: id(i), Queen: true, Incarnation: 1}, Bind: "127.0.0.1:0", Keys: gossip.Keys{key(1)}, ClusterID: cluster,
		Logger: coretest.Logger(t), OnConflict: n.conflicts.add,
	}
	for _, c := range change {
		c(&o)
	}
	p, err := gossip.New(o)
	must.NoError(t, err)
	n.Pool, n.address = p, p.Address() // known before it runs
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- p.Run(ctx) }()
	var once sync.Once
	n.stop = func() { once.Do(func() { cancel(); must.NoError(t, <-done) }) }
	t.Cleanup(n.stop)
	return n
}

func eventually(t *testing.T, want string, nodes ...*node) {
	t.Helper()
	coretest.Eventually(t, 30*time.Second, func() error {
		for _, n := range nodes {
			if got := statuses(n); got != want {
				return fmt.Errorf("node %s sees %q, not %q", n.address, got, want)
			}
		}
		return nil
	})
}

func TestRealSockets(t *testing.T) {
	t.Parallel()
	a := startUDP(t, 1)
	_, port, err := net.SplitHostPort(a.address)
	must.NoError(t, err)
	// a DNS name
	join := func(o *gossip.Options) { o.RetryJoin = []string{net.JoinHostPort("localhost", port)} }
	b, c := startUDP(t, 2, join), startUDP(t, 3, join)
	eventually(t, "1:alive 2:alive 3:alive", a, b, c)
	must.Eq(t, b.address, b.Address())
	m, ok := a.Member(id(2))
	must.True(t, ok)
	must.Eq(t, b.address, m.GossipAddress)

	_, err = gossip.New(gossip.Options{Self: a.Self(), Bind: a.address, Keys: a.Keys(), ClusterID: cluster})
	must.Eq(t, core.Unavailable, core.KindOf(err)) // the port is in use
	must.NotEq(t, "", core.HintOf(err))

	// Send garbage at full speed, with and without the label.
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for i := range 2 {
		wg.Go(func() {
			conn, err := net.Dial("udp", a.address)
			must.NoError(t, err)
			defer conn.Close()
			packet := make([]byte, 1200)
			_, _ = rand.Read(packet)
			if i == 0 {
				copy(packet, append([]byte{244, byte(len(cluster))}, cluster...))
			}
			for {
				select {
				case <-stop:
					return
				default:
					_, _ = conn.Write(packet)
				}
			}
		})
	}
	for range 40 {
		// Open streams as a stranger.
		c, err := net.Dial("tcp", a.address)
		must.NoError(t, err)
		_, err = c.Write([]byte("GET / HTTP/1.1\r\nHost: somebody\r\n\r\n"))
		must.NoError(t, err)
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err = io.ReadAll(c)
		must.False(t, errors.Is(err, context.DeadlineExceeded))
		c.Close()
		must.Eq(t, "1:alive 2:alive 3:alive", statuses(b))
	}
	coretest.Eventually(t, 10*time.Second, func() error { // all streams and some packets arrived
		if n := a.Stats().Foreign; n <= 40 {
			return fmt.Errorf("%d streams and packets were refused", n)
		}
		return nil
	})
	close(stop)
	wg.Wait()
	coretest.Eventually(t, 10*time.Second, func() error { return b.Ping(t.Context(), id(1)) })
	eventually(t, "1:alive 2:alive 3:alive", a, b, c)

	var pings sync.WaitGroup
	for range 100 {
		pings.Go(func() {
			// A packet may be lost on a busy machine.
			coretest.Eventually(t, 10*time.Second, func() error { return a.Ping(t.Context(), id(3)) })
		})
	}
	pings.Wait()

	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	must.NoError(t, c.Leave(ctx))
	c.stop()
	eventually(t, "1:alive 2:alive 3:left", a, b)
	d := startUDP(t, 3, join, func(o *gossip.Options) { o.Self.Incarnation = 2 }) // at another port
	eventually(t, "1:alive 2:alive 3:alive", a, b, d)
	must.SliceEmpty(t, a.conflicts.list())
}

func TestStreamsAreBounded(t *testing.T) {
	t.Parallel()
	a := startUDP(t, 1)
	b := startUDP(t, 2, func(o *gossip.Options) { o.RetryJoin = []string{a.address} })
	eventually(t, "1:alive 2:alive", a, b)
	var idle []net.Conn
	for range 200 { // they stay silent and are closed after a while
		c, err := net.Dial("tcp", a.address)
		must.NoError(t, err)
		idle = append(idle, c)
	}
	coretest.Eventually(t, 10*time.Second, func() error {
		if n := a.Stats().Foreign; n < 50 {
			return fmt.Errorf("%d streams were refused", n)
		}
		return nil
	})
	must.NoError(t, b.Ping(t.Context(), id(1)))
	a.stop() // stop waits for none of them
	for _, c := range idle {
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		_, err := c.Read(make([]byte, 1))
		must.Error(t, err)
		must.False(t, isTimeout(err))
		c.Close()
	}
}

func isTimeout(err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ok && e.Timeout()
}

func TestAdvertise(t *testing.T) {
	t.Parallel()
	_, port, err := net.SplitHostPort(startUDP(t, 1, func(o *gossip.Options) { o.Bind = "127.0.0.1:0" }).address)
	must.NoError(t, err)
	for advertise, want := range map[string]string{"127.0.0.3": "127.0.0.3:", "127.0.0.3:99": "127.0.0.3:99", "localhost:98": "127.0.0.1:98", "": "127.0.0.1:"} {
		a := startUDP(t, 2, func(o *gossip.Options) { o.Advertise = advertise })
		coretest.Eventually(t, 10*time.Second, func() error {
			if got := a.Self().GossipAddress; got == "" || got[:len(want)] != want {
				return fmt.Errorf("%q is advertised as %q", advertise, got)
			}
			return nil
		})
		a.stop()
	}
	p, err := gossip.New(gossip.Options{Self: gossip.Member{ID: id(1), Hive: true}, Bind: ":0", Advertise: "0.0.0.0", Keys: gossip.Keys{key(1)}, ClusterID: cluster})
	must.NoError(t, err)
	err = p.Run(t.Context())
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.NotEq(t, "", core.HintOf(err))
	must.NotEq(t, "", port)
}
