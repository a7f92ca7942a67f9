// Package remote installs, starts, stops and removes rbee on machines over SSH.
package remote

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/ssh"
)

const (
	testTimeout    = 5 * time.Second
	connectTimeout = 15 * time.Second
	// patience is the default time for a hive to join after its service has started.
	patience = 90 * time.Second
	// poll is the pause between two polls of the registry.
	poll = 200 * time.Millisecond
	// lifePolls is the number of polls of the registry per poll of the service.
	lifePolls = 5
	// drainPatience is the default time for running requests to finish.
	drainPatience = 5 * time.Minute
	minFreeBytes  = 256 << 20
)

// Cluster is the part of the queen that the operations use.
type Cluster interface {
	// JoinToken creates a one-time token for a machine, as "TOKEN@host:port". Its ID is for
	// RevokeToken.
	JoinToken(ctx context.Context, name string, roles []core.Role) (tokenAtQueen, id string, err error)
	RevokeToken(ctx context.Context, id string) (core.Token, error)
	Hive(ctx context.Context, hive string) (core.Hive, error)
	Workers(ctx context.Context) ([]core.Worker, error)
	DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error)
	LeaveNode(ctx context.Context, id string) (core.Node, error)
	Submit(ctx context.Context, r core.Request, first bool) (core.Job, error)
	Job(ctx context.Context, id string) (core.Job, error)
}

// Run is the job in which an operation runs.
type Run interface {
	Progress(p core.Progress)
	Log(format string, args ...any)
}

// Options configure a Remote.
type Options struct {
	Cluster  Cluster // nil: this machine is not in a cluster
	Name     string  // name of this machine
	Home     string  // home folder of the user whose SSH identity is used
	Agent    string  // SSH_AUTH_SOCK; empty: none
	DataDir  string  // its subfolder ssh holds hosts and accepted host keys
	Program  Program
	Patience time.Duration // time for a hive to join; 0: 90 s
}

// Remote runs the operations on other machines. It is safe for concurrent use.
type Remote struct {
	o     Options
	hosts *Hosts

	mu   sync.Mutex      // guards below
	busy map[string]bool // hosts with a running operation
}

// New opens the list of hosts. Errors: Internal.
func New(o Options) (*Remote, error) {
	if o.Patience == 0 {
		o.Patience = patience
	}
	hosts, err := openHosts(filepath.Join(o.DataDir, "ssh", "hosts.json"))
	if err != nil {
		return nil, err
	}
	return &Remote{o: o, hosts: hosts, busy: map[string]bool{}}, nil
}

// Hosts returns the list of known machines.
func (r *Remote) Hosts() *Hosts { return r.hosts }

func (r *Remote) dialer(req core.Request) *ssh.Dialer {
	return &ssh.Dialer{
		Home: r.o.Home, AgentSocket: r.o.Agent, KnownHosts: filepath.Join(r.o.DataDir, "ssh", "known_hosts"), Accept: req.HostKey, AcceptNew: req.AcceptNew,
	}
}

// target returns the machine that a request refers to, with the stored facts about it.
func (r *Remote) target(ctx context.Context, req core.Request) (ssh.Target, core.HiveHost, error) {
	host, known := r.hosts.Find(req.Host)
	// The name may be that of a hive installed under another host name.
	if !known && r.o.Cluster != nil {
		if h, err := r.o.Cluster.Hive(ctx, req.Host); err == nil {
			host, known = r.hosts.ofHive(h.ID)
		}
	}
	if !known {
		host = core.HiveHost{Name: req.Host}
	}
	if req.User != "" {
		host.User = req.User
	}
	if req.Port != 0 {
		host.Port = req.Port
	}
	t := ssh.Target{Host: host.Name, HostName: host.HostName, User: host.User, Port: host.Port, IdentityFile: host.IdentityFile}
	return t, host, t.Check()
}

// occupy reserves a host, excluding other operations until free is called. Errors: InUse.
func (r *Remote) occupy(host string) (free func(), err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy[host] {
		return nil, core.Errorf(core.InUse, "another operation is running on %s", host).Hint("Wait for its end: \"rbee job list\".")
	}
	r.busy[host] = true
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.busy, host)
	}, nil
}

// reach connects to the machine of a request and reads its state. The caller closes the connection.
func (r *Remote) reach(ctx context.Context, req core.Request, run Run) (*machine, core.HiveHost, error) {
	t, host, err := r.target(ctx, req)
	if err != nil {
		return nil, host, err
	}
	free, err := r.occupy(host.Name)
	if err != nil {
		return nil, host, err
	}
	limited, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	conn, key, err := r.dialer(req).Connect(limited, t, func(core.SSHStep) {})
	if err != nil {
		free()
		return nil, host, err
	}
	m := &machine{conn: conn, name: host.Name, free: free}
	run.Log("connected to %s as %s, host key %s (%s)", conn.Address, conn.User, key.Fingerprint, key.State)
	out, err := m.run(limited, scriptLook)
	if err != nil {
		m.close()
		return nil, host, m.explain("session", err)
	}
	m.look = parseLook(out)
	m.look.user = conn.User
	return m, host, nil
}

// Test runs ssh_test: it tries to reach a machine and reports every step. The result includes a
// failed step; the error only concerns the request itself.
func (r *Remote) Test(ctx context.Context, req core.Request, _ Run) (core.SSHTest, error) {
	t, host, err := r.target(ctx, req)
	if err != nil {
		return core.SSHTest{}, err
	}
	res := core.SSHTest{Host: host.Name, Via: r.o.Name}
	step := func(s core.SSHStep) {
		res.Steps = append(res.Steps, s)
		if !s.OK && res.Failed == "" {
			res.Failed = s.Name
		}
	}
	limited, cancel := context.WithTimeout(ctx, testTimeout)
	defer cancel()
	conn, key, err := r.dialer(req).Connect(limited, t, step)
	res.HostKey = key
	if err != nil {
		return res, cancelled(ctx)
	}
	defer conn.Close()
	res.User = conn.User
	begin := time.Now()
	m := &machine{conn: conn, name: host.Name}
	out, err := m.run(limited, scriptLook)
	took := core.Duration(time.Since(begin))
	if err == nil && parseLook(out).home == "" {
		err = core.Errorf(core.Unsupported, "the machine did not say what it is: is there a POSIX shell?")
	}
	if err != nil {
		if limited.Err() != nil {
			err = core.Errorf(core.Unavailable, "the machine did not answer a command in time")
		}
		step(core.SSHStep{Name: "session", Detail: err.Error(), Hint: "The account there needs a shell.", Took: took})
		return res, cancelled(ctx)
	}
	m.look = parseLook(out)
	r.judge(&res, m.look, took, step)
	return res, nil
}

// judge adds the steps after the session, all based on the output of one command.
func (r *Remote) judge(res *core.SSHTest, m look, took core.Duration, step func(core.SSHStep)) {
	res.OS, res.Arch, res.Sudo, res.Version = m.os, m.arch, m.root || m.sudo, m.version
	res.FreeDiskBytes = max(m.freeBytes, 0)
	step(core.SSHStep{Name: "session", OK: true, Detail: "home folder " + m.home, Took: took})
	s := core.SSHStep{Name: "platform", OK: m.runs(), Detail: m.os + "/" + m.arch}
	if !s.OK {
		s.Hint = "rbee is built for linux/amd64, linux/arm64 and darwin/arm64."
	}
	step(s)
	s = core.SSHStep{Name: "disk", OK: m.freeBytes < 0 || m.freeBytes >= minFreeBytes, Detail: "free space unknown"}
	if m.freeBytes >= 0 {
		s.Detail = sizeText(m.freeBytes) + " free in " + m.home
	}
	if !s.OK {
		s.Hint = "Make room for at least " + sizeText(minFreeBytes) + ", and for models."
	}
	step(s)
	// Missing sudo is not a failure: an installation for one user does not need it.
	s = core.SSHStep{Name: "sudo", OK: true, Detail: "not without a password: installations for one user only"}
	switch {
	case m.root:
		s.Detail = "not needed: the user is root"
	case m.sudo:
		s.Detail = "works without a password"
	}
	step(s)
	s = core.SSHStep{Name: "rbee", OK: true, Detail: "none"}
	if m.version != "" {
		s.Detail = "version " + m.version
	}
	step(s)
	res.Service, _ = chooseService(ServiceAuto, false, m)
	res.OK = res.Failed == ""
}

func cancelled(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return core.FromContext(ctx)
}

func sizeText(n int64) string {
	if n >= 1<<30 {
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	}
	return fmt.Sprintf("%d MiB", n>>20)
}

var machineName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

// hiveName returns the name for a new hive: the request's, else the host's name here, unless that
// is an address.
func hiveName(req core.Request, host core.HiveHost) (string, error) {
	if req.Name != "" {
		if !machineName.MatchString(req.Name) || req.Name == core.LocalHive {
			return "", core.Errorf(core.Invalid, "%q is no name for a machine", clip(req.Name)).Hint("Use up to 63 letters, digits, dots, dashes and underscores.")
		}
		return req.Name, nil
	}
	if _, err := netip.ParseAddr(host.Name); err == nil || !machineName.MatchString(host.Name) || host.Name == core.LocalHive {
		return "", nil
	}
	return host.Name, nil
}

func checkAddress(field, v string) error {
	if v == "" {
		return nil
	}
	if _, err := netip.ParseAddr(v); err != nil {
		return core.Errorf(core.Invalid, "%s is not an IP address", field).Hint("Write an IP address of that machine.")
	}
	return nil
}

// tempDir returns a folder to unpack into, below the data folder: /tmp may be small.
func (r *Remote) tempDir() (string, func(), error) {
	parent := filepath.Join(r.o.DataDir, "ssh")
	if err := os.MkdirAll(parent, 0o700); err != nil {
		return "", nil, core.Wrap(err, core.Internal, "make a temporary folder")
	}
	dir, err := os.MkdirTemp(parent, "release-")
	if err != nil {
		return "", nil, core.Wrap(err, core.Internal, "make a temporary folder")
	}
	return dir, func() { _ = os.RemoveAll(dir) }, nil
}

// workersOf returns the workers that the registry lists for a hive.
func (r *Remote) workersOf(ctx context.Context, hive string) ([]core.Worker, error) {
	all, err := r.o.Cluster.Workers(ctx)
	return slices.DeleteFunc(all, func(w core.Worker) bool { return w.Hive != hive }), err
}
