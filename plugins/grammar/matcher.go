package grammar

import (
	"errors"
	"fmt"
	"slices"
)

// Matcher follows one text through a grammar. It is not safe for concurrent use; different
// matchers of one grammar are.
type Matcher struct {
	g          *Grammar
	v          *Vocabulary
	generation int // of the states of g in at and history
	at         config
	text       []byte // all of it, for replay
	history    []past // before each accepted token
	ended      bool
	err        error // if not nil, the matcher cannot continue
}

// past is the state of a matcher after some bytes of its text.
type past struct {
	at     config
	length int
}

// NewMatcher returns a matcher at the start of a text, whose masks are over the tokens of v. The
// matchers of a grammar share masks only while they use the same vocabulary.
func (g *Grammar) NewMatcher(v *Vocabulary) *Matcher {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.maskVocab != v {
		g.maskVocab = v
		g.dropMasks()
	}
	return &Matcher{g: g, v: v, generation: g.generation, at: g.first}
}

var errEnded = errors.New("grammar: the text has ended")

// Clone returns a matcher in the same state.
func (m *Matcher) Clone() *Matcher {
	c := *m
	c.text = slices.Clip(m.text)
	m.text = c.text
	c.history = slices.Clone(m.history)
	return &c
}

// begin locks the grammar and sets the work that one call may use. If the grammar has dropped its
// states, begin replays the text.
func (m *Matcher) begin(work int) error {
	m.g.mu.Lock()
	if m.err == nil && m.generation != m.g.generation {
		m.err = m.replay()
	}
	m.g.set.work = work
	return m.err
}

// end reports whether the work sufficed, and unlocks the grammar.
func (m *Matcher) end() error {
	defer m.g.mu.Unlock()
	if m.g.set.exhausted() {
		// Results computed while the work ran out may be wrong.
		m.g.reset()
		return ErrExhausted
	}
	m.g.relieve()
	return nil
}

// replay follows the text of the matcher from the start of the grammar.
func (m *Matcher) replay() error {
	g := m.g
	if g.err != nil {
		return ErrExhausted
	}
	g.set.work = maxWork
	at, done := g.first, 0
	follow := func(length int) bool {
		next, ok := g.run(at, m.text[done:length])
		at, done = next, length
		return ok
	}
	for i := range m.history {
		if !follow(m.history[i].length) {
			return ErrExhausted
		}
		m.history[i].at = at
	}
	if !follow(len(m.text)) || g.set.exhausted() {
		return ErrExhausted
	}
	// A text that needs nearly all the memory would be replayed after every token.
	if g.set.bytes-g.floor > (g.opts.maxMemory()-g.floor)/2 {
		return ErrExhausted
	}
	m.at, m.generation = at, g.generation
	return nil
}

// Done reports whether the text may end here. It reports false when the matcher cannot continue.
func (m *Matcher) Done() bool {
	if m.begin(callWork) != nil {
		m.g.mu.Unlock()
		return false
	}
	done := m.g.final(&m.at)
	return m.end() == nil && done
}

// run returns the state after text.
func (g *Grammar) run(c config, text []byte) (config, bool) {
	c.text = slices.Clone(c.text)
	for _, b := range text {
		if c = g.step(&c, b); c.dead() {
			return config{}, false
		}
	}
	return c, true
}

func (m *Matcher) isEnd(token int) bool { return slices.Contains(m.v.eos, token) }

// Err returns ErrExhausted when the matcher cannot continue, because its text alone exceeds the
// bounds on memory or work.
func (m *Matcher) Err() error {
	err := m.begin(callWork)
	m.g.mu.Unlock()
	return err
}

// Try reports whether token may come next. It costs far less than a mask. It reports false when
// that cannot be determined within the bounds of the grammar.
func (m *Matcher) Try(token int) bool {
	if m.begin(callWork) != nil {
		m.g.mu.Unlock()
		return false
	}
	ok := m.try(token)
	return m.end() == nil && ok
}

func (m *Matcher) try(token int) bool {
	if m.ended || token < 0 || token >= len(m.v.tokens) {
		return false
	}
	if m.isEnd(token) {
		return m.g.final(&m.at)
	}
	if t := m.v.tokens[token]; len(t) > 0 && len(t) <= maxToken {
		_, ok := m.g.run(m.at, t)
		return ok
	}
	return false
}

// Accept appends token to the text. It fails, and changes nothing, when token cannot come next. It
// returns ErrExhausted when that cannot be determined within the bounds of the grammar.
func (m *Matcher) Accept(token int) error {
	if token < 0 || token >= len(m.v.tokens) {
		return fmt.Errorf("grammar: token %d is outside of the vocabulary", token)
	}
	if !m.isEnd(token) {
		switch n := len(m.v.tokens[token]); {
		case n == 0:
			return fmt.Errorf("grammar: token %d stands for no text", token)
		case n > maxToken:
			return fmt.Errorf("grammar: token %d is longer than %d bytes", token, maxToken)
		}
		return m.AcceptBytes(m.v.tokens[token])
	}
	if m.ended {
		return errEnded
	}
	if err := m.begin(callWork); err != nil {
		m.g.mu.Unlock()
		return err
	}
	final := m.g.final(&m.at)
	if err := m.end(); err != nil {
		return err
	}
	if !final {
		return errors.New("grammar: the text cannot end here")
	}
	m.history = append(m.history, past{m.at, len(m.text)})
	m.ended = true
	return nil
}

// AcceptBytes appends text that is not a single token, such as the result of Forced. Rollback
// counts it as one token.
func (m *Matcher) AcceptBytes(text []byte) error {
	if m.ended {
		return errEnded
	}
	if err := m.begin(callWork + len(text)*byteWork); err != nil {
		m.g.mu.Unlock()
		return err
	}
	next, ok := m.g.run(m.at, text)
	if ok && !m.g.set.exhausted() {
		m.history = append(m.history, past{m.at, len(m.text)})
		m.at = next
		m.text = append(m.text, text...)
	}
	if err := m.end(); err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("grammar: %q cannot come next", text)
	}
	return nil
}

// Rollback removes the last n accepted tokens.
func (m *Matcher) Rollback(n int) error {
	if n < 0 || n > len(m.history) {
		return fmt.Errorf("grammar: cannot take back %d of %d tokens", n, len(m.history))
	}
	if n > 0 {
		p := m.history[len(m.history)-n]
		m.at, m.text = p.at, slices.Clip(m.text[:p.length])
		m.history = m.history[:len(m.history)-n]
		m.ended, m.err = false, nil
	}
	return nil
}
