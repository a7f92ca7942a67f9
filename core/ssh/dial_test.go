package ssh_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	gossh "golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/sshserver"
	"github.com/rbee-project/rbee/core/ssh"
)

// patience is how long a step may take on a busy machine.
const patience = 30 * time.Second

// attempt connects to a server and returns the names of the completed steps.
func attempt(t *testing.T, d *ssh.Dialer, target ssh.Target) (c *ssh.Conn, key *core.HostKey, steps []core.SSHStep, err error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, key, err = d.Connect(ctx, target, func(s core.SSHStep) { steps = append(steps, s) })
	if c != nil {
		t.Cleanup(c.Close)
	}
	return c, key, steps, err
}

func targetOf(s *sshserver.Server) ssh.Target {
	return ssh.Target{Host: s.Host, Port: s.Port, User: "someone"}
}

func dialer(home string) *ssh.Dialer {
	return &ssh.Dialer{Home: home, KnownHosts: filepath.Join(home, "own_known_hosts")}
}

func know(t *testing.T, home string, s *sshserver.Server, keys ...gossh.PublicKey) {
	t.Helper()
	var lines []string
	for _, k := range keys {
		lines = append(lines, knownhosts.Line([]string{net.JoinHostPort(s.Host, fmt.Sprint(s.Port))}, k))
	}
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "known_hosts"), []byte(strings.Join(lines, "\n")+"\n"), 0o600))
}

func TestConnectNamesEveryStep(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	s := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}, Run: func(c sshserver.Command) int {
		fmt.Fprintf(c.Stdout, "you said %s", c.Line)
		return 0
	}})
	know(t, home, s, s.HostKey)
	c, hostKey, steps, err := attempt(t, dialer(home), targetOf(s))
	must.NoError(t, err)
	var names []string
	for _, x := range steps {
		must.True(t, x.OK)
		names = append(names, x.Name)
	}
	must.Eq(t, []string{"resolve", "connect", "host key", "authenticate"}, names)
	must.Eq(t, core.HostKeyKnown, hostKey.State)
	out, err := c.Run(t.Context(), "hello", nil)
	must.NoError(t, err)
	must.Eq(t, "you said hello", out)
}

func TestUnknownHostKey(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	s := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}})
	fingerprint := gossh.FingerprintSHA256(s.HostKey)

	d := dialer(home)
	_, hostKey, steps, err := attempt(t, d, targetOf(s))
	must.Eq(t, core.Unauthenticated, core.KindOf(err))
	must.StrContains(t, err.Error(), "host key: the host key "+fingerprint)
	must.StrContains(t, core.HintOf(err), "--host-key "+fingerprint)
	must.Eq(t, core.HostKeyUnknown, hostKey.State)
	must.Eq(t, "host key", steps[len(steps)-1].Name)
	must.False(t, steps[len(steps)-1].OK)

	d.Accept = "SHA256:another"
	_, _, _, err = attempt(t, d, targetOf(s))
	must.Eq(t, core.Integrity, core.KindOf(err))

	d.Accept = fingerprint
	_, hostKey, _, err = attempt(t, d, targetOf(s))
	must.NoError(t, err)
	must.Eq(t, core.HostKeyAccepted, hostKey.State)

	d.Accept = ""
	_, hostKey, _, err = attempt(t, d, targetOf(s))
	must.NoError(t, err, must.Sprint("an accepted key must be known from then on"))
	must.Eq(t, core.HostKeyKnown, hostKey.State)
	_, err = os.Stat(filepath.Join(home, ".ssh", "known_hosts"))
	must.ErrorIs(t, err, os.ErrNotExist, must.Sprint("the person's own file is not ours to change"))
}

func TestChangedHostKey(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	s := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}})
	before := sshserver.NewKey(t).PublicKey()
	know(t, home, s, before)
	for name, change := range map[string]func(*ssh.Dialer){
		"plain":       func(*ssh.Dialer) {},
		"accept new":  func(d *ssh.Dialer) { d.AcceptNew = true },
		"accept this": func(d *ssh.Dialer) { d.Accept = gossh.FingerprintSHA256(s.HostKey) },
	} {
		t.Run(name, func(t *testing.T) {
			d := dialer(home)
			change(d)
			_, hostKey, _, err := attempt(t, d, targetOf(s))
			must.Eq(t, core.Integrity, core.KindOf(err))
			must.StrContains(t, err.Error(), gossh.FingerprintSHA256(before))
			must.StrContains(t, err.Error(), gossh.FingerprintSHA256(s.HostKey))
			must.Eq(t, core.HostKeyChanged, hostKey.State)
		})
	}
}

func TestRevokedHostKey(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	s := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}})
	line := "@revoked * " + string(gossh.MarshalAuthorizedKey(s.HostKey))
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "known_hosts"), []byte(line), 0o600))
	d := dialer(home)
	d.AcceptNew = true
	_, _, _, err := attempt(t, d, targetOf(s))
	must.Eq(t, core.Integrity, core.KindOf(err))
	must.StrContains(t, err.Error(), "revoked")
}

func TestBrokenKnownHostsRefused(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	s := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}})
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "known_hosts"), []byte("host ssh-ed25519 !!!\n"), 0o600))
	d := dialer(home)
	d.AcceptNew = true
	_, _, _, err := attempt(t, d, targetOf(s))
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.StrContains(t, err.Error(), "host key: ")
}

func TestAuthenticationNamesIdentities(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, passphrase, want string
	}{
		{"refused", "", "id_ed25519 (SHA256:"},
		{"encrypted", "secret words", "it is encrypted: add it to the SSH agent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			home, _ := sshserver.Home(t, c.passphrase)
			s := sshserver.Start(t, sshserver.Options{})
			d := dialer(home)
			d.AcceptNew = true
			_, _, steps, err := attempt(t, d, targetOf(s))
			must.Eq(t, core.Forbidden, core.KindOf(err))
			must.StrContains(t, err.Error(), "authenticate: ")
			must.StrContains(t, err.Error(), c.want)
			must.StrContains(t, err.Error(), "SSH_AUTH_SOCK is not set")
			must.Eq(t, "authenticate", steps[len(steps)-1].Name)
		})
	}
}

func TestAgentKeys(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	b, err := os.ReadFile(filepath.Join(home, ".ssh", "id_ed25519"))
	must.NoError(t, err)
	private, err := gossh.ParseRawPrivateKey(b)
	must.NoError(t, err)
	must.NoError(t, os.Remove(filepath.Join(home, ".ssh", "id_ed25519")))
	ring := agent.NewKeyring()
	must.NoError(t, ring.Add(agent.AddedKey{PrivateKey: private}))
	dir, err := os.MkdirTemp("", "ag") //nolint:usetesting // the path of a unix socket must be short
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			_ = agent.ServeAgent(ring, conn)
			conn.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-done })

	s := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}})
	d := dialer(home)
	d.AcceptNew, d.AgentSocket = true, filepath.Join(dir, "s")
	_, _, _, err = attempt(t, d, targetOf(s))
	must.NoError(t, err)

	// With IdentitiesOnly, only those keys of the agent count that an identity file names.
	other := filepath.Join(home, "other")
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "config"), []byte("IdentitiesOnly yes\nIdentityFile "+other+"\n"), 0o600))
	_, _, _, err = attempt(t, d, targetOf(s))
	must.Eq(t, core.Forbidden, core.KindOf(err))
	must.NoError(t, os.WriteFile(other+".pub", gossh.MarshalAuthorizedKey(key), 0o600))
	_, _, _, err = attempt(t, d, targetOf(s))
	must.NoError(t, err)
}

func TestConnectFailsByStep(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	t.Cleanup(func() { silent.Close() })
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	closed.Close()
	port := func(l net.Listener) int { return l.Addr().(*net.TCPAddr).Port }
	says := func(text string) net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must.NoError(t, err)
		t.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				if tcp, ok := c.(*net.TCPConn); ok && text == "" {
					_, _ = io.ReadFull(c, make([]byte, 4))
					_ = tcp.SetLinger(0)
				}
				_, _ = c.Write([]byte(text))
				c.Close()
			}
		}()
		return l
	}
	for _, c := range []struct {
		name   string
		target ssh.Target
		config string
		step   string
		kind   core.Kind
		hint   string
	}{
		{"no such name", ssh.Target{Host: "no-such-host.invalid"}, "", "resolve", core.NotFound, ""},
		{"a host with an option", ssh.Target{Host: "-oProxyCommand=x"}, "", "resolve", core.Invalid, ""},
		{"a proxy command", ssh.Target{Host: "box"}, "Host box\nProxyCommand nc %h %p\n", "resolve", core.Unsupported, ""},
		{"host name of the configuration", ssh.Target{Host: "box"}, "Host box\nHostName $(reboot)\n", "resolve", core.Invalid, ""},
		{"nobody listens", ssh.Target{Host: "127.0.0.1", Port: port(closed)}, "", "connect", core.Unavailable, ""},
		{"nobody answers", ssh.Target{Host: "127.0.0.1", Port: port(silent)}, "", "host key", core.Unavailable, ""},
		{"the server hangs up", ssh.Target{Host: "127.0.0.1", Port: port(says(""))}, "", "host key", core.Unavailable, "MaxStartups"},
		{"another server", ssh.Target{Host: "127.0.0.1", Port: port(says("HTTP/1.1 400 Bad Request\r\n\r\n" + strings.Repeat("x", 1<<10)))}, "", "host key", core.Unavailable, "name the right port"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			home, _ := sshserver.Home(t, "")
			must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "config"), []byte(c.config), 0o600))
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			var last core.SSHStep
			conn, _, err := dialer(home).Connect(ctx, c.target, func(s core.SSHStep) { last = s })
			must.Nil(t, conn)
			must.Eq(t, c.kind, core.KindOf(err), must.Sprint(err))
			must.Eq(t, c.step, last.Name)
			must.False(t, last.OK)
			must.StrHasPrefix(t, c.step+": ", err.Error())
			must.StrContains(t, core.HintOf(err), c.hint)
		})
	}
}

func TestConnectHonoursConfig(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	must.NoError(t, os.Rename(filepath.Join(home, ".ssh", "id_ed25519"), filepath.Join(home, "elsewhere")))
	inner := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}, Run: func(c sshserver.Command) int { fmt.Fprint(c.Stdout, "inner"); return 0 }})
	outer := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}})
	config := fmt.Sprintf("Host outer\n HostName 127.0.0.1\n Port %d\nHost box\n HostName 127.0.0.1\n Port %d\n ProxyJump outer\nHost *\n User bee\n IdentityFile ~/elsewhere\n", outer.Port, inner.Port)
	must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", "config"), []byte(config), 0o600))
	d := dialer(home)
	d.AcceptNew = true
	c, _, _, err := attempt(t, d, ssh.Target{Host: "box"})
	must.NoError(t, err)
	must.Eq(t, "bee", c.User)
	out, err := c.Run(t.Context(), "x", nil)
	must.NoError(t, err)
	must.Eq(t, "inner", out)

	// The jump host's key is verified as well.
	d = dialer(home)
	must.NoError(t, os.WriteFile(d.KnownHosts, nil, 0o600))
	_, _, _, err = attempt(t, d, ssh.Target{Host: "box"})
	must.Eq(t, core.Unauthenticated, core.KindOf(err))
	must.StrContains(t, err.Error(), "jump host outer")
}

func TestRunContextEnds(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	started := make(chan struct{})
	s := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}, Run: func(c sshserver.Command) int {
		close(started)
		<-c.Context.Done()
		return 0
	}})
	d := dialer(home)
	d.AcceptNew = true
	conn, _, _, err := attempt(t, d, targetOf(s))
	must.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	_, err = conn.Run(ctx, "sleep", nil)
	must.Eq(t, core.Cancelled, core.KindOf(err))
}

func TestRunExitError(t *testing.T) {
	t.Parallel()
	home, key := sshserver.Home(t, "")
	s := sshserver.Start(t, sshserver.Options{Authorized: []gossh.PublicKey{key}, Run: func(c sshserver.Command) int {
		switch c.Line {
		case "big":
			_, _ = c.Stdout.Write(make([]byte, 2<<20))
		case "cut":
			c.Cut()
		}
		fmt.Fprint(c.Stderr, "went\x1b[31m wrong\n")
		return map[string]int{"fail": 3}[c.Line]
	}})
	d := dialer(home)
	d.AcceptNew = true
	conn, _, _, err := attempt(t, d, targetOf(s))
	must.NoError(t, err)
	_, err = conn.Run(t.Context(), "fail", nil)
	exit, ok := errors.AsType[*ssh.ExitError](err)
	must.True(t, ok)
	must.Eq(t, 3, exit.Status)
	must.Eq(t, "went [31m wrong", exit.Stderr)
	_, err = conn.Run(t.Context(), "big", nil)
	must.Eq(t, core.TooLarge, core.KindOf(err))
	_, err = conn.Run(t.Context(), "cut", nil)
	must.Eq(t, core.Unavailable, core.KindOf(err))
}
