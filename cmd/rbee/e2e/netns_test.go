//go:build linux

package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/shoenig/test/must"
)

// lan is a network of machines, each a separate network namespace with one cable to a bridge in yet
// another namespace. The namespaces have no names: the kernel removes them with the last process
// and file that holds them, however the test ends.
type lan struct {
	hub   *netns
	hosts map[string]*netns // by address
	ports map[string]string // of the bridge, by address
}

// netns is a network namespace and a thread that stays in it.
type netns struct {
	*thread
	f *os.File
}

// thread runs functions on one thread of the operating system, which does nothing else.
type thread struct{ work chan func() }

func newThread() *thread {
	t := &thread{work: make(chan func())}
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		for f := range t.work {
			f()
		}
	}()
	return t
}

func (t *thread) do(f func() error) error {
	done := make(chan error, 1)
	t.work <- func() { done <- f() }
	return <-done
}

func (t *thread) close() { close(t.work) }

// newLAN creates an empty network. The test is skipped where that is not permitted.
func newLAN(t testing.TB) *lan {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("network namespaces need the program ip (iproute2)")
	}
	l := &lan{hosts: map[string]*netns{}, ports: map[string]string{}}
	l.hub = newNetns(t)
	must.NoError(t, l.hub.ip("link", "set", "lo", "up"))
	must.NoError(t, l.hub.ip("link", "add", "hub", "type", "bridge"))
	must.NoError(t, l.hub.ip("link", "set", "hub", "up"))
	return l
}

func newNetns(t testing.TB) *netns {
	t.Helper()
	n := &netns{thread: newThread()}
	must.NoError(t, n.do(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a network namespace: %w", err)
		}
		var err error
		n.f, err = os.Open("/proc/thread-self/ns/net")
		return err
	}))
	t.Cleanup(func() {
		n.close()
		n.f.Close()
	})
	return n
}

// ip runs the program ip in the namespace.
func (n *netns) ip(args ...string) error {
	return n.do(func() error {
		out, err := exec.Command("ip", args...).CombinedOutput()
		if err != nil {
			return fmt.Errorf("ip %v: %w: %s", args, err, out)
		}
		return nil
	})
}

// add connects another machine to the network.
func (l *lan) add(t testing.TB, address string) {
	t.Helper()
	n, port := newNetns(t), fmt.Sprintf("port%d", len(l.hosts))
	l.hosts[address], l.ports[address] = n, port
	where := fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.f.Fd())
	must.NoError(t, l.hub.ip("link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", where))
	must.NoError(t, l.hub.ip("link", "set", port, "master", "hub", "up"))
	must.NoError(t, n.ip("link", "set", "lo", "up"))
	must.NoError(t, n.ip("address", "add", address+"/24", "dev", "eth0"))
	must.NoError(t, n.ip("link", "set", "eth0", "up"))
}

// plug plugs in or unplugs a machine's cable.
func (l *lan) plug(address string, in bool) error {
	state := "down"
	if in {
		state = "up"
	}
	return l.hub.ip("link", "set", l.ports[address], state)
}

// readdress removes a machine's address and, after a pause, assigns another one, as a router does.
// The machine can be named by either.
func (l *lan) readdress(from, to string, pause time.Duration) error {
	n := l.hosts[from]
	if err := n.ip("address", "del", from+"/24", "dev", "eth0"); err != nil {
		return err
	}
	<-time.After(pause)
	l.hosts[to], l.ports[to] = n, l.ports[from]
	return n.ip("address", "add", to+"/24", "dev", "eth0")
}

// nobody is a hardware address that no machine has: packets to it are lost silently, as in a broken
// network.
const nobody = "02:00:00:00:00:99"

// cut starts or stops dropping everything that one machine sends to another.
func (l *lan) cut(from, to string, lost bool) error {
	if lost {
		return l.hosts[from].ip("neighbour", "replace", to, "lladdr", nobody, "nud", "permanent", "dev", "eth0")
	}
	return l.hosts[from].ip("neighbour", "delete", to, "dev", "eth0")
}

// start starts a command on a machine.
func (l *lan) start(address string, cmd *exec.Cmd) error {
	return l.hosts[address].start(cmd)
}

// start starts a command that is killed when this thread ends, and with it the process that runs
// the tests.
func (t *thread) start(cmd *exec.Cmd) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return t.do(cmd.Start)
}

// dial connects to a machine from within it, so that a broken cable does not matter.
func (l *lan) dial(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	n, ok := l.hosts[host]
	if !ok {
		return nil, errors.New("no machine has the address " + address)
	}
	t := newThread() // a separate thread: a dial may take long
	defer t.close()
	var conn net.Conn
	err = t.do(func() error {
		if err := unix.Setns(int(n.f.Fd()), unix.CLONE_NEWNET); err != nil { //nolint:gosec // a file descriptor fits
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		var d net.Dialer
		var err error
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// The network loses what it should, and nothing else.
func TestLAN(t *testing.T) {
	t.Parallel()
	l := newLAN(t)
	a, b := "10.77.0.1", "10.77.0.2"
	l.add(t, a)
	l.add(t, b)
	var listener net.PacketConn
	must.NoError(t, l.hosts[b].do(func() (err error) {
		listener, err = net.ListenPacket("udp4", b+":7")
		return err
	}))
	defer listener.Close()
	tries := 0
	reaches := func() bool {
		var conn net.Conn
		must.NoError(t, l.hosts[a].do(func() (err error) {
			conn, err = net.Dial("udp4", b+":7")
			return err
		}))
		defer conn.Close()
		buf := make([]byte, 8)
		tries++
		own := fmt.Sprint(tries)
		for range 20 { // the first may be lost while the address is looked up
			_, _ = conn.Write([]byte(own))
			must.NoError(t, listener.SetReadDeadline(time.Now().Add(50*time.Millisecond)))
			for {
				n, _, err := listener.ReadFrom(buf)
				if err != nil {
					break
				}
				if string(buf[:n]) == own { // skip late replies to an earlier try
					return true
				}
			}
		}
		return false
	}
	must.True(t, reaches())
	must.NoError(t, l.plug(b, false))
	must.False(t, reaches())
	must.NoError(t, l.plug(b, true))
	must.True(t, reaches())
	must.NoError(t, l.cut(b, a, true)) // the other direction
	must.True(t, reaches())
	must.NoError(t, l.cut(a, b, true))
	must.False(t, reaches())
	must.NoError(t, l.cut(a, b, false))
	must.True(t, reaches())
}
