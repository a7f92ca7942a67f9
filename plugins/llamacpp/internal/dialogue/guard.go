package dialogue

import (
	"bytes"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/rbee-project/rbee/plugins/grammar"
)

// Vocabulary describes a model's tokens for a Guard. It is safe for concurrent use.
type Vocabulary struct {
	texts   []string // including those of markers that are control tokens
	ends    []bool
	grammar *grammar.Vocabulary
}

// NewVocabulary returns a vocabulary of token texts; ends marks the tokens that end an answer.
func NewVocabulary(texts []string, ends []bool) *Vocabulary {
	v := &Vocabulary{texts: texts, ends: ends}
	tokens := make([][]byte, len(texts))
	var eos []int
	for i, text := range texts {
		if ends[i] {
			eos = append(eos, i)
		} else if text != "" {
			tokens[i] = []byte(text)
		}
	}
	v.grammar = grammar.NewVocabulary(tokens, eos...)
	return v
}

// Guard keeps one answer within a constraint: it is inactive while the model thinks and speaks, and
// active from the beginning of a call. It also ends a block of thinking that has used up its token
// budget. It is not safe for concurrent use.
type Guard struct {
	v *Vocabulary
	c *Constraint // nil: calls are unconstrained

	matcher *grammar.Matcher // of the call, or of the whole answer; nil: inactive
	ended   bool             // nothing may follow
	lead    []byte           // the text since the beginning or the last call, while it is only whitespace
	tail    []byte           // the end of the text, as long as the longest trigger

	think  thinks   // the markers of thinking
	closes []string // markers that end the open block; the first may be forced
	ends   []string // closes, and the markers of calls that also end the block
	state  thinkState
	head   []byte // the text so far, until it is known whether it begins with thinking
	budget int    // thinking tokens left; negative: unlimited
	forced string // the rest of the marker that must follow now
}

type thinkState uint8

const (
	notYet  thinkState = iota // the answer may begin with thinking
	within                    //
	thought                   // thinking is over, or never began
)

// maxGuardLead bounds the whitespace before a call that needs no marker, in bytes.
const maxGuardLead = 256

// NewGuard returns the guard of an answer. c may be nil. opened is whether the prompt has opened a
// block of thinking. budget bounds its tokens; negative: unlimited.
func (f *Format) NewGuard(v *Vocabulary, c *Constraint, opened bool, budget int) *Guard {
	g := &Guard{v: v, c: c, budget: budget, state: thought, lead: []byte{}}
	switch {
	case f.syntax == harmony:
		g.think, g.state = thinks{"<|channel|>analysis<|message|>", "<|end|>"}, notYet
		g.closes = []string{"<|end|>"}
	case len(f.thinks) > 0:
		g.think, g.state = f.thinks[0], notYet
		g.closes = []string{g.think.close}
		if opened {
			for _, t := range f.thinks[1:] {
				g.closes = append(g.closes, t.close)
			}
		}
	}
	if g.ends = g.closes; c != nil {
		g.ends = f.endOfThinking(g.closes)
	}
	if opened && len(f.thinks) > 0 {
		g.state = within
		g.spend(0)
	}
	if c != nil && c.whole != nil {
		g.matcher = c.whole.NewMatcher(v.grammar)
	}
	return g
}

// spend subtracts thinking tokens from the budget.
func (g *Guard) spend(n int) {
	if g.state != within || g.budget < 0 || g.forced != "" {
		return
	}
	if g.budget = max(0, g.budget-n); g.budget == 0 && !g.midCharacter() {
		g.forced = g.closes[0]
		if kept := overlap(g.tail, g.closes[0]); kept > 0 {
			g.forced = g.forced[kept:]
		}
	}
}

// midCharacter reports whether the text ends within a character.
func (g *Guard) midCharacter() bool {
	for n := 1; n < utf8.UTFMax && n <= len(g.tail); n++ {
		if last := g.tail[len(g.tail)-n:]; utf8.RuneStart(last[0]) {
			return !utf8.FullRune(last)
		}
	}
	return false
}

// overlap returns how many bytes at the end of text begin marker.
func overlap(text []byte, marker string) int {
	for n := min(len(text), len(marker)-1); n > 0; n-- {
		if string(text[len(text)-n:]) == marker[:n] {
			return n
		}
	}
	return 0
}

// Try reports whether token may come next.
func (g *Guard) Try(token int) bool {
	if token < 0 || token >= len(g.v.texts) {
		return false
	}
	text, end := g.v.texts[token], g.v.ends[token]
	switch {
	case g.forced != "":
		return !end && text != "" && strings.HasPrefix(g.forced, text) && (g.matcher == nil || g.matcher.Try(token))
	case g.ended:
		return end
	case g.matcher != nil:
		return g.matcher.Try(token)
	case end || text == "" || g.c == nil || g.state == within:
		return true
	}
	t, rest := g.trigger(text)
	if t == nil || rest == "" {
		return true
	}
	return t.call.NewMatcher(g.v.grammar).AcceptBytes([]byte(rest)) == nil
}

// Mask sets the bits of the tokens that may come next and clears all others.
func (g *Guard) Mask(dst []uint64) error {
	if g.matcher != nil && g.forced == "" && !g.ended {
		return g.matcher.Mask(dst)
	}
	clear(dst)
	for i := range g.v.texts {
		if g.Try(i) {
			dst[i/64] |= 1 << (i % 64)
		}
	}
	return nil
}

// Forced returns the tokens that must come next, as tokenized by spell. before holds the tokens
// just before them.
func (g *Guard) Forced(before []int, spell func(text []byte) []int) []int {
	if g.matcher == nil || g.ended || g.forced != "" || g.state == within {
		return nil
	}
	return g.matcher.ForcedTokens(before, spell)
}

// trigger returns the trigger that text completes, and the text after it.
func (g *Guard) trigger(text string) (t *trigger, rest string) {
	if g.c == nil {
		return nil, ""
	}
	tail := string(g.tail) + text
	first := -1
	for i := range g.c.triggers {
		x := &g.c.triggers[i]
		if x.begins {
			if g.lead == nil {
				continue
			}
			if after, ok := strings.CutPrefix(strings.TrimLeft(string(g.lead)+text, spaces+";,"), x.text); ok {
				return x, after
			}
			continue
		}
		// It must end within text: otherwise it was found before.
		from := max(0, len(g.tail)-len(x.text)+1)
		if at := strings.Index(tail[from:], x.text); at >= 0 && (first < 0 || from+at < first) {
			first = from + at
			t, rest = x, tail[first+len(x.text):]
		}
	}
	return t, rest
}

// Accept appends token to the answer. It fails when Try would report false.
func (g *Guard) Accept(token int) error {
	if !g.Try(token) {
		return errors.New("the token cannot come next")
	}
	text := g.v.texts[token]
	if g.v.ends[token] {
		g.ended = true
		return nil
	}
	forced := g.forced != ""
	g.forced = strings.TrimPrefix(g.forced, text)
	if g.matcher != nil {
		if err := g.matcher.Accept(token); err != nil {
			return err
		}
	}
	spoken := g.follow(text)
	if g.matcher == nil {
		if spoken && g.c != nil {
			g.speak(text)
		}
	} else if g.c.whole == nil {
		g.callEnds()
	}
	g.tail = append(g.tail, text...)
	if keep := g.longest(); len(g.tail) > keep {
		g.tail = append(g.tail[:0], g.tail[len(g.tail)-keep:]...)
	}
	if !forced {
		g.spend(1)
	}
	return nil
}

// longest returns how much of the text may belong to an incomplete marker.
func (g *Guard) longest() int {
	n := len(g.think.open)
	for _, end := range g.ends {
		n = max(n, len(end))
	}
	if g.c != nil {
		for _, t := range g.c.triggers {
			n = max(n, len(t.text))
		}
	}
	return n
}

// follow tracks whether the model is thinking. It reports false when text belongs to the thinking.
func (g *Guard) follow(text string) (spoken bool) {
	switch g.state {
	case notYet:
		g.head = append(g.head, text...)
		head := strings.TrimLeft(string(g.head), spaces)
		switch {
		case strings.HasPrefix(head, g.think.open):
			g.state = within
			if strings.Contains(head[len(g.think.open):], g.think.close) {
				g.thought()
			}
			return false
		case !strings.HasPrefix(g.think.open, head) || len(g.head) > maxGuardLead:
			g.state, g.head = thought, nil
		}
	case within:
		for i, end := range g.ends {
			from := max(0, len(g.tail)-len(end)+1)
			if !strings.Contains(string(g.tail[from:])+text, end) {
				continue
			}
			if i < len(g.closes) {
				g.thought()
				return false
			}
			g.state, g.forced, g.lead = thought, "", nil // a call
			return true
		}
		return false
	}
	return true
}

// thought ends a block of thinking.
func (g *Guard) thought() {
	g.state, g.head, g.forced = thought, nil, ""
	g.lead, g.tail = []byte{}, g.tail[:0]
}

// speak looks for the beginning of a call in the text outside thinking.
func (g *Guard) speak(text string) {
	t, rest := g.trigger(text)
	if t == nil {
		if g.lead != nil {
			g.lead = append(g.lead, text...)
			if said := bytes.TrimLeft(g.lead, spaces+";,"); len(g.lead) > maxGuardLead || len(said) > 0 && !g.mayBegin(said) {
				g.lead = nil
			}
		}
		return
	}
	g.matcher = t.call.NewMatcher(g.v.grammar)
	g.lead, g.tail = nil, g.tail[:0]
	if rest != "" && g.matcher.AcceptBytes([]byte(rest)) != nil { // Try has checked it
		g.matcher = nil
		return
	}
	g.callEnds()
}

// mayBegin reports whether said is the beginning of some trigger.
func (g *Guard) mayBegin(said []byte) bool {
	for _, t := range g.c.triggers {
		if t.begins && strings.HasPrefix(t.text, string(said)) {
			return true
		}
	}
	return false
}

// callEnds deactivates the guard after a call.
func (g *Guard) callEnds() {
	if !g.matcher.Done() {
		return
	}
	g.matcher = nil
	g.lead = []byte{}
	g.ended = !g.c.parallel
}

// Done reports whether the answer may end here.
func (g *Guard) Done() bool {
	return g.forced == "" && (g.matcher == nil || g.matcher.Done())
}
