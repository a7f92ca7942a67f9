package config

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/zclconf/go-cty/cty"

	"github.com/rbee-project/rbee/core"
)

// setting is one value of a Config. Its place in a file, its variable and its display all follow
// from its name.
type setting struct {
	name  string            // "data_dir", or "bind.http_port" for one in a block
	field func(*Config) any // *string, *[]string, *int, *bool, *time.Duration or *Bytes
	path  bool              // a path: relative ones are resolved
	// returns what is wrong, as a full sentence that tells what to do; empty: nothing
	check func(c *Config) string
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
		{name: "name", field: func(c *Config) any { return &c.Name }, check: checkName},
		{name: "insecure", field: func(c *Config) any { return &c.Insecure }},
		{name: "bind.address", field: func(c *Config) any { return &c.Bind.Address }, check: checkAddress},
		{name: "bind.http_port", field: func(c *Config) any { return &c.Bind.HTTPPort }, check: func(c *Config) string { return checkRange(c.Bind.HTTPPort, 0, 65535) }},
		{name: "bind.rpc_port", field: func(c *Config) any { return &c.Bind.RPCPort }, check: func(c *Config) string { return checkRange(c.Bind.RPCPort, 0, 65535) }},
		{name: "bind.gossip_port", field: func(c *Config) any { return &c.Bind.GossipPort }, check: func(c *Config) string { return checkRange(c.Bind.GossipPort, 0, 65535) }},
		{name: "bind.advertise", field: func(c *Config) any { return &c.Bind.Advertise }, check: checkAdvertise},
		{name: "bind.advertise_nat", field: func(c *Config) any { return &c.Bind.AdvertiseNAT }},
		{name: "http.allow_origins", field: func(c *Config) any { return &c.HTTP.AllowOrigins }, check: checkAllowOrigins},
		{name: "http.allow_hosts", field: func(c *Config) any { return &c.HTTP.AllowHosts }, check: checkAllowHosts},
		{name: "queen.enabled", field: func(c *Config) any { return &c.Queen.Enabled }},
		{name: "queen.operator_token_file", field: func(c *Config) any { return &c.Queen.OperatorTokenFile }, path: true},
		{name: "queen.bootstrap_expect", field: func(c *Config) any { return &c.Queen.BootstrapExpect }, check: checkBootstrapExpect},
		{name: "queen.election_timeout", field: func(c *Config) any { return &c.Queen.ElectionTimeout }, check: func(c *Config) string {
			return checkDuration(c.Queen.ElectionTimeout, 100*time.Millisecond, 10*time.Second, "100ms", "10s")
		}},
		{name: "queen.certificate_ttl", field: func(c *Config) any { return &c.Queen.CertificateTTL }, check: func(c *Config) string {
			return checkDuration(c.Queen.CertificateTTL, 10*time.Minute, maxCertificateTTL, "10m", "87600h (ten years)")
		}},
		{name: "queen.token_grace", field: func(c *Config) any { return &c.Queen.TokenGrace }, check: func(c *Config) string {
			return checkDuration(c.Queen.TokenGrace, 0, core.MaxTokenGrace, "0s", "720h (30 days)")
		}},
		{name: "queen.queue_limit", field: func(c *Config) any { return &c.Queen.QueueLimit }, check: func(c *Config) string { return checkRange(c.Queen.QueueLimit, 1, 100_000) }},
		{name: "queen.queue_timeout", field: func(c *Config) any { return &c.Queen.QueueTimeout }, check: func(c *Config) string {
			return checkDuration(c.Queen.QueueTimeout, 100*time.Millisecond, time.Hour, "100ms", "1h")
		}},
		{name: "queen.first_token_timeout", field: func(c *Config) any { return &c.Queen.FirstTokenTimeout }, check: func(c *Config) string {
			return checkDuration(c.Queen.FirstTokenTimeout, time.Second, 24*time.Hour, "1s", "24h")
		}},
		{name: "queen.token_timeout", field: func(c *Config) any { return &c.Queen.TokenTimeout }, check: func(c *Config) string {
			return checkDuration(c.Queen.TokenTimeout, time.Second, 24*time.Hour, "1s", "24h")
		}},
		{name: "queen.max_body", field: func(c *Config) any { return &c.Queen.MaxBody }, check: func(c *Config) string { return checkBytes(c.Queen.MaxBody, 1<<10, 1<<30) }},
		{name: "queen.max_form", field: func(c *Config) any { return &c.Queen.MaxForm }, check: func(c *Config) string { return checkBytes(c.Queen.MaxForm, 1<<10, 1<<40) }},
		{name: "queen.form_disk", field: func(c *Config) any { return &c.Queen.FormDisk }, check: checkFormDisk},
		{name: "queen.body_memory", field: func(c *Config) any { return &c.Queen.BodyMemory }, check: checkBodyMemory},
		{name: "hive.enabled", field: func(c *Config) any { return &c.Hive.Enabled }},
		{name: "hive.slots", field: func(c *Config) any { return &c.Hive.Slots }, check: func(c *Config) string { return checkRange(c.Hive.Slots, 1, 1024) }},
		{name: "hive.memory_limit", field: func(c *Config) any { return &c.Hive.MemoryLimit }, check: func(c *Config) string { return checkBytes(c.Hive.MemoryLimit, 0, 1<<50) }},
		{name: "hive.context_tokens", field: func(c *Config) any { return &c.Hive.ContextTokens }, check: func(c *Config) string { return checkRange(c.Hive.ContextTokens, 0, 1<<24) }},
		{name: "hive.threads", field: func(c *Config) any { return &c.Hive.Threads }, check: func(c *Config) string { return checkRange(c.Hive.Threads, 0, 4096) }},
		{name: "hive.stop_grace", field: func(c *Config) any { return &c.Hive.StopGrace }, check: func(c *Config) string { return checkDuration(c.Hive.StopGrace, 0, time.Hour, "0s", "1h") }},
		{name: "hive.worker_timeout", field: func(c *Config) any { return &c.Hive.WorkerTimeout }, check: func(c *Config) string {
			return checkDuration(c.Hive.WorkerTimeout, 5*time.Second, 24*time.Hour, "5s", "24h")
		}},
		{name: "hive.keep_workers", field: func(c *Config) any { return &c.Hive.KeepWorkers }},
		{name: "hive.download.connections", field: func(c *Config) any { return &c.Hive.Download.Connections }, check: func(c *Config) string { return checkRange(c.Hive.Download.Connections, 1, 64) }},
		{name: "hive.download.rate_limit", field: func(c *Config) any { return &c.Hive.Download.RateLimit }},
		{name: "hive.download.allow_addresses", field: func(c *Config) any { return &c.Hive.Download.AllowAddresses }, check: checkAllowAddresses},
		{name: "hive.download.seed", field: func(c *Config) any { return &c.Hive.Download.Seed }},
		{name: "hive.download.upload_limit", field: func(c *Config) any { return &c.Hive.Download.UploadLimit }},
		{name: "hive.build.enabled", field: func(c *Config) any { return &c.Hive.Build.Enabled }},
		{name: "hive.build.go", field: func(c *Config) any { return &c.Hive.Build.Go }, path: true},
		{name: "hive.build.cache_dir", field: func(c *Config) any { return &c.Hive.Build.CacheDir }, path: true},
		{name: "hive.build.cgo", field: func(c *Config) any { return &c.Hive.Build.CGO }},
		{name: "hive.build.timeout", field: func(c *Config) any { return &c.Hive.Build.Timeout }, check: func(c *Config) string {
			return checkDuration(c.Hive.Build.Timeout, time.Second, 24*time.Hour, "1s", "24h")
		}},
		{name: "hive.build.max_disk", field: func(c *Config) any { return &c.Hive.Build.MaxDisk }, check: checkMaxDisk},
		{name: "hive.plugin_user", field: func(c *Config) any { return &c.Hive.PluginUser }},
		{name: "hive.engines.allow", field: func(c *Config) any { return &c.Hive.Engines.Allow }, check: checkEngines},
		{name: "gossip.retry_join", field: func(c *Config) any { return &c.Gossip.RetryJoin }, check: checkRetryJoin},
		{name: "gossip.key_file", field: func(c *Config) any { return &c.Gossip.KeyFile }, path: true},
		{name: "tls.ca_file", field: func(c *Config) any { return &c.TLS.CAFile }, path: true},
		{name: "tls.cert_file", field: func(c *Config) any { return &c.TLS.CertFile }, path: true},
		{name: "tls.key_file", field: func(c *Config) any { return &c.TLS.KeyFile }, path: true},
	}
}

func defaults(env Env) *Config {
	c := &Config{
		LogLevel: "info",
		Bind:     Bind{Address: "127.0.0.1", HTTPPort: DefaultHTTPPort, RPCPort: DefaultRPCPort, GossipPort: DefaultGossipPort},
		Queen:    Queen{BootstrapExpect: 1, ElectionTimeout: 250 * time.Millisecond, CertificateTTL: 90 * 24 * time.Hour, TokenGrace: time.Hour, QueueLimit: 128, QueueTimeout: 2 * time.Minute, FirstTokenTimeout: 5 * time.Minute, TokenTimeout: time.Minute, MaxBody: 16 << 20, MaxForm: 256 << 20, FormDisk: 1 << 30, BodyMemory: 256 << 20},
		Hive:     Hive{Slots: 4, StopGrace: 30 * time.Second, WorkerTimeout: time.Minute, KeepWorkers: true, Download: Download{Connections: 4, Seed: true}, Build: Build{Timeout: 10 * time.Minute, MaxDisk: 8 << 30}},
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

// defaultFolders fills in the folders that depend on the user or on other folders.
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
		c.StoreDir = filepath.Join(c.DataDir, "store") // a service has no home folder
	}
	return nil
}

// personal returns rbee's folder below one of the XDG base folders; empty for a user without a
// home.
func personal(env Env, xdg, inHome string) string {
	// The XDG specification requires a relative path to be ignored here.
	if dir, _ := env(xdg); filepath.IsAbs(dir) {
		return filepath.Join(dir, "rbee")
	}
	if home, _ := env("HOME"); filepath.IsAbs(home) {
		return filepath.Join(home, inHome, "rbee")
	}
	return ""
}

// assign sets the field from text, the form in which variables and flags provide it.
func (s setting) assign(c *Config, text string) error {
	switch p := s.field(c).(type) {
	case *string:
		*p = text
	case *[]string:
		*p = nil
		for x := range strings.SplitSeq(text, ",") {
			if x = strings.TrimSpace(x); x != "" {
				*p = append(*p, x)
			}
		}
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
	case *Bytes:
		v, err := parseBytes(text)
		if err != nil {
			return err
		}
		*p = v
	}
	return nil
}

// want returns the type that the setting has in a file.
func (s setting) want(c *Config) (cty.Type, string) {
	switch s.field(c).(type) {
	case *int:
		return cty.Number, "a whole number"
	case *bool:
		return cty.Bool, "true or false"
	case *time.Duration:
		return cty.String, "a duration in quotes, such as \"30s\""
	case *Bytes:
		return cty.String, "a size in quotes, such as \"50MiB\""
	case *[]string:
		return cty.List(cty.String), "a list of strings, such as [\"10.0.0.1\", \"10.0.0.2\"]"
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
	case *Bytes:
		return *p
	case *string:
		return *p
	case *[]string:
		return append([]string{}, *p...) // never nil, because it is shown as JSON
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

func checkRange(v, low, high int) string {
	if v < low || v > high {
		return fmt.Sprintf("%d is out of range: it must be between %d and %d.", v, low, high)
	}
	return ""
}

func checkDuration(v, low, high time.Duration, lowText, highText string) string {
	if v < low || v > high {
		return fmt.Sprintf("%s is out of range: it must be between %s and %s.", v, lowText, highText)
	}
	return ""
}

func checkEngines(c *Config) string {
	for _, a := range c.Hive.Engines.Allow {
		source, rest, found := strings.Cut(a, ":")
		digest, err := hex.DecodeString(rest)
		switch {
		case !found || source == "":
			return fmt.Sprintf("%q is neither a digest nor a reference: write \"sha256:…\", a catalog source such as \"npm:\", or a reference.", a)
		case source == "sha256" && (err != nil || len(digest) != sha256.Size || strings.ToLower(rest) != rest):
			return fmt.Sprintf("%q is not the SHA-256 of an archive: write sha256: and 64 lower-case hexadecimal digits.", a)
		}
	}
	return ""
}

func checkBytes(n, least, most Bytes) string {
	if n < least || n > most {
		return fmt.Sprintf("%s is out of range: it must be between %s and %s.", n, least, most)
	}
	return ""
}

// checkBodyMemory requires room for the largest body of one token, which is copied when it grows.
func checkBodyMemory(c *Config) string {
	if c.Queen.BodyMemory < 4*c.Queen.MaxBody {
		return fmt.Sprintf("%s is too little: it must be at least four times queen.max_body, which is %s.", c.Queen.BodyMemory, c.Queen.MaxBody)
	}
	return ""
}

// checkFormDisk requires room for the largest form of one token.
func checkFormDisk(c *Config) string {
	if c.Queen.FormDisk < 2*c.Queen.MaxForm {
		return fmt.Sprintf("%s is too little: it must be at least twice queen.max_form, which is %s.", c.Queen.FormDisk, c.Queen.MaxForm)
	}
	return ""
}

func checkMaxDisk(c *Config) string {
	if c.Hive.Build.MaxDisk < 1<<20 {
		return fmt.Sprintf("%s is too little: it must be at least 1MiB.", c.Hive.Build.MaxDisk)
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
