package openai

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Sampling holds the fields, common to both kinds of request, that control how to choose tokens and
// how to answer. A nil field was omitted or null. Fields that OpenAI does not have use the names of
// llama.cpp's server.
type Sampling struct {
	// 0 to 2; 0: always the likeliest token
	Temperature *float64 `json:"temperature,omitempty"`
	TopP        *float64 `json:"top_p,omitempty"` // 0 to 1
	// -1: a random seed, as if it were omitted
	Seed *Int `json:"seed,omitempty"`
	// -1: as many as fit; 0: none
	MaxTokens        *Int           `json:"max_tokens,omitempty"`
	Stop             Stop           `json:"stop,omitempty"`              //
	Stream           bool           `json:"stream,omitempty"`            //
	StreamOptions    *StreamOptions `json:"stream_options,omitempty"`    // ignored without Stream
	N                *Int           `json:"n,omitempty"`                 // 1 to 128
	LogitBias        LogitBias      `json:"logit_bias,omitempty"`        // -100 to 100
	FrequencyPenalty *float64       `json:"frequency_penalty,omitempty"` // -2 to 2
	PresencePenalty  *float64       `json:"presence_penalty,omitempty"`  // -2 to 2
	User             string         `json:"user,omitempty"`              //

	TopK              *Int     `json:"top_k,omitempty"`              // 0 or -1: off
	MinP              *float64 `json:"min_p,omitempty"`              // 0 to 1; 0: off
	TypicalP          *float64 `json:"typical_p,omitempty"`          // 0 to 1; 1: off
	TopNSigma         *float64 `json:"top_n_sigma,omitempty"`        // 0 or less: off
	MinKeep           *Int     `json:"min_keep,omitempty"`           // minimum number of tokens that remain
	DynatempRange     *float64 `json:"dynatemp_range,omitempty"`     // 0: off
	DynatempExponent  *float64 `json:"dynatemp_exponent,omitempty"`  //
	XTCProbability    *float64 `json:"xtc_probability,omitempty"`    // 0 to 1; 0: off
	XTCThreshold      *float64 `json:"xtc_threshold,omitempty"`      // 0 to 1; above 0.5: off
	DRYMultiplier     *float64 `json:"dry_multiplier,omitempty"`     // 0: off
	DRYBase           *float64 `json:"dry_base,omitempty"`           //
	DRYAllowedLength  *Int     `json:"dry_allowed_length,omitempty"` //
	DRYLastN          *Int     `json:"dry_penalty_last_n,omitempty"` // -1: all; 0: off
	DRYBreakers       Stop     `json:"dry_sequence_breakers,omitempty"`
	RepeatPenalty     *float64 `json:"repeat_penalty,omitempty"`     // 0.01 to 10; 1: off
	RepetitionPenalty *float64 `json:"repetition_penalty,omitempty"` // vLLM's name for RepeatPenalty
	RepeatLastN       *Int     `json:"repeat_last_n,omitempty"`      // -1: all; 0: off
	Samplers          Samplers `json:"samplers,omitzero"`            // samplers and their order
	Mirostat          *Int     `json:"mirostat,omitempty"`           // 0: off
	// llama.cpp adapters for this request; nil: those that the worker was started with
	LoRA *[]LoRA `json:"lora,omitempty"`
	// continue after the model's end-of-text token
	IgnoreEOS bool `json:"ignore_eos,omitempty"`
	// llama.cpp's name for MaxTokens
	NPredict *Int `json:"n_predict,omitempty"`
	// add Timings to every chunk of a stream
	TimingsPerToken bool `json:"timings_per_token,omitempty"`
}

// LoRAAdapter describes an adapter in the response of GET /lora-adapters, as llama-server does,
// except for the path, which clients must not see.
type LoRAAdapter struct {
	ID    int     `json:"id"`
	Name  string  `json:"name"`
	Scale float64 `json:"scale"`
}

// LoRA selects an adapter for a request, by name or by id.
type LoRA struct {
	ID    *Int    `json:"id,omitempty"`
	Name  string  `json:"name,omitempty"`
	Scale float64 `json:"scale"`
}

// Int is an integer in any JSON spelling: 100, 100.0 and 1e2 are the same. A value that is too
// large becomes the largest possible one.
type Int int64

// UnmarshalJSON reads a number without a fraction.
func (i *Int) UnmarshalJSON(b []byte) error {
	text := string(b)
	if text == "null" {
		return nil
	}
	if v, err := strconv.ParseInt(text, 10, 64); err == nil {
		*i = Int(v)
		return nil
	}
	if v, err := strconv.ParseUint(text, 10, 64); err == nil {
		*i = Int(min(v, math.MaxInt64))
		return nil
	}
	v, err := strconv.ParseFloat(text, 64)
	switch {
	case b[0] != '-' && (b[0] < '0' || b[0] > '9'):
		return typeError[Int](jsonKind(b))
	case err != nil && math.IsInf(v, 1), v >= math.MaxInt64:
		*i = math.MaxInt64
	case err != nil && math.IsInf(v, -1), v <= math.MinInt64:
		*i = math.MinInt64
	case err != nil || v != math.Trunc(v):
		return typeError[Int]("number " + text)
	default:
		*i = Int(v)
	}
	return nil
}

// maxOutput returns the first given number, as the maximum number of tokens to generate; 0: as many
// as fit.
func maxOutput(numbers ...*Int) int {
	for _, n := range numbers {
		if n != nil {
			return int(min(max(*n, 0), math.MaxInt32))
		}
	}
	return 0
}

func noOutput(numbers ...*Int) bool {
	for _, n := range numbers {
		if n != nil {
			return *n == 0
		}
	}
	return false
}

// LogitBias lists tokens with the values to add to their logits. On the wire it is OpenAI's object
// from token ids to numbers, or llama.cpp's array of pairs, which also allows a text in place of a
// token id, and false in place of a number.
type LogitBias []TokenBias

// TokenBias is one entry of a LogitBias.
type TokenBias struct {
	ID   int32  // used if Text is empty
	Text string // stands for all its tokens
	Bias float64
}

// UnmarshalJSON reads either form.
func (l *LogitBias) UnmarshalJSON(b []byte) error {
	*l = nil
	if b[0] == 'n' {
		return nil
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if _, err := d.Token(); err != nil {
		return err
	}
	switch b[0] {
	case '{':
		for d.More() && len(*l) <= MaxLogitBias {
			key, err := d.Token()
			if err != nil {
				return err
			}
			value, err := d.Token()
			if err != nil {
				return err
			}
			if !l.add(key, value) {
				return typeError[LogitBias]("object with something else")
			}
		}
		return nil
	case '[':
		for d.More() && len(*l) <= MaxLogitBias {
			var pair []any
			if err := d.Decode(&pair); err != nil || len(pair) != 2 || !l.add(pair[0], pair[1]) {
				return typeError[LogitBias]("array with something else")
			}
		}
		return nil
	}
	return typeError[LogitBias](jsonKind(b))
}

// add appends an entry; it reports false if the entry is invalid.
func (l *LogitBias) add(token, value any) bool {
	e := TokenBias{}
	switch t := token.(type) {
	case json.Number:
		id, err := strconv.ParseInt(t.String(), 10, 32)
		if err != nil {
			return false
		}
		e.ID = int32(id)
	case string:
		if id, err := strconv.ParseInt(t, 10, 32); err == nil {
			e.ID = int32(id)
		} else if e.Text = t; t == "" {
			return false
		}
	default:
		return false
	}
	switch v := value.(type) {
	case json.Number:
		bias, err := v.Float64()
		if err != nil {
			return false
		}
		e.Bias = bias
	case bool:
		if v {
			return false
		}
		e.Bias = math.Inf(-1)
	default:
		return false
	}
	*l = append(*l, e)
	return true
}

// MarshalJSON writes OpenAI's object if it can, and llama.cpp's array otherwise.
func (l LogitBias) MarshalJSON() ([]byte, error) {
	seen := map[int32]bool{}
	if !slices.ContainsFunc(l, func(e TokenBias) bool {
		again := seen[e.ID]
		seen[e.ID] = true
		return again || e.Text != "" || math.IsInf(e.Bias, -1)
	}) {
		object := make(map[string]float64, len(l))
		for _, e := range l {
			object[strconv.Itoa(int(e.ID))] = e.Bias
		}
		return json.Marshal(object)
	}
	list := make([][2]any, len(l))
	for i, e := range l {
		list[i] = [2]any{e.ID, e.Bias}
		if e.Text != "" {
			list[i][0] = e.Text
		}
		if math.IsInf(e.Bias, -1) {
			list[i][1] = false
		}
	}
	return json.Marshal(list)
}

// Samplers is the order of llama.cpp's samplers: a list of their names or a string of their
// letters.
type Samplers struct {
	Names   []string // nil: none were given
	Letters string
}

// IsZero reports whether the field was omitted.
func (s Samplers) IsZero() bool { return s.Names == nil && s.Letters == "" }

// UnmarshalJSON reads either form.
func (s *Samplers) UnmarshalJSON(b []byte) error {
	*s = Samplers{}
	switch b[0] {
	case 'n':
		return nil
	case '"':
		return json.Unmarshal(b, &s.Letters)
	case '[':
		if json.Unmarshal(b, &s.Names) == nil {
			return nil
		}
		return typeError[Samplers]("array with something else than strings")
	}
	return typeError[Samplers](jsonKind(b))
}

// MarshalJSON writes the form that was read.
func (s Samplers) MarshalJSON() ([]byte, error) {
	if s.Names != nil {
		return json.Marshal(s.Names)
	}
	return json.Marshal(s.Letters)
}

func (s *Sampling) validate() error {
	for _, c := range []struct {
		name     string
		v        *float64
		min, max float64
	}{
		{"temperature", s.Temperature, 0, 2},
		{"top_p", s.TopP, 0, 1},
		{"min_p", s.MinP, 0, 1},
		{"typical_p", s.TypicalP, 0, 1},
		{"top_n_sigma", s.TopNSigma, -1, 1000},
		{"dynatemp_range", s.DynatempRange, 0, 2},
		{"dynatemp_exponent", s.DynatempExponent, 0, 100},
		{"xtc_probability", s.XTCProbability, 0, 1},
		{"xtc_threshold", s.XTCThreshold, 0, 1},
		{"dry_multiplier", s.DRYMultiplier, 0, 1000},
		{"dry_base", s.DRYBase, 0, 1000},
		{"frequency_penalty", s.FrequencyPenalty, -2, 2},
		{"presence_penalty", s.PresencePenalty, -2, 2},
		{"repeat_penalty", s.RepeatPenalty, 0.01, 10},
		{"repetition_penalty", s.RepetitionPenalty, 0.01, 10},
	} {
		if c.v != nil && !(*c.v >= c.min && *c.v <= c.max) {
			return Invalid(c.name, "%s must be between %v and %v, not %v", c.name, c.min, c.max, *c.v)
		}
	}
	for _, c := range []struct {
		name     string
		v        *Int
		min, max int64
	}{
		{"top_k", s.TopK, -1, math.MaxInt64},
		{"max_tokens", s.MaxTokens, -1, math.MaxInt64},
		{"n_predict", s.NPredict, -1, math.MaxInt64},
		{"n", s.N, 1, 128},
		{"min_keep", s.MinKeep, 0, math.MaxInt64},
		{"dry_allowed_length", s.DRYAllowedLength, 1, math.MaxInt64},
		{"dry_penalty_last_n", s.DRYLastN, -1, math.MaxInt64},
		{"repeat_last_n", s.RepeatLastN, -1, math.MaxInt64},
		{"mirostat", s.Mirostat, 0, 2},
	} {
		if err := intRange(c.name, c.v, c.min, c.max); err != nil {
			return err
		}
	}
	if err := texts("stop", s.Stop, MaxStops, MaxStopBytes); err != nil {
		return err
	}
	if err := texts("dry_sequence_breakers", s.DRYBreakers, MaxBreakers, MaxStopBytes); err != nil {
		return err
	}
	if n := max(len(s.Samplers.Names), len(s.Samplers.Letters)); n > MaxSamplers {
		return Invalid("samplers", "samplers has %d entries; at most %d are taken", n, MaxSamplers)
	}
	return s.LogitBias.validate()
}

func texts(name string, list []string, most, bytes int) error {
	if len(list) > most {
		return Invalid(name, "%s has %d strings; at most %d are taken", name, len(list), most)
	}
	for _, text := range list {
		if text == "" {
			return Invalid(name, "%s must not have an empty string", name)
		}
		if len(text) > bytes {
			return Invalid(name, "%s has a string of %d bytes; at most %d are taken", name, len(text), bytes)
		}
	}
	return nil
}

func (l LogitBias) validate() error {
	if len(l) > MaxLogitBias {
		return Invalid("logit_bias", "logit_bias has more than %d entries", MaxLogitBias)
	}
	for _, e := range l {
		name := strconv.Itoa(int(e.ID))
		switch {
		case e.Text != "":
			if len(e.Text) > MaxBiasBytes {
				return Invalid("logit_bias", "logit_bias has a text of %d bytes; at most %d are taken", len(e.Text), MaxBiasBytes)
			}
			name = strconv.Quote(strings.ToValidUTF8(e.Text, "\uFFFD"))
		case e.ID < 0:
			return Invalid("logit_bias", "logit_bias has the key %q; keys are token ids or texts", name)
		}
		if !(e.Bias >= -100 && e.Bias <= 100) && !math.IsInf(e.Bias, -1) {
			return Invalid("logit_bias", "logit_bias of token %s must be between -100 and 100, not %v", name, e.Bias)
		}
	}
	return nil
}
