package sdktest

import (
	"cmp"
	"context"
	"encoding/json"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// routes returns the capabilities of which a worker must have at least one; otherwise it serves no
// requests.
func routes() []worker.Capability {
	return []worker.Capability{worker.CapabilityChat, worker.CapabilityCompletions, worker.CapabilityEmbeddings, worker.CapabilityRerank}
}

// abilities returns the capabilities that a ready worker reports.
func abilities(ctx context.Context, t testing.TB, w WorkerInstance) []worker.Capability {
	t.Helper()
	st, err := w.Client.Status(ctx)
	if err != nil {
		brokenNow(t, "status", "%v", err)
	}
	return st.Capabilities
}

// needsChat skips the test for a worker without the chat capability.
func (s *workerSuite) needsChat(t *testing.T, w WorkerInstance) {
	t.Helper()
	if list := abilities(t.Context(), t, w); len(list) > 0 && !slices.Contains(list, worker.CapabilityChat) {
		t.Skip("the worker does not say chat")
	}
}

// prefixBlocks sends a prompt of some length and checks the prefix blocks that the worker reports
// afterwards.
func (s *workerSuite) prefixBlocks(t *testing.T, w WorkerInstance, c *http.Client) {
	t.Helper()
	st, err := w.Client.Status(t.Context())
	if err != nil {
		broken(t, "status", "Status: %v", err)
		return
	}
	if slices.Contains(st.Capabilities, worker.CapabilityChat) {
		if _, err := s.chat(t.Context(), c, strings.Repeat("one two three four ", 40), 4); err != nil {
			return // other rules cover faulty answers
		}
		if st, err = w.Client.Status(t.Context()); err != nil {
			broken(t, "status", "Status: %v", err)
			return
		}
	}
	list := slices.Sorted(slices.Values(st.PrefixBlocks))
	if len(list) > worker.MaxPrefixBlocks || len(slices.Compact(list)) != len(st.PrefixBlocks) || len(list) > 0 && st.PrefixBlockTokens < 1 {
		broken(t, "prefix-blocks", "it reports %d blocks of %d tokens, or one of them twice; a host takes %d", len(st.PrefixBlocks), st.PrefixBlockTokens, worker.MaxPrefixBlocks)
	}
}

func (s *workerSuite) capabilities(t *testing.T) {
	w, c := s.started(t, s.o.Config)
	said := abilities(t.Context(), t, w)
	name := regexp.MustCompile(`^[a-z0-9_]+$`)
	for _, x := range said {
		if !name.MatchString(x) || len(x) > worker.MaxCapabilityBytes {
			broken(t, "capabilities", "%q is no name of a capability", x)
		}
	}
	if len(said) > worker.MaxCapabilities {
		broken(t, "capabilities", "it says %d capabilities, a host takes %d", len(said), worker.MaxCapabilities)
	}
	if !slices.IsSorted(said) || len(slices.Compact(slices.Clone(said))) != len(said) {
		broken(t, "capabilities", "%q are not sorted, or not each once", said)
	}
	if !slices.ContainsFunc(routes(), func(r worker.Capability) bool { return slices.Contains(said, r) }) {
		broken(t, "capabilities", "%q has none of %q", said, routes())
	}
	s.prefixBlocks(t, w, c)
	can := func(x worker.Capability) bool { return slices.Contains(said, x) }
	if can(worker.CapabilityCompletions) {
		t.Run("completions", func(t *testing.T) { s.completions(t, c) })
	}
	if can(worker.CapabilityEmbeddings) {
		t.Run("embeddings", func(t *testing.T) { embeddings(t, c) })
	}
	if can(worker.CapabilityRerank) {
		t.Run("rerank", func(t *testing.T) { rerank(t, c) })
	}
	if can(worker.CapabilityTokenize) {
		t.Run("tokenize", func(t *testing.T) { tokenize(t, c) })
	}
	if !can(worker.CapabilityChat) {
		return
	}
	tool := []any{fields{"type": "function", "function": fields{
		"name": "look_up", "description": "Looks a word up.",
		"parameters": fields{"type": "object", "properties": fields{"word": fields{"type": "string"}}, "required": []string{"word"}},
	}}}
	schema := fields{"type": "json_schema", "json_schema": fields{"name": "x", "strict": true, "schema": fields{
		"type": "object", "properties": fields{"ok": fields{"type": "boolean"}}, "required": []string{"ok"}, "additionalProperties": false,
	}}}
	picture := []any{fields{"role": "user", "content": []any{
		fields{"type": "text", "text": s.o.Prompt},
		fields{"type": "image_url", "image_url": fields{"url": "data:image/png;base64," + pixel}},
	}}}
	for _, x := range []struct {
		name, rule string
		capability worker.Capability
		more       fields
		check      func(t *testing.T, body []byte) // checks the answer to a supported request; nil: no check
	}{
		{"tools", "tools", worker.CapabilityTools, fields{"tools": tool, "tool_choice": "auto"}, nil},
		{"JSON", "json-schema", worker.CapabilityJSONSchema, fields{"response_format": schema, "max_tokens": 64}, checkJSON},
		{"logprobs", "logprobs", worker.CapabilityLogprobs, fields{"logprobs": true, "top_logprobs": 1}, checkLogprobs},
		{"images", "vision", worker.CapabilityVision, fields{"messages": picture}, nil},
	} {
		t.Run(x.name, func(t *testing.T) {
			status, body, err := answerTo(t.Context(), c, chatPath, s.body(false, s.o.Prompt, answerTokens, x.more))
			switch {
			case err != nil:
				broken(t, x.rule, "%v", err)
			case can(x.capability) && x.capability == worker.CapabilityVision: // the model decides which pictures it accepts
			case can(x.capability) && status != http.StatusOK:
				broken(t, x.rule, "it says %s, and answers with status %d: %s", x.capability, status, clip(body))
			case can(x.capability):
				if x.check != nil {
					x.check(t, body)
				}
			case status != http.StatusBadRequest && status != http.StatusNotImplemented || errorIn(body) == nil:
				broken(t, x.rule, "it does not say %s, and answers a request that needs it with status %d, not 400 or 501 in OpenAI's envelope: %s", x.capability, status, clip(body))
			}
		})
	}
}

// pixel is a one-pixel picture.
const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

func clip(body []byte) string { return strings.ToValidUTF8(string(body[:min(len(body), 300)]), "") }

func checkJSON(t *testing.T, body []byte) {
	t.Helper()
	var r openai.ChatResponse
	if err := json.Unmarshal(body, &r); err != nil || len(r.Choices) != 1 || r.Choices[0].Message.Content == nil {
		brokenNow(t, "json-schema", "incomplete answer: %s", clip(body))
	}
	var v struct {
		OK *bool `json:"ok"`
	}
	text := *r.Choices[0].Message.Content
	if r.Choices[0].FinishReason == openai.FinishStop && (json.Unmarshal([]byte(text), &v) != nil || v.OK == nil) {
		broken(t, "json-schema", "asked for an object with ok, it answers %q", text)
	}
}

func checkLogprobs(t *testing.T, body []byte) {
	t.Helper()
	var r openai.ChatResponse
	if err := json.Unmarshal(body, &r); err != nil || len(r.Choices) != 1 || r.Choices[0].LogProbs == nil || len(r.Choices[0].LogProbs.Content) == 0 {
		broken(t, "logprobs", "asked for them, the answer has none: %s", clip(body))
	}
}

func (s *workerSuite) completions(t *testing.T, c *http.Client) {
	request := fields{"model": modelID, "prompt": s.o.Prompt, "max_tokens": answerTokens, "temperature": 0}
	status, body, err := answerTo(t.Context(), c, completionPath, jsonOf(request))
	var r openai.CompletionResponse
	if err == nil && status == http.StatusOK {
		err = json.Unmarshal(body, &r)
	}
	if err != nil || status != http.StatusOK || r.Object != openai.ObjectCompletion || len(r.Choices) != 1 || r.Choices[0].FinishReason == nil || r.Usage == nil {
		brokenNow(t, "completions", "POST %s: status %d (%v): %s", completionPath, status, err, clip(body))
	}
	request["stream"] = true
	resp, err := post(t.Context(), c, completionPath, jsonOf(request))
	if err != nil {
		brokenNow(t, "completions", "%v", err)
	}
	defer resp.Body.Close()
	var text strings.Builder
	for events := openai.NewEventReader(resp.Body); ; {
		e, err := events.Next()
		if err != nil {
			brokenNow(t, "completions", "status %s; the stream ends without [DONE]: %v", resp.Status, err)
		}
		if e.IsDone() {
			break
		}
		var chunk openai.CompletionResponse
		if e.Data == nil {
			continue
		}
		if err := json.Unmarshal(e.Data, &chunk); err != nil {
			brokenNow(t, "completions", "chunk %s: %v", e.Data, err)
		}
		for _, x := range chunk.Choices {
			text.WriteString(x.Text)
		}
	}
	if want := r.Choices[0].Text; text.String() != want {
		broken(t, "completions", "streamed at temperature 0 the answer is %q, and %q otherwise", text.String(), want)
	}
}

func embeddings(t *testing.T, c *http.Client) {
	status, body, err := answerTo(t.Context(), c, "/v1/embeddings", jsonOf(fields{"model": modelID, "input": []string{"one", "two"}}))
	var r struct {
		Data []struct {
			Embedding []float64 `json:"embedding"`
		} `json:"data"`
	}
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	if err != nil || status != http.StatusOK || len(r.Data) != 2 || len(r.Data[0].Embedding) == 0 || len(r.Data[0].Embedding) != len(r.Data[1].Embedding) {
		broken(t, "embeddings", "POST /v1/embeddings with two inputs: status %d (%v): %s", status, err, clip(body))
	}
}

func rerank(t *testing.T, c *http.Client) {
	status, body, err := answerTo(t.Context(), c, "/v1/rerank", jsonOf(fields{"model": modelID, "query": "one", "documents": []string{"two", "one", "three"}}))
	var r openai.RerankResponse
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	seen := map[int]bool{}
	for _, x := range r.Results {
		seen[x.Index] = x.Index >= 0 && x.Index < 3
	}
	sorted := slices.IsSortedFunc(r.Results, func(a, b openai.RerankResult) int { return cmp.Compare(b.RelevanceScore, a.RelevanceScore) })
	if err != nil || status != http.StatusOK || len(r.Results) != 3 || len(seen) != 3 || !seen[0] || !seen[1] || !seen[2] || !sorted {
		broken(t, "rerank", "POST /v1/rerank with three documents: status %d (%v): %s", status, err, clip(body))
	}
}

// tokenize round-trips a text that every vocabulary reproduces exactly.
func tokenize(t *testing.T, c *http.Client) {
	status, body, err := answerTo(t.Context(), c, "/tokenize", jsonOf(fields{"model": modelID, "content": "one"}))
	var r struct {
		Tokens []int32 `json:"tokens"`
	}
	if err == nil {
		err = json.Unmarshal(body, &r)
	}
	if err != nil || status != http.StatusOK || len(r.Tokens) == 0 {
		broken(t, "tokenize", "POST /tokenize: status %d (%v): %s", status, err, clip(body))
		return
	}
	status, body, err = answerTo(t.Context(), c, "/detokenize", jsonOf(fields{"model": modelID, "tokens": r.Tokens}))
	var text openai.DetokenizeResponse
	if err == nil {
		err = json.Unmarshal(body, &text)
	}
	if err != nil || status != http.StatusOK || strings.TrimSpace(text.Content) != "one" {
		broken(t, "tokenize", "POST /detokenize of the tokens of %q: status %d (%v): %s", "one", status, err, clip(body))
	}
}
