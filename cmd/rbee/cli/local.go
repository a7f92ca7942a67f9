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
	// environ lists the whole environment, as os.Environ does; nil: unknown.
	environ func() []string
}

// getenv returns the environment variable, or the empty string.
func (m *machine) getenv(name string) string {
	v, _ := m.env(name)
	return v
}

// local is what the data folder of this machine's agent reveals to a user who may read it.
type local struct {
	dir      string        // the data folder; empty: unknown
	identity *pki.Identity // nil: in no cluster, or unreadable
	port     int           // of its API, unless its configuration sets another
	queens   []string      // host:port of the queens' RPC ports that a hive knows
	address  string        // where the running agent serves its API, with the scheme; empty: none runs
}

// localAgent reads the default data folder, or the one that RBEE_DATA_DIR names. It treats
// unreadable files as missing: the folder may belong to a service.
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

// runningRecord returns the content of agent.json, if that agent is alive.
func runningRecord(dir string) (r agent.Record, ok bool) {
	b, err := os.ReadFile(filepath.Join(dir, "agent.json"))
	if err != nil || json.Unmarshal(b, &r) != nil || r.PID <= 0 {
		return r, false
	}
	// Only its existence is checked: a process that got the same id later costs one refused
	// connection.
	p, err := os.FindProcess(r.PID)
	if err != nil {
		return r, false
	}
	err = p.Signal(syscall.Signal(0))
	return r, err == nil || errors.Is(err, os.ErrPermission)
}

// runningAddress returns where the agent in agent.json serves its API, if it is alive.
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
	if ip, err := netip.ParseAddr(host); err == nil && ip.IsUnspecified() { // it listens on all addresses
		host = "127.0.0.1"
	}
	return cmp.Or(r.Scheme, scheme) + "://" + net.JoinHostPort(host, port)
}

// addresses returns where to look for the agent of this machine, the best guess first; on a hive,
// those of the queens.
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
	const nobodys = 1 // a port that only root can listen on
	switch {
	case l.dir == "": // the configuration was unreadable
		return client.DefaultAddress
	case l.port == 0:
		return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(nobodys))
	}
	return "http://" + net.JoinHostPort("127.0.0.1", strconv.Itoa(l.port))
}

// knownQueens returns the RPC addresses of the queens that this machine's agent remembers.
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
	_ = json.Unmarshal(b, &file) // unreadable counts as missing
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
	identity *pki.Identity // nil: no proof
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

// fromHive gets something of a hive from a queen. If no queen answers and the hive is this
// machine's, it asks the agent itself.
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
		return v, err // no agent runs here either
	}
	fmt.Fprintln(a.stderr, "No queen answers: this is what the agent of this machine says of itself.")
	return lv, lerr
}
