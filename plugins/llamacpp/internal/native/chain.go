package native

import (
	"errors"

	"github.com/hybridgroup/yzma/pkg/llama"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/batch"
)

// ChainParams say how tokens are chosen.
type ChainParams struct {
	Temperature         float32 // 0: always the likeliest token
	TopK                int32
	TopP, MinP          float32
	Repeat              float32 // 1: off
	Frequency, Presence float32
	Window              int // tokens that the penalties look at
	Seed                uint32
	Bias                []Bias
}

// Bias is added to the logit of a token.
type Bias struct {
	Token Token
	Bias  float32
}

// RandomSeed means to the engine that it shall choose a seed.
const RandomSeed = llama.DefaultSeed

// Chain chooses tokens with llama.cpp's samplers. It is not safe for concurrent use.
type Chain struct {
	handle     llama.Sampler
	vocab      int
	candidates []llama.TokenData // made for the first token: a request may wait long before it
}

var _ batch.Chooser = (*Chain)(nil)

// NewChain makes the engine's samplers for p. said is what the penalties count before the first
// token.
func (m *Model) NewChain(p ChainParams, said []Token) *Chain {
	c := &Chain{handle: llama.SamplerChainInit(llama.SamplerChainParams{NoPerf: 1}), vocab: m.VocabSize()}
	add := func(x llama.Sampler) {
		if x != 0 {
			llama.SamplerChainAdd(c.handle, x)
		}
	}
	vocab := int32(c.vocab)
	if len(p.Bias) > 0 {
		list := make([]llama.LogitBias, len(p.Bias))
		for i, b := range p.Bias {
			list[i] = llama.LogitBias{Token: llama.Token(b.Token), Bias: b.Bias}
		}
		add(llama.SamplerInitLogitBias(vocab, int32(len(list)), &list[0]))
	}
	if p.Repeat != 1 || p.Frequency != 0 || p.Presence != 0 {
		add(llama.SamplerInitPenalties(vocab, int32(p.Window), p.Repeat, p.Frequency, p.Presence))
	}
	if p.Temperature <= 0 {
		add(llama.SamplerInitGreedy())
	} else {
		add(llama.SamplerInitTopK(p.TopK))
		if p.TopP < 1 {
			add(llama.SamplerInitTopP(p.TopP, 1))
		}
		if p.MinP > 0 {
			add(llama.SamplerInitMinP(p.MinP, 1))
		}
		add(llama.SamplerInitTemp(p.Temperature))
		add(llama.SamplerInitDist(p.Seed))
	}
	for _, t := range said {
		llama.SamplerAccept(c.handle, llama.Token(t))
	}
	return c
}

// Choose chooses the next token.
func (c *Chain) Choose(logits []float32) (batch.Choice, error) {
	if len(logits) != c.vocab {
		return batch.Choice{}, errors.New("the engine has no logits for it")
	}
	if c.candidates == nil {
		c.candidates = make([]llama.TokenData, c.vocab)
	}
	for i, l := range logits {
		c.candidates[i] = llama.TokenData{Id: llama.Token(i), Logit: l}
	}
	array := llama.TokenDataArray{Data: &c.candidates[0], Size: uint64(len(c.candidates)), Selected: -1}
	llama.SamplerApply(c.handle, &array)
	if array.Selected < 0 || array.Selected >= int64(array.Size) {
		return batch.Choice{}, errors.New("it chose no token")
	}
	token := c.candidates[array.Selected].Id
	llama.SamplerAccept(c.handle, token)
	return batch.Choice{Token: Token(token)}, nil
}

// Close frees the samplers.
func (c *Chain) Close() {
	if c.handle != 0 {
		llama.SamplerFree(c.handle)
	}
	c.handle = 0
}
