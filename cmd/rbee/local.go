package main

import (
	"cmp"
	"encoding/json"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pki"
)

// local is what the data folder of this machine's agent tells a person who may read it.
type local struct {
	dir      string        // the data folder; empty: none is known
	identity *pki.Identity // nil: in no cluster, or not to be read
	port     int           // of its API, unless its configuration says otherwise
	address  string        // where the agent that runs serves its API, with the scheme; empty: none runs
}

// localAgent looks at the default data folder, or the one that RBEE_DATA_DIR names. What cannot be read is not there: the folder may belong to
// a service.
func (a *app) localAgent() local {
	cfg, _ := config.Load(nil, func(name string) (string, bool) {
		switch name {
		case "RBEE_DATA_DIR", "XDG_DATA_HOME", "HOME", "RBEE_BIND_HTTP_PORT":
			return a.env(name)
		}
		return "", false
	})
	if cfg == nil {
		return local{}
	}
	l := local{dir: cfg.DataDir, port: cfg.Bind.HTTPPort}
	l.identity, _ = pki.Load(cfg.DataDir)
	l.address = runningAddress(cfg.DataDir, l.identity != nil)
	return l
}

// runningAddress is what agent.json says, if that agent lives.
func runningAddress(dir string, inCluster bool) string {
	b, err := os.ReadFile(filepath.Join(dir, "agent.json"))
	if err != nil {
		return ""
	}
	var r struct {
		PID         int    `json:"pid"`
		Scheme      string `json:"scheme"`
		HTTPAddress string `json:"http_address"`
	}
	if json.Unmarshal(b, &r) != nil || r.PID <= 0 || r.HTTPAddress == "" {
		return ""
	}
	// Asked only whether it lives: a process that got the same id later costs one connection that is refused.
	if p, err := os.FindProcess(r.PID); err != nil || p.Signal(syscall.Signal(0)) != nil {
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
		if ip.Is6() && !ip.Is4In6() {
			host = "::1"
		}
	}
	return cmp.Or(r.Scheme, scheme) + "://" + net.JoinHostPort(host, port)
}

// addresses are those at which the agent of this machine is to be looked for, the best guess first.
func (l local) addresses() []string {
	var out []string
	if l.address != "" {
		out = append(out, l.address)
	}
	if l.identity == nil {
		return out
	}
	port := strconv.Itoa(l.port)
	hosts := []string{"127.0.0.1"}
	if host, _, err := net.SplitHostPort(l.identity.RPCAddress()); err == nil && host != "" {
		hosts = append(hosts, host)
	}
	for _, h := range hosts {
		if u := "https://" + net.JoinHostPort(h, port); !slices.Contains(out, u) {
			out = append(out, u)
		}
	}
	return out
}

// roles are those that this machine has in its cluster.
func (l local) roles() []core.Role {
	if l.identity == nil {
		return nil
	}
	return l.identity.Node().Roles
}
