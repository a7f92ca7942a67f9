package llamatest

import (
	"slices"
	"testing"
)

// roundingCuts is the number of places at which Rounding cuts a prompt.
const roundingCuts = 8

// Rounding returns how much the logits after a prompt depend on how it is read: the largest
// difference of a logit between the loop's usual way and others: all tokens but the last and then
// that, one token at a time, and cut in two at several places. It is 0 when the kernels sum in the
// same order for any number of rows.
func (l *Loop) Rounding(t testing.TB, prompt []Token) float32 {
	t.Helper()
	n := len(prompt)
	usual := slices.Clone(l.inParts(t, prompt, nil))
	ways := [][]int{{n - 1}, nil}
	for at := 1; at < n; at++ {
		ways[1] = append(ways[1], at)
		if at%max(1, n/roundingCuts) == 0 {
			ways = append(ways, []int{at})
		}
	}
	greatest := float32(0)
	for _, cuts := range ways {
		for i, logit := range l.inParts(t, prompt, cuts) {
			greatest = max(greatest, logit-usual[i], usual[i]-logit)
		}
	}
	return greatest
}

// inParts returns the logits after a prompt that is read in parts, cut before the given positions.
func (l *Loop) inParts(t testing.TB, prompt []Token, cuts []int) []float32 {
	t.Helper()
	l.rewind(t, 0)
	at := 0
	for _, cut := range cuts {
		l.evaluate(t, prompt[at:cut])
		at = cut
	}
	return l.evaluate(t, prompt[at:])
}

// Logits returns the logits after prompt, read as the settings specify, and said, read one token at
// a time. It continues from the last call if that had the same prompt. The result is valid until
// the next call.
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
