package config

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/rbee-project/rbee/core"
)

// setting is one value of a Config. Where it stands in a file, what its variable is called and how it is shown all follow from its name.
type setting struct {
	name  string                 // "data_dir", or "bind.http_port" for one in a block
	field func(*Config) any      // *string, *int, *bool or *time.Duration
	path  bool                   // a path: relative ones are resolved
	check func(c *Config) string // what is wrong, a full sentence that says what to do; empty: nothing
}

func (s setting) env() string {
	return "RBEE_" + strings.ToUpper(strings.ReplaceAll(s.name, ".", "_"))
}

// settings lists every value, in the order of the documentation.
func settings() []setting {
	return []setting{
		{name: "data_dir", field: func(c *Config) any { return &c.DataDir }, path: true},
		{name: "store_dir", field: func(c *Config) any { return &c.StoreDir }, path: true},
		{name: "plugin_dir", field: func(c *Config) any { return &c.PluginDir }, path: true},
		{name: "log_level", field: func(c *Config) any { return &c.LogLevel }, check: checkLogLevel},
		{name: "log_json", field: func(c *Config) any { return &c.LogJSON }},
		{name: "insecure", field: func(c *Config) any { return &c.Insecure }},
		{name: "bind.address", field: func(c *Config) any { return &c.Bind.Address }, check: checkAddress},
		{name: "bind.http_port", field: func(c *Config) any { return &c.Bind.HTTPPort }, check: checkPort},
		{name: "queen.enabled", field: func(c *Config) any { return &c.Queen.Enabled }},
		{name: "hive.enabled", field: func(c *Config) any { return &c.Hive.Enabled }},
		{name: "hive.name", field: func(c *Config) any { return &c.Hive.Name }, check: checkHiveName},
		{name: "hive.slots", field: func(c *Config) any { return &c.Hive.Slots }, check: func(c *Config) string { return checkRange(c.Hive.Slots, 1, 1024) }},
		{name: "hive.context_tokens", field: func(c *Config) any { return &c.Hive.ContextTokens }, check: func(c *Config) string { return checkRange(c.Hive.ContextTokens, 0, 1<<24) }},
		{name: "hive.threads", field: func(c *Config) any { return &c.Hive.Threads }, check: func(c *Config) string { return checkRange(c.Hive.Threads, 0, 4096) }},
		{name: "hive.stop_grace", field: func(c *Config) any { return &c.Hive.StopGrace }, check: checkGrace},
		{name: "hive.keep_workers", field: func(c *Config) any { return &c.Hive.KeepWorkers }},
	}
}

func defaults(env Env) *Config {
	c := &Config{
		LogLevel: "info",
		Bind:     Bind{Address: "127.0.0.1", HTTPPort: DefaultHTTPPort},
		Hive:     Hive{Slots: 4, StopGrace: 30 * time.Second, KeepWorkers: true},
		origins:  map[string]Origin{},
		env:      env,
	}
	for _, s := range settings() {
		c.origins[s.name] = Origin{Source: SourceDefault}
	}
	if exe, err := os.Executable(); err == nil {
		if real, err := filepath.EvalSymlinks(exe); err == nil {
			exe = real
		}
		c.PluginDir = filepath.Join(filepath.Dir(exe), "plugins")
	}
	return c
}

// defaultFolders fills in the folders that depend on the person, or on other folders.
func (c *Config) defaultFolders(env Env) hcl.Diagnostics {
	if c.DataDir == "" {
		c.DataDir = personal(env, "XDG_DATA_HOME", ".local/share")
	}
	if c.DataDir == "" {
		return errorf(nil, "No data folder", "data_dir is not set, and there is no home folder to put it in. Set data_dir in the configuration file, such as \"/var/lib/rbee\", or RBEE_DATA_DIR.")
	}
	if c.StoreDir == "" {
		c.StoreDir = personal(env, "XDG_CACHE_HOME", ".cache")
	}
	if c.StoreDir == "" {
		c.StoreDir = filepath.Join(c.DataDir, "store") // a service has no home
	}
	return nil
}

// personal is the folder of rbee below one of the XDG base folders; empty for somebody without a home.
func personal(env Env, xdg, inHome string) string {
	// The XDG specification says that a relative path there is to be ignored.
	if dir, _ := env(xdg); filepath.IsAbs(dir) {
		return filepath.Join(dir, "rbee")
	}
	if home, _ := env("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, inHome, "rbee")
	}
	return ""
}

// assign sets the field from text, as variables and flags give it.
func (s setting) assign(c *Config, text string) error {
	switch p := s.field(c).(type) {
	case *string:
		*p = text
	case *int:
		v, err := strconv.Atoi(text)
		if err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
		*p = v
	case *bool:
		v, err := strconv.ParseBool(text)
		if err != nil {
			return fmt.Errorf("%q is neither true nor false", text)
		}
		*p = v
	case *time.Duration:
		v, err := time.ParseDuration(text)
		if err != nil {
			return fmt.Errorf("%q is not a duration: write a number and a unit, such as \"30s\" or \"1m30s\"", text)
		}
		*p = v
	}
	return nil
}

// want is the type that the setting has in a file.
func (s setting) want(c *Config) (cty.Type, string) {
	switch s.field(c).(type) {
	case *int:
		return cty.Number, "a whole number"
	case *bool:
		return cty.Bool, "true or false"
	case *time.Duration:
		return cty.String, "a duration in quotes, such as \"30s\""
	}
	return cty.String, "a string"
}

func (s setting) value(c *Config) any {
	switch p := s.field(c).(type) {
	case *int:
		return *p
	case *bool:
		return *p
	case *time.Duration:
		return *p
	case *string:
		return *p
	}
	return nil
}

func levels() []string { return []string{"trace", "debug", "info", "warn", "error"} }

func checkLogLevel(c *Config) string {
	if slices.Contains(levels(), c.LogLevel) {
		return ""
	}
	return fmt.Sprintf("%q is no log level: it is one of %s.%s", c.LogLevel, strings.Join(levels(), ", "), didYouMean(c.LogLevel, levels()))
}

func checkPort(c *Config) string { return checkRange(c.Bind.HTTPPort, 0, 65535) }

func checkRange(v, low, high int) string {
	if v < low || v > high {
		return fmt.Sprintf("%d is out of range: it must be between %d and %d.", v, low, high)
	}
	return ""
}

func checkGrace(c *Config) string {
	if c.Hive.StopGrace < 0 || c.Hive.StopGrace > time.Hour {
		return fmt.Sprintf("%s is out of range: it must be between 0s and 1h.", c.Hive.StopGrace)
	}
	return ""
}

func checkAddress(c *Config) string {
	loopback, ok := isLoopback(c.Bind.Address)
	switch {
	case !ok:
		return fmt.Sprintf("%q is not an IP address. Write an address of this machine, such as \"127.0.0.1\", or \"localhost\".", c.Bind.Address)
	case !loopback && !c.Insecure:
		return fmt.Sprintf("%s can be reached from other machines, and rbee has no TLS and no access tokens yet: everybody on that network could use this machine. "+
			"Leave bind.address at 127.0.0.1 and come in through an SSH tunnel (ssh -L 7833:127.0.0.1:7833 HOST), or set insecure = true if you trust everybody on that network.", c.Bind.Address)
	}
	return ""
}

func isLoopback(address string) (loopback, ok bool) {
	if address == "localhost" {
		return true, true
	}
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return false, false
	}
	return ip.Unmap().IsLoopback(), true
}

func checkHiveName(c *Config) string {
	switch {
	case c.Hive.Name == "":
		return ""
	case c.Hive.Name == core.LocalHive:
		return fmt.Sprintf("%q always means the hive of the machine that is asked. Choose another name.", core.LocalHive)
	case !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`).MatchString(c.Hive.Name):
		return fmt.Sprintf("%q is no hive name: use up to 63 letters, digits, dots, dashes and underscores, and begin with a letter or a digit.", c.Hive.Name)
	}
	return ""
}

func didYouMean(wanted string, names []string) string {
	if near := core.Nearest(wanted, names); len(near) > 0 {
		return fmt.Sprintf(" Did you mean %q?", near[0])
	}
	return ""
}

func errorf(subject *hcl.Range, summary, format string, args ...any) hcl.Diagnostics {
	return hcl.Diagnostics{{Severity: hcl.DiagError, Summary: summary, Detail: fmt.Sprintf(format, args...), Subject: subject}}
}
