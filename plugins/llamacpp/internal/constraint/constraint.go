package constraint

import (
	"errors"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// Vocabulary is the tokens of a model. It is safe for concurrent use.
type Vocabulary struct {
	pieces []string
	ends   []bool
	spell  func(token int32) string

	prepare sync.Once // guards the preparation of blank, which takes a while and few models need
	grammar *grammar.Vocabulary
	blank   []uint64 // tokens of only whitespace
}

// NewVocabulary describes the tokens of a model: the text of each, empty for control tokens; those
// that end an answer; and how control tokens are spelled.
func NewVocabulary(pieces []string, ends []bool, spell func(token int32) string) *Vocabulary {
	return &Vocabulary{pieces: pieces, ends: ends, spell: spell}
}

func (v *Vocabulary) ready() *Vocabulary {
	v.prepare.Do(func() {
		tokens := make([][]byte, len(v.pieces))
		v.blank = make([]uint64, v.MaskLen())
		var ends []int
		for i, p := range v.pieces {
			tokens[i] = []byte(p)
			if v.ends[i] {
				ends = append(ends, i)
			} else if p != "" && strings.Trim(p, space) == "" {
				v.blank[i/64] |= 1 << (i % 64)
			}
		}
		v.grammar = grammar.NewVocabulary(tokens, ends...)
	})
	return v
}

// MaskLen returns the number of words of a mask.
func (v *Vocabulary) MaskLen() int { return (len(v.pieces) + 63) / 64 }

// text returns the spelling of a token, including control tokens.
func (v *Vocabulary) text(token int) string {
	if p := v.pieces[token]; p != "" {
		return p
	}
	return v.spell(int32(token))
}

const (
	space     = " \t\r\n"
	maxBlanks = 4 // whitespace tokens between thinking and answer
)

// Thinking describes the thinking part of an answer, to which a grammar does not apply. The zero
// value is for models that do not think.
type Thinking struct {
	Open, Close string // the markers around it, such as <think> and </think>
	Opened      bool   // the prompt has opened it
}

// Constraint follows one answer through a grammar. It is a sampler.Constraint and not safe for
// concurrent use.
//
// An answer that begins with thinking is unconstrained until that ends. The opening marker is
// recognised as a single token, or as several tokens that the grammar does not allow. Before the
// answer begins, at most four tokens of whitespace are allowed.
type Constraint struct {
	v        *Vocabulary
	matcher  *grammar.Matcher
	thinking Thinking
	state    state
	text     string // possible beginning of a marker
	blanks   int    // whitespace tokens still allowed
}

type state uint8

const (
	following state = iota // in the grammar
	opening                // thinking may begin
	asleep                 // within thinking
)

// New returns the constraint of an answer.
func New(g *grammar.Grammar, v *Vocabulary, t Thinking) *Constraint {
	v.ready()
	c := &Constraint{v: v, matcher: g.NewMatcher(v.grammar), thinking: t}
	switch {
	case t.Close == "":
	case t.Opened:
		c.state, c.blanks = asleep, maxBlanks
	case t.Open != "":
		c.state, c.blanks = opening, maxBlanks
	}
	return c
}

// Done reports whether the answer may end.
func (c *Constraint) Done() bool { return c.state == following && c.matcher.Done() }

// step is the effect of a token on the state outside the grammar.
type step struct {
	state state
	text  string
	blank bool
	feed  string // the part that the grammar sees
	ok    bool
}

// look returns the effect of a token. It reports false when the grammar alone decides.
func (c *Constraint) look(token int) (step, bool) {
	if c.state == following {
		if c.blanks > 0 && c.v.blank[token/64]>>(token%64)&1 != 0 {
			return step{state: following, blank: true, ok: true}, true
		}
		return step{}, false
	}
	if c.v.ends[token] {
		return step{}, c.state == asleep || c.text != "" // an answer cannot end within thinking
	}
	if c.state == asleep {
		return c.dream(c.text + c.v.text(token)), true
	}
	piece := c.v.text(token)
	text := strings.TrimLeft(c.text+piece, space)
	switch {
	case text == "" && piece != "":
		return step{state: opening, blank: true, ok: c.blanks > 0}, true
	case strings.HasPrefix(text, c.thinking.Open):
		return c.dream(text[len(c.thinking.Open):]), true
	case text != "" && strings.HasPrefix(c.thinking.Open, text) && (c.text != "" || !c.matcher.Try(token)):
		return step{state: opening, text: text, ok: true}, true
	}
	return step{}, c.text != "" // a partial marker continues only with that marker
}

// dream returns the step for text within thinking.
func (c *Constraint) dream(text string) step {
	i := strings.Index(text, c.thinking.Close)
	if i < 0 {
		return step{state: asleep, text: text[max(0, len(text)-len(c.thinking.Close)+1):], ok: true}
	}
	rest := strings.TrimLeft(text[i+len(c.thinking.Close):], space)
	s := step{state: following, feed: rest, ok: true}
	if rest != "" {
		s.ok = c.matcher.Clone().AcceptBytes([]byte(rest)) == nil
	}
	return s
}

// Try reports whether token may come next.
func (c *Constraint) Try(token int) bool {
	if s, ok := c.look(token); ok {
		return s.ok
	}
	return c.matcher.Try(token)
}

// Mask sets the bits of the tokens that may come next and clears all others. It returns
// grammar.ErrExhausted when that exceeds the bounds of the grammar.
func (c *Constraint) Mask(dst []uint64) error {
	if c.state != asleep && c.text == "" {
		if err := c.matcher.Mask(dst); err != nil {
			return err
		}
	} else {
		clear(dst)
	}
	if c.state == following {
		if c.blanks > 0 {
			for i, word := range c.v.blank {
				dst[i] |= word
			}
		}
		return nil
	}
	for token := range c.v.pieces { // at most once an answer
		if c.state == opening && c.text == "" && dst[token/64]>>(token%64)&1 != 0 {
			continue
		}
		if s, ok := c.look(token); ok && s.ok {
			dst[token/64] |= 1 << (token % 64)
		}
	}
	return nil
}

// errRefused is returned for a token that the constraint does not allow.
var errRefused = errors.New("constraint: the token cannot come next")

// Accept appends token to the answer.
func (c *Constraint) Accept(token int) error {
	s, ok := c.look(token)
	if !ok {
		c.state, c.blanks, c.text = following, 0, ""
		return c.matcher.Accept(token)
	}
	if !s.ok {
		return errRefused
	}
	if s.blank {
		c.blanks--
		return nil
	}
	if s.feed != "" {
		if err := c.matcher.AcceptBytes([]byte(s.feed)); err != nil {
			return err
		}
		c.blanks = 0
	}
	c.state, c.text = s.state, s.text
	return nil
}

// Forced returns the tokens that must come next, as tokenized by spell. before holds the tokens
// just before them.
func (c *Constraint) Forced(before []int, spell func(text []byte) []int) []int {
	if c.state != following || c.blanks > 0 {
		return nil
	}
	return c.matcher.ForcedTokens(before, spell)
}

// Clone returns a constraint in the same state, for another answer to the same prompt.
func (c *Constraint) Clone() *Constraint {
	out := *c
	out.matcher = c.matcher.Clone()
	return &out
}
