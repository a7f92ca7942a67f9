package e2e

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
)

// cluster is several agents of one cluster on this machine, each with its own loopback address and
// the default ports on it.
type cluster struct {
	t      testing.TB
	net    string // the first three numbers of the addresses
	listen string // that all nodes listen on; empty: each on its own
	lan    *lan   // nil: all nodes are on loopback addresses
	thread *thread
	bin    string // name of the program, in the folder of the built one
	token  string // the operator's token
	ca     []byte // PEM
	signer *pki.CA
	nodes  []*node
	slots  int
	extra  string // added to every node's configuration
	// ownStores gives every node its own store, without an engine, in its data folder.
	ownStores bool
	env       []string    // of agents and commands, beside the usual
	disk      func(*node) // mounts a special disk as a node's data folder; nil: none
}

// node is one machine of a cluster: its folders and, while it runs, its agent.
type node struct {
	c     *cluster
	name  string
	ip    string
	dir   string // data folder
	file  string // configuration
	env   []string
	queen bool
	hive  bool
	log   *lockedBuffer

	process atomic.Pointer[process] // the latest run; nil: none yet
}

// process is one run of an agent.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has exited
}

// newCluster returns a cluster without nodes, on loopback addresses.
func newCluster(t testing.TB) *cluster {
	t.Helper()
	binDir(t)
	// Any address of 127.0.0.0/8 is this machine's, so that concurrent tests do not clash.
	c := &cluster{t: t, net: fmt.Sprintf("127.%d.%d", 1+rand.IntN(254), rand.IntN(256)), thread: newThread(), bin: "rbee", slots: 8}
	t.Cleanup(c.thread.close)
	return c
}

// newLANCluster returns a cluster whose nodes' network cables can be unplugged.
func newLANCluster(t testing.TB) *cluster {
	t.Helper()
	c := newCluster(t)
	c.lan, c.net = newLAN(t), "10.77.0"
	return c
}

// add writes the configuration of another node.
func (c *cluster) add(name string, queen, hive bool) *node {
	c.t.Helper()
	n := &node{
		c: c, name: name, ip: fmt.Sprintf("%s.%d", c.net, len(c.nodes)+1), dir: shortDir(c.t), queen: queen, hive: hive, log: &lockedBuffer{},
	}
	home := c.t.TempDir()
	n.file = filepath.Join(home, "rbee.hcl")
	n.env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + os.TempDir()}, c.env...)
	store := sharedStore(c.t)
	if c.ownStores {
		store = filepath.Join(n.dir, "store")
	}
	text := fmt.Sprintf("name = %q\ndata_dir = %q\nstore_dir = %q\nbind {\n  address = %q\n}\nqueen {\n  enabled = %t\n}\nhive {\n  enabled = %t\n  slots = %d\n  threads = 1\n}\n%s",
		name, n.dir, store, cmp.Or(c.listen, n.ip), queen, hive, c.slots, c.extra)
	must.NoError(c.t, os.WriteFile(n.file, []byte(text), 0o600))
	c.nodes = append(c.nodes, n)
	if c.lan != nil {
		c.lan.add(c.t, n.ip)
	}
	if c.disk != nil {
		c.disk(n)
	}
	c.t.Cleanup(n.cleanup)
	return n
}

// start creates a cluster of queens and hives as a person would: init, agent, and for each further
// machine a join token and its agent.
func (c *cluster) start(queens, hives int) {
	c.t.Helper()
	for i := range queens {
		c.add(fmt.Sprintf("queen-%d", i+1), true, false)
	}
	for i := range hives {
		c.add(fmt.Sprintf("hive-%d", i+1), false, true)
	}
	c.join(queens, hives)
}

// join starts the agents of the added nodes, the first of which starts the cluster, and waits until
// all have joined.
func (c *cluster) join(queens, hives int) {
	c.t.Helper()
	first := c.nodes[0]
	var made struct {
		Token string `json:"token"`
	}
	out := first.run("cluster", "init", "--config", first.file, "--format", "json")
	must.Eq(c.t, 0, out.code, must.Sprint(out.stderr))
	must.NoError(c.t, json.Unmarshal([]byte(out.stdout), &made), must.Sprint(out.stdout))
	must.NotEq(c.t, "", made.Token)
	c.token = made.Token
	var err error
	c.ca, err = os.ReadFile(filepath.Join(first.dir, "cluster", "ca.pem"))
	must.NoError(c.t, err)
	c.keepSigner()
	first.start()
	first.awaitAnswer()
	c.await(func(core.Status) error { return nil }) // it accepts the token: the cluster is in the registry
	for _, n := range c.nodes[1:] {
		n.start("-join", first.joinToken(n)+"@"+first.ip)
	}
	for _, n := range c.nodes {
		if n.queen {
			n.awaitAnswer()
		}
	}
	c.await(func(s core.Status) error {
		voters, ready := 0, 0
		for _, q := range s.Queens {
			if q.Voter {
				voters++
			}
		}
		for _, h := range s.Hives {
			if h.Status == core.HiveReady {
				ready++
			}
		}
		if voters != queens || ready != hives {
			return fmt.Errorf("%d of %d voters, %d of %d hives: %v", voters, queens, ready, hives, s.Problems)
		}
		return nil
	})
}

// keepSigner copies the CA from the first queen's disk, where it waits for the registry.
func (c *cluster) keepSigner() {
	c.t.Helper()
	id, err := pki.Load(c.nodes[0].dir)
	must.NoError(c.t, err)
	seed, err := id.Seed()
	must.NoError(c.t, err)
	must.NotNil(c.t, seed)
	c.signer, err = id.CA(seed.CAPEM, seed.SealedCAKey)
	must.NoError(c.t, err)
}

// await waits until some queen's status satisfies check.
func (c *cluster) await(check func(core.Status) error) {
	c.t.Helper()
	cl := c.client(c.queens()...)
	coretest.Eventually(c.t, patience, func() error {
		s, err := cl.Status(c.t.Context())
		if err != nil {
			return err
		}
		return check(s)
	})
}

// queens returns the nodes that currently run a queen.
func (c *cluster) queens() []*node {
	var out []*node
	for _, n := range c.nodes {
		if n.queen && n.running() {
			out = append(out, n)
		}
	}
	return out
}

// leader returns the current leader.
func (c *cluster) leader() *node {
	c.t.Helper()
	var leader *node
	c.await(func(s core.Status) error {
		for _, q := range s.Queens {
			for _, n := range c.nodes {
				if q.Leader && strings.HasPrefix(q.Address, n.ip+":") && n.running() {
					leader = n
					return nil
				}
			}
		}
		return fmt.Errorf("no running leader among %v", s.Queens)
	})
	return leader
}

// httpClient returns a client that trusts the cluster's CA.
func (c *cluster) httpClient() *http.Client {
	roots := x509.NewCertPool()
	must.True(c.t, roots.AppendCertsFromPEM(c.ca))
	return &http.Client{Transport: &http.Transport{
		DialContext:     func(ctx context.Context, _, address string) (net.Conn, error) { return c.dial(ctx, address) },
		TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}, MaxIdleConnsPerHost: 256, ForceAttemptHTTP2: false,
	}}
}

// dial connects to a node, even if its cable is unplugged.
func (c *cluster) dial(ctx context.Context, address string) (net.Conn, error) {
	if c.lan != nil {
		return c.lan.dial(ctx, "tcp", address)
	}
	var d net.Dialer
	return d.DialContext(ctx, "tcp", address)
}

// client returns a client with the operator's token that knows only these queens.
func (c *cluster) client(queens ...*node) *client.Client {
	c.t.Helper()
	var addresses []string
	for _, q := range queens {
		addresses = append(addresses, q.url())
	}
	cl, err := client.New(client.Options{Addresses: addresses, Token: c.token, HTTPClient: c.httpClient()})
	must.NoError(c.t, err)
	return cl
}

func (n *node) url() string { return "https://" + n.ip + ":7833" }

// run runs `rbee args…` as a person at this node would.
func (n *node) run(args ...string) result {
	n.c.t.Helper()
	cmd := exec.CommandContext(n.c.t.Context(), filepath.Join(binDir(n.c.t), "rbee"), args...)
	cmd.Env = append([]string{"RBEE_TOKEN=" + n.c.token, "RBEE_ADDR=" + n.url(), "RBEE_CACERT=" + filepath.Join(n.dir, "cluster", "ca.pem")}, n.env...)
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	cmd.WaitDelay = 5 * time.Second
	must.NoError(n.c.t, n.exec(cmd))
	err := cmd.Wait()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		n.c.t.Fatalf("%s: %v", cmd, err)
	}
	return result{out.String(), talk.String(), cmd.ProcessState.ExitCode()}
}

// exec starts a command on this node.
func (n *node) exec(cmd *exec.Cmd) error {
	if n.c.lan != nil {
		return n.c.lan.start(n.ip, cmd)
	}
	return n.c.thread.start(cmd)
}

// must runs `rbee args…` at this node and fails the test unless it succeeds.
func (n *node) must(args ...string) string {
	n.c.t.Helper()
	r := n.run(args...)
	if r.code != 0 {
		n.c.t.Fatalf("%s: rbee %s: exit code %d\n%s%s", n.name, strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

// joinToken creates a token with which another machine can join.
func (n *node) joinToken(other *node) string {
	n.c.t.Helper()
	var made core.NewToken
	args := []string{"token", "create", "--type", "join", "--ttl", "1h", "--format", "json"}
	if other.queen {
		args = append(args, "--role", "queen")
	}
	out := n.must(args...)
	must.NoError(n.c.t, json.Unmarshal([]byte(out), &made), must.Sprint(out))
	return made.Secret
}

// start starts the agent and does not wait for anything.
func (n *node) start(args ...string) {
	n.c.t.Helper()
	must.NoError(n.c.t, n.launch(args...))
}

// launch is start for use in any goroutine.
func (n *node) launch(args ...string) error {
	cmd := exec.Command(filepath.Join(os.Getenv("RBEE_TEST_BIN"), n.c.bin), append([]string{"agent", "-config", n.file}, args...)...)
	cmd.Env = n.env
	cmd.Stdout, cmd.Stderr = n.log, n.log
	cmd.WaitDelay = time.Second
	if err := n.exec(cmd); err != nil {
		return err
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = cmd.Wait()
	}()
	n.process.Store(&process{cmd, done})
	return nil
}

// kill ends the agent as a power cut would. It may be called from any goroutine.
func (n *node) kill() {
	if p := n.process.Load(); p != nil {
		_ = p.cmd.Process.Kill()
		<-p.done
	}
}

// signal sends a signal to the agent.
func (n *node) signal(sig syscall.Signal) error {
	p := n.process.Load()
	if p == nil {
		return os.ErrProcessDone
	}
	return p.cmd.Process.Signal(sig)
}

// pid returns the agent's process id; 0: it never ran.
func (n *node) pid() int {
	p := n.process.Load()
	if p == nil {
		return 0
	}
	return p.cmd.Process.Pid
}

// id returns the node's id, which exists from its first start on.
func (n *node) id() string {
	b, err := os.ReadFile(filepath.Join(n.dir, "node-id"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// awaitAnswer waits until the queen answers; it need not know a leader.
func (n *node) awaitAnswer() {
	n.c.t.Helper()
	hc := n.c.httpClient()
	defer hc.CloseIdleConnections()
	coretest.Eventually(n.c.t, patience, func() error {
		if !n.running() {
			n.c.t.Fatalf("the agent of %s ended:\n%s", n.name, n.log)
		}
		resp, err := hc.Get(n.url() + "/healthz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/healthz: %s", resp.Status)
		}
		return nil
	})
}

func (n *node) running() bool {
	p := n.process.Load()
	if p == nil {
		return false
	}
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// stop sends a signal and waits until the agent has exited.
func (n *node) stop(sig syscall.Signal) {
	n.c.t.Helper()
	if !n.running() {
		return
	}
	_ = n.signal(sig)
	select {
	case <-n.process.Load().done:
	case <-time.After(patience):
		n.c.t.Errorf("the agent of %s did not end after %s:\n%s", n.name, sig, n.log)
		n.kill()
	}
}

// cleanup ends the agent and the workers that it left running.
func (n *node) cleanup() {
	if n.c.t.Failed() {
		n.c.t.Logf("the log of %s:\n%s", n.name, n.log)
	}
	_ = n.signal(syscall.SIGCONT)
	n.stop(syscall.SIGTERM)
	a := agent{dir: n.dir}
	for _, pid := range a.handlePIDs() {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
}
