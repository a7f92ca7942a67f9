package llamacpp

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// ask is the generation that an HTTP request asks for.
type ask struct {
	request  *request // shared by all answers
	prompts  [][]token
	count    int // answers per prompt that the client gets
	best     int // answers per prompt to generate; the client gets the likeliest ones
	format   format
	sampling *openai.Sampling
}

// answer is one answer to an HTTP request while it is being generated.
type answer struct {
	*request
	format format
	began  bool // part of it has been streamed
	end    event

	// Only used without streaming.
	text    strings.Builder
	shown   []shownToken
	logProb float64 // sum over all tokens, when answers are ranked
}

// take adds an event to the answer.
func (a *answer) take(e event, m *model) {
	a.text.WriteString(e.text)
	a.shown = append(a.shown, a.tokens.take(e, a.shownPieces(m))...)
	if a.ranked && len(e.logprobs) > 0 {
		a.logProb += logProb(e.logprobs[0])
	}
	if e.last() {
		a.end = e
	}
}

// meanLogProb returns the mean log probability of the tokens of a finished answer.
func (a *answer) meanLogProb() float64 { return a.logProb / float64(max(1, a.end.tokens)) }

// count returns how many answers per prompt a client gets, and how many are generated for that.
func (s *server) count(sampling *openai.Sampling, bestOf *openai.Int, prompts int) (count, best int, err error) {
	count, param := 1, "n"
	if sampling.N != nil {
		count = int(*sampling.N)
	}
	best = count
	if bestOf != nil {
		best = int(*bestOf)
	}
	switch {
	case best < count:
		return 0, 0, openai.Invalid("best_of", "best_of must be n or more: %d answers cannot be the best of %d", count, best)
	case best > count && sampling.Stream:
		return 0, 0, openai.Invalid("best_of", "best_of larger than n cannot be streamed, as the best answers are known at the end only; leave out best_of or stream")
	case best > count:
		param = "best_of"
	case best == 1:
		param = "prompt"
	}
	if room := s.engine.Room(); prompts*best > room {
		return 0, 0, openai.Invalid(param, "the request asks for %d answers; this worker takes %d at a time, in its slots and its queue; ask for fewer", prompts*best, room)
	}
	return count, best, nil
}

// answers returns the answers to generate, grouped by prompt. Answers to one prompt differ in their
// seeds; the first one uses the seed that a request for a single answer would use.
func (a *ask) answers() []*answer {
	var list []*answer
	for _, prompt := range a.prompts {
		for i := range a.best {
			r := *a.request
			r.number, r.prompt = len(list), prompt
			r.sampling.Choice = uint32(i)
			r.ranked = a.best > a.count
			list = append(list, &answer{request: &r, format: a.format.choice(len(list))})
		}
	}
	return list
}

// chosen returns those of the finished answers that the client gets, in order.
func (a *ask) chosen(list []*answer) []*answer {
	if a.best == a.count {
		return list
	}
	var out []*answer
	for group := range slices.Chunk(list, a.best) {
		group = slices.Clone(group)
		slices.SortStableFunc(group, func(x, y *answer) int { return cmp.Compare(y.meanLogProb(), x.meanLogProb()) })
		for _, x := range group[:a.count] {
			x.format = a.format.choice(len(out))
			out = append(out, x)
		}
	}
	return out
}

// usage sums up the answers: each prompt counts once, every generated token counts.
func (a *ask) usage(list []*answer) *openai.Usage {
	u := &openai.Usage{PromptTokensDetails: &openai.PromptTokensDetails{}}
	var predicted openai.CompletionTokensDetails
	for i, x := range list {
		u.CompletionTokens += x.end.tokens
		predicted.AcceptedPredictionTokens += x.end.right
		predicted.RejectedPredictionTokens += x.end.drafted - x.end.right
		if i%a.best == 0 { // the others reuse this one's prompt
			u.PromptTokens += len(x.prompt)
			u.PromptTokensDetails.CachedTokens += x.end.reused
		}
	}
	if predicted != (openai.CompletionTokensDetails{}) {
		u.CompletionTokensDetails = &predicted
	}
	u.TotalTokens = u.PromptTokens + u.CompletionTokens
	return u
}

// closing passes the end of the answer to its format.
func (a *answer) closing(m *model) {
	if f, ok := a.format.(*nativeFormat); ok {
		f.word = a.end.finish == openai.FinishStop && (a.end.chosen < 0 || !m.ends[a.end.chosen])
	}
}

// timings returns the combined timings of the answers so far.
func (a *ask) timings(list []*answer) *openai.Timings {
	t := &openai.Timings{}
	var read, said time.Duration
	for i, x := range list {
		read, said = max(read, x.end.read), max(said, x.end.said)
		t.PredictedN += x.end.tokens
		t.DraftN += x.end.drafted
		t.DraftAccepted += x.end.right
		if i%a.best == 0 { // the others reuse this one's prompt
			t.CacheN += x.end.reused
			t.PromptN += len(x.prompt) - x.end.reused
		}
	}
	t.PromptMS, t.PredictedMS = 1000*read.Seconds(), 1000*said.Seconds()
	t.Rate()
	return t
}

// joined merges finished answers of one format into one response.
func joined(list []any) any {
	switch first := list[0].(type) {
	case openai.ChatResponse:
		for _, x := range list[1:] {
			if next, ok := x.(openai.ChatResponse); ok {
				first.Choices = append(first.Choices, next.Choices...)
			}
		}
		return first
	case openai.CompletionResponse:
		for _, x := range list[1:] {
			if next, ok := x.(openai.CompletionResponse); ok {
				first.Choices = append(first.Choices, next.Choices...)
			}
		}
		return first
	}
	if len(list) > 1 {
		return list
	}
	return list[0]
}

// textPrompts tokenizes the prompts of a legacy completion.
func (m *model) textPrompts(p openai.Prompt, limit int) ([][]token, error) {
	var list []openai.Prompt
	for _, text := range p.Texts {
		list = append(list, openai.TextPrompt(text))
	}
	for _, tokens := range p.Tokens {
		list = append(list, openai.Prompt{Tokens: [][]int32{tokens}})
	}
	if len(list) == 0 {
		return nil, openai.Invalid("prompt", "prompt is an empty list; there is nothing to go on from")
	}
	var out [][]token
	for i, one := range list {
		tokens, err := m.textPrompt(one, limit)
		if err == nil {
			err = checkPrompt(tokens, limit)
		}
		if e, ok := errors.AsType[*openai.Error](err); ok {
			e.Param = new("prompt")
			if len(list) > 1 {
				e.Message = fmt.Sprintf("prompt %d: %s", i, e.Message)
			}
		}
		if err != nil {
			return nil, err
		}
		out = append(out, tokens)
	}
	return out, nil
}

// checkPrompt rejects a prompt that is empty or too long to answer.
func checkPrompt(tokens []token, limit int) error {
	switch {
	case len(tokens) == 0:
		return openai.Invalid("prompt", "the prompt is empty; there is nothing to go on from")
	case len(tokens)+1 > limit:
		return contextExceeded(len(tokens), limit, "")
	}
	return nil
}
