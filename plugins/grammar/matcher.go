package grammar

import (
	"errors"
	"fmt"
	"slices"
)

// Matcher follows one text through a grammar. It is not safe for concurrent use; different
// matchers of one grammar are.
type Matcher struct {
	g       *Grammar
	v       *Vocabulary
	at      config
	history []config // states before each accepted token
	ended   bool
}

// NewMatcher returns a matcher at the start of a text. Its masks are over the tokens of v.
func (g *Grammar) NewMatcher(v *Vocabulary) *Matcher {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.maskVocab != v {
		g.maskVocab = v
		clear(g.masks)
	}
	return &Matcher{g: g, v: v, at: g.first}
}

var errEnded = errors.New("grammar: the text has ended")

// Clone returns a matcher in the same state.
func (m *Matcher) Clone() *Matcher {
	c := *m
	c.history = slices.Clone(m.history)
	return &c
}

// Done reports whether the text may end here.
func (m *Matcher) Done() bool {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	return m.g.final(&m.at)
}

// run returns the state after text.
func (m *Matcher) run(text []byte) (config, bool) {
	c := m.at
	c.text = slices.Clone(c.text)
	for _, b := range text {
		if c = m.g.step(&c, b); c.dead() {
			return config{}, false
		}
	}
	return c, true
}

func (m *Matcher) isEnd(token int) bool { return slices.Contains(m.v.eos, token) }

// Err returns ErrExhausted when the grammar has used up its bounds. Mask and Accept return it too.
func (m *Matcher) Err() error {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if m.g.set.exhausted() {
		return ErrExhausted
	}
	return nil
}

// Try reports whether token may come next. It costs far less than a mask.
func (m *Matcher) Try(token int) bool {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	return m.try(token)
}

func (m *Matcher) try(token int) bool {
	if m.ended || token < 0 || token >= len(m.v.tokens) {
		return false
	}
	if m.isEnd(token) {
		return m.g.final(&m.at)
	}
	if t := m.v.tokens[token]; len(t) > 0 && len(t) <= 255 {
		_, ok := m.run(t)
		return ok
	}
	return false
}

// Accept appends token to the text. It fails, and changes nothing, when token cannot come next.
func (m *Matcher) Accept(token int) error {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if m.ended {
		return errEnded
	}
	if m.g.set.exhausted() {
		return ErrExhausted
	}
	if token < 0 || token >= len(m.v.tokens) {
		return fmt.Errorf("grammar: token %d is outside of the vocabulary", token)
	}
	if m.isEnd(token) {
		if !m.g.final(&m.at) {
			return errors.New("grammar: the text cannot end here")
		}
		m.history = append(m.history, m.at)
		m.ended = true
		return nil
	}
	t := m.v.tokens[token]
	if len(t) == 0 {
		return fmt.Errorf("grammar: token %d stands for no text", token)
	}
	next, ok := m.run(t)
	if !ok {
		return m.refused(t)
	}
	m.history = append(m.history, m.at)
	m.at = next
	m.g.relieve()
	return nil
}

// AcceptBytes appends text that is not one token, such as what Forced returned. Rollback takes
// it for one token.
func (m *Matcher) AcceptBytes(text []byte) error {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if m.ended {
		return errEnded
	}
	next, ok := m.run(text)
	if !ok {
		return m.refused(text)
	}
	m.history = append(m.history, m.at)
	m.at = next
	return nil
}

func (m *Matcher) refused(text []byte) error {
	if m.g.set.exhausted() {
		return ErrExhausted
	}
	return fmt.Errorf("grammar: %q cannot come next", text)
}

// Rollback takes the last n accepted tokens back.
func (m *Matcher) Rollback(n int) error {
	if n < 0 || n > len(m.history) {
		return fmt.Errorf("grammar: cannot take back %d of %d tokens", n, len(m.history))
	}
	if n > 0 {
		m.at = m.history[len(m.history)-n]
		m.history = m.history[:len(m.history)-n]
		m.ended = false
	}
	return nil
}

const maxForced = 4096

// Forced returns the text that every document has next: where only one byte can come, that byte,
// and so on. It is empty where there is a choice, or where the text may end.
func (m *Matcher) Forced() []byte {
	m.g.mu.Lock()
	defer m.g.mu.Unlock()
	if m.ended {
		return nil
	}
	var out []byte
	c := m.at
	c.text = slices.Clone(c.text)
	for len(out) < maxForced && !m.g.final(&c) {
		b, ok := m.g.only(&c)
		if !ok {
			break
		}
		if c = m.g.step(&c, b); c.dead() {
			break
		}
		out = append(out, b)
	}
	return out
}

// only returns the one byte that can come next.
func (g *Grammar) only(c *config) (byte, bool) {
	found := -1
	for b := range 256 {
		x := *c
		x.text = slices.Clip(x.text)
		if x = g.step(&x, byte(b)); x.dead() {
			continue
		}
		if found >= 0 {
			return 0, false
		}
		found = b
	}
	return byte(found), found >= 0
}
