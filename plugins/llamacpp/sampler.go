package llamacpp

import (
	"math"
	"math/rand/v2"
	"slices"
	"strconv"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/native"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// sampling says how a request's tokens are chosen.
type sampling struct {
	temperature         float32 // 0: always the likeliest token
	topK                int32
	topP, minP          float32
	repeat              float32 // 1: off
	frequency, presence float32
	seed                uint32
	bias                []native.Bias
}

const (
	// maxTopK is always in front of the others: without it top-p sorts the whole vocabulary on
	// every token.
	maxTopK = 512
	// penaltyWindow is how many of the last tokens the penalties look at.
	penaltyWindow = 64
	// randomSeed means to the engine that it shall choose one.
	randomSeed = native.RandomSeed
)

// choose fills in what a request says over the model's defaults.
func (m *model) choose(r *openai.Sampling) (sampling, error) {
	s := m.defaults
	set := func(to *float32, from *float64) {
		if from != nil {
			*to = float32(*from)
		}
	}
	set(&s.temperature, r.Temperature)
	set(&s.topP, r.TopP)
	set(&s.minP, r.MinP)
	set(&s.repeat, r.RepeatPenalty)
	set(&s.frequency, r.FrequencyPenalty)
	set(&s.presence, r.PresencePenalty)
	if r.TopK != nil {
		s.topK = int32(*r.TopK)
	}
	if s.topK <= 0 || s.topK > maxTopK {
		s.topK = maxTopK
	}
	s.seed = rand.Uint32()
	if r.Seed != nil {
		s.seed = uint32(*r.Seed) ^ uint32(*r.Seed>>32)
	}
	if s.seed == randomSeed {
		s.seed--
	}
	for name, bias := range r.LogitBias {
		id, err := strconv.ParseInt(name, 10, 32)
		if err != nil || id < 0 || int(id) >= len(m.pieces) {
			return s, openai.Invalid("logit_bias", "logit_bias has the token %s; this model's tokens go from 0 to %d", name, len(m.pieces)-1)
		}
		s.bias = append(s.bias, native.Bias{Token: token(id), Bias: float32(bias)})
	}
	if r.IgnoreEOS {
		for _, t := range m.endList {
			s.bias = append(s.bias, native.Bias{Token: t, Bias: float32(math.Inf(-1))})
		}
	}
	slices.SortFunc(s.bias, func(a, b native.Bias) int { return int(a.Token) - int(b.Token) })
	return s, nil
}
