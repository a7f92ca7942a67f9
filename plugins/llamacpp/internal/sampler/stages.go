package sampler

import "math"

// entry is a candidate during the search for a cut.
type entry struct {
	key    uint32 // sort key of the candidate
	weight float64
}

// keyOf returns an integer with the same order as f. NaN sorts first.
func keyOf(f float32) uint32 {
	if f != f {
		return 0
	}
	b := math.Float32bits(f + 0) // -0 becomes 0
	if b>>31 != 0 {
		return ^b
	}
	return b | 1<<31
}

// valueOf is the inverse of keyOf.
func valueOf(key uint32) float32 {
	if key>>31 != 0 {
		return math.Float32frombits(key &^ (1 << 31))
	}
	return math.Float32frombits(^key)
}

// cut returns the key at which the entries, largest keys first, reach the needed weight, and how
// many of the entries with that key are included. It reorders the entries, which must not be empty.
//
// It halves the range of keys, at most 32 times, and each time drops the entries outside: a
// selection in linear time even in the worst case.
func cut(e []entry, need float64) (key uint32, ties int) {
	lo, hi := e[0].key, e[0].key
	for _, x := range e {
		lo, hi = min(lo, x.key), max(hi, x.key)
	}
	for lo < hi {
		mid := lo + (hi-lo)/2
		// Move entries above mid to the front, tracking the bounds of both halves.
		n, above := 0, 0.0
		aboveLo, belowHi := uint32(math.MaxUint32), uint32(0)
		for i, x := range e {
			if x.key > mid {
				above += x.weight
				aboveLo = min(aboveLo, x.key)
				e[i], e[n] = e[n], x
				n++
			} else {
				belowHi = max(belowHi, x.key)
			}
		}
		if need <= above {
			e, lo = e[:n], aboveLo
		} else {
			e, hi = e[n:], belowHi
			need -= above
		}
	}
	sum := 0.0
	for _, x := range e {
		sum += x.weight
	}
	if each := sum / float64(len(e)); each > 0 {
		ties = int(math.Ceil(need/each - 1e-9))
	}
	return lo, min(max(ties, 1), len(e))
}

// topK keeps the k largest logits.
func (w *Work) topK(k int) {
	if k <= 0 || k >= len(w.lg) {
		return
	}
	if w.id != nil || k > len(w.lg)/8 {
		w.keepAbove(w.kth(k))
		return
	}
	// One pass: a buffer collects the logits above the k-th largest so far, and shrinks when full.
	size := 2*k + 64
	w.room(size)
	lg, id := w.lgBuf[:size], w.idBuf[:size]
	n := 0
	above := float32(math.Inf(-1))
	shrink := func() {
		var ties int
		above, ties = w.kthOf(lg[:n], k)
		m := 0
		for i, l := range lg[:n] {
			if l > above || l == above && ties > 0 {
				if l == above {
					ties--
				}
				lg[m], id[m] = l, id[i]
				m++
			}
		}
		n = m
	}
	for i, l := range w.lg {
		if l > above {
			lg[n], id[n] = l, int32(i)
			if n++; n == size {
				shrink()
			}
		}
	}
	if n > k {
		shrink()
	}
	w.lg, w.id = lg[:n], id[:n]
}

// kth returns the k-th largest logit, and how many of the logits equal to it are among the k
// largest.
func (w *Work) kth(k int) (float32, int) { return w.kthOf(w.lg, k) }

func (w *Work) kthOf(lg []float32, k int) (float32, int) {
	w.entries = w.entries[:0]
	for _, l := range lg {
		w.entries = append(w.entries, entry{keyOf(l), 1})
	}
	key, ties := cut(w.entries, float64(k))
	return valueOf(key), ties
}

// Logits are binned by their distance from the largest one, in bins an eighth wide.
const (
	binsPerUnit = 8
	bins        = -leastWeight * binsPerUnit
)

// binOf returns the bin of a candidate at distance d ≥ 0, or a negative number if its weight is
// zero.
func binOf(d float64) int {
	if b := d * binsPerUnit; b < bins {
		return int(b)
	}
	return -1
}

// topP keeps the likeliest candidates up to the total probability p, and no fewer than least.
func (w *Work) topP(p float64, least int) {
	if p >= 1 || len(w.lg) <= least {
		return
	}
	at := w.largest()
	if at < 0 {
		return
	}
	m, scale := float64(w.lg[at]), w.scale
	w.bins = [bins]float64{}
	for _, l := range w.lg {
		d := (m - float64(l)) * scale
		if b := binOf(d); b >= 0 {
			w.bins[b] += weight(-d)
		}
	}
	total := 0.0
	for _, x := range w.bins {
		total += x
	}
	// Examine only the bin that crosses p one by one.
	need, k := p*total, 0
	for k < bins-1 && need > w.bins[k] {
		need -= w.bins[k]
		k++
	}
	w.entries = w.entries[:0]
	for _, l := range w.lg {
		d := (m - float64(l)) * scale
		if binOf(d) == k {
			w.entries = append(w.entries, entry{keyOf(l), weight(-d)})
		}
	}
	if len(w.entries) == 0 { // only through rounding
		return
	}
	key, ties := cut(w.entries, need)
	w.keepAtLeast(valueOf(key), ties, least)
}

// keepAtLeast is keepAbove, but always keeps the likeliest candidates, least of them.
func (w *Work) keepAtLeast(cut float32, ties, least int) {
	if least > 1 {
		if k, t := w.kth(min(least, len(w.lg))); k < cut || k == cut && t > ties {
			cut, ties = k, t
		}
	}
	w.keepAbove(cut, ties)
}

// minP keeps the candidates with at least p times the probability of the likeliest one, and no
// fewer than least.
func (w *Work) minP(p float64, least int) {
	if p <= 0 || len(w.lg) <= least {
		return
	}
	m := w.max()
	w.keepAtLeast(roundUp(float64(m)+math.Log(p)/w.scale), math.MaxInt, least)
}

// roundUp returns the smallest float32 that is at least x.
func roundUp(x float64) float32 {
	f := float32(x)
	if float64(f) < x {
		return math.Nextafter32(f, float32(math.Inf(1)))
	}
	return f
}

// topNSigma keeps the candidates within n standard deviations of the largest logit.
func (w *Work) topNSigma(n float64) {
	if n <= 0 || len(w.lg) <= 1 {
		return
	}
	m := float64(w.max())
	count, sum := 0.0, 0.0
	for _, l := range w.lg {
		if d := float64(l) - m; d > math.Inf(-1) {
			count++
			sum += d
		}
	}
	if count == 0 {
		return
	}
	mean, square := sum/count, 0.0
	for _, l := range w.lg {
		if d := float64(l) - m; d > math.Inf(-1) {
			square += (d - mean) * (d - mean)
		}
	}
	w.keepAbove(roundUp(m-n*math.Sqrt(square/count)), math.MaxInt)
}

// entropy returns the entropy of the candidates' distribution in nats, the logarithm of the sum of
// their weights, and the largest logit.
func (w *Work) entropy() (h, logSum, m float64) {
	m = float64(w.max())
	sum, moment := 0.0, 0.0
	for _, l := range w.lg {
		d := (float64(l) - m) * w.scale
		if x := weight(d); x > 0 {
			sum += x
			moment += x * d
		}
	}
	if sum == 0 {
		return 0, 0, m
	}
	logSum = math.Log(sum)
	return logSum - moment/sum, logSum, m
}

// typical keeps the candidates whose surprise is closest to the entropy, up to the total
// probability p.
func (w *Work) typical(p float64, least int) {
	if p >= 1 || len(w.lg) <= least {
		return
	}
	h, logSum, m := w.entropy()
	if math.IsInf(m, 0) {
		return
	}
	strange := func(l float32) (key uint32, x float64) {
		d := (float64(l) - m) * w.scale
		return keyOf(-float32(math.Abs(logSum - d - h))), weight(d)
	}
	w.entries = w.entries[:0]
	total := 0.0
	for _, l := range w.lg {
		if key, x := strange(l); x > 0 {
			w.entries = append(w.entries, entry{key, x})
			total += x
		}
	}
	count := len(w.entries)
	key, ties := cut(w.entries, p*total)
	if least > 1 {
		for i := range w.entries {
			w.entries[i].weight = 1
		}
		if k, t := cut(w.entries, float64(min(least, count))); k < key || k == key && t > ties {
			key, ties = k, t
		}
	}
	w.room(len(w.lg))
	lg, id := w.lgBuf[:len(w.lg)], w.idBuf[:len(w.lg)]
	n := 0
	for i, l := range w.lg {
		k, x := strange(l)
		if x == 0 || k < key || k == key && ties <= 0 {
			continue
		}
		if k == key {
			ties--
		}
		lg[n], id[n] = l, w.token(i)
		n++
	}
	w.lg, w.id = lg[:n], id[:n]
}

// xtc removes all candidates with at least the probability threshold, except the least likely of
// them.
func (w *Work) xtc(threshold float64, least int) {
	if threshold > 0.5 || len(w.lg) < 2 {
		return
	}
	_, logSum, m := w.entropy()
	if math.IsInf(m, 0) {
		return
	}
	limit := math.Log(threshold) + logSum // on the scaled distance from the largest logit
	above, last := 0, -1
	for i, l := range w.lg {
		if (float64(l)-m)*w.scale >= limit {
			above++
			if last < 0 || l <= w.lg[last] {
				last = i
			}
		}
	}
	if above < 2 || len(w.lg)-above+1 < least {
		return
	}
	w.room(len(w.lg))
	lg, id := w.lgBuf[:len(w.lg)], w.idBuf[:len(w.lg)]
	n := 0
	for i, l := range w.lg {
		if i == last || !((float64(l)-m)*w.scale >= limit) {
			lg[n], id[n] = l, w.token(i)
			n++
		}
	}
	w.lg, w.id = lg[:n], id[:n]
}

// temperature divides logits by t, or with spread by a value within spread of t that grows with the
// entropy.
func (w *Work) temperature(t, spread, exponent float64) {
	if spread > 0 {
		if len(w.lg) < 2 {
			return
		}
		h, _, _ := w.entropy()
		part := math.Pow(max(0, h)/math.Log(float64(len(w.lg))), exponent)
		lo := max(0, t-spread)
		t = lo + (t+spread-lo)*part
	}
	if t <= 0 {
		w.scale = math.Inf(1)
		return
	}
	w.scale /= t
}
