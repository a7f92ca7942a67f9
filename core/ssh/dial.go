package ssh

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	gossh "golang.org/x/crypto/ssh"

	"github.com/rbee-project/rbee/core"
)

// The steps of Connect, in order.
const (
	StepResolve      = "resolve"
	StepConnect      = "connect"
	StepHostKey      = "host key"
	StepAuthenticate = "authenticate"
)

// maxJumps bounds the jump hosts.
const maxJumps = 4

// Dialer reaches machines with one user's SSH identity. It is safe for concurrent use.
type Dialer struct {
	Home        string // home folder of the user whose .ssh is read
	AgentSocket string // SSH_AUTH_SOCK; empty: no agent
	// KnownHosts is the file to which accepted host keys are added; they are looked up there and in
	// the user's own files.
	KnownHosts string
	// Accept is the fingerprint of an unknown host key to accept, "SHA256:…"; empty: none.
	Accept    string
	AcceptNew bool // accept any unknown host key, but never a changed one
	// Dial connects to an address; nil: TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
}

// Connect connects and authenticates, and calls step at the end of every step, including a failed
// one. ctx bounds only the connecting; the caller closes the connection. Errors: Invalid, NotFound
// for a name without an address, Unavailable, Unauthenticated for an unknown host key, Integrity
// for a changed one, Forbidden if no identity is accepted, Unsupported; each names the step.
func (d *Dialer) Connect(ctx context.Context, t Target, step func(core.SSHStep)) (*Conn, *core.HostKey, error) {
	w := &walk{d: d, step: step, begin: time.Now()}
	c, err := ReadConfig(filepath.Join(d.Home, ".ssh", "config"), d.Home)
	if err != nil {
		return nil, nil, w.fail(StepResolve, err)
	}
	r, err := d.routeTo(t, c)
	if err != nil {
		return nil, nil, w.fail(StepResolve, err)
	}
	if len(r.jumps) > maxJumps {
		return nil, nil, w.fail(StepResolve, core.Errorf(core.Unsupported, "ProxyJump has %d hosts, at most %d are followed", len(r.jumps), maxJumps))
	}
	conn := &Conn{User: r.user, Address: net.JoinHostPort(r.hostName, strconv.Itoa(r.port))}
	for _, hop := range r.jumps {
		jt, err := jumpTarget(hop)
		var jr route
		if err == nil {
			jr, err = d.routeTo(jt, c)
		}
		if err != nil {
			conn.Close()
			return nil, nil, w.fail(StepResolve, core.Prefix(err, "jump host"))
		}
		quiet := &walk{d: d, step: func(core.SSHStep) {}, begin: time.Now(), via: conn.last()}
		client, key, err := quiet.open(ctx, jr)
		if err != nil {
			conn.Close()
			return nil, key, w.fail(StepConnect, core.Prefix(err, "jump host "+jr.alias))
		}
		conn.clients = append(conn.clients, client)
	}
	w.via = conn.last()
	client, key, err := w.open(ctx, r)
	if err != nil {
		conn.Close()
		return nil, key, err
	}
	conn.clients = append(conn.clients, client)
	return conn, key, nil
}

// walk is one connection being established.
type walk struct {
	d     *Dialer
	step  func(core.SSHStep)
	begin time.Time     // when the step began
	via   *gossh.Client // nil: dial directly
}

func (w *walk) done(name, detail string) {
	now := time.Now()
	w.step(core.SSHStep{Name: name, OK: true, Detail: detail, Took: core.Duration(now.Sub(w.begin))})
	w.begin = now
}

func (w *walk) fail(name string, err error) error {
	w.step(core.SSHStep{Name: name, Detail: err.Error(), Hint: core.HintOf(err), Took: core.Duration(time.Since(w.begin))})
	return core.Prefix(err, name)
}

func (w *walk) open(ctx context.Context, r route) (*gossh.Client, *core.HostKey, error) {
	port := strconv.Itoa(r.port)
	addresses := []string{r.hostName}
	if w.via == nil && net.ParseIP(r.hostName) == nil {
		var err error
		if addresses, err = net.DefaultResolver.LookupHost(ctx, r.hostName); err != nil {
			kind := core.NotFound
			if ctx.Err() != nil {
				kind = core.Unavailable
			}
			return nil, nil, w.fail(StepResolve, core.Errorf(kind, "%s has no address that can be found", r.hostName).Hint("Check the name, or write HostName in ~/.ssh/config."))
		}
	}
	w.done(StepResolve, strings.Join(addresses, ", "))
	conn, err := w.dial(ctx, addresses, port)
	if err != nil {
		return nil, nil, w.fail(StepConnect, core.WithHint(core.WithKind(err, core.Unavailable), "Is the machine on, does an SSH server listen there, and does no firewall stand between?"))
	}
	w.done(StepConnect, conn.RemoteAddr().String())
	keys, err := w.d.hostKeys(r)
	if err != nil {
		conn.Close()
		return nil, nil, w.fail(StepHostKey, err)
	}
	signers, tried, closeAgent := w.d.identities(ctx, r)
	defer closeAgent()
	config := &gossh.ClientConfig{
		User: r.user, Auth: []gossh.AuthMethod{gossh.PublicKeys(signers...)}, HostKeyAlgorithms: keys.algorithms(), ClientVersion: "SSH-2.0-rbee",
		HostKeyCallback: func(hostname string, remote net.Addr, key gossh.PublicKey) error {
			err := keys.check(hostname, remote, key)
			if err == nil {
				w.done(StepHostKey, keys.seen.Fingerprint+" ("+string(keys.seen.State)+")")
			}
			return err
		},
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	sshConn, chans, requests, err := gossh.NewClientConn(conn, keys.name, config)
	if !stop() && err == nil {
		sshConn.Close()
		err = ctx.Err()
	}
	if err == nil {
		w.done(StepAuthenticate, "as "+r.user)
		return gossh.NewClient(sshConn, chans, requests), keys.seen, nil
	}
	conn.Close()
	switch {
	case keys.taken != nil:
		return nil, keys.seen, w.fail(StepHostKey, keys.taken)
	case ctx.Err() != nil && keys.seen == nil:
		return nil, nil, w.fail(StepHostKey, core.Errorf(core.Unavailable, "the server did not show its key in time").Hint("Does an SSH server listen on port %s?", port))
	case keys.seen == nil:
		return nil, nil, w.fail(StepHostKey, core.Errorf(core.Unavailable, "no SSH server answers at %s: %w", conn.RemoteAddr(), err).Hint("%s", silentHint(err)))
	case ctx.Err() != nil:
		return nil, keys.seen, w.fail(StepAuthenticate, core.Errorf(core.Unavailable, "the server did not answer in time"))
	default:
		return nil, keys.seen, w.fail(StepAuthenticate, core.Errorf(core.Forbidden, "%s does not let %s in; %s", r.alias, r.user, triedText(tried)).Hint(
			"Put a public key of yours into ~/.ssh/authorized_keys there (ssh-copy-id), or name the right user with --user. The identities are those of whoever runs the agent."))
	}
}

// silentHint returns the hint for a server that showed no host key.
func silentHint(err error) string {
	if errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF) {
		return "It hung up at once: its SSH server may have too many logins under way (MaxStartups) or refuse this machine (hosts.deny, fail2ban), or a firewall may. " +
			"Look at its log; if its SSH server is on another port, name that with --port."
	}
	return "What answers there is no SSH server: name the right port with --port."
}

// dial tries the addresses in turn.
func (w *walk) dial(ctx context.Context, addresses []string, port string) (net.Conn, error) {
	dial := w.d.Dial
	if w.via != nil {
		dial = w.via.DialContext
	} else if dial == nil {
		dial = (&net.Dialer{KeepAlive: 15 * time.Second}).DialContext
	}
	var errs []error
	for i, a := range addresses {
		limited, cancel := ctx, context.CancelFunc(func() {})
		// An address that swallows everything leaves time for the next.
		if deadline, ok := ctx.Deadline(); ok && i < len(addresses)-1 {
			limited, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(addresses)-i))
		}
		conn, err := dial(limited, "tcp", net.JoinHostPort(a, port))
		cancel()
		if err == nil {
			return conn, nil
		}
		errs = append(errs, err)
	}
	if ctx.Err() != nil {
		errs = append(errs, fmt.Errorf("it took too long"))
	}
	return nil, errors.Join(errs...)
}
