package llamacpp

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// repetitive returns requests whose answers repeat themselves, which leads to draft tokens,
// combined with every feature that works on tokens.
func repetitive() []string {
	const story = `{"messages":[{"role":"user","content":"Tell me a short story about a bee named Pip."}],"ignore_eos":true,"max_tokens":160`
	var list []string
	for _, more := range []string{
		`,"temperature":0}`,
		`,"temperature":0,"logprobs":true,"top_logprobs":3}`,
		`,"temperature":0,"stop":["Pip was","honey "]}`,
		`,"temperature":0,"frequency_penalty":0.02}`,
		`,"temperature":0.2,"seed":1}`,
		`,"temperature":0.2,"seed":2,"n":3}`,
		`,"temperature":0.3,"seed":3,"top_k":5,"repeat_penalty":1.02}`,
		`,"temperature":0.2,"seed":4,"presence_penalty":0.1,"logprobs":true}`,
		`,"temperature":0.2,"seed":5,"response_format":{"type":"json_schema","json_schema":{"name":"list","schema":{"type":"array","minItems":20,"maxItems":20,"items":{"enum":["a bee","a hive"]}}}}}`,
	} {
		list = append(list, story+more)
	}
	return list
}

// Draft tokens change no answer. Rounding differs between steps of different widths, so that one
// draw of many may fall on the other side of a border: at most one answer in total may differ.
func TestDraftTokensChangeNoAnswer(t *testing.T) {
	type result struct {
		text, finish string
		tokens       int
	}
	answers := func(config string) (list []result, right int) {
		w := startWorker(t, 2, 512, config)
		for _, body := range repetitive() {
			out, _ := w.choices(t, body)
			for _, c := range out.Choices {
				list = append(list, result{*c.Message.Content, c.FinishReason, 0})
			}
			list[len(list)-1].tokens = out.Usage.CompletionTokens
			if d := out.Usage.CompletionTokensDetails; d != nil {
				right += d.AcceptedPredictionTokens
				must.LessEq(t, out.Usage.CompletionTokens, d.AcceptedPredictionTokens)
			}
		}
		must.Eq(t, int64(right), w.served.engine.Stats().Accepted)
		return list, right
	}
	want, none := answers(`{"speculation":false}`)
	must.Zero(t, none)
	got, right := answers(`{"speculation":true}`)
	t.Logf("%d draft tokens were right", right) // the number depends on the machine; internal/batch tests it deterministically
	different := 0
	for i := range want {
		if want[i] != got[i] {
			different++
			t.Logf("answer %d: without draft tokens %+v, with them %+v", i, want[i], got[i])
		}
	}
	must.LessEq(t, 1, different)
}

// The log probabilities of an answer are the same with and without draft tokens.
func TestDraftTokensKeepLogProbs(t *testing.T) {
	body := repetitive()[1]
	var lists [2][]openai.TokenLogProb
	for i, on := range []bool{false, true} {
		w := startWorker(t, 1, 512, fmt.Sprintf(`{"speculation":%t}`, on))
		lists[i] = w.chat(t, body).Choices[0].LogProbs.Content
		t.Logf("%d draft tokens were right", w.served.engine.Stats().Accepted) // whether drafts pay off depends on the machine
	}
	must.Eq(t, len(lists[0]), len(lists[1]))
	for i, x := range lists[0] {
		y := lists[1][i]
		must.Eq(t, x.Token, y.Token)
		must.InDelta(t, x.LogProb, y.LogProb, 0.05)
		must.Len(t, len(x.TopLogProbs), y.TopLogProbs)
	}
}

// A draft model changes no answer, and one with another vocabulary is refused with the reason.
func TestDraft(t *testing.T) {
	body := repetitive()[0]
	want := startWorker(t, 1, 512, `{"speculation":false}`).chat(t, body)
	must.Nil(t, want.Usage.CompletionTokensDetails)
	w := startWorker(t, 3, 512, fmt.Sprintf(`{"speculation":false,"draft":%q}`, tinyModel(t)))
	got := w.chat(t, body)
	must.Eq(t, want.Choices, got.Choices)
	st := w.served.engine.Stats()
	t.Logf("%d of %d drafted tokens were right", st.Accepted, st.Drafted)

	b, spec := newWorkerOf(t, tinyModel(t), 1, 512, fmt.Sprintf(`{"draft":%q}`, synthetic(t)))
	_, err := b.Start(t.Context(), spec, nil)
	must.ErrorIs(t, err, sdk.ErrInvalid)
	must.ErrorContains(t, err, "vocabularies differ")
	b, spec = newWorkerOf(t, tinyModel(t), 1, 512, `{"draft":"/nowhere/small.gguf"}`)
	_, err = b.Start(t.Context(), spec, nil)
	must.ErrorIs(t, err, sdk.ErrInvalid)
	must.ErrorContains(t, err, "draft")
}

// dictation chooses the tokens of a given text, whatever the logits.
type dictation struct {
	text []token
	at   int
}

func (d *dictation) Choose([]float32) (batch.Choice, error) {
	d.at++
	return batch.Choice{Token: d.text[d.at-1]}, nil
}

func (*dictation) Follow(token, []float32) []batch.LogProb { return nil }

func (*dictation) Close() {}

// benchModel returns the model for benchmarks: RBEE_BENCH_MODEL, or a synthetic one with 135
// million weights.
func benchModel(b *testing.B) string {
	b.Helper()
	if path := os.Getenv("RBEE_BENCH_MODEL"); path != "" {
		return path
	}
	engineDir(b)
	path := filepath.Join(b.TempDir(), "model.gguf")
	out, err := exec.CommandContext(b.Context(), "go", "run", "../../core/coretest/ggufgen", "-out", path, "-preset", "135m", "-type", "q8_0").CombinedOutput()
	must.NoError(b, err, must.Sprintf("%s", out))
	return path
}

// BenchmarkDraftTokens compares a worker with draft tokens and one without, alternating: on a text
// that copies with a change every twelve tokens, and on one where every pair of tokens occurred
// before and continued differently. The texts are dictated, as a model with random weights copies
// nothing: then choosing costs nothing, and the engine's work is the same.
func BenchmarkDraftTokens(b *testing.B) {
	const length = 256
	path := benchModel(b)
	rnd := rand.New(rand.NewPCG(1, 2))
	var original, copied, misleading, before []token
	for i := range length {
		original = append(original, token(1000+rnd.IntN(20000)))
		copied = append(copied, original[i])
		if i%12 == 11 {
			copied[i] = token(1000 + rnd.IntN(20000))
		}
		misleading, before = append(misleading, token(1000+rnd.IntN(12))), append(before, token(1000+rnd.IntN(12)))
	}
	for _, slots := range []int{1, 4} {
		for _, c := range []struct {
			name           string
			prompt, answer []token
		}{
			{"copy", original, copied}, {"misleading", before, misleading},
		} {
			b.Run(fmt.Sprintf("%s-%d", c.name, slots), func(b *testing.B) {
				var workers [2]*testWorker
				for i, on := range []bool{false, true} {
					workers[i] = startWorkerOf(b, path, slots, 1024, fmt.Sprintf(`{"speculation":%t}`, on))
				}
				var rates, work [2][]float64
				for b.Loop() {
					for i, w := range workers {
						rate, seconds := w.dictate(b, slots, c.prompt, c.answer)
						rates[i], work[i] = append(rates[i], rate), append(work[i], seconds)
					}
				}
				var ratios, workRatios []float64
				for i := range rates[0] {
					ratios = append(ratios, rates[1][i]/rates[0][i])
					workRatios = append(workRatios, work[0][i]/work[1][i])
				}
				st := workers[1].served.engine.Stats()
				b.ReportMetric(median(rates[0]), "plain-tok/s")
				b.ReportMetric(median(rates[1]), "tok/s")
				b.ReportMetric(median(ratios), "ratio")
				b.ReportMetric(median(workRatios), "cpu-ratio")
				b.ReportMetric(float64(st.Accepted)/float64(max(1, st.Drafted)), "right")
				b.ReportMetric(float64(st.Drafted)/float64(st.TokensTotal), "draft/tok")
			})
		}
	}
}

// processorTime returns the CPU time of the process, in seconds.
func processorTime(b testing.TB) float64 {
	b.Helper()
	var u syscall.Rusage
	must.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return sorted[len(sorted)/2]
}

// dictate makes every slot generate an answer. It returns the tokens per second of the answers,
// after all prompts are read, and the CPU seconds that they took.
func (w *testWorker) dictate(b *testing.B, slots int, prompt, answer []token) (rate, seconds float64) {
	b.Helper()
	var began time.Time
	var before float64
	first, done := 0, make(chan error, slots)
	for i := range slots {
		p := slices.Clone(prompt)
		p[0] = token(100 + i) // no common prefix
		r := &batch.Request{Prompt: p, MaxTokens: len(answer), Chooser: &dictation{text: answer}}
		r.Emit = func(e batch.Event) { // one goroutine calls them all
			if e.Tokens == 1 {
				if first++; first == slots {
					began, before = time.Now(), processorTime(b)
				}
			}
			if e.Last() {
				done <- e.Err
			}
		}
		must.NoError(b, w.served.engine.Submit(r))
	}
	for range slots {
		must.NoError(b, <-done)
	}
	return float64(slots*len(answer)) / time.Since(began).Seconds(), processorTime(b) - before
}

// Usage includes draft tokens only if some were made.
func TestUsageOfDraftTokens(t *testing.T) {
	t.Parallel()
	a := &ask{best: 1}
	without := a.usage([]*answer{{request: newRequest(), end: event{tokens: 3}}})
	b, err := json.Marshal(without)
	must.NoError(t, err)
	must.StrNotContains(t, string(b), "prediction")
	with := a.usage([]*answer{{request: newRequest(), end: event{tokens: 9, drafted: 7, right: 4}}, {request: newRequest(), end: event{tokens: 2, drafted: 1}}})
	must.Eq(t, &openai.CompletionTokensDetails{AcceptedPredictionTokens: 4, RejectedPredictionTokens: 4}, with.CompletionTokensDetails)
}
