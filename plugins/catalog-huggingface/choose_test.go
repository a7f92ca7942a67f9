package main

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

func TestParseRef(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]reference{
		"org/repo":                           {org: "org", repo: "repo"},
		"org/Some.Model-GGUF:Q4_K_M":         {org: "org", repo: "Some.Model-GGUF", quant: "Q4_K_M"},
		"org/repo:q8_0@v1":                   {org: "org", repo: "repo", quant: "q8_0", revision: "v1"},
		"org/repo/a.gguf":                    {org: "org", repo: "repo", file: "a.gguf"},
		"org/repo/sub/a-00001-of-00002.gguf": {org: "org", repo: "repo", file: "sub/a-00001-of-00002.gguf"},
		"org/repo@refs/pr/1":                 {org: "org", repo: "repo", revision: "refs/pr/1"},
		"org/repo/a:b.gguf@" + commit:        {org: "org", repo: "repo", file: "a:b.gguf", revision: commit},
	} {
		got, err := parseRef(text)
		must.NoError(t, err, must.Sprint(text))
		must.Eq(t, want, got)
		must.Eq(t, text, got.String())
	}
	for _, text := range []string{
		"", "repo", "/", "org/", "/repo", "../repo", "org/..", "org/repo/", "org/repo/../x.gguf", "org/repo//x.gguf", "org/repo/./x", "org/repo:", "org/repo:a b", "org/repo:../x",
		"org/repo@", "org/repo@../x", "org/repo@-x", "org/repo@a b", "-org/repo", "or g/repo", "org/repo?x", "org/re%2e", "org/a--b", "org/repo/a\\b", "org/repo/a\x00b", "org/repo/a\nb",
		strings.Repeat("a", 200) + "/repo",
	} {
		_, err := parseRef(text)
		must.ErrorIs(t, err, catalog.ErrInvalid, must.Sprint(text))
		must.StrContains(t, sdk.HintOf(err), "hf:ORG/REPO")
	}
}

func FuzzParseRef(f *testing.F) {
	for _, s := range []string{"org/repo:Q4_K_M@v1", "org/repo/a/b.gguf", "../..", "a/b@c@d"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := parseRef(text)
		if err != nil {
			return
		}
		if strings.Contains(r.org+r.repo+r.revision, "..") || strings.Contains("/"+r.file+"/", "/../") {
			t.Errorf("%q leads elsewhere: %+v", text, r)
		}
		if again, err := parseRef(r.String()); err != nil || again != r {
			t.Errorf("%q is read as %+v, and that as %+v (%v)", text, r, again, err)
		}
	})
}

func TestQuantOf(t *testing.T) {
	t.Parallel()
	for stem, want := range map[string]string{
		"Llama-3.2-1B-Instruct-Q4_K_M": "Q4_K_M", "model.q8_0": "Q8_0", "x-IQ3_XXS": "IQ3_XXS", "x-UD-Q2_K_XL": "UD-Q2_K_XL", "x-bf16": "BF16", "x-FP16": "F16", "x-f32": "F32",
		"Q6_K/x": "Q6_K", "gpt-oss-20b-MXFP4": "MXFP4", "gpt-oss-mxfp4_moe": "MXFP4_MOE", "TQ1_0": "TQ1_0", "x": "", "Q4you": "", "phi-2": "", "Q8_0-from-Q4_0": "Q4_0", "ggml-model-q4_0": "Q4_0",
	} {
		must.Eq(t, want, quantOf(stem), must.Sprint(stem))
	}
}

func repoFiles(names ...string) []hubFile {
	var out []hubFile
	for _, n := range names {
		out = append(out, hubFile{path: n, size: 1})
	}
	return out
}

func TestChoose(t *testing.T) {
	t.Parallel()
	usual := repoFiles("README.md", "m-F16.gguf", "m-Q8_0.gguf", "m-Q4_K_M.gguf", "m-Q4_K_S.gguf", "mmproj-m-F16.gguf", "m.imatrix.gguf", "m-Q2_K.gguf.sha256")
	split := repoFiles("Q8_0/m-Q8_0-00002-of-00002.gguf", "Q8_0/m-Q8_0-00001-of-00002.gguf", "m-Q5_K_M-00001-of-00003.gguf", "m-Q5_K_M-00003-of-00003.gguf")
	for name, tc := range map[string]struct {
		ref   string
		files []hubFile
		want  []string // files
		note  string
		err   error
		hint  string
	}{
		"the default":                {ref: "o/r", files: usual, want: []string{"m-Q4_K_M.gguf"}, note: "Q4_K_M is chosen of Q4_K_M, Q4_K_S, Q8_0, F16"},
		"asked for":                  {ref: "o/r:Q8_0", files: usual, want: []string{"m-Q8_0.gguf"}},
		"in lower case":              {ref: "o/r:q4_k_s", files: usual, want: []string{"m-Q4_K_S.gguf"}},
		"a file":                     {ref: "o/r/m-F16.gguf", files: usual, want: []string{"m-F16.gguf"}},
		"not there":                  {ref: "o/r:Q5_K_M", files: usual, err: catalog.ErrNotFound, hint: "There are Q4_K_M, Q4_K_S, Q8_0, F16."},
		"a projector is no model":    {ref: "o/r/mmproj-m-F16.gguf", files: usual, err: catalog.ErrNotFound, hint: "m-Q4_K_M.gguf"},
		"the nearest is a bit more":  {ref: "o/r", files: repoFiles("m-Q2_K.gguf", "m-Q5_K_M.gguf", "m-Q8_0.gguf"), want: []string{"m-Q5_K_M.gguf"}, note: "there is no Q4_K_M, so Q5_K_M is chosen"},
		"the nearest is less":        {ref: "o/r", files: repoFiles("m-Q2_K.gguf", "m-Q3_K_M.gguf", "m-F16.gguf"), want: []string{"m-Q3_K_M.gguf"}, note: "Q3_K_M is chosen of Q3_K_M, Q2_K, F16"},
		"plain before UD":            {ref: "o/r", files: repoFiles("m-UD-Q4_K_XL.gguf", "m-Q4_K_XL.gguf"), want: []string{"m-Q4_K_XL.gguf"}},
		"UD where it is all":         {ref: "o/r:Q4_K_XL", files: repoFiles("m-UD-Q4_K_XL.gguf", "m-Q8_0.gguf"), want: []string{"m-UD-Q4_K_XL.gguf"}},
		"only one file":              {ref: "o/r", files: repoFiles("whatever.gguf"), want: []string{"whatever.gguf"}},
		"an unknown one comes last":  {ref: "o/r", files: repoFiles("a.gguf", "m-F16.gguf"), want: []string{"m-F16.gguf"}},
		"all parts, in order":        {ref: "o/r:Q8_0", files: split, want: []string{"Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"}},
		"all parts of a later one":   {ref: "o/r/Q8_0/m-Q8_0-00002-of-00002.gguf", files: split, want: []string{"Q8_0/m-Q8_0-00001-of-00002.gguf", "Q8_0/m-Q8_0-00002-of-00002.gguf"}},
		"a part is missing":          {ref: "o/r:Q5_K_M", files: split, err: catalog.ErrIntegrity},
		"two models of one kind":     {ref: "o/r:Q4_0", files: repoFiles("a-Q4_0.gguf", "b-Q4_0.gguf"), err: catalog.ErrInvalid, hint: "hf:o/r/a-Q4_0.gguf"},
		"two models, by default":     {ref: "o/r", files: repoFiles("a.gguf", "b.gguf"), err: catalog.ErrInvalid, hint: "a.gguf, b.gguf"},
		"none":                       {ref: "o/r", files: repoFiles("model.safetensors", "mmproj.gguf"), err: catalog.ErrNotFound, hint: "-GGUF"},
		"a name that leads outside":  {ref: "o/r", files: repoFiles("../m-Q4_K_M.gguf", "/m-Q4_K_M.gguf"), err: catalog.ErrNotFound},
		"a file that is not a model": {ref: "o/r/README.md", files: usual, err: catalog.ErrNotFound},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ref, err := parseRef(tc.ref)
			must.NoError(t, err)
			v, notes, err := choose(ref, variants(tc.files))
			if tc.err != nil {
				must.ErrorIs(t, err, tc.err)
				must.StrContains(t, sdk.HintOf(err), tc.hint)
				return
			}
			must.NoError(t, err)
			var got []string
			for _, f := range v.files {
				got = append(got, f.path)
			}
			must.Eq(t, tc.want, got)
			must.StrContains(t, strings.Join(notes, "\n"), tc.note)
			if strings.ContainsAny(tc.ref, ":") {
				must.SliceEmpty(t, notes)
			}
		})
	}
}

func TestLocalName(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		file, quant string
		named       bool
		want        string
	}{
		{"Llama-3.2-1B-Instruct-Q4_K_M.gguf", "Q4_K_M", true, "hf.co/org/repo:Q4_K_M"},
		{"sub/qwen3-Q8_0-00001-of-00002.gguf", "Q8_0", true, "hf.co/org/repo:Q8_0"},
		{"sub/qwen3-Q8_0-00001-of-00002.gguf", "Q8_0", false, "hf.co/org/repo/sub/qwen3-Q8_0"},
		{"ggml-model.gguf", "", true, "hf.co/org/repo/ggml-model"},
	} {
		v := variant{quant: tc.quant, named: tc.named, files: []hubFile{{path: tc.file}}}
		must.Eq(t, tc.want, localName(reference{org: "org", repo: "repo"}, v))
	}
}
