package main

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// defaultRegistry is npm's default for its setting registry.
const defaultRegistry = "https://registry.npmjs.org/"

const maxNpmrcBytes = 1 << 20

// settings are npm's settings, in npm's order of precedence: environment, then the user's npmrc,
// then the machine's.
type settings struct {
	values map[string]string
	lists  map[string][]string
	user   string   // path of the user's npmrc
	files  []string // files read, most important first
	// names of unset environment variables that a value refers to
	unset []string
	// non-public addresses that may be dialled; the host's setting, not npm's
	allow []netip.Prefix
}

// loadSettings reads the environment and the npmrc files that it names. userconfig and registry,
// unless empty, replace the user's npmrc and all values of the setting registry. The settings are
// immutable afterwards.
func loadSettings(environ []string, userconfig, registry string) (*settings, error) {
	env := map[string]string{}
	for _, e := range environ {
		if k, v, ok := strings.Cut(e, "="); ok {
			env[k] = v
		}
	}
	s := &settings{values: map[string]string{}, lists: map[string][]string{}}
	// upper case before lower case, so that lower case wins
	for _, k := range slices.Sorted(maps.Keys(env)) {
		if key, ok := envKey(k); ok && env[k] != "" {
			s.values[key] = env[k]
		}
	}
	if userconfig == "" {
		userconfig = s.values["userconfig"]
	}
	if userconfig == "" && env["HOME"] != "" {
		userconfig = filepath.Join(env["HOME"], ".npmrc")
	}
	s.user = userconfig
	if err := s.read(userconfig, env); err != nil {
		return nil, err
	}
	for _, global := range s.globalFiles() {
		if err := s.read(global, env); err != nil {
			return nil, err
		}
	}
	s.environmentProxies(env)
	if registry != "" {
		s.values["registry"] = registry
	}
	s.credentialsInRegistries()
	return s, nil
}

// envKey returns the setting that an environment variable npm_config_… stands for, as npm derives
// it.
func envKey(name string) (string, bool) {
	const prefix = "npm_config_"
	if len(name) <= len(prefix) || !strings.EqualFold(name[:len(prefix)], prefix) {
		return "", false
	}
	key := name[len(prefix):]
	if strings.HasPrefix(key, "//") {
		return key, true
	}
	return strings.ToLower(key[:1] + strings.ReplaceAll(key[1:], "_", "-")), true
}

// globalFiles returns the places of the machine's npmrc.
func (s *settings) globalFiles() []string {
	if g := s.values["globalconfig"]; g != "" {
		return []string{g}
	}
	if p := s.values["prefix"]; p != "" {
		return []string{filepath.Join(p, "etc", "npmrc"), "/etc/npmrc"}
	}
	return []string{"/usr/local/etc/npmrc", "/usr/etc/npmrc", "/etc/npmrc"}
}

// environmentProxies applies the variables that npm and others agree on, unless npm's own settings
// say otherwise.
func (s *settings) environmentProxies(env map[string]string) {
	fill := func(key string, names ...string) {
		for _, n := range names {
			if v := env[n]; v != "" && s.values[key] == "" {
				s.values[key] = v
			}
		}
	}
	fill("noproxy", "NO_PROXY", "no_proxy")
	if s.values["proxy"] == "" { // an explicit proxy of npm's also applies to https
		fill("https-proxy", "HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy")
	}
	fill("proxy", "HTTP_PROXY", "http_proxy")
	fill("extra-ca", "NODE_EXTRA_CA_CERTS")
}

// read adds the settings of an npmrc that nothing more important has set. It ignores a missing
// file.
func (s *settings) read(name string, env map[string]string) error {
	if name == "" || slices.Contains(s.files, name) {
		return nil
	}
	info, err := os.Stat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil && info.Size() > maxNpmrcBytes {
		return fmt.Errorf("%s has %d bytes, more than an npmrc may have", name, info.Size())
	}
	if err == nil && !info.Mode().IsRegular() {
		return nil // npm takes /dev/null as "none"
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(name)
	}
	if err != nil {
		return err
	}
	s.files = append(s.files, name)
	lists := map[string][]string{}
	values := map[string]string{}
	parseNpmrc(string(b), func(key, value string) {
		key, value = s.expand(key, env), s.expand(value, env)
		if list, ok := strings.CutSuffix(key, "[]"); ok {
			lists[list] = append(lists[list], value)
			return
		}
		values[key] = value
	})
	for k, v := range values {
		if _, said := s.values[k]; !said && s.lists[k] == nil {
			s.values[k] = v
		}
	}
	for k, v := range lists {
		if _, said := s.values[k]; !said && s.lists[k] == nil {
			s.lists[k] = v
		}
	}
	return nil
}

// parseNpmrc calls set with every key and value of an npmrc, in npm's ini dialect. It skips
// sections, which npm does not use.
func parseNpmrc(text string, set func(key, value string)) {
	section := false
	for line := range strings.Lines(strings.TrimPrefix(text, "\ufeff")) {
		line = strings.TrimSpace(line)
		switch {
		case line == "" || line[0] == ';' || line[0] == '#':
			continue
		case line[0] == '[' && strings.HasSuffix(line, "]"):
			section = true
			continue
		case section:
			continue
		}
		key, value, found := strings.Cut(line, "=")
		if !found {
			value = "true"
		}
		if key = unquote(key); key != "" {
			set(key, unquote(value))
		}
	}
}

// unquote returns the text that a key or value of an npmrc stands for.
func unquote(s string) string {
	s = strings.TrimSpace(s)
	if len(s) >= 2 && s[0] == s[len(s)-1] && (s[0] == '"' || s[0] == '\'') {
		inner := s[1 : len(s)-1]
		var out string
		if json.Unmarshal([]byte(`"`+inner+`"`), &out) == nil {
			return out
		}
		return inner
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s) && strings.IndexByte(`\;#`, s[i+1]) >= 0:
			i++
			b.WriteByte(s[i])
		case c == ';' || c == '#':
			return strings.TrimSpace(b.String())
		default:
			b.WriteByte(c)
		}
	}
	return strings.TrimSpace(b.String())
}

var variable = regexp.MustCompile(`(\\*)\$\{([^${}?]+)(\?)?\}`)

// expand replaces ${NAME} by the environment variable's value. If it is not set, ${NAME?} becomes
// empty and ${NAME} stays.
func (s *settings) expand(text string, env map[string]string) string {
	return variable.ReplaceAllStringFunc(text, func(m string) string {
		parts := variable.FindStringSubmatch(m)
		if len(parts[1])%2 == 1 {
			return m[1:] // escaped
		}
		v, ok := env[parts[2]]
		switch {
		case ok:
			return parts[1] + v
		case parts[3] == "?":
			return parts[1]
		}
		if !slices.Contains(s.unset, parts[2]) {
			s.unset = append(s.unset, parts[2])
		}
		return m
	})
}

// set returns a setting; npm's words for none become empty.
func (s *settings) set(key string) string {
	switch v := s.values[key]; v {
	case "null", "undefined", "false":
		return ""
	default:
		return v
	}
}

// registry returns the registry of a package's scope ("" or "@name"), with a slash at its end and
// without credentials.
func (s *settings) registry(scope string) (*url.URL, error) {
	text := ""
	if scope != "" {
		text = s.set(strings.ToLower(scope) + ":registry")
	}
	for _, more := range []string{s.set("registry"), defaultRegistry} {
		if text == "" {
			text = more
		}
	}
	u, err := url.Parse(text)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return nil, fmt.Errorf("the registry %q is not an http or https address", redacted(text))
	}
	u.RawQuery, u.Fragment = "", ""
	if !strings.HasSuffix(u.Path, "/") {
		u.Path += "/"
	}
	u.User = nil
	return u, nil
}

// credentialsInRegistries turns user names and passwords in registries' addresses into separate
// settings.
func (s *settings) credentialsInRegistries() {
	for _, k := range slices.Sorted(maps.Keys(s.values)) {
		if k != "registry" && !strings.HasSuffix(k, ":registry") {
			continue
		}
		u, err := url.Parse(s.values[k])
		if err != nil || u.User == nil {
			continue
		}
		if !strings.HasSuffix(u.Path, "/") {
			u.Path += "/"
		}
		if key := nerf(u); s.credentialsAt(key) == "" {
			password, _ := u.User.Password()
			s.values[key+":_auth"] = base64.StdEncoding.EncodeToString([]byte(u.User.Username() + ":" + password))
		}
	}
}

// redacted returns an address without its password, even if the address is invalid.
func redacted(text string) string {
	if u, err := url.Parse(text); err == nil {
		return u.Redacted()
	}
	return "(unreadable)"
}

// nerf returns npm's settings key for an address: without scheme, credentials and query.
func nerf(u *url.URL) string {
	path := u.EscapedPath()
	return "//" + u.Host + path[:strings.LastIndex(path, "/")+1]
}

// authorization returns the header for a request to u: that of the longest configured address that
// contains u. Empty: none. So a host gets credentials only if the settings have some for it.
func (s *settings) authorization(u *url.URL) string {
	key := nerf(u)
	for {
		for _, k := range []string{key, strings.TrimSuffix(key, "/")} {
			if a := s.credentialsAt(k); a != "" {
				return a
			}
		}
		rest := strings.TrimSuffix(key, "/")
		i := strings.LastIndex(rest, "/")
		if i < len("//") {
			return ""
		}
		key = rest[:i+1]
	}
}

// credentialsAt returns the header from the settings of exactly one address.
func (s *settings) credentialsAt(key string) string {
	if t := s.values[key+":_authToken"]; t != "" {
		return "Bearer " + t
	}
	if a := s.values[key+":_auth"]; a != "" {
		return "Basic " + a
	}
	user, password := s.values[key+":username"], s.values[key+":_password"]
	if user == "" || password == "" {
		return ""
	}
	plain, err := base64.StdEncoding.DecodeString(password)
	if err != nil {
		return ""
	}
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+string(plain)))
}

// known reports whether the settings mention this host as a registry or with credentials.
func (s *settings) known(host string) bool {
	for k, v := range s.values {
		if k == "registry" || strings.HasSuffix(k, ":registry") {
			if u, err := url.Parse(v); err == nil && strings.EqualFold(u.Host, host) {
				return true
			}
		}
		if strings.HasPrefix(k, "//"+host+"/") || strings.HasPrefix(k, "//"+host+":_") || strings.HasPrefix(k, "//"+host+":username") {
			return true
		}
	}
	u, err := url.Parse(defaultRegistry)
	return err == nil && strings.EqualFold(u.Host, host)
}

// proxy returns the proxy for a request to u; nil for none.
func (s *settings) proxy(u *url.URL) (*url.URL, error) {
	if s.noProxy(u) {
		return nil, nil
	}
	text := s.set("proxy")
	if u.Scheme == "https" && s.set("https-proxy") != "" {
		text = s.set("https-proxy")
	}
	if text == "" {
		return nil, nil
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	p, err := url.Parse(text)
	if err != nil || p.Host == "" {
		return nil, fmt.Errorf("the proxy %q is not an address", redacted(text))
	}
	return p, nil
}

// noProxy reports whether the setting noproxy names u's host or a domain that it belongs to.
func (s *settings) noProxy(u *url.URL) bool {
	host := strings.ToLower(u.Hostname())
	for entry := range strings.SplitSeq(s.set("noproxy"), ",") {
		entry = strings.ToLower(strings.TrimSpace(entry))
		if entry == "*" {
			return true
		}
		if name, port, ok := strings.Cut(entry, ":"); ok && !strings.Contains(port, ":") {
			if port != u.Port() {
				continue
			}
			entry = name
		}
		entry = strings.TrimPrefix(strings.TrimPrefix(entry, "*"), ".")
		if entry == "" {
			continue
		}
		if host == entry || strings.HasSuffix(host, "."+entry) {
			return true
		}
	}
	return false
}
