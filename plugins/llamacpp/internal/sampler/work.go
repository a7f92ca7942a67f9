package sampler

import (
	"math"
	"math/bits"
	"slices"
)

// Work holds the buffers of a choice. The zero value is ready for use. It serves any number of
// samplers, one at a time. It stays small when requests use top-k or no truncation, and otherwise
// takes at most about 30 bytes per token of the vocabulary.
type Work struct {
	row []float32

	// The candidates, by ascending token, so that ties are always broken alike.
	lg    []float32 // unscaled logits
	id    []int32   // tokens; nil: lg is the whole row, indexed by token
	scale float64   // factor for logits: the inverse of the temperature

	undo    []change
	lgBuf   []float32
	idBuf   []int32
	entries []entry
	sums    []float64
	mask    []uint64
	z       []int32
	hits    []count
	hitAt   map[int32]int
	bins    [bins]float64
}

// change is the original value of a modified logit.
type change struct {
	i   int
	was float32
}

func (w *Work) begin(row []float32) {
	w.row, w.lg, w.id, w.scale = row, row, nil, 1
}

// restore undoes the changes to the row.
func (w *Work) restore() {
	for _, c := range slices.Backward(w.undo) {
		w.row[c.i] = c.was
	}
	w.undo = w.undo[:0]
	w.row, w.lg = nil, nil
}

// change sets the logit of a candidate.
func (w *Work) change(i int, to float32) {
	if w.id == nil {
		w.undo = append(w.undo, change{i, w.lg[i]})
	}
	w.lg[i] = to
}

// token returns the token of a candidate.
func (w *Work) token(i int) int32 {
	if w.id == nil {
		return int32(i)
	}
	return w.id[i]
}

// find returns the index of a token among the candidates, or -1.
func (w *Work) find(token int32) int {
	if w.id == nil {
		if token < 0 || int(token) >= len(w.lg) {
			return -1
		}
		return int(token)
	}
	if i, ok := slices.BinarySearch(w.id, token); ok {
		return i
	}
	return -1
}

// room prepares the candidate buffers for n candidates. Existing candidates stay valid: a buffer
// that is too small is replaced.
func (w *Work) room(n int) {
	w.lgBuf = slices.Grow(w.lgBuf[:0], n)
	w.idBuf = slices.Grow(w.idBuf[:0], n)
}

// keepMasked keeps the candidates whose bits are set.
func (w *Work) keepMasked(mask []uint64) {
	if w.id != nil {
		n := 0
		for i, t := range w.id {
			if mask[t/64]>>(t%64)&1 != 0 {
				w.lg[n], w.id[n] = w.lg[i], t
				n++
			}
		}
		w.lg, w.id = w.lg[:n], w.id[:n]
		return
	}
	total := 0
	for _, word := range mask {
		total += bits.OnesCount64(word)
	}
	w.room(total)
	lg, id := w.lgBuf[:0], w.idBuf[:0]
	for k, word := range mask {
		for ; word != 0; word &= word - 1 {
			if i := 64*k + bits.TrailingZeros64(word); i < len(w.lg) {
				lg, id = append(lg, w.lg[i]), append(id, int32(i))
			}
		}
	}
	w.lg, w.id = lg, id
}

// keepAbove keeps the candidates with logits above cut, and the first ties ones equal to it.
func (w *Work) keepAbove(cut float32, ties int) {
	if w.id != nil {
		n := 0
		for i, l := range w.lg {
			if l > cut || l == cut && ties > 0 {
				if l == cut {
					ties--
				}
				w.lg[n], w.id[n] = l, w.id[i]
				n++
			}
		}
		w.lg, w.id = w.lg[:n], w.id[:n]
		return
	}
	lg, id := w.lgBuf[:0], w.idBuf[:0]
	for i, l := range w.lg {
		if l < cut {
			continue
		}
		if l > cut || l == cut && ties > 0 {
			if l == cut {
				ties--
			}
			lg, id = append(lg, l), append(id, int32(i))
		}
	}
	w.lgBuf, w.idBuf = lg, id
	w.lg, w.id = lg, id
}

// largest returns the index of the first of the largest logits, or -1 if none is above negative
// infinity.
func (w *Work) largest() int {
	inf := float32(math.Inf(-1))
	best, at := inf, -1
	// Four maxima break the dependency between comparisons.
	for from := 0; from < len(w.lg); from += block {
		part := w.lg[from:min(from+block, len(w.lg))]
		a, b, c, d := inf, inf, inf, inf
		i := 0
		for ; i+4 <= len(part); i += 4 {
			x := part[i : i+4 : i+4]
			if x[0] > a {
				a = x[0]
			}
			if x[1] > b {
				b = x[1]
			}
			if x[2] > c {
				c = x[2]
			}
			if x[3] > d {
				d = x[3]
			}
		}
		for ; i < len(part); i++ {
			if part[i] > a {
				a = part[i]
			}
		}
		if a = max(a, b, c, d); a > best {
			best, at = a, from+slices.Index(part, a)
		}
	}
	return at
}

// max returns the largest logit.
func (w *Work) max() float32 {
	if i := w.largest(); i >= 0 {
		return w.lg[i]
	}
	return float32(math.Inf(-1))
}

// block is the number of weights in a partial sum.
const block = 256

// pick draws a candidate with probability proportional to its weight, by inversion: u, below 1, is
// the fraction of the total weight before it. It returns -1 without candidates.
func (w *Work) pick(u float64) int {
	largest := w.largest()
	if largest < 0 {
		return -1
	}
	m, scale := float64(w.lg[largest]), w.scale
	w.sums = w.sums[:0]
	total := 0.0
	for rest := w.lg; len(rest) > 0; {
		part := rest[:min(block, len(rest))]
		rest = rest[len(part):]
		sum := 0.0
		for _, l := range part {
			sum += weight((float64(l) - m) * scale)
		}
		w.sums = append(w.sums, sum)
		total += sum
	}
	want := u * total
	for k, sum := range w.sums {
		if want >= sum {
			want -= sum
			continue
		}
		last := -1
		for i := k * block; i < min((k+1)*block, len(w.lg)); i++ {
			x := weight((float64(w.lg[i]) - m) * scale)
			if x > 0 {
				last = i
			}
			if want < x {
				return i
			}
			want -= x
		}
		if last >= 0 { // rounding
			return last
		}
	}
	return largest // rounding, or an infinite logit or scale
}
