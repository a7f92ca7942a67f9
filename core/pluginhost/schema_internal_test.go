package pluginhost

import (
	"encoding/json"
	"testing"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/hclparse"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/plugins/sdk"
)

func parsed(t testing.TB, src string) config.Plugin {
	t.Helper()
	f, diags := hclparse.NewParser().ParseHCL([]byte(src), "x.hcl")
	must.False(t, diags.HasErrors(), must.Sprintf("%v", diags))
	return config.Plugin{Kind: "worker", Label: "x", Body: f.Body, Range: hcl.Range{Filename: "x.hcl", Start: hcl.InitialPos, End: hcl.InitialPos}}
}

func TestDecodeConfig(t *testing.T) {
	t.Parallel()
	attr := func(name, typ, def string) sdk.Schema {
		return sdk.Schema{Attributes: []sdk.Attribute{{Name: name, Type: typ, Default: json.RawMessage(def)}}}
	}
	nested := sdk.Schema{Blocks: []sdk.Block{
		{Name: "one", Schema: attr("a", "number", "7")},
		{Name: "many", Repeated: true, Schema: attr("b", "any", "")},
	}}
	for name, tc := range map[string]struct {
		schema    sdk.Schema
		src, want string
	}{
		"null without default": {attr("a", "string", ""), "", `{"a":null}`},
		"default":              {attr("a", "string", `"x"`), "", `{"a":"x"}`},
		"null means default":   {attr("a", "string", `"x"`), "a = null", `{"a":"x"}`},
		"large number":         {attr("a", "number", ""), "a = 9007199254740993", `{"a":9007199254740993}`},
		"fraction":             {attr("a", "number", ""), "a = 0.1", `{"a":0.1}`},
		"text to number":       {attr("a", "number", ""), `a = "12"`, `{"a":12}`},
		"empty list":           {attr("a", "list(string)", ""), "a = []", `{"a":[]}`},
		"set is sorted":        {attr("a", "set(string)", ""), `a = ["b", "a", "b"]`, `{"a":["a","b"]}`},
		"map":                  {attr("a", "map(number)", ""), `a = { "k v" = 1 }`, `{"a":{"k v":1}}`},
		"object":               {attr("a", "object({x = bool})", ""), "a = { x = true }", `{"a":{"x":true}}`},
		"anything":             {attr("a", "any", ""), `a = [1, "x", null]`, `{"a":[1,"x",null]}`},
		"null of anything":     {attr("a", "any", ""), "", `{"a":null}`},
		"default of anything":  {attr("a", "any", `{"x":[1]}`), "", `{"a":{"x":[1]}}`},
		"functions":            {attr("a", "string", ""), `a = upper(format("%s-%d", "x", 1))`, `{"a":"X-1"}`},
		"blocks left out":      {nested, "", `{"many":[],"one":null}`},
		"blocks":               {nested, "one {}\nmany { b = 1 }\nmany { b = \"x\" }", `{"many":[{"b":1},{"b":"x"}],"one":{"a":7}}`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, diags, err := decodeConfig(parsed(t, tc.src), tc.schema)
			must.NoError(t, err)
			must.False(t, diags.HasErrors(), must.Sprintf("%v", diags))
			must.Eq(t, tc.want, string(got))
		})
	}
}

func TestBrokenSchemas(t *testing.T) {
	t.Parallel()
	deep := sdk.Schema{}
	for range maxSchemaDepth + 2 {
		deep = sdk.Schema{Blocks: []sdk.Block{{Name: "b", Schema: deep}}}
	}
	for name, s := range map[string]sdk.Schema{
		"type":             {Attributes: []sdk.Attribute{{Name: "a", Type: "strnig"}}},
		"no type":          {Attributes: []sdk.Attribute{{Name: "a"}}},
		"name":             {Attributes: []sdk.Attribute{{Name: "a b", Type: "string"}}},
		"twice":            {Attributes: []sdk.Attribute{{Name: "a", Type: "string"}}, Blocks: []sdk.Block{{Name: "a"}}},
		"default":          {Attributes: []sdk.Attribute{{Name: "a", Type: "number", Default: []byte(`"x"`)}}},
		"no JSON":          {Attributes: []sdk.Attribute{{Name: "a", Type: "string", Default: []byte(`{`)}}},
		"required default": {Attributes: []sdk.Attribute{{Name: "a", Type: "number", Required: true, Default: []byte(`1`)}}},
		"deep":             deep,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			_, _, err := decodeConfig(parsed(t, ""), s)
			must.Error(t, err)
		})
	}
}

func TestRangeOfPaths(t *testing.T) {
	t.Parallel()
	p := parsed(t, "a = [\n  1,\n  { k = [\n    true ] },\n]\nb {\n  c = 1\n}\nb {\n  c = 2\n}\n")
	s := sdk.Schema{
		Attributes: []sdk.Attribute{{Name: "a", Type: "any"}},
		Blocks:     []sdk.Block{{Name: "b", Repeated: true, Schema: sdk.Schema{Attributes: []sdk.Attribute{{Name: "c", Type: "number"}}}}},
	}
	for name, tc := range map[string]struct {
		path []any
		line int // 0: that of the header
	}{
		"attribute":         {[]any{"a"}, 1},
		"element":           {[]any{"a", 0}, 2},
		"deep":              {[]any{"a", 1, "k", 0}, 4},
		"too deep":          {[]any{"a", 1, "k", 0, "x"}, 4},
		"no such element":   {[]any{"a", 9}, 1},
		"negative":          {[]any{"a", -1}, 1},
		"block":             {[]any{"b", 1}, 9},
		"in a block":        {[]any{"b", 1, "c"}, 10},
		"no such block":     {[]any{"b", 5, "c"}, 0},
		"no such attribute": {[]any{"z"}, 0},
		"index first":       {[]any{0}, 0},
		"empty":             {nil, 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got := pluginDiagnostics(p, s, "worker plugin", sdk.Diagnostics{{Summary: "s", Detail: "d", Path: tc.path}})
			must.Eq(t, max(tc.line, 1), got[0].Subject.Start.Line)
			if tc.line == 0 {
				must.Eq(t, p.Range, *got[0].Subject)
			}
		})
	}
}

func TestParseLogLine(t *testing.T) {
	t.Parallel()
	l := parseLogLine([]byte(`{"@level":"warn","@message":"m","@module":"a.b","@timestamp":"t","n":8589934592,"z":{"x":1},"b":true}`))
	must.Eq(t, "m b=true n=8589934592 z={\"x\":1}", l.text())
	must.Eq(t, "a.b", l.module)
	must.Eq(t, "WARN", map[bool]string{true: "WARN"}[l.level.String() == "warn"])
	must.Eq(t, "plain text", parseLogLine([]byte("plain text")).text())
	must.Eq(t, `{"x":1}`, parseLogLine([]byte(`{"x":1}`)).text())
	must.Eq(t, "{", parseLogLine([]byte("{")).text())
}

func FuzzParseLogLine(f *testing.F) {
	f.Add([]byte(`{"@level":"warn","@message":"m","n":1e400,"s":null}`))
	f.Add([]byte("\xff{"))
	f.Fuzz(func(t *testing.T, b []byte) {
		l := parseLogLine(b)
		must.Eq(t, 0, len(l.pairs)%2)
		_ = l.text()
	})
}

func FuzzHandshakeVersion(f *testing.F) {
	f.Add("1|1|unix|/x|grpc|")
	f.Add("|||")
	f.Fuzz(func(_ *testing.T, line string) { handshakeVersion(line) })
}

func TestLastWordsCrash(t *testing.T) {
	t.Parallel()
	lines := []string{"loading", "GGML_ASSERT(x) failed", "SIGABRT: abort", "PC=0x1"}
	for range 100 {
		lines = append(lines, "rax 0x0")
	}
	must.Eq(t, []string{"loading", "GGML_ASSERT(x) failed", "SIGABRT: abort", "PC=0x1"}, lastWords(lines))
}

func TestPickEnv(t *testing.T) {
	t.Parallel()
	environ := []string{"PATH=a", "LC_ALL=b", "LC=c", "npm_config_registry=d", "https_proxy=e", "TOKEN=f", "CUDA_X=g", "USER=h", "=x"}
	must.Eq(t, []string{"PATH=a", "LC_ALL=b", "CUDA_X=g"}, pickEnv(Spec{Kind: sdk.KindWorker}, environ))
	must.Eq(t, []string{"PATH=a", "LC_ALL=b", "npm_config_registry=d", "https_proxy=e", "TOKEN=f", "USER=h"}, pickEnv(Spec{Kind: sdk.KindCatalog, Env: []string{"TOKEN"}}, environ))
}

// For any plugin schema and any block, the result is JSON, diagnostics, or an error, and the
// rendered schema always parses.
func FuzzDecodeConfig(f *testing.F) {
	f.Add("list(object({x = number}))", []byte(`[]`), "a = [{ x = 1 }]", false)
	f.Add("any", []byte(`{"k":[1,null]}`), "a = env.X", true)
	f.Add("map(set(string))", []byte(`{"k":["x"]}`), "b {\n a = 1\n}", false)
	f.Add("tuple([bool])", []byte("1e999"), "a = upper(null)", true)
	f.Fuzz(func(t *testing.T, typ string, def []byte, src string, sensitive bool) {
		parsed, diags := hclparse.NewParser().ParseHCL([]byte(src), "x.hcl")
		if diags.HasErrors() {
			t.Skip()
		}
		attr := sdk.Attribute{Name: "a", Type: typ, Default: def, Sensitive: sensitive}
		schema := sdk.Schema{Attributes: []sdk.Attribute{attr}, Blocks: []sdk.Block{{Name: "b", Repeated: true, Schema: sdk.Schema{Attributes: []sdk.Attribute{attr}}}}}
		out, diags, err := decodeConfig(config.Plugin{Kind: "worker", Label: "x", Body: parsed.Body}, schema)
		if err == nil && !diags.HasErrors() {
			must.True(t, json.Valid(out))
		}
		text := SchemaHCL(sdk.Info{Name: "x", Kind: sdk.KindWorker}, schema)
		_, diags = hclparse.NewParser().ParseHCL([]byte(text), "schema.hcl")
		must.False(t, diags.HasErrors(), must.Sprintf("%v\n%s", diags, text))
	})
}
