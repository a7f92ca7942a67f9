package llamacpp

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/jinja"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Models that cannot generate compute the same vectors alone and in batches, and refuse everything
// else.
func TestReaders(t *testing.T) {
	for _, c := range []struct{ arch, pooling string }{
		{"bert", "cls"},
		{"bert", "mean"},
		{"nomic-bert", "mean"},
		{"jina-bert-v2", "mean"},
		{"modern-bert", "cls"},
		{"gemma-embedding", "mean"},
		{"qwen3", "last"}, // also generates
	} {
		t.Run(c.arch+" "+c.pooling, func(t *testing.T) {
			w := startWorkerOf(t, synthetic(t, "-arch", c.arch, "-pooling", c.pooling), 2, 0, "")
			st, err := w.Status(t.Context())
			must.NoError(t, err)
			must.SliceContains(t, st.Capabilities, worker.CapabilityEmbeddings)
			must.SliceContains(t, st.Capabilities, worker.CapabilityTokenize)
			must.Eq(t, c.arch == "qwen3", slices.Contains(st.Capabilities, worker.CapabilityCompletions))
			must.Eq(t, 256, st.ContextTokens)

			var texts []string
			for i := range 40 {
				texts = append(texts, fmt.Sprintf("the number %d is one of those that were %s", i, strings.Repeat("there ", i%5)))
			}
			body, err := json.Marshal(map[string]any{"model": "m", "input": texts})
			must.NoError(t, err)
			together, _ := w.embed(t, string(body))
			for i, raw := range together {
				v := floats(t, raw)
				must.Len(t, 64, v)
				must.InDelta(t, 1, cosine(v, v), 1e-4)
				if i%9 == 0 {
					alone, _ := w.embed(t, fmt.Sprintf(`{"model":"m","input":%q}`, texts[i]))
					must.InDelta(t, 1, cosine(v, floats(t, alone[0])), 1e-4)
				}
			}
			must.Less(t, 0.9999, cosine(floats(t, together[0]), floats(t, together[4])))
			short, _ := w.embed(t, `{"model":"m","input":"the end","dimensions":8}`)
			must.Len(t, 8, floats(t, short[0]))

			long := strings.Repeat("there ", 300)
			_, e, _ := w.refused(t, "/v1/embeddings", `{"model":"m","input":["a","`+long+`"]}`)
			must.StrContains(t, e.Message, "input[1] has")
			must.Eq(t, openai.CodeContextLength, *e.Code)
			_, usage := w.embed(t, `{"model":"m","input":"`+long+`","truncate_prompt_tokens":-1}`)
			must.Eq(t, 256, usage.PromptTokens)
			_, e, _ = w.refused(t, "/v1/rerank", `{"model":"m","query":"a","documents":["b"]}`)
			must.StrContains(t, e.Message, "does not score texts")
			if c.arch == "qwen3" {
				must.NotEq(t, "", w.chat(t, question("Hello", `,"max_tokens":4`)).Choices[0].FinishReason)
				return
			}
			for path, body := range map[string]string{
				"/v1/chat/completions": question("a", ""), "/v1/completions": `{"prompt":"a"}`, "/apply-template": question("a", ""), "/v1/chat/completions/input_tokens": question("a", ""),
			} {
				status, e, _ := w.refused(t, path, body)
				must.Eq(t, http.StatusBadRequest, status)
				must.Eq(t, openai.TypeNotSupported, e.Type)
				must.StrContains(t, e.Message, "this model only reads")
			}
		})
	}
}

// A truncated text ends with the same tokens as a complete one.
func TestReadersCutTexts(t *testing.T) {
	m := &model{native: nil}
	must.Eq(t, []token{1, 2}, m.cut([]token{1, 2}, 5))
	w := startWorkerOf(t, synthetic(t, "-arch", "bert", "-pooling", "mean"), 1, 0, "")
	whole := w.tokensOf(t, "hello there the end", map[string]any{"add_special": true})
	must.Greater(t, 5, len(whole))
	cut := append(slices.Clone(whole[:4]), whole[len(whole)-1])
	ids, err := json.Marshal(map[string]any{"model": "m", "input": cut})
	must.NoError(t, err)
	want, _ := w.embed(t, string(ids))
	got, usage := w.embed(t, `{"model":"m","input":"hello there the end","truncate_prompt_tokens":5}`)
	must.Eq(t, 5, usage.PromptTokens)
	must.InDelta(t, 1, cosine(floats(t, want[0]), floats(t, got[0])), 1e-5)
}

func TestRerank(t *testing.T) {
	for arch, labels := range map[string]string{"bert": "1", "jina-bert-v2": "1", "qwen3": "2"} {
		t.Run(arch, func(t *testing.T) {
			w := startWorkerOf(t, synthetic(t, "-arch", arch, "-pooling", "rank", "-labels", labels), 2, 0, `{"pooling":"mean"}`)
			st, err := w.Status(t.Context())
			must.NoError(t, err)
			must.SliceContains(t, st.Capabilities, worker.CapabilityRerank)
			must.False(t, slices.Contains(st.Capabilities, worker.CapabilityEmbeddings))

			var documents []any
			for i := range 25 {
				documents = append(documents, fmt.Sprintf("the %d of them and %s", i*i, strings.Repeat("so on ", i%7)))
			}
			documents[3] = map[string]string{"text": "the sea"}
			request := map[string]any{"model": "m", "query": "what is there", "documents": documents}
			var all openai.RerankResponse
			w.ask(t, "/v1/rerank", request, &all)
			must.Len(t, len(documents), all.Results)
			must.Eq(t, "list", all.Object)
			must.Eq(t, all.Usage.PromptTokens, all.Usage.TotalTokens)
			must.True(t, slices.IsSortedFunc(all.Results, func(a, b openai.RerankResult) int { return cmp.Compare(b.RelevanceScore, a.RelevanceScore) }))
			must.Less(t, all.Results[0].RelevanceScore, all.Results[24].RelevanceScore)
			scores := map[int]float64{}
			for _, r := range all.Results {
				scores[r.Index] = r.RelevanceScore
				must.Nil(t, r.Document)
			}
			must.MapLen(t, len(documents), scores)

			var best openai.RerankResponse
			request["top_n"], request["return_documents"] = 2, true
			w.ask(t, "/v1/rerank", request, &best)
			must.Len(t, 2, best.Results)
			must.Eq(t, all.Results[0].Index, best.Results[0].Index)
			must.NotEq(t, "", best.Results[0].Document.Text)
			for _, i := range []int{3, 7} { // the same alone
				var one openai.RerankResponse
				w.ask(t, "/v1/rerank", map[string]any{"model": "m", "query": "what is there", "documents": documents[i : i+1]}, &one)
				must.Less(t, 1e-3, math.Abs(scores[i]-one.Results[0].RelevanceScore))
			}
			var other openai.RerankResponse
			w.ask(t, "/v1/rerank", map[string]any{"model": "m", "query": "and then some", "documents": documents[3:4]}, &other)
			must.Greater(t, 1e-3, math.Abs(scores[3]-other.Results[0].RelevanceScore)) // the scores depend on the query

			long := strings.Repeat("there ", 300)
			_, e, _ := w.refused(t, "/v1/rerank", `{"model":"m","query":"q","documents":["a","`+long+`"]}`)
			must.StrContains(t, e.Message, "documents[1] has")
			must.Eq(t, openai.CodeContextLength, *e.Code)
			var cut openai.RerankResponse
			w.ask(t, "/v1/rerank", map[string]any{"query": "q", "documents": []string{long}, "truncate_prompt_tokens": -1}, &cut)
			must.Eq(t, 256, cut.Usage.PromptTokens)
			_, e, _ = w.refused(t, "/v1/embeddings", `{"model":"m","input":"a"}`)
			must.StrContains(t, e.Message, "use /v1/rerank")
		})
	}
}

// A pair is joined as BERT's models were trained: begin token, query, separator, document, end
// token.
func TestRerankPairs(t *testing.T) {
	w := startWorkerOf(t, synthetic(t, "-arch", "bert", "-pooling", "rank", "-labels", "1"), 1, 0, "")
	join, err := w.served.model.joiner("the query")
	must.NoError(t, err)
	got, err := join(t.Context(), "a [SEP] text")
	must.NoError(t, err)
	tokens := func(s string) []token { return w.tokensOf(t, s, map[string]any{"parse_special": false}) }
	must.Eq(t, slices.Concat([]token{2}, tokens("the query"), []token{3}, tokens("a [SEP] text"), []token{3}), got)
	must.Eq(t, 2, strings.Count(fmt.Sprint(got)+" ", " 3]")+strings.Count(fmt.Sprint(got), " 3 ")) // [SEP] from a client is text
}

func TestRankTemplate(t *testing.T) {
	t.Parallel()
	for source, want := range map[string]string{
		"<q>{query}</q><d>{document}</d>": "<q>{document}</q><d>D</d>",
		"{document} {{query}} {x} {% y":   "D {{document}} {x} {% y",
		"none":                            "none",
	} {
		tmpl, values, err := rankTemplate(source)
		must.NoError(t, err)
		values["query"], values["document"] = clientText("{document}"), clientText("D")
		got, err := tmpl.Render(t.Context(), values, jinja.Limits{})
		must.NoError(t, err)
		must.Eq(t, want, got.String())
		if i := strings.Index(want, "D"); i >= 0 {
			must.True(t, got.HasClient(i, i+1))
		}
		must.False(t, strings.Contains(want, "<q>") && got.HasClient(0, 3))
	}
}

func TestReadersRefuse(t *testing.T) {
	for name, c := range map[string]struct {
		args   []string
		config string
		is     error
		says   string
	}{
		"no pooling":          {[]string{"-arch", "bert"}, "", sdk.ErrUnsupported, "does not say how to pool the vectors of a text's tokens"},
		"encoder and decoder": {[]string{"-arch", "t5"}, "", sdk.ErrUnsupported, "has an encoder and a decoder"},
		// The engine asserts that they exist when it gets a text.
		"no begin": {[]string{"-arch", "bert", "-tokenizer", "ugm", "-pooling", "mean", "-set", "tokenizer.ggml.bos_token_id="}, "", sdk.ErrInvalid, "wants a tokenizer.ggml.bos_token_id"},
		"no end":   {[]string{"-arch", "bert", "-tokenizer", "ugm", "-pooling", "mean", "-vocab", "512", "-set", "tokenizer.ggml.add_sep_token=1", "-set", "tokenizer.ggml.seperator_token_id="}, "", sdk.ErrInvalid, "wants a tokenizer.ggml.seperator_token_id"},
	} {
		b, spec := newWorkerOf(t, synthetic(t, c.args...), 1, 0, c.config)
		_, err := b.Start(t.Context(), spec, nil)
		must.ErrorIs(t, err, c.is, must.Sprint(name))
		must.StrContains(t, err.Error(), c.says)
		must.NotEq(t, "", sdk.HintOf(err), must.Sprint(name))
	}
	w := startWorkerOf(t, synthetic(t, "-arch", "bert"), 1, 0, `{"pooling":"cls"}`) // the template from the model card
	v, _ := w.embed(t, `{"model":"m","input":"a"}`)
	must.Len(t, 64, floats(t, v[0]))
}

// Stopping a worker that cannot generate ends the waiting requests and frees the model.
func TestReadersStop(t *testing.T) {
	b, spec := newWorkerOf(t, synthetic(t, "-arch", "bert", "-pooling", "mean"), 1, 0, "")
	_, err := b.Start(t.Context(), spec, nil)
	must.NoError(t, err)
	e := b.served.embeds
	must.Nil(t, e.begin(t.Context()))
	var wg sync.WaitGroup
	failed := make(chan *openai.Error, 3)
	for range 3 {
		wg.Go(func() {
			_, err := e.embed(t.Context(), [][]token{{1}})
			failed <- err
		})
	}
	eventually(t, func() error {
		if n := e.load(); n != 3 {
			return fmt.Errorf("%d wait", n)
		}
		return nil
	})
	st, err := b.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, 1, st.Active)
	must.Eq(t, 2, st.Queued)
	must.NoError(t, b.Stop(t.Context(), 0))
	wg.Wait()
	for range 3 {
		must.Eq(t, "stopping", *(<-failed).Code)
	}
	e.end()
}

// One word of many letters used to end the process when the vocabulary splits with expressions that
// the engine matches by recursion. Cutting the text first yields the same tokens.
func TestLongRuns(t *testing.T) {
	for _, pre := range []string{"deepseek-v3", "poro-chat", "qwen2"} {
		w := startWorkerOf(t, synthetic(t, "-arch", "qwen2", "-tokenizer", "bpe", "-pre", pre, "-pooling", "mean"), 1, 0, "")
		for _, unit := range []string{"a", "1a", "!"} {
			must.SliceNotEmpty(t, w.tokensOf(t, strings.Repeat(unit, 40_000), nil))
		}
		if pre == "deepseek-v3" {
			long := strings.Repeat("a", 40_000)
			_, e, _ := w.refused(t, "/v1/completions", fmt.Sprintf(`{"prompt":%q}`, long))
			must.Eq(t, openai.CodeContextLength, *e.Code)
			_, e, _ = w.refused(t, "/v1/embeddings", fmt.Sprintf(`{"model":"m","input":%q}`, long))
			must.Eq(t, openai.CodeContextLength, *e.Code)
			_, e, _ = w.refused(t, "/v1/chat/completions", question(long, ""))
			must.Eq(t, openai.CodeContextLength, *e.Code)
		}
		m := w.served.model
		prose := strings.Repeat("It's 12 o'clock (more or less), and so on... there isn't much: x=y+z! ", 100)
		must.Greater(t, 3, len(cutRuns(prose, m.control)))
		must.Eq(t, m.native.Tokenize(prose, true, true), m.tokens(prose, true, true), must.Sprint(pre))
	}
}
