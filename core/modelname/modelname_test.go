package modelname_test

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/modelname"
)

// world is a cluster's models: two repositories with a file of one name, a repository with two
// variants, an address, a release, a file, a model that an earlier version of rbee fetched, and one
// that a server provides.
func world() []core.Model {
	return []core.Model{
		{ID: "rbee-tiny", Ref: "builtin:rbee-tiny", Digest: "sha256:1"},
		{ID: "hf.co/alice/Tiny-GGUF:Q4_K_M", Ref: "huggingface:alice/Tiny-GGUF/tiny-q4_k_m.gguf@0a", Digest: "sha256:2", Quantization: "Q4_K_M"},
		{ID: "hf.co/bob/Tiny-GGUF:Q4_K_M", Ref: "huggingface:bob/Tiny-GGUF/tiny-q4_k_m.gguf@0b", Digest: "sha256:3", Quantization: "Q4_K_M"},
		{ID: "hf.co/bob/Big:Q4_K_M", Ref: "huggingface:bob/Big/big-Q4_K_M.gguf@0c", Digest: "sha256:4", Quantization: "Q4_K_M"},
		{ID: "hf.co/bob/Big:Q8_0", Ref: "huggingface:bob/Big/big-Q8_0.gguf@0c", Digest: "sha256:5", Quantization: "Q8_0"},
		{ID: "models.example:8080/a/far", Ref: "http://models.example:8080/a/far.gguf#sha256=00", Digest: "sha256:6"},
		{ID: "github.com/o/r/rel:v1", Ref: "github:o/r@v1/rel.gguf", Digest: "sha256:7"},
		{ID: "mine", Ref: "file:/srv/models/mine.gguf", Digest: "sha256:8"},
		{ID: "file/srv/other/mine", Ref: "file:/srv/other/mine.gguf", Digest: "sha256:9"},
		{ID: "Old-Q5_K_M", Aliases: []string{"oldie"}, Ref: "huggingface:carol/Old-GGUF/Old-Q5_K_M.gguf@0d", Digest: "sha256:10", Quantization: "Q5_K_M"},
		{ID: "copy", Ref: "file:/srv/copy.gguf", Digest: "sha256:11"},
		{ID: "hf.co/dan/copy:F16", Ref: "huggingface:dan/copy/copy.gguf@0e", Digest: "sha256:11", Quantization: "F16"},
		{ID: "Case", Digest: "sha256:12"},
		{ID: "case", Digest: "sha256:13"},
		{ID: "Qwen/Qwen3-8B"},
	}
}

func TestResolve(t *testing.T) {
	t.Parallel()
	aliases := []core.Alias{
		{Name: "gpt-4o-mini", Model: "hf.co/bob/Big:Q8_0"},
		{Name: "Big", Model: "hf.co/bob/Big:Q8_0"},
		{Name: "gone", Model: "hf.co/no/body:Q4_0"},
		{Name: "rbee-tiny", Model: "mine"},
	}
	for name, want := range map[string]string{
		"rbee-tiny":                                       "rbee-tiny", // an id takes precedence over an alias
		"RBEE-Tiny":                                       "rbee-tiny",
		"builtin:rbee-tiny":                               "rbee-tiny",
		"hf.co/alice/Tiny-GGUF:Q4_K_M":                    "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"alice/Tiny-GGUF:Q4_K_M":                          "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"alice/tiny-gguf:q4_k_m":                          "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"alice/Tiny-GGUF":                                 "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"alice/Tiny":                                      "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"alice/tiny:q4_k_m":                               "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"hf:alice/Tiny-GGUF":                              "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"huggingface.co/alice/Tiny-GGUF:Q4_K_M":           "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"https://huggingface.co/alice/Tiny-GGUF":          "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"huggingface:alice/Tiny-GGUF/tiny-q4_k_m.gguf@0a": "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"hf:alice/Tiny-GGUF/tiny-q4_k_m.gguf":             "hf.co/alice/Tiny-GGUF:Q4_K_M",
		"Tiny-GGUF:Q4_K_M":                                "2 models",
		"Tiny-GGUF":                                       "2 models",
		"tiny-q4_k_m":                                     "2 models",
		"Big:Q4_K_M":                                      "hf.co/bob/Big:Q4_K_M",
		"bob/Big":                                         "2 models",
		"hf:bob/Big":                                      "2 models",
		"Big":                                             "hf.co/bob/Big:Q8_0", // an alias takes precedence over a shorter spelling
		"big":                                             "hf.co/bob/Big:Q8_0",
		"big-Q4_K_M.gguf":                                 "hf.co/bob/Big:Q4_K_M",
		"GPT-4o-mini":                                     "hf.co/bob/Big:Q8_0",
		"gone":                                            "",
		"Q8_0":                                            "",
		":Q8_0":                                           "",
		"far":                                             "models.example:8080/a/far",
		"a/far":                                           "models.example:8080/a/far",
		"models.example:8080/a/far":                       "models.example:8080/a/far",
		"http://models.example:8080/a/far.gguf#sha256=00": "models.example:8080/a/far",
		"rel":                         "github.com/o/r/rel:v1",
		"rel:v1":                      "github.com/o/r/rel:v1",
		"r/rel":                       "github.com/o/r/rel:v1",
		"rel:v2":                      "",
		"mine":                        "mine", // an id takes precedence over a shorter spelling
		"other/mine":                  "file/srv/other/mine",
		"models/mine":                 "mine",
		"file:/srv/other/mine.gguf":   "file/srv/other/mine",
		"Old-Q5_K_M":                  "Old-Q5_K_M",
		"oldie":                       "Old-Q5_K_M",
		"hf.co/carol/Old-GGUF:Q5_K_M": "Old-Q5_K_M", // the id that it would get today
		"carol/Old-GGUF":              "Old-Q5_K_M",
		"copy":                        "copy",
		"srv/copy":                    "copy",
		"dan/copy":                    "hf.co/dan/copy:F16",
		"COPY":                        "copy",
		"CASE":                        "2 models",
		"Case":                        "Case",
		"Qwen3-8B":                    "Qwen/Qwen3-8B",
		"qwen/qwen3-8b":               "Qwen/Qwen3-8B",
		"iny-GGUF":                    "",
		"ob/Big":                      "",
		"":                            "",
		"hf.co/":                      "",
		"/":                           "",
		"https://huggingface.co/alice/Tiny-GGUF/resolve/main": "",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			id, ok, err := modelname.Resolve(name, world(), aliases)
			if strings.HasSuffix(want, "models") {
				must.EqOp(t, core.Invalid, core.KindOf(err))
				must.StrContains(t, err.Error(), "is the name of "+want)
				return
			}
			must.NoError(t, err)
			must.EqOp(t, want, id)
			must.EqOp(t, want != "", ok)
		})
	}
}

// A name that means several models is refused with the choices, of which a bounded number is
// listed.
func TestResolveAmbiguous(t *testing.T) {
	t.Parallel()
	_, _, err := modelname.Resolve("tiny-gguf", world(), nil)
	must.EqError(t, err, `"tiny-gguf" is the name of 2 models: hf.co/alice/Tiny-GGUF:Q4_K_M, hf.co/bob/Tiny-GGUF:Q4_K_M`)
	must.EqOp(t, "Write as much of the name as tells them apart, such as hf.co/alice/Tiny-GGUF:Q4_K_M.", core.HintOf(err))
	var many []core.Model
	for i := range 20 {
		many = append(many, core.Model{ID: "org" + strings.Repeat("x", i) + "/m"})
	}
	_, _, err = modelname.Resolve("m", many, nil)
	must.StrContains(t, err.Error(), "20 models")
	must.EqOp(t, 8, strings.Count(err.Error(), "/m"))
}

func TestValid(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"rbee-tiny": true, "hf.co/org/repo:Q4_K_M": true, "org/repo:Q4_K_M": true, "llama3:8b": true, "host:8080/a/b:v1": true, "a": true, "7b": true,
		"": false, "-x": false, ".x": false, "a/": false, "/a": false, "a//b": false, "a..b": false, "a/../b": false, "a/.b": false, "a:": false, "a:b:c": false,
		"a b": false, "a\nb": false, "é": false, "a+b": false, "a=b": false, "a%2fb": false, "a?b": false, "a#b": false, "a@b": false, "$x": false, `a"b`: false,
		strings.Repeat("a", modelname.MaxBytes): true, strings.Repeat("a", modelname.MaxBytes+1): false,
	} {
		must.EqOp(t, want, modelname.Valid(name), must.Sprintf("%q", name))
		must.EqOp(t, want, modelname.Check(name, "a name") == nil, must.Sprintf("%q", name))
	}
}

func TestClean(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"tiny": "tiny", "hf.co/org/repo:Q4_K_M": "hf.co/org/repo:Q4_K_M", "host:8080/a b/c": "host:8080/a-b/c", "a/../b": "a/b", "": "model", "/": "model", "...": "model",
		"--x": "x", "über": "ber", "a:b:c": "a-b:c", "a//b/": "a/b", "x:": "x", "a b.c": "a-b.c", "a:80/b:80/c": "a:80/b-80/c",
		strings.Repeat("a/", 300) + "b:t":              strings.Repeat("a/", 98) + "b:t",
		strings.Repeat("a", 300) + ":t":                strings.Repeat("a", 198) + ":t",
		strings.Repeat("é", 300):                       "model",
		"host:123456/" + strings.Repeat("x", 10) + "/": "host:123456/xxxxxxxxxx",
	} {
		must.EqOp(t, want, modelname.Clean(name), must.Sprintf("%q", name))
	}
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	for ref, want := range map[string]string{
		"builtin:rbee-tiny":                               "builtin/rbee-tiny",
		"huggingface:org/repo/sub/m-Q4_0.gguf@main":       "hf.co/org/repo/sub/m-Q4_0",
		"huggingface:org/repo/m-00001-of-00003.gguf@main": "hf.co/org/repo/m",
		"https://h.example/a/m.gguf?x=1#sha256=00":        "h.example/a/m",
		"https://huggingface.co/o/r/resolve/main/m.gguf":  "huggingface.co/o/r/resolve/main/m",
		"github:o/r@v1/m.gguf":                            "github.com/o/r/m:v1",
		"github:o/r":                                      "github.com/o/r",
		"file:/srv/m.gguf":                                "file/srv/m",
		"bare.gguf":                                       "bare",
		"":                                                "",
	} {
		must.EqOp(t, want, modelname.Origin(ref), must.Sprintf("%q", ref))
	}
}

func TestIsRepository(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]bool{
		"org/repo": true, "org/repo:Q4_K_M": true, "repo": false, "repo:Q4": false, "hf.co/org/repo": false, "host.example/file": false, "host:80/file": false, "a/b c": false,
	} {
		must.EqOp(t, want, modelname.IsRepository(name), must.Sprintf("%q", name))
	}
}

// FuzzClean checks that the result of Clean is valid, is unchanged by Clean, and resolves to
// itself.
func FuzzClean(f *testing.F) {
	for _, s := range []string{"", "a/b:c", "host:80/x", "..", strings.Repeat("é/", 300), "a:1/b:2:3", ":", "-:-"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		c := modelname.Clean(s)
		if !modelname.Valid(c) || modelname.Clean(c) != c {
			t.Fatalf("%q is cleaned to %q, and that to %q", s, c, modelname.Clean(c))
		}
		id, ok, err := modelname.Resolve(c, []core.Model{{ID: c, Ref: s}, {ID: "other", Ref: c}}, nil)
		if err != nil || !ok || id != c {
			t.Fatalf("%q: %q %v %v", c, id, ok, err)
		}
	})
}
