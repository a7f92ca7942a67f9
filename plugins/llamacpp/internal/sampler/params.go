package sampler

import (
	"fmt"
	"math"
	"slices"
	"strings"
)

// Stage is a step in the processing of a row of logits.
type Stage uint8

// The stages, with their names in llama.cpp's `samplers`.
const (
	StagePenalties Stage = iota
	StageDRY
	StageTopNSigma
	StageTopK
	StageTypical
	StageTopP
	StageMinP
	StageXTC
	StageTemperature
	stageCount
)

// stageNames holds the names of the stages, the one that llama.cpp writes first, and the letter in
// llama.cpp's short form.
var stageNames = [stageCount]struct {
	letter byte
	names  []string
}{
	StagePenalties:   {'e', []string{"penalties"}},
	StageDRY:         {'d', []string{"dry"}},
	StageTopNSigma:   {'s', []string{"top_n_sigma", "top-n-sigma"}},
	StageTopK:        {'k', []string{"top_k", "top-k"}},
	StageTypical:     {'y', []string{"typ_p", "typical_p", "typical-p", "typical", "typ-p", "typ"}},
	StageTopP:        {'p', []string{"top_p", "top-p", "nucleus"}},
	StageMinP:        {'m', []string{"min_p", "min-p"}},
	StageXTC:         {'x', []string{"xtc"}},
	StageTemperature: {'t', []string{"temperature", "temp"}},
}

func (s Stage) String() string {
	if s < stageCount {
		return stageNames[s].names[0]
	}
	return fmt.Sprintf("stage %d", uint8(s))
}

// DefaultStages returns llama.cpp's default order of stages.
func DefaultStages() []Stage {
	return []Stage{StagePenalties, StageDRY, StageTopNSigma, StageTopK, StageTypical, StageTopP, StageMinP, StageXTC, StageTemperature}
}

// maxListedStages bounds a list of stages; a stage may be listed twice.
const maxListedStages = 32

// ParseStages parses llama.cpp's `samplers`: a list of names.
func ParseStages(names []string) ([]Stage, error) {
	if len(names) > maxListedStages {
		return nil, problem("samplers", "has %d entries; at most %d are taken", len(names), maxListedStages)
	}
	stages := make([]Stage, 0, len(names))
next:
	for _, name := range names {
		for s := range stageCount {
			if slices.Contains(stageNames[s].names, name) {
				stages = append(stages, s)
				continue next
			}
		}
		known := make([]string, 0, stageCount)
		for s := range stageCount {
			known = append(known, s.String())
		}
		return nil, problem("samplers", "has %q; the samplers are %s", name[:min(len(name), 40)], strings.Join(known, ", "))
	}
	return stages, nil
}

// ParseStageLetters parses the short form of `samplers`: one letter per stage.
func ParseStageLetters(letters string) ([]Stage, error) {
	if len(letters) > maxListedStages {
		return nil, problem("samplers", "has %d letters; at most %d are taken", len(letters), maxListedStages)
	}
	stages := make([]Stage, 0, len(letters))
next:
	for i := range len(letters) {
		for s := range stageCount {
			if stageNames[s].letter == letters[i] {
				stages = append(stages, s)
				continue next
			}
		}
		return nil, problem("samplers", "has the letter %q; they are e (penalties), d (dry), s (top_n_sigma), k (top_k), y (typ_p), p (top_p), m (min_p), x (xtc), t (temperature)", letters[i])
	}
	return stages, nil
}

// Bias is added to the logit of a token.
type Bias struct {
	Token int32
	Add   float32 // -Inf: the token is never chosen
}

// Params configures how tokens are chosen. Start from [Defaults], which chooses from the model's
// own distribution, and change what is needed.
type Params struct {
	Temperature     float64 // 0: always the largest logit
	DynamicRange    float64 // how far the temperature varies with the entropy, up and down; 0: off
	DynamicExponent float64

	TopK      int     // number of largest logits to keep; 0 or less: off
	TopP      float64 // keep the likeliest tokens up to this total probability; 1: off
	MinP      float64 // keep tokens with at least this fraction of the likeliest one's probability; 0: off
	Typical   float64 // keep the most typical tokens up to this total probability; 1: off
	TopNSigma float64 // keep logits within this many standard deviations of the largest; 0 or less: off
	MinKeep   int     // minimum number of tokens left by top-p, min-p, typical and XTC; below 1: 1

	XTCProbability float64 // how often the likeliest tokens are removed; 0: off
	XTCThreshold   float64 // minimum probability of a removed token; above 0.5: off

	DRYMultiplier    float64 // 0: off
	DRYBase          float64
	DRYAllowedLength int
	DRYLastN         int      // tokens of prompt and answer to search; -1: all; 0: off
	DRYBreakers      []string // texts across which no repetition extends

	Repeat       float64 // divides positive and multiplies negative logits of tokens in prompt or answer; 1: off
	RepeatLastN  int     // tokens of prompt and answer for Repeat; -1: all; 0: off
	Frequency    float64 // subtracted for each occurrence of a token in the answer; 0: off
	Presence     float64 // subtracted once if a token is in the answer; 0: off
	PresenceLast int     // tokens of the answer for Frequency and Presence; -1: all; 0: off

	Bias []Bias // at most MaxBias entries

	Seed   uint64
	Choice uint32  // index of this text among several for one prompt
	Stages []Stage // nil: DefaultStages
}

// Defaults returns parameters that change nothing: a draw from the model's own distribution.
func Defaults() Params {
	return Params{
		Temperature: 1, DynamicExponent: 1, TopP: 1, Typical: 1, XTCThreshold: 0.1,
		DRYBase: 1.75, DRYAllowedLength: 2, DRYLastN: -1, DRYBreakers: []string{"\n", ":", "\"", "*"},
		Repeat: 1, RepeatLastN: 64, PresenceLast: -1,
	}
}

// Bounds of parameters.
const (
	MaxBias         = 1 << 16
	MaxBreakers     = 64
	MaxBreakerBytes = 40  // of one breaker, as in llama.cpp
	maxTemperature  = 100 // beyond it all tokens are practically equal
	maxSigma        = 1000
)

// Error reports an unusable parameter.
type Error struct {
	Param   string // as llama.cpp and OpenAI name it
	Problem string // the problem, to follow the name
}

func (e *Error) Error() string { return e.Param + " " + e.Problem }

func problem(param, format string, args ...any) error {
	return &Error{Param: param, Problem: fmt.Sprintf(format, args...)}
}

// Check returns an *Error for the first parameter that is out of range. vocabulary is the number of
// tokens.
func (p *Params) Check(vocabulary int) error {
	for _, c := range []struct {
		name   string
		v      float64
		lo, hi float64
	}{
		{"temperature", p.Temperature, 0, maxTemperature},
		{"dynatemp_range", p.DynamicRange, 0, maxTemperature},
		{"dynatemp_exponent", p.DynamicExponent, 0, 100},
		{"top_p", p.TopP, 0, 1},
		{"min_p", p.MinP, 0, 1},
		{"typical_p", p.Typical, 0, 1},
		{"top_n_sigma", p.TopNSigma, -1, maxSigma},
		{"xtc_probability", p.XTCProbability, 0, 1},
		{"xtc_threshold", p.XTCThreshold, 0, 1},
		{"dry_multiplier", p.DRYMultiplier, 0, 1000},
		{"dry_base", p.DRYBase, 0, 1000},
		{"repeat_penalty", p.Repeat, 0.01, 100},
		{"frequency_penalty", p.Frequency, -100, 100},
		{"presence_penalty", p.Presence, -100, 100},
	} {
		if !(c.v >= c.lo && c.v <= c.hi) {
			return problem(c.name, "must be between %v and %v, not %v", c.lo, c.hi, c.v)
		}
	}
	for _, c := range []struct {
		name string
		v    int
	}{{"dry_penalty_last_n", p.DRYLastN}, {"repeat_last_n", p.RepeatLastN}, {"repeat_last_n", p.PresenceLast}} {
		if c.v < -1 {
			return problem(c.name, "must be -1 or more, not %d", c.v)
		}
	}
	if p.DRYAllowedLength < 1 {
		return problem("dry_allowed_length", "must be 1 or more, not %d", p.DRYAllowedLength)
	}
	if len(p.DRYBreakers) > MaxBreakers {
		return problem("dry_sequence_breakers", "has %d texts; at most %d are taken", len(p.DRYBreakers), MaxBreakers)
	}
	for _, b := range p.DRYBreakers {
		if b == "" || len(b) > MaxBreakerBytes {
			return problem("dry_sequence_breakers", "has a text of %d bytes; each has 1 to %d", len(b), MaxBreakerBytes)
		}
	}
	if len(p.Stages) > maxListedStages {
		return problem("samplers", "has %d entries; at most %d are taken", len(p.Stages), maxListedStages)
	}
	for _, s := range p.Stages {
		if s >= stageCount {
			return problem("samplers", "has an unknown entry")
		}
	}
	if len(p.Bias) > MaxBias {
		return problem("logit_bias", "has %d entries; at most %d are taken", len(p.Bias), MaxBias)
	}
	for _, b := range p.Bias {
		if b.Token < 0 || int(b.Token) >= vocabulary {
			return problem("logit_bias", "has the token %d; this model's tokens go from 0 to %d", b.Token, vocabulary-1)
		}
		if math.IsNaN(float64(b.Add)) || math.IsInf(float64(b.Add), 1) {
			return problem("logit_bias", "of token %d must be a number, not %v", b.Token, b.Add)
		}
	}
	return nil
}
