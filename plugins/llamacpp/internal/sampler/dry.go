package sampler

import (
	"bytes"
	"math"
)

// breaks reports whether a breaker ends in the token at index i of the history.
func (s *Sampler) breaks(i int) bool {
	from, before := i, 0
	for from > 0 && before < s.longest-1 {
		from--
		before += len(s.piece(from))
	}
	s.text = s.text[:0]
	for j := from; j < i; j++ {
		s.text = append(s.text, s.piece(j)...)
	}
	before = len(s.text)
	s.text = append(s.text, s.piece(i)...)
	for _, b := range s.breakers {
		if at := bytes.LastIndex(s.text, b); at >= 0 && at+len(b) > before {
			return true
		}
	}
	return false
}

// piece returns the text of the token at index i of the history.
func (s *Sampler) piece(i int) string {
	if t := s.history[i]; t >= 0 && int(t) < len(s.pieces) {
		return s.pieces[t]
	}
	return ""
}

// penaliseRepetition is DRY (p-e-w, text-generation-webui #5677; koboldcpp's linear algorithm, as
// in llama.cpp): a token that would continue a repetition of n tokens loses
// multiplier · base^(n - allowed length).
func (s *Sampler) penaliseRepetition(w *Work) {
	h := s.history
	if n := s.p.DRYLastN; n > 0 && len(h) > n {
		h = h[len(h)-n:]
	}
	limit := min(len(s.history)-1-s.lastBreak, len(h)) // tokens since the last breaker
	if limit < s.p.DRYAllowedLength || len(h) <= s.p.DRYAllowedLength {
		return
	}
	// The Z algorithm over the reversed history: the z[k] tokens up to k equal the last z[k] ones.
	n := len(h)
	at := func(k int) int32 { return h[n-1-k] }
	if cap(w.z) < n {
		w.z = make([]int32, n+n/4)
	}
	z := w.z[:n]
	w.hits = w.hits[:0]
	for k, l, r := 1, 0, 0; k < n; k++ {
		m := 0
		if k < r {
			m = min(r-k, int(z[k-l]))
		}
		for k+m < n && at(m) == at(k+m) {
			m++
		}
		z[k] = int32(m)
		if k+m > r {
			l, r = k, k+m
		}
		if m = min(m, limit); m >= s.p.DRYAllowedLength {
			w.hit(at(k-1), int32(m))
		}
	}
	for _, t := range w.hits {
		if i := w.find(t.token); i >= 0 {
			minus := s.p.DRYMultiplier * math.Pow(s.p.DRYBase, float64(int(t.n)-s.p.DRYAllowedLength))
			w.change(i, w.lg[i]-float32(min(minus/w.scale, math.MaxFloat32/4)))
		}
	}
	for _, t := range w.hits {
		delete(w.hitAt, t.token)
	}
}

// hit records the longest repetition that token would continue.
func (w *Work) hit(token, n int32) {
	if i, ok := w.hitAt[token]; ok {
		w.hits[i].n = max(w.hits[i].n, n)
		return
	}
	if w.hitAt == nil {
		w.hitAt = map[int32]int{}
	}
	w.hitAt[token] = len(w.hits)
	w.hits = append(w.hits, count{token, n})
}
