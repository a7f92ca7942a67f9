package llamacpp

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// complete sends a legacy completion that must succeed.
func (w *testWorker) complete(t testing.TB, body string) openai.CompletionResponse {
	t.Helper()
	resp := w.post(t.Context(), t, "/v1/completions", body)
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, http.StatusOK, resp.StatusCode, must.Sprintf("%s", b))
	var out openai.CompletionResponse
	must.NoError(t, json.Unmarshal(b, &out))
	must.Len(t, 1, out.Choices)
	return out
}

// TestTokenQueue shows each token with the text that contains its first byte.
func TestTokenQueue(t *testing.T) {
	t.Parallel()
	pieces := []string{"", "ab", "\xe6\x9d", "\xb1", "x\n", "\n"}
	var q tokenQueue
	take := func(tok token, sent int) string {
		names := ""
		e := event{sent: sent}
		if tok >= 0 {
			e.logprobs = []batch.LogProb{{Token: tok}}
		}
		for _, s := range q.take(e, pieces) {
			names += fmt.Sprint(s.list[0].Token)
		}
		return names
	}
	must.Eq(t, "1", take(1, 2))
	must.Eq(t, "", take(2, 2))   // half a character
	must.Eq(t, "23", take(3, 5)) // the other half
	must.Eq(t, "", take(0, 5))   // a control token
	must.Eq(t, "04", take(4, 6)) // its second byte may begin a stop string
	must.Eq(t, "", take(5, 6))   // the stop string is complete
	must.Eq(t, "", take(-1, 6))
}

// TestChatLogProbs compares streamed and unstreamed log probabilities, of answers that end in
// different ways.
func TestChatLogProbs(t *testing.T) {
	w := startWorker(t, 2, 512, "")
	for name, c := range map[string]struct {
		more string
		top  int
	}{
		"greedy":        {`,"top_logprobs":5,"max_tokens":30`, 5},
		"none of top":   {`,"max_tokens":10`, 0},
		"zero of top":   {`,"top_logprobs":0,"max_tokens":10`, 0},
		"stop string":   {`,"top_logprobs":20,"max_tokens":60,"stop":["e s","queen"]`, 20},
		"broken chars":  {`,"top_logprobs":2,"max_tokens":200,"temperature":2,"top_k":0,"min_p":0,"seed":5,"ignore_eos":true`, 2},
		"to its end":    {`,"top_logprobs":1`, 1},
		"with XTC, DRY": {`,"top_logprobs":3,"max_tokens":40,"temperature":1,"seed":1,"xtc_probability":1,"dry_multiplier":1`, 3},
	} {
		t.Run(name, func(t *testing.T) {
			whole := w.chat(t, question("What is a queen?", `,"logprobs":true`+c.more)).Choices[0]
			must.NotNil(t, whole.LogProbs)
			text := ""
			for _, x := range whole.LogProbs.Content {
				must.SliceLen(t, c.top, x.TopLogProbs)
				must.LessEq(t, 0, x.LogProb)
				sum := 0.0
				for i, o := range x.TopLogProbs {
					sum += math.Exp(o.LogProb)
					must.True(t, i == 0 || x.TopLogProbs[i-1].LogProb >= o.LogProb)
				}
				must.LessEq(t, 1.0001, sum)
				if name == "greedy" {
					must.Eq(t, x.TopLogProbs[0].LogProb, x.LogProb)
					must.Eq(t, x.TopLogProbs[0].Token, x.Token)
				}
				for _, b := range x.Bytes {
					text += string([]byte{byte(b)})
				}
			}
			shown := strings.ToValidUTF8(text, "")
			must.StrHasPrefix(t, strings.ReplaceAll(*whole.Message.Content, "\uFFFD", ""), shown)
			must.LessEq(t, 8, len(text)-len(*whole.Message.Content)) // the part of the last token before the stop string

			var got openai.LogProbs
			s := w.stream(t.Context(), t, question("What is a queen?", `,"stream":true,"logprobs":true`+c.more), func(chunk openai.ChatChunk) {
				for _, x := range chunk.Choices {
					if x.LogProbs != nil {
						must.NotNil(t, x.Delta.Content)
						got.Content = append(got.Content, x.LogProbs.Content...)
					}
				}
			})
			must.Eq(t, *whole.Message.Content, s.text)
			must.Eq(t, *whole.LogProbs, got)
		})
	}
	must.Nil(t, w.chat(t, question("x", `,"max_tokens":3`)).Choices[0].LogProbs)
}

func TestTextLogProbs(t *testing.T) {
	w := startWorker(t, 1, 512, "")
	c := w.complete(t, `{"prompt":"A queen","max_tokens":20,"temperature":0,"logprobs":3,"ignore_eos":true}`).Choices[0]
	must.NotNil(t, c.LogProbs)
	must.SliceLen(t, 20, c.LogProbs.Tokens)
	must.SliceLen(t, 20, c.LogProbs.TokenLogProbs)
	must.SliceLen(t, 20, c.LogProbs.TopLogProbs)
	must.Eq(t, c.Text, strings.Join(c.LogProbs.Tokens, ""))
	for i, at := range c.LogProbs.TextOffset {
		must.StrHasPrefix(t, c.LogProbs.Tokens[i], c.Text[at:])
		must.Eq(t, c.LogProbs.TokenLogProbs[i], c.LogProbs.TopLogProbs[i][c.LogProbs.Tokens[i]])
	}
	c = w.complete(t, `{"prompt":"A queen","max_tokens":2,"logprobs":0}`).Choices[0]
	must.Nil(t, c.LogProbs.TopLogProbs)
	must.SliceLen(t, 2, c.LogProbs.TokenLogProbs)
	must.Nil(t, w.complete(t, `{"prompt":"A queen","max_tokens":2}`).Choices[0].LogProbs)
}

// TestSeedContinues continues half an answer as part of the prompt, beside other requests: at any
// temperature the rest is the same.
func TestSeedContinues(t *testing.T) {
	w := startWorker(t, 4, 512, "")
	prompt := loadRecorded(t)[6].Tokens
	const more = `,"temperature":1.2,"top_k":0,"top_p":0.95,"seed":11,"repeat_penalty":1.1,"xtc_probability":0.3,"ignore_eos":true,"logprobs":0,"max_tokens":`
	ask := func(tokens []token, n int) openai.CompletionChoice {
		ids, err := json.Marshal(tokens)
		must.NoError(t, err)
		return w.complete(t, fmt.Sprintf(`{"prompt":%s%s%d}`, ids, more, n)).Choices[0]
	}
	const n = 40
	whole := ask(prompt, n)
	// The tokens of the answer, by their spelling, which is unique in this model.
	ids := map[string]token{}
	for i := range w.served.model.pieces {
		ids[w.served.model.tokenName(token(i))] = token(i)
	}
	var answer []token
	for _, name := range whole.LogProbs.Tokens {
		id, ok := ids[name]
		must.True(t, ok, must.Sprint(name))
		answer = append(answer, id)
	}
	must.Len(t, n, answer)
	var others sync.WaitGroup
	for i := range 3 {
		others.Go(func() { w.chat(t, question(strings.Repeat("hive ", 10+i), `,"max_tokens":60,"ignore_eos":true`)) })
	}
	for _, cut := range []int{1, 13, 39} {
		rest := ask(append(slices.Clone(prompt), answer[:cut]...), n-cut)
		must.Eq(t, whole.LogProbs.Tokens[cut:], rest.LogProbs.Tokens)
	}
	others.Wait()
}

func TestMaxTokens(t *testing.T) {
	w := startWorker(t, 1, 256, "")
	c := w.chat(t, question("What is a queen?", `,"max_tokens":0`))
	must.Eq(t, "", *c.Choices[0].Message.Content)
	must.Eq(t, openai.FinishLength, c.Choices[0].FinishReason)
	must.Eq(t, 0, c.Usage.CompletionTokens)
	must.Positive(t, c.Usage.PromptTokens)
	c = w.chat(t, question("What is a queen?", `,"max_tokens":-1,"ignore_eos":true`))
	must.Eq(t, 256, c.Usage.TotalTokens)
	c = w.chat(t, question("What is a queen?", `,"max_tokens":1e1,"ignore_eos":true`))
	must.Eq(t, 10, c.Usage.CompletionTokens)
}

func TestSamplingParameters(t *testing.T) {
	w := startWorker(t, 1, 512, "")
	say := func(more string) string {
		return *w.chat(t, `{"messages":[{"role":"user","content":"Tell me a short story about a bee named Pip."}],"max_tokens":40`+more+`}`).Choices[0].Message.Content
	}
	greedy := say(`,"temperature":0`)
	for _, more := range []string{
		`"samplers":["top_k"],"top_k":1`, `"samplers":"k","top_k":1`, `"top_n_sigma":0.0001`, `"dynatemp_range":0,"temperature":0.0001`,
		`"temperature":0,"xtc_probability":1,"typical_p":0.1`, `"temperature":0,"top_k":5,"seed":-1`,
	} {
		must.Eq(t, greedy, say(`,`+more), must.Sprint(more))
	}
	for _, more := range []string{
		`"temperature":0,"dry_multiplier":1000,"dry_allowed_length":1,"dry_sequence_breakers":["§"]`, `"temperature":0,"repetition_penalty":2`,
		`"temperature":0,"repeat_penalty":2,"repeat_last_n":-1`, `"temperature":0,"logit_bias":{" bee":-100," Pip":-100,"e":-100}`,
		`"temperature":0,"logit_bias":[["e",false],[" a",false]]`,
	} {
		must.NotEq(t, greedy, say(`,`+more), must.Sprint(more))
	}
	must.Eq(t, greedy, say(`,"temperature":0,"repeat_penalty":2,"repeat_last_n":0`))
	status, e, _ := w.refused(t, "/v1/chat/completions", question("x", `,"logit_bias":[`+everyToken(len(w.served.model.pieces))+`]`))
	must.Eq(t, http.StatusBadRequest, status)
	must.Eq(t, "logit_bias", *e.Param)
}

// everyToken returns a bias that forbids n tokens.
func everyToken(n int) string {
	list := make([]string, n)
	for i := range list {
		list[i] = fmt.Sprintf(`[%d,false]`, i)
	}
	return strings.Join(list, ",")
}
