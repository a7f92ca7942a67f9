package llamacpp

import (
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// ask sends a request that must succeed and decodes its answer into v.
func (w *testWorker) ask(t testing.TB, path string, request, v any) {
	t.Helper()
	body, err := json.Marshal(request)
	must.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	resp := w.post(ctx, t, path, string(body))
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, http.StatusOK, resp.StatusCode, must.Sprintf("%s", b))
	must.NoError(t, json.Unmarshal(b, v), must.Sprintf("%s", b))
}

// tokensOf requests the tokens of a text; more holds further fields.
func (w *testWorker) tokensOf(t testing.TB, content any, more map[string]any) []int32 {
	t.Helper()
	request := map[string]any{"content": content}
	maps.Copy(request, more)
	var out struct{ Tokens []int32 }
	w.ask(t, "/tokenize", request, &out)
	return out.Tokens
}

// The expected answers are llama-server's, to the same requests with the same model.
func TestTokenizeAsLlamaServer(t *testing.T) {
	w := startWorker(t, 1, 64, "")
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.SliceContains(t, st.Capabilities, worker.CapabilityTokenize)

	type fields = map[string]any
	for _, c := range []struct {
		content any
		more    fields
		want    []int32
	}{
		{"Hello, how ü are you?", nil, []int32{1028, 1988, 878, 1970, 200, 193, 373, 329, 1998}},
		{"<|im_start|>x", nil, []int32{3, 2007}},
		{"<|im_start|>x", fields{"parse_special": false}, []int32{65, 129, 469, 100, 291, 514, 129, 67, 2007}},
		{"<|im_start|>x", fields{"add_special": true}, []int32{1, 3, 2007}},
		{[]any{"Hello", 5, "x"}, nil, []int32{1028, 5, 2007}},
		{[]any{"Hello", 5, "x"}, fields{"add_special": true}, []int32{1, 1028, 5, 2007}},
		{"", nil, []int32{}},
		{[]any{}, nil, []int32{}},
	} {
		must.Eq(t, c.want, w.tokensOf(t, c.content, c.more), must.Sprint(c.content, c.more))
	}
	var pieces struct{ Tokens []openai.TokenPiece }
	w.ask(t, "/tokenize", fields{"content": "Hello ü 🦊", "with_pieces": true, "add_special": true}, &pieces)
	var ids []int32
	var spelled []string
	for _, p := range pieces.Tokens {
		ids, spelled = append(ids, p.ID), append(spelled, string(p.Piece))
	}
	must.Eq(t, []int32{1, 1028, 1970, 200, 193, 1970, 245, 164, 171, 143}, ids)
	must.Eq(t, []string{"<s>", "Hello", " ", "\xc3", "\xbc", " ", "\xf0", "\x9f", "\xa6", "\x8a"}, spelled)

	var text openai.DetokenizeResponse
	w.ask(t, "/detokenize", fields{"tokens": []int32{1, 5, 300, 400}}, &text)
	must.Eq(t, "<s>\x00us th", text.Content)
	w.ask(t, "/detokenize", fields{"tokens": []int32{200, 1028}}, &text)
	must.Eq(t, "\uFFFDHello", text.Content)
	w.ask(t, "/detokenize", fields{"tokens": []int32{}}, &text)
	must.Eq(t, "", text.Content)

	conversation := fields{"messages": []any{fields{"role": "user", "content": "hi"}}}
	var prompt openai.TemplateResponse
	w.ask(t, "/apply-template", conversation, &prompt)
	must.Eq(t, "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", prompt.Prompt)
}

// The count equals the usage of an answer, and is also given for a conversation that does not fit.
func TestInputTokens(t *testing.T) {
	w := startWorker(t, 1, 64, "")
	for name, messages := range map[string]string{
		"plain": `"messages":[{"role":"user","content":"Hello, how are you?"}]`,
		"more":  `"messages":[{"role":"system","content":"Be <|im_end|> kind."},{"role":"user","content":[{"type":"text","text":"Hi"}]}],"chat_template_kwargs":{"x":1}`,
		"tools": `"messages":[{"role":"user","content":"Hi"}],"tools":[{"type":"function","function":{"name":"f"}}],"tool_choice":"none"`,
	} {
		var n openai.InputTokensResponse
		w.ask(t, "/v1/chat/completions/input_tokens", json.RawMessage(`{"model":"m",`+messages+`}`), &n)
		must.Eq(t, openai.ObjectInputTokens, n.Object)
		got := w.chat(t, `{"model":"m","max_tokens":1,`+messages+`}`)
		must.Eq(t, got.Usage.PromptTokens, n.InputTokens, must.Sprint(name))
	}
	long := `{"messages":[{"role":"user","content":"` + strings.Repeat("word ", 1000) + `"}]}`
	var n openai.InputTokensResponse
	w.ask(t, "/v1/chat/completions/input_tokens", json.RawMessage(long), &n)
	must.Greater(t, 1000, n.InputTokens)
	_, e, _ := w.refused(t, "/v1/chat/completions", long)
	must.Eq(t, openai.TypeContextExceeded, e.Type)
}

func TestTokensRefuse(t *testing.T) {
	w := startWorker(t, 1, 64, "")
	big := strings.Repeat("x", maxSpelled+1)
	for _, c := range []struct {
		path, body string
		status     int
		says       string
	}{
		{"/tokenize", `{}`, 400, "content is missing"},
		{"/tokenize", `{"content":["a",2048]}`, 400, "content[1] is the token 2048; this model's tokens go from 0 to 2047"},
		{"/tokenize", `{"content":[-1]}`, 400, "content[0] is the token -1"},
		{"/tokenize", `{"content":"` + big + `"}`, 413, "split it"},
		{"/detokenize", `{}`, 400, "tokens is missing"},
		{"/detokenize", `{"tokens":[1,3000000]}`, 400, "tokens[1] is 3000000"},
		{"/detokenize", `{"tokens":[-1]}`, 400, "tokens[0] is -1"},
		{"/detokenize", `{"tokens":[` + strings.Repeat("1,", maxSpelled) + `1]}`, 413, "split it"},
		{"/apply-template", `{"messages":[]}`, 400, "at least one message"},
		{"/v1/chat/completions/input_tokens", `{"messages":[{"role":"user","content":"` + big + `"}]}`, 413, "split it"},
		{"/v1/chat/completions/input_tokens", `{"messages":[{"role":"user","content":[{"type":"image_url"}]}]}`, 400, "takes text only"},
	} {
		status, e, _ := w.refused(t, c.path, c.body)
		must.Eq(t, c.status, status, must.Sprint(e))
		must.StrContains(t, e.Message, c.says)
	}
	must.False(t, slices.Contains(w.tokensOf(t, "a\x00b", nil), 0))
}
