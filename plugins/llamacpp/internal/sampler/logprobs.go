package sampler

import (
	"cmp"
	"math"
	"slices"
)

// MaxLogProbs bounds the number of likeliest tokens that LogProbs returns, as OpenAI does.
const MaxLogProbs = 20

// LogProb is the natural logarithm of a token's probability.
type LogProb struct {
	Token   int32
	LogProb float64
}

// LogProbs returns the log probability of token, and appends the n likeliest tokens to dst, the
// likeliest first. n is capped at MaxLogProbs.
//
// The probabilities are those of the model's own distribution: the softmax of the row, before bias,
// penalties, temperature, truncation and constraints. So they show how likely the model finds a
// text, however it was chosen; they are comparable between requests; and a constraint shows as a
// low probability. A probability of 0 is negative infinity.
func (w *Work) LogProbs(row []float32, token int32, n int, dst []LogProb) (float64, []LogProb) {
	w.begin(row)
	defer w.restore()
	m := float64(w.max())
	sum := 0.0
	for _, l := range row {
		sum += weight(float64(l) - m)
	}
	logSum := m + math.Log(sum)
	of := func(l float32) float64 {
		if p := float64(l) - logSum; p <= 0 {
			return p
		} else if p > 0 {
			return 0
		}
		return math.Inf(-1) // NaN
	}
	if n = min(n, MaxLogProbs, len(row)); n > 0 {
		from := len(dst)
		w.topK(n)
		for i, l := range w.lg {
			dst = append(dst, LogProb{w.token(i), of(l)})
		}
		top := dst[from:]
		slices.SortFunc(top, func(a, b LogProb) int {
			return cmp.Or(cmp.Compare(b.LogProb, a.LogProb), cmp.Compare(a.Token, b.Token))
		})
		dst = dst[:from+min(n, len(top))]
	}
	if token < 0 || int(token) >= len(row) {
		return math.Inf(-1), dst
	}
	return of(row[token]), dst
}
