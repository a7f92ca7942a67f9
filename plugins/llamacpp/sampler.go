package llamacpp

import (
	"cmp"
	"errors"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/constraint"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/sampler"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// choose applies a request's parameters to the model's defaults.
func (m *model) choose(r *openai.Sampling) (sampler.Params, error) {
	p := m.defaults
	for _, c := range []struct {
		to   *float64
		from *float64
	}{
		{&p.Temperature, r.Temperature},
		{&p.DynamicRange, r.DynatempRange},
		{&p.DynamicExponent, r.DynatempExponent},
		{&p.TopP, r.TopP},
		{&p.MinP, r.MinP},
		{&p.Typical, r.TypicalP},
		{&p.TopNSigma, r.TopNSigma},
		{&p.XTCProbability, r.XTCProbability},
		{&p.XTCThreshold, r.XTCThreshold},
		{&p.DRYMultiplier, r.DRYMultiplier},
		{&p.DRYBase, r.DRYBase},
		{&p.Repeat, r.RepetitionPenalty},
		{&p.Repeat, r.RepeatPenalty},
		{&p.Frequency, r.FrequencyPenalty},
		{&p.Presence, r.PresencePenalty},
	} {
		if c.from != nil {
			*c.to = *c.from
		}
	}
	for _, c := range []struct {
		to   *int
		from *openai.Int
	}{
		{&p.TopK, r.TopK},
		{&p.MinKeep, r.MinKeep},
		{&p.DRYAllowedLength, r.DRYAllowedLength},
		{&p.DRYLastN, r.DRYLastN},
		{&p.RepeatLastN, r.RepeatLastN},
		{&p.PresenceLast, r.RepeatLastN},
	} {
		if c.from != nil {
			*c.to = int(min(*c.from, math.MaxInt32))
		}
	}
	if r.DRYBreakers != nil {
		p.DRYBreakers = r.DRYBreakers
	}
	if r.Mirostat != nil && *r.Mirostat != 0 {
		return p, openai.NotSupported("mirostat", "mirostat is not supported by this worker; use min_p or top_p")
	}
	p.Seed = rand.Uint64()
	if r.Seed != nil && *r.Seed != -1 {
		p.Seed = uint64(*r.Seed)
	}
	var err error
	switch {
	case r.Samplers.Names != nil:
		p.Stages, err = sampler.ParseStages(r.Samplers.Names)
	case r.Samplers.Letters != "":
		p.Stages, err = sampler.ParseStageLetters(r.Samplers.Letters)
	}
	if err != nil {
		return p, samplingError(err)
	}
	p.Bias = m.bias(r)
	if err := p.Check(len(m.pieces)); err != nil {
		return p, samplingError(err)
	}
	return p, nil
}

// samplingError converts an error about parameters to the API error for the client.
func samplingError(err error) error {
	if e, ok := errors.AsType[*sampler.Error](err); ok {
		return openai.Invalid(e.Param, "%v", e)
	}
	return err
}

// bias returns the biases of a request. A text stands for each of its tokens.
func (m *model) bias(r *openai.Sampling) []sampler.Bias {
	var list []sampler.Bias
	for _, e := range r.LogitBias {
		if e.Text == "" {
			list = append(list, sampler.Bias{Token: e.ID, Add: float32(e.Bias)})
			continue
		}
		text := strings.ReplaceAll(e.Text, "\x00", "\uFFFD") // the engine takes a C string
		for _, t := range m.native.Tokenize(text, false, false) {
			list = append(list, sampler.Bias{Token: t, Add: float32(e.Bias)})
		}
	}
	if r.IgnoreEOS {
		for _, t := range m.endList {
			list = append(list, sampler.Bias{Token: t, Add: float32(math.Inf(-1))})
		}
	}
	slices.SortStableFunc(list, func(a, b sampler.Bias) int { return cmp.Compare(a.Token, b.Token) })
	return list
}

// chooser chooses the tokens of one request.
type chooser struct {
	sampler  *sampler.Sampler
	work     *sampler.Work // shared by all choosers of an engine
	logprobs int           // number of likeliest tokens wanted with each token; negative: no log probabilities
	ranked   bool          // the token's own log probability is needed in any case
	biased   bool

	rule       *rule // nil: none
	constraint limiter
	recent     []int                   // the last tokens of the prompt and the answer
	begun      bool                    // a token has been chosen
	spell      func(text []byte) []int // tokenizes a text; nil: forced tokens are sampled like all others
}

// limiter restricts which tokens may come next, and follows the answer.
type limiter interface {
	sampler.Constraint
	Accept(token int) error
	// Forced returns the tokens that must come next, as tokenized by spell. before holds the tokens
	// just before them.
	Forced(before []int, spell func(text []byte) []int) []int
}

var _ batch.Chooser = (*chooser)(nil)

// newChooser returns a chooser for a request.
func (e *engine) newChooser(r *request) (*chooser, error) {
	s, err := sampler.New(r.sampling, len(e.model.pieces), e.model.pieces)
	if err != nil {
		return nil, samplingError(err)
	}
	s.Prompt(r.prompt)
	c := &chooser{sampler: s, work: &e.work, logprobs: r.logprobs, ranked: r.ranked, biased: len(r.sampling.Bias) > 0, rule: r.rule}
	if r.rule != nil {
		c.constraint = constraint.New(r.rule.grammar, e.model.vocabulary, r.rule.thinking)
	} else if r.guard != nil {
		c.constraint, c.rule = r.guard(), &rule{param: "tools"}
	}
	if c.constraint != nil {
		c.spell = e.speller(r.rule == nil)
		c.remember(r.prompt[max(0, len(r.prompt)-maxRecent):]...)
	}
	return c, nil
}

// maxRecent bounds the number of tokens before forced ones that are considered.
const maxRecent = 16

func (c *chooser) remember(list ...token) {
	for _, t := range list {
		c.recent = append(c.recent, int(t))
	}
	c.recent = c.recent[max(0, len(c.recent)-maxRecent):]
}

// Choose chooses the next token, and the forced tokens after it.
func (c *chooser) Choose(logits []float32) (batch.Choice, error) {
	var choice batch.Choice
	if !c.begun { // later ones were found with the token before them
		c.begun = true
		choice.Ahead = c.forced()
	}
	if len(choice.Ahead) > 0 {
		choice.Token, choice.Ahead = choice.Ahead[0], choice.Ahead[1:]
	} else {
		var err error
		if choice.Token, err = c.sample(logits); err != nil {
			return batch.Choice{}, err
		}
		choice.Ahead = c.forced()
	}
	choice.LogProbs = c.Follow(choice.Token, logits)
	return choice, nil
}

// forced returns the tokens that must come next, after accepting them.
func (c *chooser) forced() []token {
	if c.spell == nil {
		return nil
	}
	var list []token
	for _, t := range c.constraint.Forced(c.recent, c.spell) {
		if c.constraint.Accept(t) != nil {
			break // the sampler reports the cause
		}
		list = append(list, token(t))
	}
	c.remember(list...)
	return list
}

// sample draws a token within the constraint.
func (c *chooser) sample(logits []float32) (token, error) {
	var allowed sampler.Constraint
	if c.constraint != nil {
		allowed = c.constraint
	}
	t, err := c.sampler.Choose(c.work, logits, allowed)
	if err == nil && c.constraint != nil {
		err = c.constraint.Accept(int(t))
		c.remember(t)
	}
	if e := c.rule.failed(err); e != nil {
		return 0, e
	}
	if errors.Is(err, sampler.ErrNone) && c.biased {
		return 0, openai.Invalid("logit_bias", "logit_bias forbids every token that could come next; allow some")
	}
	return t, err
}

// Follow accepts a token and returns its log probability and those of the likeliest ones, if
// requested.
func (c *chooser) Follow(t token, logits []float32) []batch.LogProb {
	var list []batch.LogProb
	if c.wantsLogProbs() {
		own, top := c.work.LogProbs(logits, t, max(0, c.logprobs), nil)
		list = append(list, batch.LogProb{Token: t, LogProb: float32(own)})
		for _, x := range top {
			list = append(list, batch.LogProb{Token: x.Token, LogProb: float32(x.LogProb)})
		}
	}
	c.sampler.Accept(t)
	return list
}

func (c *chooser) wantsLogProbs() bool { return c.logprobs >= 0 || c.ranked }

// Close does nothing: a chooser holds only memory.
func (c *chooser) Close() {}
