package pluginhost_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
)

var update = flag.Bool("update", false, "rewrite the expected diagnostics")

func loadCase(t *testing.T, file string) *config.Config {
	t.Helper()
	roles := filepath.Join(t.TempDir(), "roles.hcl")
	must.NoError(t, os.WriteFile(roles, []byte("queen { enabled = true }\nhive { enabled = true }\n"), 0o600))
	c, diags := config.Load([]string{file, roles}, func(name string) (string, bool) {
		v, ok := map[string]string{"HOME": "/home/me", "SECRET": "do-not-show"}[name]
		return v, ok
	})
	must.NoError(t, diags.Err())
	return c
}

// Every testdata/config/<case> is validated with the fake plugins; the diagnostics must equal
// <case>.diag, or be empty if there is no such file.
func TestValidate(t *testing.T) {
	t.Parallel()
	entries, err := os.ReadDir("testdata/config")
	must.NoError(t, err)
	h := newHost(t)
	cases := 0
	for _, e := range entries {
		if filepath.Ext(e.Name()) == ".diag" {
			continue
		}
		cases++
		name := strings.TrimSuffix(e.Name(), filepath.Ext(e.Name()))
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := loadCase(t, filepath.Join("testdata/config", e.Name()))
			var b bytes.Buffer
			must.NoError(t, c.Diagnostics(h.Validate(t.Context(), c)).Write(&b, 0, false))
			got := strings.ReplaceAll(b.String(), built, "PLUGINS")
			if i := strings.Index(got, "has the SHA-256 "); i >= 0 {
				got = got[:i+16] + "DIGEST" + got[i+16+64:]
			}
			must.StrNotContains(t, got, "do-not-show")
			golden := filepath.Join("testdata/config", name+".diag")
			if *update {
				if got == "" {
					_ = os.Remove(golden)
				} else {
					must.NoError(t, os.WriteFile(golden, []byte(got), 0o644))
				}
			}
			want, err := os.ReadFile(golden)
			if !os.IsNotExist(err) {
				must.NoError(t, err)
			}
			must.Eq(t, string(want), got)
		})
	}
	must.Greater(t, 10, cases)
}

// A launch refuses what Validate refuses, with the source line in the error.
func TestLaunchRefusesABadConfiguration(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	c := loadCase(t, "testdata/config/plugin-says.hcl")
	spec, err := h.Spec(c.Workers[0])
	must.NoError(t, err)
	_, err = h.LaunchWorker(t.Context(), pluginhost.WorkerLaunch{Spec: spec})
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.StrContains(t, err.Error(), `hang        = ["start", "launch"]`)
	must.StrContains(t, core.HintOf(err), "rbee plugin schema worker/fake")
}

func TestSchemaHCL(t *testing.T) {
	t.Parallel()
	h := newHost(t)
	spec, err := h.DefaultSpec(sdk.KindWorker, "fake")
	must.NoError(t, err)
	info, schema, err := h.Describe(t.Context(), spec)
	must.NoError(t, err)
	text := pluginhost.SchemaHCL(info, schema)
	must.StrContains(t, text, "    # Time before every token.\n    # string\n    token_delay = \"0s\"\n")
	must.StrContains(t, text, "# secret = \"\"\n")

	// The rendered block parses, and the plugin accepts it.
	file := filepath.Join(t.TempDir(), "x.hcl")
	must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	c := loadCase(t, file)
	must.SliceEmpty(t, h.Validate(t.Context(), c))

	// So does the block with every commented-out attribute enabled.
	open := strings.ReplaceAll(text, "# secret = ", "secret = ")
	must.NoError(t, os.WriteFile(file, []byte(open), 0o600))
	must.SliceEmpty(t, h.Validate(t.Context(), loadCase(t, file)))
}

func TestSchemaHCLOfEveryType(t *testing.T) {
	t.Parallel()
	schema := sdk.Schema{
		Attributes: []sdk.Attribute{
			{Name: "a", Type: "string", Required: true, Doc: "Two\nlines."},
			{Name: "b", Type: "list(object({x = number, y = optional(bool)}))"},
			{Name: "c", Type: "map(set(string))", Default: []byte(`{"k":["${x}"]}`)},
			{Name: "d", Type: "any", Default: []byte(`[1, "two"]`)},
			{Name: "e", Type: "tuple([bool, string])"},
			{Name: "f", Type: "strnig"},
		},
		Blocks: []sdk.Block{
			{Name: "one", Required: true}, {Name: "many", Repeated: true, Schema: sdk.Schema{Attributes: []sdk.Attribute{{Name: "n", Type: "number", Required: true}}}},
		},
	}
	text := pluginhost.SchemaHCL(sdk.Info{Name: "x", Kind: sdk.KindWorker, Version: "1", Engine: sdk.Engine{Name: "e", Version: "v2"}}, schema)
	file := filepath.Join(t.TempDir(), "x.hcl")
	must.NoError(t, os.WriteFile(file, []byte(text), 0o600))
	c := loadCase(t, file)
	must.StrContains(t, text, `"f" cannot be set`)
	must.StrContains(t, text, "with e v2")
	attrs, _, diags := c.Workers[0].Body.PartialContent(&hcl.BodySchema{Attributes: []hcl.AttributeSchema{{Name: "a", Required: true}, {Name: "c", Required: true}, {Name: "d", Required: true}}})
	must.False(t, diags.HasErrors())
	v, diags := attrs.Attributes["c"].Expr.Value(nil)
	must.False(t, diags.HasErrors())
	must.Eq(t, "${x}", v.AsValueMap()["k"].AsValueSlice()[0].AsString())
}
