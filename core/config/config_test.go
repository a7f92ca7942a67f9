package config_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
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
// <case>.diag. A case without that file must load without any.
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

func TestFolderIsMerged(t *testing.T) {
	t.Parallel()
	c, diags := config.Load([]string{"testdata/fine-folder"}, environment("NAME=desk"))
	must.NoError(t, diags.Err())
	here, err := filepath.Abs("testdata/fine-folder")
	must.NoError(t, err)
	must.Eq(t, filepath.Join(here, "state"), c.DataDir) // relative to its file
	must.Eq(t, "/home/me/.cache/rbee", c.StoreDir)
	must.Eq(t, 90*time.Second, c.Hive.StopGrace)
	must.Eq(t, "DESK", c.Name)
	must.Len(t, 2, c.Workers)
	must.Eq(t, "cpu", c.Workers[0].Label)
	must.Eq(t, "rbee-worker-cpu", c.Workers[0].Executable)
	must.Eq(t, "rbee-worker-openai", c.Workers[1].Executable)
	must.Eq(t, []string{"testdata/fine-folder/10-base.hcl", "testdata/fine-folder/20-workers.json"}, c.Files())
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

func TestFlagOverEnvOverFileOverDefault(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rbee.hcl")
	must.NoError(t, os.WriteFile(file, []byte("log_level = \"warn\"\nbind { http_port = 1 }\nqueen { enabled = true }\nhive {\n  enabled = true\n  slots = 2\n  threads = 3\n}\n"), 0o600))
	c, diags := config.Load([]string{file}, environment("RBEE_BIND_HTTP_PORT=2", "RBEE_HIVE_SLOTS=5", "RBEE_LOG_LEVEL="), config.Flag{Name: "bind.http_port", Value: "3"})
	must.NoError(t, diags.Err())
	must.Eq(t, 3, c.Bind.HTTPPort)
	must.Eq(t, 5, c.Hive.Slots)
	must.Eq(t, 3, c.Hive.Threads)
	must.Eq(t, "warn", c.LogLevel) // an empty variable does not count
	origins := map[string]config.Origin{}
	for _, s := range c.Settings() {
		origins[s.Name] = s.Origin
	}
	must.Eq(t, config.Origin{Source: config.SourceFlag, Name: "bind.http_port"}, origins["bind.http_port"])
	must.Eq(t, config.Origin{Source: config.SourceEnv, Name: "RBEE_HIVE_SLOTS"}, origins["hive.slots"])
	must.Eq(t, config.SourceFile, origins["hive.threads"].Source)
	must.Eq(t, 7, origins["hive.threads"].Range.Start.Line)
	must.Eq(t, config.Origin{Source: config.SourceDefault}, origins["data_dir"])
}

func TestRefusedOverrides(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env   config.Env
		flags []config.Flag
		want  string
	}{
		"variable":      {environment("RBEE_HIVE_SLOTS=many"), nil, "RBEE_HIVE_SLOTS"},
		"flag":          {environment(), []config.Flag{{Name: "bind.http_port", Value: "x"}}, "bind.http_port"},
		"unknown flag":  {environment(), []config.Flag{{Name: "bind.http_prt", Value: "1"}}, `Did you mean "bind.http_port"`},
		"moved":         {environment("RBEE_HIVE_NAME=desk"), nil, "RBEE_NAME"},
		"no role":       {environment("RBEE_QUEEN_ENABLED=false", "RBEE_HIVE_ENABLED=false"), nil, "RBEE_QUEEN_ENABLED"},
		"even queens":   {environment("RBEE_QUEEN_BOOTSTRAP_EXPECT=4"), nil, "no more queens than 3"},
		"no queens":     {environment("RBEE_QUEEN_BOOTSTRAP_EXPECT=0"), nil, "1, 3, 5, 7 or 9"},
		"hasty":         {environment("RBEE_QUEEN_ELECTION_TIMEOUT=99ms"), nil, "between 100ms and 10s"},
		"short life":    {environment("RBEE_QUEEN_CERTIFICATE_TTL=9m"), nil, "between 10m"},
		"long life":     {environment("RBEE_QUEEN_CERTIFICATE_TTL=100000h"), nil, "ten years"},
		"not to reach":  {environment("RBEE_BIND_ADVERTISE=0.0.0.0"), nil, "every machine's address"},
		"with a port":   {environment("RBEE_BIND_ADVERTISE=10.0.0.1:7834"), nil, `write "10.0.0.1" alone`},
		"mistyped":      {environment("RBEE_BIND_ADVERTISE=10.0.0.256"), nil, "neither an IP address nor a host name"},
		"bad peer":      {environment("RBEE_GOSSIP_RETRY_JOIN=10.0.0.1,ho st"), nil, `"ho st"`},
		"bad peer port": {environment("RBEE_GOSSIP_RETRY_JOIN=10.0.0.1:0"), nil, "port"},
		"half TLS":      {environment("RBEE_TLS_CA_FILE=ca.pem"), nil, "tls.cert_file and tls.key_file"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diags := config.Load(nil, tc.env, tc.flags...)
			must.Nil(t, c)
			must.Eq(t, core.Invalid, core.KindOf(diags.Err()))
			must.StrContains(t, diags.Err().Error(), tc.want)
		})
	}
	for _, address := range []string{"localhost", "127.0.0.9", "::1"} {
		_, diags := config.Load(nil, environment("RBEE_BIND_ADDRESS="+address))
		must.NoError(t, diags.Err())
	}
}

// Whether an open address is safe is known when the agent starts.
func TestOpenWithoutTLS(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env       config.Env
		inCluster bool
		want      string // in the error; empty: none
	}{
		"loopback":            {environment(), false, ""},
		"loopback in cluster": {environment(), true, ""},
		"alone":               {environment("RBEE_BIND_ADDRESS=0.0.0.0"), false, "RBEE_BIND_ADDRESS"},
		"what to do":          {environment("RBEE_BIND_ADDRESS=0.0.0.0"), false, "rbee cluster init"},
		"IPv6":                {environment("RBEE_BIND_ADDRESS=::"), false, "insecure = true"},
		"mapped IPv4":         {environment("RBEE_BIND_ADDRESS=::ffff:192.0.2.1"), false, "insecure = true"},
		"in a cluster":        {environment("RBEE_BIND_ADDRESS=0.0.0.0"), true, ""},
		"insecure":            {environment("RBEE_BIND_ADDRESS=0.0.0.0", "RBEE_INSECURE=true"), false, ""},
		"own files":           {environment("RBEE_BIND_ADDRESS=0.0.0.0", "RBEE_TLS_CA_FILE=a", "RBEE_TLS_CERT_FILE=b", "RBEE_TLS_KEY_FILE=c"), false, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diags := config.Load(nil, tc.env)
			must.NoError(t, diags.Err())
			err := c.Diagnostics(c.OpenWithoutTLS(tc.inCluster)).Err()
			if tc.want == "" {
				must.NoError(t, err)
				return
			}
			must.Eq(t, core.Invalid, core.KindOf(err))
			must.StrContains(t, err.Error(), tc.want)
		})
	}
	// An agent that keeps nothing is in no cluster: no need to wait for its start.
	c, diags := config.Dev("/tmp/x", environment("RBEE_BIND_ADDRESS=0.0.0.0"))
	must.Nil(t, c)
	must.StrContains(t, diags.Err().Error(), "insecure = true")
}

func TestAddresses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		env                       config.Env
		alone, cluster, advertise string
	}{
		"told none":      {environment(), "127.0.0.1", "0.0.0.0", "?"},
		"told loopback":  {environment("RBEE_BIND_ADDRESS=127.0.0.1"), "127.0.0.1", "127.0.0.1", "127.0.0.1"},
		"told localhost": {environment("RBEE_BIND_ADDRESS=localhost"), "localhost", "localhost", "127.0.0.1"},
		"told one":       {environment("RBEE_BIND_ADDRESS=10.1.2.3"), "10.1.2.3", "10.1.2.3", "10.1.2.3"},
		"told a name":    {environment("RBEE_BIND_ADVERTISE=a.example.org"), "127.0.0.1", "0.0.0.0", "a.example.org"},
		"told both":      {environment("RBEE_BIND_ADDRESS=0.0.0.0", "RBEE_BIND_ADVERTISE=10.0.0.9"), "0.0.0.0", "0.0.0.0", "10.0.0.9"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, diags := config.Load(nil, tc.env)
			must.NoError(t, diags.Err())
			must.Eq(t, tc.alone, c.ListenAddress(false))
			must.Eq(t, tc.cluster, c.ListenAddress(true))
			got, err := c.AdvertiseHost(t.Context())
			if tc.advertise != "?" {
				must.NoError(t, err)
				must.Eq(t, tc.advertise, got)
			} else if err == nil { // depends on the machine
				must.NotEq(t, "", got)
				must.NotEq(t, "0.0.0.0", got)
			}
		})
	}
}

func TestLists(t *testing.T) {
	t.Parallel()
	c, diags := config.Load([]string{"testdata/cluster.hcl"}, environment())
	must.NoError(t, diags.Err())
	must.Eq(t, []string{"10.0.0.1", "queens.example.org:7000"}, c.Gossip.RetryJoin)
	must.Eq(t, 3, c.Queen.BootstrapExpect)
	must.False(t, c.Hive.Enabled) // a queen alone
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

func TestInsecureWarnsAtEveryLoad(t *testing.T) {
	t.Parallel()
	c, diags := config.Load(nil, environment("RBEE_BIND_ADDRESS=0.0.0.0", "RBEE_INSECURE=true"))
	must.NotNil(t, c)
	must.Len(t, 1, diags.List)
	must.Eq(t, hcl.DiagWarning, diags.List[0].Severity)
}

func TestDev(t *testing.T) {
	t.Parallel()
	c, diags := config.Dev("/tmp/x", environment("RBEE_DATA_DIR=/elsewhere", "RBEE_HIVE_SLOTS=2"), config.Flag{Name: "bind.http_port", Value: "0"})
	must.NoError(t, diags.Err())
	must.True(t, c.Dev && c.Queen.Enabled && c.Hive.Enabled)
	must.False(t, c.Hive.KeepWorkers)
	must.Eq(t, "/tmp/x", c.DataDir)
	must.Eq(t, "/home/me/.cache/rbee", c.StoreDir)
	must.Eq(t, 2, c.Hive.Slots)
	must.Eq(t, 0, c.Bind.HTTPPort)
}

func TestMissingPaths(t *testing.T) {
	t.Parallel()
	for _, path := range []string{filepath.Join(t.TempDir(), "none.hcl"), t.TempDir()} {
		c, diags := config.Load([]string{path}, environment())
		must.Nil(t, c)
		must.StrContains(t, diags.Err().Error(), path)
	}
}

// The example explains every setting and loads as it is.
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

// What the example sets is the default, but for the folders, which are those of a service.
func TestExampleHasTheDefaults(t *testing.T) {
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

// Each bound is that of the documentation: the value at it loads, the value beyond it does not.
func TestBounds(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ good, bad []string }{
		"bind.http_port":            {[]string{"0", "65535"}, []string{"-1", "65536"}},
		"bind.rpc_port":             {[]string{"0", "65535"}, []string{"-1", "65536"}},
		"bind.gossip_port":          {[]string{"0", "65535"}, []string{"-1", "65536"}},
		"queen.bootstrap_expect":    {[]string{"1", "9"}, []string{"-1", "2", "11"}},
		"queen.election_timeout":    {[]string{"100ms", "10s"}, []string{"99ms", "10001ms"}},
		"queen.certificate_ttl":     {[]string{"10m", "87600h"}, []string{"599s", "87601h"}},
		"queen.token_grace":         {[]string{"0s", "720h"}, []string{"-1ns", "721h"}},
		"queen.queue_limit":         {[]string{"1", "100000"}, []string{"0", "100001"}},
		"queen.queue_timeout":       {[]string{"100ms", "1h"}, []string{"99ms", "3601s"}},
		"queen.first_token_timeout": {[]string{"1s", "24h"}, []string{"999ms", "86401s"}},
		"queen.token_timeout":       {[]string{"1s", "24h"}, []string{"999ms", "86401s"}},
		"queen.max_body":            {[]string{"1KiB", "64MiB"}, []string{"1023", "64MiB1"}},
		"queen.body_memory":         {[]string{"64MiB", "1TiB"}, []string{"67108863"}},
		"hive.slots":                {[]string{"1", "1024"}, []string{"0", "1025"}},
		"hive.context_tokens":       {[]string{"0", "16777216"}, []string{"-1", "16777217"}},
		"hive.threads":              {[]string{"0", "4096"}, []string{"-1", "4097"}},
		"hive.stop_grace":           {[]string{"0s", "1h"}, []string{"-1s", "3601s"}},
		"hive.worker_timeout":       {[]string{"5s", "24h"}, []string{"4999ms", "86401s"}},
		"hive.download.connections": {[]string{"1", "64"}, []string{"0", "65"}},
		"hive.build.timeout":        {[]string{"1s", "24h"}, []string{"999ms", "86401s"}},
		"hive.build.max_disk":       {[]string{"1MiB"}, []string{"1048575"}},
		"gossip.retry_join":         {[]string{"a:1", "a:65535"}, []string{"a:0", "a:65536", "a:-1"}},
		"name":                      {[]string{"a", "A" + strings.Repeat("-", 62), "0._x"}, []string{core.LocalHive, strings.Repeat("a", 64), "-a", "a b", "ä"}},
		"bind.advertise":            {[]string{"a." + strings.Repeat("b", 63), strings.Repeat("a.", 126) + "b"}, []string{"a." + strings.Repeat("b", 64), strings.Repeat("a.", 127) + "b", "::", "-a", "10.1"}},
		"http.allow_origins":        {[]string{"*", "https://a.example", "http://localhost:3000"}, []string{"a.example", "https://", "https://u@a.example", "https://a.example/", "https://a.example?q=1", "https://a.example#f", ":"}},
		"http.allow_hosts":          {[]string{"a.example", "10.0.0.1", "::1"}, []string{"https://a.example", "a.example:80", "a b"}},
		"hive.engines.allow":        {[]string{"npm:", "npm:@a/b", "sha256:" + strings.Repeat("0f", 32)}, []string{"npm", ":a", "sha256:0f", "sha256:" + strings.Repeat("0F", 32), "sha256:" + strings.Repeat("0g", 32)}},
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

// What neither a file nor a variable nor a flag says about a machine's roles, its cluster does.
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
		})
	}
}

// Of a folder only its own *.hcl and *.json count: no folders, no hidden files of editors.
func TestFolderIgnores(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	must.NoError(t, os.Mkdir(filepath.Join(dir, "old.hcl"), 0o700))
	for name, text := range map[string]string{
		".#rbee.hcl": "broken {", "rbee.hcl~": "broken {", "README": "broken {",
		"a.hcl": "log_level = \"warn\"\nhive {\n  enabled = true\n}\n", "b.json": `{"name": "desk"}`,
	} {
		must.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
	}
	c, diags := config.Load([]string{dir}, environment())
	must.NoError(t, diags.Err())
	must.Eq(t, []string{filepath.Join(dir, "a.hcl"), filepath.Join(dir, "b.json")}, c.Files())
	must.Eq(t, "warn", c.LogLevel)
	must.Eq(t, "desk", c.Name)
}

// What a plugin's block says arrives as it is, but for the digest's letters, which are lower case.
func TestPluginBlock(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rbee.hcl")
	load := func(text string) (*config.Config, error) {
		must.NoError(t, os.WriteFile(file, []byte("hive { enabled = true }\n"+text), 0o600))
		c, diags := config.Load([]string{file}, environment())
		return c, diags.Err()
	}
	sum := strings.Repeat("0f", 32)
	c, err := load("worker \"b\" {\n plugin = \"rbee-worker-x\"\n env = [\"A\", \"_B1\"]\n sha256 = \"" + strings.ToUpper(sum) + "\"\n config { x = 1 }\n}\nworker \"a\" {}\ncatalog \"c\" {}\n")
	must.NoError(t, err)
	must.Len(t, 2, c.Workers)
	must.Eq(t, []string{"a", "rbee-worker-a", "worker"}, []string{c.Workers[0].Label, c.Workers[0].Executable, c.Workers[0].Kind})
	b := c.Workers[1]
	must.Eq(t, []string{"b", "rbee-worker-x", sum, "A", "_B1"}, append([]string{b.Label, b.Executable, b.SHA256}, b.Env...))
	attributes, diags := b.Body.JustAttributes()
	must.False(t, diags.HasErrors())
	must.MapLen(t, 1, attributes)
	must.Len(t, 1, c.Catalogs)
	must.Eq(t, []string{"c", "rbee-catalog-c", "catalog"}, []string{c.Catalogs[0].Label, c.Catalogs[0].Executable, c.Catalogs[0].Kind})

	short, long := "sha256 = \""+sum[1:]+"\"", "sha256 = \""+sum+"0\""
	other := "sha256 = \"" + strings.Replace(sum, "f", "g", 1) + "\""
	twice := "config {}\nconfig {}"
	for text, says := range map[string]string{
		`plugin = "rbee-catalog-x"`:   "rbee-worker-NAME",
		`plugin = "../rbee-worker-x"`: "rbee-worker-NAME",
		`plugin = "rbee-worker-../x"`: "rbee-worker-NAME",
		`env = ["A=B"]`:               "without their values",
		`env = ["1A"]`:                "without their values",
		`env = [null]`:                "without their values",
		`env = null`:                  "list of names",
		`env = ["PLUGIN_X"]`:          "rbee sets it itself",
		`env = ["RBEE_PLUGIN_X"]`:     "rbee sets it itself",
		short:                         "64 hexadecimal digits",
		long:                          "64 hexadecimal digits",
		other:                         "64 hexadecimal digits",
		twice:                         "stands at",
	} {
		_, err := load("worker \"a\" {\n" + text + "\n}\n")
		must.ErrorContains(t, err, says, must.Sprint(text))
	}
	for _, label := range []string{"", "A", "-a", "a.b", "../a", strings.Repeat("a", 65)} {
		_, err := load("worker \"" + label + "\" {}\n")
		must.ErrorContains(t, err, "cannot name a worker", must.Sprint(label))
	}
	_, err = load("worker \"" + strings.Repeat("a", 64) + "\" {}\nworker \"0_-\" {}\n")
	must.NoError(t, err)
}

// A path begins at the folder of its file, or of the process where a variable gives it; "~/" is the
// home folder, and none is none.
func TestPaths(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rbee.hcl")
	here, err := os.Getwd()
	must.NoError(t, err)
	for path, want := range map[string]struct{ inFile, inVariable string }{
		"":      {"", ""},
		"go":    {filepath.Join(filepath.Dir(file), "go"), filepath.Join(here, "go")},
		"../go": {filepath.Join(filepath.Dir(filepath.Dir(file)), "go"), filepath.Join(filepath.Dir(here), "go")},
		"/go/":  {"/go/", "/go/"},
		"~/go":  {"/home/me/go", "/home/me/go"},
		"~go":   {filepath.Join(filepath.Dir(file), "~go"), filepath.Join(here, "~go")},
	} {
		must.NoError(t, os.WriteFile(file, []byte("hive {\n enabled = true\n build {\n cache_dir = \""+path+"\"\n }\n}\n"), 0o600))
		c, diags := config.Load([]string{file}, environment())
		must.NoError(t, diags.Err())
		must.Eq(t, want.inFile, c.Hive.Build.CacheDir, must.Sprintf("%q in a file", path))
		c, diags = config.Load(nil, environment("RBEE_HIVE_BUILD_CACHE_DIR="+path))
		must.NoError(t, diags.Err())
		must.Eq(t, want.inVariable, c.Hive.Build.CacheDir, must.Sprintf("%q in a variable", path))
	}
}

// A plugin that no configuration made has no variables, and its complaints no source lines.
func TestPluginAlone(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	list := hcl.Diagnostics{{Severity: hcl.DiagError, Summary: "Bad", Detail: "It is bad."}}
	must.NoError(t, config.Plugin{}.Diagnostics(list).Write(&out, 0, false))
	must.StrContains(t, out.String(), "It is bad.")
	_, diags := config.Plugin{}.EvalContext([]hcl.Traversal{{hcl.TraverseRoot{Name: "env"}, hcl.TraverseAttr{Name: "HOME"}}})
	must.True(t, diags.HasErrors())
}

func TestNestedBlock(t *testing.T) {
	t.Parallel()
	load := func(text, name string, env ...string) (*config.Config, *config.Diagnostics) {
		file := filepath.Join(t.TempDir(), name)
		must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
		return config.Load([]string{file}, environment(env...))
	}
	c, diags := load("hive {\n enabled = true\n slots = 2\n download {\n  connections = 8\n  rate_limit = \"50MiB\"\n  allow_addresses = [\"10.0.0.0/8\", \"fd00::1\"]\n  seed = false\n  upload_limit = \"1MiB\"\n }\n}\n", "rbee.hcl")
	must.NoError(t, diags.Err())
	must.Eq(t, config.Download{Connections: 8, RateLimit: 50 << 20, AllowAddresses: []string{"10.0.0.0/8", "fd00::1"}, UploadLimit: 1 << 20}, c.Hive.Download)
	must.Eq(t, 2, c.Hive.Slots)

	c, diags = load(`{"hive": {"enabled": true, "download": {"connections": 2}}}`, "rbee.json", "RBEE_HIVE_DOWNLOAD_RATE_LIMIT=1.5GB")
	must.NoError(t, diags.Err())
	must.Eq(t, config.Download{Connections: 2, RateLimit: 1_500_000_000, Seed: true}, c.Hive.Download)

	c, diags = config.Load(nil, environment())
	must.NoError(t, diags.Err())
	must.Eq(t, config.Download{Connections: 4, Seed: true}, c.Hive.Download)

	for text, says := range map[string]string{
		`connections = 0`:               "between 1 and 64",
		`connections = 65`:              "between 1 and 64",
		`rate_limit = "fast"`:           "is not a size",
		`rate_limit = "-1"`:             "is not a size",
		`rate_limit = "1e9"`:            "is not a size",
		`rate_limit = "9999999TiB"`:     "is not a size",
		`allow_addresses = ["10.0.0"]`:  "neither an address nor a prefix",
		`allow_addresses = ["a.local"]`: "neither an address nor a prefix",
		"}\ndownload {":                 "stands at",
		`conections = 1`:                "connections",
	} {
		_, diags := load("hive {\n enabled = true\n download {\n"+text+"\n}\n}\n", "rbee.hcl")
		must.ErrorContains(t, diags.Err(), says)
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

// A block within a block: its settings have names, variables and origins like all others.
func TestBuildBlock(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rbee.hcl")
	must.NoError(t, os.WriteFile(file, []byte("queen {\n  enabled = true\n}\nhive {\n  enabled = true\n  build {\n    enabled   = true\n    cache_dir = \"go\"\n  }\n}\n"), 0o600))
	c, diags := config.Load([]string{file}, environment("RBEE_HIVE_BUILD_TIMEOUT=5m"))
	must.NoError(t, diags.Err())
	must.True(t, c.Hive.Build.Enabled)
	must.Eq(t, 5*time.Minute, c.Hive.Build.Timeout)
	must.Eq(t, filepath.Join(filepath.Dir(file), "go"), c.Hive.Build.CacheDir)
	must.False(t, c.Hive.Build.CGO)

	c, diags = config.Load(nil, environment("RBEE_QUEEN_ENABLED=true"))
	must.NoError(t, diags.Err())
	must.False(t, c.Hive.Build.Enabled)
}

func TestMisspelt(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"RBEE_BIND_PORT":             "RBEE_BIND_HTTP_PORT or RBEE_BIND_RPC_PORT or RBEE_BIND_GOSSIP_PORT",
		"RBEE_PORT":                  "RBEE_BIND_HTTP_PORT",
		"RBEE_QUEEN_QUEUE":           "RBEE_QUEEN_QUEUE_LIMIT or RBEE_QUEEN_QUEUE_TIMEOUT",
		"RBEE_HIVE_SLOT":             "RBEE_HIVE_SLOTS",
		"RBEE_HVIE_SLOTS":            "RBEE_HIVE_SLOTS",
		"RBEE_LOGLEVEL":              "RBEE_LOG_LEVEL",
		"rbee_log_level":             "RBEE_LOG_LEVEL",
		"RBEE_DATADIR":               "RBEE_DATA_DIR",
		"RBEE_TOKN":                  "RBEE_TOKEN",
		"RBEE_ADDRESS":               "RBEE_BIND_ADDRESS",
		"RBEE_ADRR":                  "RBEE_ADDR",
		"RBEE_CA_CERT":               "RBEE_CACERT",
		"RBEE_HIVE_FAVOURITE_COLOUR": "there is no such setting",
		"RBEE_HIVE_SLOTS":            "",
		"RBEE_TOKEN":                 "",
		"RBEE_TEST_BIN":              "",
		"RBEE_TEST_ENGINE_DIR":       "",
		"RBEE_FAULTS":                "",
		"RBEE_MY_OWN":                "",
		"RBEEKEEPER":                 "",
	} {
		got := config.Misspelt([]string{"HOME=/", in + "=secret"}, "RBEE_ADDR", "RBEE_TOKEN", "RBEE_CACERT", "RBEE_JOIN")
		if want == "" {
			must.Len(t, 0, got, must.Sprint(in))
			continue
		}
		must.Len(t, 1, got, must.Sprint(in))
		must.StrContains(t, got[0], in+" has no effect")
		must.StrContains(t, got[0], want)
		must.StrNotContains(t, got[0], "secret")
	}
}
