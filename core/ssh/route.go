package ssh

import (
	"os/user"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// route is a target with everything that ~/.ssh/config adds.
type route struct {
	alias          string
	hostName       string
	user           string
	port           int
	identities     []string // files, in the order in which they are tried
	identitiesOnly bool
	knownHosts     []string // files
	hostKeyAlias   string
	jumps          []string // [user@]host[:port], first to last
}

// routeTo resolves a target. Errors: Invalid, Unsupported for options that rbee does not support.
func (d *Dialer) routeTo(t Target, c *Config) (route, error) {
	if err := t.Check(); err != nil {
		return route{}, err
	}
	r := route{alias: t.Host, hostName: t.HostName, user: t.User, port: t.Port, hostKeyAlias: c.Lookup(t.Host, "hostkeyalias")}
	if r.hostName == "" {
		r.hostName = t.Host
		if v := c.Lookup(t.Host, "hostname"); v != "" {
			r.hostName = strings.NewReplacer("%%", "%", "%h", t.Host).Replace(v)
		}
	}
	if r.user == "" {
		r.user = c.Lookup(t.Host, "user")
	}
	if r.user == "" {
		u, err := user.Current()
		if err != nil {
			return route{}, core.WithHint(core.WithKind(err, core.Invalid), "Name the user.")
		}
		r.user = u.Username
	}
	if r.port == 0 {
		r.port, _ = strconv.Atoi(c.Lookup(t.Host, "port")) // validated when it was read
	}
	if r.port == 0 {
		r.port = 22
	}
	if err := (Target{Host: t.Host, HostName: r.hostName, User: r.user, Port: r.port}).Check(); err != nil {
		return route{}, core.Wrap(err, core.Invalid, "~/.ssh/config")
	}
	if c.Lookup(t.Host, "proxycommand") != "" && !strings.EqualFold(c.Lookup(t.Host, "proxycommand"), "none") {
		return route{}, core.Errorf(core.Unsupported, "%s is reached by a ProxyCommand, which rbee does not run", t.Host).Hint("Use ProxyJump in ~/.ssh/config instead.")
	}
	if jump := c.Lookup(t.Host, "proxyjump"); jump != "" && !strings.EqualFold(jump, "none") {
		r.jumps = strings.Split(strings.ReplaceAll(jump, " ", ""), ",")
	}
	if t.IdentityFile != "" {
		r.identities = []string{t.IdentityFile}
	}
	for _, f := range c.LookupAll(t.Host, "identityfile") {
		r.identities = append(r.identities, strings.NewReplacer("%%", "%", "%d", d.Home, "%h", r.hostName, "%r", r.user).Replace(f))
	}
	if len(r.identities) == 0 {
		r.identities = []string{"~/.ssh/id_ed25519", "~/.ssh/id_ecdsa", "~/.ssh/id_rsa"}
	}
	for i, f := range r.identities {
		r.identities[i] = d.path(f)
	}
	r.identitiesOnly = strings.EqualFold(c.Lookup(t.Host, "identitiesonly"), "yes")
	files := strings.Fields(c.Lookup(t.Host, "userknownhostsfile"))
	if len(files) == 0 {
		files = []string{"~/.ssh/known_hosts", "~/.ssh/known_hosts2"}
	}
	for _, f := range files {
		r.knownHosts = append(r.knownHosts, d.path(f))
	}
	return r, nil
}

func (d *Dialer) path(file string) string {
	if rest, ok := strings.CutPrefix(file, "~/"); ok {
		return filepath.Join(d.Home, rest)
	}
	if !filepath.IsAbs(file) {
		return filepath.Join(d.Home, file)
	}
	return file
}

// jumpTarget parses one hop of a ProxyJump. Errors: Invalid.
func jumpTarget(hop string) (Target, error) {
	hop = strings.TrimPrefix(hop, "ssh://")
	var t Target
	if i := strings.LastIndexByte(hop, '@'); i >= 0 {
		t.User, hop = hop[:i], hop[i+1:]
	}
	t.Host = hop
	if i := strings.LastIndexByte(hop, ':'); i >= 0 && (strings.Count(hop, ":") == 1 || strings.HasPrefix(hop, "[")) {
		port, err := strconv.Atoi(hop[i+1:])
		if err != nil || port < 1 || port > 65535 {
			return Target{}, core.Errorf(core.Invalid, "ProxyJump has no usable port")
		}
		t.Host, t.Port = strings.Trim(hop[:i], "[]"), port
	}
	return t, t.Check()
}
