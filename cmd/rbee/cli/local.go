package cli

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/gateway"
	"github.com/rbee-project/rbee/core/pki"
)

// machine is this machine: the environment, the folder of its agent, and an agent in the
// background.
type machine struct {
	env func(string) (string, bool)
	// environ lists all of the environment, as os.Environ does; nil: it is not known.
	environ func() []string
}

// getenv is the environment variable, or the empty string.
func (m *machine) getenv(name string) string {
	v, _ := m.env(name)
	return v
}

// local is what the data folder of this machine's agent tells a person who may read it.
type local struct {
	dir      string        // the data folder; empty: none is known
	identity *pki.Identity // nil: in no cluster, or not to be read
	port     int           // of its API, unless its configuration says otherwise
	queens   []string      // host:port of the queens that a hive knows, where machines talk to each other
	address  string        // where the agent that runs serves its API, with the scheme; empty: none runs
}

// localAgent looks at the default data folder, or the one that RBEE_DATA_DIR names. What cannot be
// read is not there: the folder may belong to a service.
func (m *machine) localAgent() local {
	cfg, _ := config.Load(nil, func(name string) (string, bool) {
		switch name {
		case "RBEE_DATA_DIR", "XDG_DATA_HOME", "HOME", "RBEE_BIND_HTTP_PORT":
			return m.env(name)
		}
		return "", false
	})
	if cfg == nil {
		return local{}
	}
	l := local{dir: cfg.DataDir, port: cfg.Bind.HTTPPort}
	l.identity, _ = pki.Load(cfg.DataDir)
	l.queens = knownQueens(cfg.DataDir)
	l.address = runningAddress(cfg.DataDir, l.identity != nil)
	return l
}

// runningRecord returns what agent.json says, if that agent lives.
func runningRecord(dir string) (r agent.Record, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, "agent.json"))
	if err != nil || json.Unmarshal(b, &r) != nil || r.PID <= 0 {
		return r, false
	}
	// Asked only whether it lives: a process that got the same id later costs one connection that
	// is refused.
	p, err := os.FindProcess(r.PID)
	if err != nil {
		return r, false
	}
	err = p.Signal(syscall.Signal(0))
	return r, err == nil || errors.Is(err, os.ErrPermission)
}

// runningAddress is where the agent serves its API of which agent.json tells, if it lives.
func runningAddress(dir string, inCluster bool) string {
	r, ok := runningRecord(dir)
	if !ok || r.HTTPAddress == "" {
		return ""
	}
	scheme := "http"
	if inCluster {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(r.HTTPAddress)
	if err != nil {
		return ""
	}
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() { // listens everywhere
		host = "127.0.0.1"
	}
	return cmp.Or(r.Scheme, scheme) + "://" + net.JoinHostPort(host, port)
}

// addresses are those at which the agent of this machine is to be looked for, the best guess first;
// on a hive, those of the queens.
func (l local) addresses() []string {
	var out []string
	if l.address != "" {
		out = append(out, l.address)
	}
	if l.identity == nil {
		return out
	}
	rpc := l.queens
	var hosts []string
	if l.identity.Has(core.RoleQueen) {
		hosts, rpc = []string{"127.0.0.1"}, []string{l.identity.RPCAddress()}
	}
	for _, address := range rpc {
		if host, _, err := net.SplitHostPort(address); err == nil && host != "" {
			hosts = append(hosts, host)
		}
	}
	for _, h := range hosts {
		if u := "https://" + net.JoinHostPort(h, strconv.Itoa(l.port)); !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

// usualAddress returns the default API address of an agent on this machine outside a cluster. With
// port 0 an agent takes any free port and writes it only to agent.json; nothing answers at the
// returned address then.
func (l local) usualAddress() string {
	const nobodys = 1 // needs root to listen on
	switch {
	case l.dir == "": // the configuration could not be read
		return client.DefaultAddress
	case l.port == 0:
		return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(nobodys))
	}
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(l.port))
}

// knownQueens are the RPC addresses of the queens that this machine's agent remembers.
func knownQueens(dir string) []string {
	b, err := os.ReadFile(filepath.Join(dir, pki.Folder, "queens.json"))
	if err != nil {
		return nil
	}
	var file struct {
		Queens []struct {
			RPCAddress string `json:"rpc_address"`
		} `json:"queens"`
	}
	_ = json.Unmarshal(b, &file) // what cannot be read is not there
	var out []string
	for _, q := range file.Queens {
		out = append(out, q.RPCAddress)
	}
	return out
}

// client returns a client of the agent's local socket.
func (l local) client() (*client.Client, error) {
	socket := agent.LocalSocket(l.dir)
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}}
	return client.New(client.Options{Addresses: []string{"http://" + core.LocalHive}, HTTPClient: &http.Client{Transport: proving{transport, l.identity}}})
}

// proving is a transport that proves with each request that this command may read the agent's data
// folder.
type proving struct {
	to       http.RoundTripper
	identity *pki.Identity // nil: there is nothing to prove
}

func (p proving) RoundTrip(r *http.Request) (*http.Response, error) {
	if p.identity == nil || r.Body == nil {
		return p.to.RoundTrip(r)
	}
	body, err := io.ReadAll(r.Body)
	if err := errors.Join(err, r.Body.Close()); err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(body))
	r.Header.Set(gateway.ProofHeader, gateway.LocalProof(body, time.Now(), p.identity.Proof))
	return p.to.RoundTrip(r)
}

// fromHive gets something of a hive from a queen. Where none answers and the hive is this
// machine's, its agent is asked itself.
func fromHive[T any](ctx context.Context, a *app, c *client.Client, hive string, get func(*client.Client) (T, error)) (T, error) {
	v, err := get(c)
	if err == nil || hive != core.LocalHive || core.KindOf(err) != core.Unavailable {
		return v, err
	}
	t, terr := a.target()
	if terr != nil || t.named || t.local.dir == "" {
		return v, err
	}
	l, lerr := t.local.client()
	if lerr != nil {
		return v, err
	}
	lv, lerr := get(l)
	if core.KindOf(lerr) == core.Unavailable {
		return v, err // there is no agent here either
	}
	fmt.Fprintln(a.stderr, "No queen answers: this is what the agent of this machine says of itself.")
	return lv, lerr
}
