package sampler

import (
	"errors"
	"fmt"
	"math"
)

// Constraint restricts which tokens may come next. A grammar.Matcher is one.
type Constraint interface {
	// Try reports whether token may come next.
	Try(token int) bool
	// Mask sets the bits of the tokens that may come next and clears all others. An error aborts
	// the choice.
	Mask(dst []uint64) error
}

// ErrNone means that no token is left to choose from: every logit is negative infinity or NaN, or
// the constraint allows none.
var ErrNone = errors.New("no token is left to choose from")

// Sampler chooses the tokens of one text. It is not safe for concurrent use.
type Sampler struct {
	p          Params
	vocabulary int
	stages     []Stage
	pieces     []string // the text of each token, for breakers
	breakers   [][]byte
	longest    int // bytes of the longest breaker

	position  uint64 // tokens of prompt and answer
	answered  int    // tokens of the answer
	history   []int32
	keeps     bool // maintain history
	repeated  counts
	said      counts
	lastBreak int // index in history of the last token that ends a breaker; -1: none
	text      []byte
}

// New returns a sampler for a text. vocabulary is the number of tokens; pieces holds their texts,
// needed only for the breakers of DRY. Its error is an *Error.
func New(p Params, vocabulary int, pieces []string) (*Sampler, error) {
	if err := p.Check(vocabulary); err != nil {
		return nil, err
	}
	s := &Sampler{p: p, vocabulary: vocabulary, stages: p.Stages, pieces: pieces, lastBreak: -1}
	if s.stages == nil {
		s.stages = DefaultStages()
	}
	s.p.MinKeep = max(1, p.MinKeep)
	if s.dry() {
		for _, b := range p.DRYBreakers {
			s.breakers = append(s.breakers, []byte(b))
			s.longest = max(s.longest, len(b))
		}
	}
	s.keeps = s.dry() || s.repeats() || s.counts()
	return s, nil
}

func (s *Sampler) dry() bool     { return s.p.DRYMultiplier > 0 && s.p.DRYBase >= 1 && s.p.DRYLastN != 0 }
func (s *Sampler) repeats() bool { return s.p.Repeat != 1 && s.p.RepeatLastN != 0 }
func (s *Sampler) counts() bool {
	return (s.p.Frequency != 0 || s.p.Presence != 0) && s.p.PresenceLast != 0
}

// Prompt appends the tokens before the answer.
func (s *Sampler) Prompt(tokens []int32) {
	s.position += uint64(len(tokens))
	if !s.keeps {
		return
	}
	s.history = append(s.history, tokens...)
	if s.repeats() {
		from := 0
		if n := s.p.RepeatLastN; n > 0 {
			from = max(0, len(s.history)-n)
		}
		s.repeated = counts{}
		for _, t := range s.history[from:] {
			s.repeated.add(t)
		}
	}
	if len(s.breakers) > 0 {
		s.lastBreak = -1
		for i := len(s.history) - 1; i >= 0 && s.lastBreak < 0; i-- {
			if s.breaks(i) {
				s.lastBreak = i
			}
		}
	}
}

// Accept appends a token to the answer.
func (s *Sampler) Accept(token int32) {
	s.position++
	s.answered++
	if !s.keeps {
		return
	}
	s.history = append(s.history, token)
	at := len(s.history) - 1
	if s.repeats() {
		s.repeated.add(token)
		if n := s.p.RepeatLastN; n > 0 && at >= n {
			s.repeated.remove(s.history[at-n])
		}
	}
	if s.counts() {
		s.said.add(token)
		if n := s.p.PresenceLast; n > 0 && s.answered > n {
			s.said.remove(s.history[at-n])
		}
	}
	if len(s.breakers) > 0 && s.breaks(at) {
		s.lastBreak = at
	}
}

// Choose returns the next token without accepting it. c may be nil. Choose modifies row while it
// runs and restores it before it returns. It fails with ErrNone, with the error of a mask, or when
// the length of row is not that of the vocabulary.
func (s *Sampler) Choose(w *Work, row []float32, c Constraint) (int32, error) {
	if len(row) != s.vocabulary {
		return -1, fmt.Errorf("a row of %d logits for a vocabulary of %d", len(row), s.vocabulary)
	}
	defer w.restore()
	w.begin(row)
	s.bias(w)
	s.run(w)
	i := s.draw(w, drawPick)
	if i < 0 {
		return -1, ErrNone
	}
	token := w.token(i)
	if c == nil || c.Try(int(token)) {
		return token, nil
	}
	if n := (s.vocabulary + 63) / 64; len(w.mask) != n {
		w.mask = make([]uint64, n)
	}
	if err := c.Mask(w.mask); err != nil {
		return -1, err
	}
	w.keepMasked(w.mask)
	if i = s.draw(w, drawAgain); i >= 0 {
		return w.token(i), nil
	}
	w.restore()
	w.begin(row)
	s.bias(w)
	w.keepMasked(w.mask)
	s.run(w)
	if i = s.draw(w, drawAgain); i >= 0 {
		return w.token(i), nil
	}
	return -1, ErrNone
}

func (s *Sampler) greedy() bool { return s.p.Temperature == 0 && s.p.DynamicRange == 0 }

// run passes the candidates through the stages.
func (s *Sampler) run(w *Work) {
	p := &s.p
	greedy := s.greedy()
	for _, stage := range s.stages {
		switch stage {
		case StagePenalties:
			s.penalise(w)
			continue
		case StageDRY:
			if s.dry() {
				s.penaliseRepetition(w)
			}
			continue
		}
		if greedy {
			continue // the others only narrow the candidates
		}
		switch stage {
		case StageTopNSigma:
			w.topNSigma(p.TopNSigma)
		case StageTopK:
			w.topK(p.TopK)
		case StageTypical:
			w.typical(p.Typical, p.MinKeep)
		case StageTopP:
			w.topP(p.TopP, p.MinKeep)
		case StageMinP:
			w.minP(p.MinP, p.MinKeep)
		case StageXTC:
			if p.XTCProbability > 0 && uniform(p.Seed, p.Choice, s.position, drawXTC) < p.XTCProbability {
				w.xtc(p.XTCThreshold, p.MinKeep)
			}
		case StageTemperature:
			w.temperature(p.Temperature, p.DynamicRange, p.DynamicExponent)
		}
	}
	if greedy {
		w.scale = math.Inf(1)
	}
}

// draw chooses a candidate and returns its index, or -1 without candidates.
func (s *Sampler) draw(w *Work, draw uint32) int {
	if math.IsInf(w.scale, 1) {
		return w.largest()
	}
	return w.pick(uniform(s.p.Seed, s.p.Choice, s.position, draw))
}

func (s *Sampler) bias(w *Work) {
	for _, b := range s.p.Bias {
		w.change(int(b.Token), w.lg[b.Token]+b.Add)
	}
}

// penalise applies the repetition, frequency and presence penalties as llama.cpp does. They are
// defined on logits before the temperature; after it they are scaled accordingly.
func (s *Sampler) penalise(w *Work) {
	if s.repeats() {
		for _, t := range s.repeated.list {
			if i := w.find(t.token); i >= 0 {
				l := w.lg[i]
				if l > 0 {
					l /= float32(s.p.Repeat)
				} else {
					l *= float32(s.p.Repeat)
				}
				w.change(i, l)
			}
		}
	}
	if s.counts() {
		for _, t := range s.said.list {
			if i := w.find(t.token); i >= 0 {
				minus := float64(t.n)*s.p.Frequency + s.p.Presence
				w.change(i, w.lg[i]-float32(minus/w.scale))
			}
		}
	}
}

// counts counts tokens.
type counts struct {
	index map[int32]int // token → index in list
	list  []count
}

type count struct {
	token int32
	n     int32
}

func (c *counts) add(token int32) {
	if i, ok := c.index[token]; ok {
		c.list[i].n++
		return
	}
	if c.index == nil {
		c.index = map[int32]int{}
	}
	c.index[token] = len(c.list)
	c.list = append(c.list, count{token, 1})
}

func (c *counts) remove(token int32) {
	i, ok := c.index[token]
	if !ok {
		return
	}
	if c.list[i].n--; c.list[i].n > 0 {
		return
	}
	last := len(c.list) - 1
	c.list[i] = c.list[last]
	c.index[c.list[i].token] = i
	c.list = c.list[:last]
	delete(c.index, token)
}
