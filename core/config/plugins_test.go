package config_test

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/config"
)

// The settings of a plugin's block are kept unchanged, except that the digest is lower-cased.
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

// A plugin that was not configured has no variables, and its complaints have no source lines.
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

// The settings of a nested block have names, variables and origins like all others.
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
