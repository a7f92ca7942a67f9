package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
)

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

func TestFlagOverEnvOverFileOverDefault(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "rbee.hcl")
	must.NoError(t, os.WriteFile(file, []byte("log_level = \"warn\"\nbind { http_port = 1 }\nqueen { enabled = true }\nhive {\n  enabled = true\n  slots = 2\n  threads = 3\n}\n"), 0o600))
	c, diags := config.Load([]string{file}, environment("RBEE_BIND_HTTP_PORT=2", "RBEE_HIVE_SLOTS=5", "RBEE_LOG_LEVEL="), config.Flag{Name: "bind.http_port", Value: "3"})
	must.NoError(t, diags.Err())
	must.Eq(t, 3, c.Bind.HTTPPort)
	must.Eq(t, 5, c.Hive.Slots)
	must.Eq(t, 3, c.Hive.Threads)
	must.Eq(t, "warn", c.LogLevel) // an empty variable is ignored
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

// Only a folder's own *.hcl and *.json files count, not subfolders or hidden files of editors.
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

// A path is relative to the folder of its file, or to the working directory if a variable sets it;
// "~/" is the home folder, and an empty path stays empty.
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

// A name that may stand for many names gets the first three of them.
func TestMisspeltOffersThree(t *testing.T) {
	t.Parallel()
	got := config.Misspelt([]string{"RBEE_QUEEN=1"})
	must.Len(t, 1, got)
	must.Eq(t, 2, strings.Count(got[0], " or "), must.Sprint(got[0]))
}

// Every setting has a value, and the error for a value of the wrong type names the required type.
func TestSettingValues(t *testing.T) {
	t.Parallel()
	c, diags := config.Load(nil, environment())
	must.NoError(t, diags.Err())
	for _, s := range c.Settings() {
		must.NotNil(t, s.Value, must.Sprint(s.Name))
	}
	file := filepath.Join(t.TempDir(), "x.hcl")
	must.NoError(t, os.WriteFile(file, []byte("data_dir = [1]\n"), 0o600))
	_, diags = config.Load([]string{file}, environment())
	must.ErrorContains(t, diags.Err(), "data_dir must be a string.")
	must.NoError(t, os.WriteFile(file, []byte("worker \"a\" {\n  read = [\"models\"]\n}\n"), 0o600))
	_, diags = config.Load([]string{file}, environment())
	must.ErrorContains(t, diags.Err(), "\"models\" is relative to nothing")
}
