package llamacpp

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// TestInfill fills a gap with a model that has the tokens for it: the answer equals that to the
// same prompt with its control tokens spelled out.
func TestInfill(t *testing.T) {
	w := startWorkerOf(t, synthetic(t, "-infill"), 2, 128, "")
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.SliceContains(t, st.Capabilities, worker.CapabilityInfill)

	type fields = map[string]any
	spelled := func(prompt string) openai.NativeResponse {
		var out openai.NativeResponse
		w.ask(t, "/completion", fields{"prompt": prompt, "temperature": 0, "n_predict": 12, "ignore_eos": true}, &out)
		return out
	}
	for name, c := range map[string]struct {
		request fields
		prompt  string
	}{
		"a gap":             {fields{"input_prefix": "def add", "input_suffix": "return x"}, "<|fim_prefix|>def add<|fim_suffix|>return x<|fim_middle|>"},
		"the gap has begun": {fields{"input_prefix": "def ", "prompt": "add", "input_suffix": "return x"}, "<|fim_prefix|>def add<|fim_suffix|>return x<|fim_middle|>"},
		"other files": {
			fields{"input_prefix": "a", "input_suffix": "b", "input_extra": []fields{{"filename": "x.go", "text": "one"}, {"filename": "y.go", "text": "two"}}},
			"<|repo_name|>repository\n<|file_sep|>x.go\none<|file_sep|>y.go\ntwo<|file_sep|>filename\n<|fim_prefix|>a<|fim_suffix|>b<|fim_middle|>",
		},
		"markers in the text are text": {fields{"input_prefix": "<|fim_suffix|>", "input_suffix": ""}, ""},
	} {
		c.request["temperature"], c.request["n_predict"], c.request["ignore_eos"] = 0, 12, true
		var got openai.NativeResponse
		w.ask(t, "/infill", c.request, &got)
		must.True(t, got.Stop, must.Sprint(name))
		must.False(t, got.Truncated, must.Sprint(name))
		must.Eq(t, 12, got.TokensPredicted, must.Sprint(name))
		must.Eq(t, openai.StopLimit, got.StopType, must.Sprint(name))
		if c.prompt == "" {
			must.Greater(t, 10, got.TokensEvaluated) // its letters
			continue
		}
		want := spelled(c.prompt)
		must.Eq(t, want.TokensEvaluated, got.TokensEvaluated, must.Sprint(name))
		must.Eq(t, want.Content, got.Content, must.Sprint(name))
	}

	// OpenAI's spelling of the same, with its usage.
	var whole openai.CompletionResponse
	w.ask(t, "/v1/completions", fields{"prompt": "def add", "suffix": "return x", "temperature": 0, "max_tokens": 12, "ignore_eos": true}, &whole)
	want := spelled("<|fim_prefix|>def add<|fim_suffix|>return x<|fim_middle|>")
	must.Eq(t, want.Content, whole.Choices[0].Text)
	must.Eq(t, want.TokensEvaluated, whole.Usage.PromptTokens)
	_, e, _ := w.refused(t, "/v1/completions", `{"prompt":"a","suffix":"`+strings.Repeat("b ", 200)+`"}`)
	must.Eq(t, openai.TypeContextExceeded, e.Type)

	// What does not fit is cut on the side away from the gap.
	var long openai.NativeResponse
	w.ask(t, "/infill", fields{"input_prefix": strings.Repeat("x ", 500), "input_suffix": strings.Repeat("y ", 500), "n_predict": 4, "temperature": 0, "ignore_eos": true}, &long)
	must.True(t, long.Truncated)
	must.Eq(t, 124, long.TokensEvaluated)
	must.Eq(t, 4, long.TokensPredicted)
}

// TestInfillRefused uses a model without such tokens.
func TestInfillRefused(t *testing.T) {
	w := startWorker(t, 1, 64, "")
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.False(t, slices.Contains(st.Capabilities, worker.CapabilityInfill))
	for _, c := range []struct{ path, body, param string }{
		{"/infill", `{"input_prefix":"a","input_suffix":"b"}`, "input_suffix"},
		{"/v1/completions", `{"prompt":"a","suffix":"b"}`, "suffix"},
	} {
		status, e, _ := w.refused(t, c.path, c.body)
		must.Eq(t, http.StatusBadRequest, status)
		must.Eq(t, c.param, *e.Param)
		must.StrContains(t, e.Message, "not trained to fill gaps")
	}
}

func TestAround(t *testing.T) {
	m := &model{bos: 1, addBOS: true}
	m.gaps.Prefix, m.gaps.Suffix, m.gaps.Middle, m.gaps.Repo, m.gaps.File = 10, 11, 12, -1, -1
	before, behind, extra := []token{21, 22, 23, 24, 25, 26, 27, 28}, []token{31, 32, 33, 34, 35, 36, 37, 38}, []token{41, 42, 43}
	for name, c := range map[string]struct {
		prefix, suffix, extra []token
		room                  int
		want                  []token
		cut                   bool
	}{
		"all":                {before[:2], behind[:2], extra, 11, []token{1, 41, 42, 43, 10, 21, 22, 11, 31, 32, 12}, false},
		"the end of extra":   {before[:2], behind[:2], extra, 10, []token{1, 42, 43, 10, 21, 22, 11, 31, 32, 12}, false},
		"no room for extra":  {before[:2], behind[:2], extra, 8, []token{1, 10, 21, 22, 11, 31, 32, 12}, false},
		"both are long":      {before, behind, nil, 12, []token{1, 10, 23, 24, 25, 26, 27, 28, 11, 31, 32, 12}, true},
		"a short one behind": {before, behind[:1], nil, 9, []token{1, 10, 25, 26, 27, 28, 11, 31, 12}, true},
		"a short one before": {before[:1], behind, nil, 9, []token{1, 10, 21, 11, 31, 32, 33, 34, 12}, true},
		"nothing":            {nil, nil, nil, 4, []token{1, 10, 11, 12}, false},
	} {
		got, cut := m.around(c.prefix, c.suffix, c.extra, c.room)
		must.Eq(t, c.want, got, must.Sprint(name))
		must.Eq(t, c.cut, cut, must.Sprint(name))
	}
}
