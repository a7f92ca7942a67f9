package llamatest

import (
	"slices"
	"testing"
)

// Logits returns the logits after a prompt, read in one piece, and what is said after it, read a
// token at a time. It goes on from the last call where that had the same prompt. They are valid
// until the next call.
func (l *Loop) Logits(t testing.TB, prompt, said []Token) []float32 {
	t.Helper()
	n := len(prompt)
	if len(said) == 0 || len(l.read) < n || !slices.Equal(l.read[:n], prompt) {
		l.rewind(t, 0)
		l.read = nil
		if logits := l.evaluate(t, prompt); len(said) == 0 {
			return logits
		}
	}
	at := 0
	for at < min(len(l.read)-n, len(said)-1) && l.read[n+at] == said[at] {
		at++
	}
	if n+at < len(l.read) {
		l.rewind(t, n+at)
	}
	for _, token := range said[at : len(said)-1] {
		l.evaluate(t, []Token{token})
	}
	return l.evaluate(t, said[len(said)-1:])
}
