package config_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
)

var update = flag.Bool("update", false, "rewrite the expected diagnostics")

func environment(pairs ...string) config.Env {
	vars := map[string]string{"HOME": "/home/me"}
	for _, p := range pairs {
		name, value, _ := strings.Cut(p, "=")
		vars[name] = value
	}
	return func(name string) (string, bool) {
		v, ok := vars[name]
		return v, ok
	}
}

// Every testdata/<case>.hcl, .json or folder is loaded, and its diagnostics must be those of
// <case>.diag. A case without that file must load without diagnostics.
func TestDiagnostics(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir("testdata")
	must.NoError(t, err)
	cases := 0
	for _, e := range entries {
		name := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name()))
		if filepath.Ext(e.Name()) == ".diag" {
			continue
		}
		cases++
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diags := config.Load([]string{filepath.Join("testdata", e.Name())}, environment("NAME=desk"))
			must.Eq(t, diags.HasErrors(), c == nil)
			var got bytes.Buffer
			must.NoError(t, diags.Write(&got, 0, false))
			golden := filepath.Join("testdata", name+".diag")
			if *update {
				if got.Len() == 0 {
					_ = os.Remove(golden)
				} else {
					must.NoError(t, os.WriteFile(golden, got.Bytes(), 0o644))
				}
			}
			want, err := os.ReadFile(golden)
			if !os.IsNotExist(err) {
				must.NoError(t, err)
			}
			must.Eq(t, string(want), got.String())
		})
	}
	must.Greater(t, 15, cases)
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env         config.Env
		data, store string
	}{
		"a person":             {environment(), "/home/me/.local/share/rbee", "/home/me/.cache/rbee"},
		"XDG folders":          {environment("XDG_CACHE_HOME=/fast", "XDG_DATA_HOME=/slow"), "/slow/rbee", "/fast/rbee"},
		"relative XDG folders": {environment("XDG_CACHE_HOME=fast"), "/home/me/.local/share/rbee", "/home/me/.cache/rbee"},
		"a service":            {environment("HOME=", "RBEE_DATA_DIR=/var/lib/rbee"), "/var/lib/rbee", "/var/lib/rbee/store"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diags := config.Load(nil, tc.env)
			must.NoError(t, diags.Err())
			must.Eq(t, tc.data, c.DataDir)
			must.Eq(t, tc.store, c.StoreDir)
			must.Eq(t, "127.0.0.1", c.Bind.Address)
			must.Eq(t, 7833, c.Bind.HTTPPort)
			must.True(t, c.Queen.Enabled)
			must.True(t, c.Hive.Enabled)
			must.Eq(t, "plugins", filepath.Base(c.PluginDir))
			must.False(t, c.Insecure)
		})
	}
	_, diags := config.Load(nil, environment("HOME="))
	must.Eq(t, core.Invalid, core.KindOf(diags.Err()))
	must.StrContains(t, diags.Err().Error(), "RBEE_DATA_DIR")
}

func TestLists(t *testing.T) {
	t.Parallel()
	c, diags := config.Load([]string{"testdata/cluster.hcl"}, environment())
	must.NoError(t, diags.Err())
	must.Eq(t, []string{"10.0.0.1", "queens.example.org:7000"}, c.Gossip.RetryJoin)
	must.Eq(t, 3, c.Queen.BootstrapExpect)
	must.False(t, c.Hive.Enabled) // only a queen
	must.True(t, c.TLS.Given())
	must.True(t, filepath.IsAbs(c.TLS.KeyFile))
	c, diags = config.Load([]string{"testdata/cluster.hcl"}, environment("RBEE_GOSSIP_RETRY_JOIN=a, [::1]:9 ,"))
	must.NoError(t, diags.Err())
	must.Eq(t, []string{"a", "[::1]:9"}, c.Gossip.RetryJoin)
	c, diags = config.Load(nil, environment())
	must.NoError(t, diags.Err())
	for _, s := range c.Settings() {
		if s.Name == "gossip.retry_join" {
			must.Eq(t, any([]string{}), s.Value)
		}
	}
}

// The example explains every setting and loads unchanged.
func TestExample(t *testing.T) {
	t.Parallel()
	const example = "../../config.hcl.example"
	src, err := os.ReadFile(example)
	must.NoError(t, err)
	c, diags := config.Load([]string{example}, environment("HF_TOKEN=x"))
	must.NoError(t, diags.Err())
	must.Len(t, 0, diags.List)
	must.Greater(t, 0, len(c.Workers))
	must.Greater(t, 0, len(c.Catalogs))
	for _, s := range c.Settings() {
		name := s.Name[strings.LastIndex(s.Name, ".")+1:]
		must.StrContains(t, string(src), name+" ", must.Sprintf("setting %s is not explained", s.Name))
	}
}

// The example sets only defaults, except for the folders, which are those of a service.
func TestExampleDefaults(t *testing.T) {
	t.Parallel()
	example, diags := config.Load([]string{"../../config.hcl.example"}, environment("HF_TOKEN=x"))
	must.NoError(t, diags.Err())
	defaults, diags := config.Load(nil, environment())
	must.NoError(t, diags.Err())
	want := map[string]any{}
	for _, s := range defaults.Settings() {
		want[s.Name] = s.Value
	}
	want["data_dir"], want["store_dir"] = "/var/lib/rbee", "/var/cache/rbee"
	for _, s := range example.Settings() {
		must.Eq(t, want[s.Name], s.Value, must.Sprint(s.Name))
	}
}

// Each bound matches the documentation: the value at the bound loads, the value beyond it does not.
func TestBounds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ good, bad []string }{
		"bind.http_port":                {[]string{"0", "65535"}, []string{"-1", "65536"}},
		"bind.rpc_port":                 {[]string{"0", "65535"}, []string{"-1", "65536"}},
		"bind.gossip_port":              {[]string{"0", "65535"}, []string{"-1", "65536"}},
		"queen.bootstrap_expect":        {[]string{"1", "9"}, []string{"-1", "2", "11"}},
		"queen.election_timeout":        {[]string{"100ms", "10s"}, []string{"99ms", "10001ms"}},
		"queen.certificate_ttl":         {[]string{"10m", "87600h"}, []string{"599s", "87601h"}},
		"queen.token_grace":             {[]string{"0s", "720h"}, []string{"-1ns", "721h"}},
		"queen.queue_limit":             {[]string{"1", "100000"}, []string{"0", "100001"}},
		"queen.queue_timeout":           {[]string{"100ms", "1h"}, []string{"99ms", "3601s"}},
		"queen.first_token_timeout":     {[]string{"1s", "24h"}, []string{"999ms", "86401s"}},
		"queen.token_timeout":           {[]string{"1s", "24h"}, []string{"999ms", "86401s"}},
		"queen.max_body":                {[]string{"1KiB", "64MiB"}, []string{"1023", "64MiB1"}},
		"queen.max_form":                {[]string{"1KiB", "512MiB"}, []string{"1023", "64MiB1"}},
		"queen.form_disk":               {[]string{"512MiB", "1TiB"}, []string{"536870911"}},
		"queen.body_memory":             {[]string{"64MiB", "1TiB"}, []string{"67108863"}},
		"hive.slots":                    {[]string{"1", "1024"}, []string{"0", "1025"}},
		"hive.context_tokens":           {[]string{"0", "16777216"}, []string{"-1", "16777217"}},
		"hive.threads":                  {[]string{"0", "4096"}, []string{"-1", "4097"}},
		"hive.stop_grace":               {[]string{"0s", "1h"}, []string{"-1s", "3601s"}},
		"hive.worker_timeout":           {[]string{"5s", "24h"}, []string{"4999ms", "86401s"}},
		"hive.download.connections":     {[]string{"1", "64"}, []string{"0", "65"}},
		"hive.download.allow_addresses": {[]string{"10.0.0.0/8,fd00::/8", "192.168.1.7", "::1"}, []string{"10.0.0.0/33", "a.example", "10.0.0.0/8,10.1"}},
		"hive.build.timeout":            {[]string{"1s", "24h"}, []string{"999ms", "86401s"}},
		"hive.build.max_disk":           {[]string{"1MiB"}, []string{"1048575"}},
		"gossip.retry_join":             {[]string{"a:1", "a:65535"}, []string{"a:0", "a:65536", "a:-1"}},
		"name":                          {[]string{"a", "A" + strings.Repeat("-", 62), "0._x"}, []string{core.LocalHive, strings.Repeat("a", 64), "-a", "a b", "ä"}},
		"bind.advertise":                {[]string{"a." + strings.Repeat("b", 63), strings.Repeat("a.", 126) + "b"}, []string{"a." + strings.Repeat("b", 64), strings.Repeat("a.", 127) + "b", "::", "-a", "10.1"}},
		"http.allow_origins":            {[]string{"*", "https://a.example", "http://localhost:3000"}, []string{"a.example", "https://", "https://u@a.example", "https://a.example/", "https://a.example?q=1", "https://a.example#f", ":"}},
		"http.allow_hosts":              {[]string{"a.example", "10.0.0.1", "::1"}, []string{"https://a.example", "a.example:80", "a b"}},
		"hive.engines.allow":            {[]string{"npm:", "npm:@a/b", "sha256:" + strings.Repeat("0f", 32)}, []string{"npm", ":a", "sha256:0f", "sha256:" + strings.Repeat("0F", 32), "sha256:" + strings.Repeat("0g", 32)}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			load := func(value string) error {
				_, diags := config.Load(nil, environment(), config.Flag{Name: name, Value: value})
				return diags.Err()
			}
			for _, value := range tc.good {
				must.NoError(t, load(value), must.Sprint(value))
			}
			for _, value := range tc.bad {
				must.ErrorContains(t, load(value), name, must.Sprint(value))
			}
		})
	}
}

// If no file, variable or flag sets a machine's roles, its cluster does.
func TestDefaultRoles(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env         []string
		given       bool
		queen, hive bool // after DefaultRoles(true, false)
	}{
		"nothing said":  {nil, false, true, false},
		"no queen":      {[]string{"RBEE_QUEEN_ENABLED=false"}, true, false, false},
		"a hive":        {[]string{"RBEE_HIVE_ENABLED=true"}, true, true, true},
		"a hive, alone": {[]string{"RBEE_QUEEN_ENABLED=false", "RBEE_HIVE_ENABLED=true"}, true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diags := config.Load(nil, environment(tc.env...))
			must.NoError(t, diags.Err())
			must.Eq(t, tc.given, c.RolesGiven())
			c.DefaultRoles(true, false)
			must.Eq(t, tc.queen, c.Queen.Enabled)
			must.Eq(t, tc.hive, c.Hive.Enabled)
			if !tc.given {
				c.DefaultRoles(false, true)
				must.False(t, c.Queen.Enabled)
				must.True(t, c.Hive.Enabled)
			}
		})
	}
}

func TestBytes(t *testing.T) {
	t.Parallel()
	for b, text := range map[config.Bytes]string{0: "0", 1: "1", 1023: "1023", 1 << 10: "1KiB", 50 << 20: "50MiB", 1_500_000_000: "1500MB", 1 << 40: "1TiB"} {
		must.Eq(t, text, b.String())
	}
	load := func(text string) (config.Bytes, error) {
		c, diags := config.Load(nil, environment(), config.Flag{Name: "hive.download.rate_limit", Value: text})
		if err := diags.Err(); err != nil {
			return 0, err
		}
		return c.Hive.Download.RateLimit, nil
	}
	for text, b := range map[string]config.Bytes{
		"7": 7, "1KiB": 1 << 10, "1 kib": 1 << 10, "2KB": 2000, "3MiB": 3 << 20, "3MB": 3e6, "1.5GiB": 3 << 29, "1GB": 1e9, "1TiB": 1 << 40, "1TB": 1e12, "4194303TiB": 4194303 << 40,
	} {
		got, err := load(text)
		must.NoError(t, err, must.Sprint(text))
		must.Eq(t, b, got, must.Sprint(text))
	}
	for _, text := range []string{"KiB", "1 B", ".", "-1", "1e3", "0x1", "inf", "4194305TiB"} {
		_, err := load(text)
		must.ErrorContains(t, err, "is not a size", must.Sprint(text))
	}
}
