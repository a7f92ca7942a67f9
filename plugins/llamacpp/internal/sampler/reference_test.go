package sampler

import (
	"cmp"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// The reference implements every stage by its definition, on a sorted list of all tokens.

type refToken struct {
	id int32
	l  float64
}

type refList []refToken

func (r refList) sort() {
	slices.SortFunc(r, func(a, b refToken) int { return cmp.Or(cmp.Compare(b.l, a.l), cmp.Compare(a.id, b.id)) })
}

func (r refList) probabilities() []float64 {
	out := make([]float64, len(r))
	m, sum := math.Inf(-1), 0.0
	for _, t := range r {
		m = max(m, t.l)
	}
	for i, t := range r {
		out[i] = math.Exp(t.l - m)
		sum += out[i]
	}
	for i := range out {
		out[i] /= sum
	}
	return out
}

func (r refList) entropy() float64 {
	h := 0.0
	for _, p := range r.probabilities() {
		if p > 0 {
			h -= p * math.Log(p)
		}
	}
	return h
}

// text is what a choice depends on, besides the row.
type text struct {
	prompt, answer []int32
	pieces         []string
}

func (x text) all() []int32 { return append(slices.Clone(x.prompt), x.answer...) }

func tail(list []int32, n int) []int32 {
	if n < 0 {
		return list
	}
	return list[max(0, len(list)-n):]
}

func (r refList) stage(p Params, s Stage, x text, xtc float64) refList {
	r.sort()
	switch s {
	case StagePenalties:
		for i, t := range r {
			if slices.Contains(tail(x.all(), p.RepeatLastN), t.id) {
				if t.l > 0 {
					r[i].l = float64(float32(t.l) / float32(p.Repeat))
				} else {
					r[i].l = float64(float32(t.l) * float32(p.Repeat))
				}
			}
			n := 0
			for _, o := range tail(x.answer, p.PresenceLast) {
				if o == t.id {
					n++
				}
			}
			if n > 0 && (p.Frequency != 0 || p.Presence != 0) {
				r[i].l = float64(float32(r[i].l) - float32(float64(n)*p.Frequency+p.Presence))
			}
		}
	case StageDRY:
		return r.dry(p, x)
	case StageTopNSigma:
		if p.TopNSigma <= 0 {
			return r
		}
		mean, n := 0.0, 0.0
		for _, t := range r {
			if !math.IsInf(t.l, -1) {
				mean += t.l
				n++
			}
		}
		mean /= n
		square := 0.0
		for _, t := range r {
			if !math.IsInf(t.l, -1) {
				square += (t.l - mean) * (t.l - mean)
			}
		}
		cut := r[0].l - p.TopNSigma*math.Sqrt(square/n)
		return slices.DeleteFunc(r, func(t refToken) bool { return t.l < cut })
	case StageTopK:
		if p.TopK > 0 {
			return r[:min(len(r), p.TopK)]
		}
	case StageTypical:
		if p.Typical >= 1 {
			return r
		}
		h, ps := r.entropy(), r.probabilities()
		order := make([]int, len(r))
		for i := range order {
			order[i] = i
		}
		strange := func(i int) float64 { return float64(float32(math.Abs(-math.Log(ps[i]) - h))) }
		slices.SortFunc(order, func(a, b int) int {
			return cmp.Or(cmp.Compare(strange(a), strange(b)), cmp.Compare(r[a].id, r[b].id))
		})
		return r.until(order, ps, p.Typical, p.MinKeep)
	case StageTopP:
		if p.TopP >= 1 {
			return r
		}
		order := make([]int, len(r))
		for i := range order {
			order[i] = i
		}
		return r.until(order, r.probabilities(), p.TopP, p.MinKeep)
	case StageMinP:
		ps := r.probabilities()
		var out refList
		for i, t := range r {
			if i < max(1, p.MinKeep) || ps[i] >= p.MinP*ps[0] {
				out = append(out, t)
			}
		}
		return out
	case StageXTC:
		if xtc >= p.XTCProbability || p.XTCThreshold > 0.5 || len(r) < 2 {
			return r
		}
		n := 0
		for _, q := range r.probabilities() {
			if q >= p.XTCThreshold {
				n++
			}
		}
		if n >= 2 && len(r)-n+1 >= max(1, p.MinKeep) {
			return r[n-1:]
		}
	case StageTemperature:
		t := p.Temperature
		if p.DynamicRange > 0 && len(r) > 1 {
			lo, hi := max(0, t-p.DynamicRange), t+p.DynamicRange
			t = lo + (hi-lo)*math.Pow(r.entropy()/math.Log(float64(len(r))), p.DynamicExponent)
		}
		if t <= 0 {
			return r[:1]
		}
		for i := range r {
			r[i].l /= t
		}
	}
	return r
}

func (r refList) until(order []int, ps []float64, p float64, least int) refList {
	var out refList
	sum := 0.0
	for n, i := range order {
		if n > 0 && n >= least && sum >= p {
			break
		}
		sum += ps[i]
		out = append(out, r[i])
	}
	return out
}

func (r refList) dry(p Params, x text) refList {
	if p.DRYMultiplier <= 0 || p.DRYBase < 1 || p.DRYLastN == 0 {
		return r
	}
	all := x.all()
	// The tokens since the last breaker.
	since := 0
	for i := range all {
		joined := ""
		for _, t := range all[:i] {
			joined += x.pieces[t]
		}
		before := len(joined)
		joined += x.pieces[all[i]]
		for _, b := range p.DRYBreakers {
			if at := strings.LastIndex(joined, b); at >= 0 && at+len(b) > before {
				since = i + 1
			}
		}
	}
	limit := len(all) - since
	h := tail(all, p.DRYLastN)
	longest := map[int32]int{}
	for i := 0; i+1 < len(h); i++ { // a repetition that ends at i would continue with h[i+1]
		n := 0
		for n <= i && h[i-n] == h[len(h)-1-n] {
			n++
		}
		if n = min(n, limit); n >= p.DRYAllowedLength {
			longest[h[i+1]] = max(longest[h[i+1]], n)
		}
	}
	for i, t := range r {
		if n := longest[t.id]; n > 0 {
			r[i].l = float64(float32(t.l) - float32(min(p.DRYMultiplier*math.Pow(p.DRYBase, float64(n-p.DRYAllowedLength)), math.MaxFloat32/4)))
		}
	}
	return r
}

func (r refList) draw(u float64) int32 {
	slices.SortFunc(r, func(a, b refToken) int { return cmp.Compare(a.id, b.id) })
	sum := 0.0
	last := int32(-1)
	for i, p := range r.probabilities() {
		if p > 0 {
			last = r[i].id
		}
		if sum += p; u < sum {
			return r[i].id
		}
	}
	return last
}

// reference returns the candidates and the choice by definition.
func reference(p Params, x text, row []float32, allowed []bool) (refList, int32) {
	at := uint64(len(x.prompt) + len(x.answer))
	run := func(only []bool) refList {
		var r refList
		for i, l := range row {
			for _, b := range p.Bias {
				if b.Token == int32(i) {
					l += b.Add
				}
			}
			if !math.IsNaN(float64(l)) && (only == nil || only[i]) {
				r = append(r, refToken{int32(i), float64(l)})
			}
		}
		for _, s := range p.Stages {
			if p.Temperature == 0 && p.DynamicRange == 0 && s != StagePenalties && s != StageDRY {
				continue
			}
			if len(r) > 0 {
				r = r.stage(p, s, x, uniform(p.Seed, p.Choice, at, drawXTC))
			}
		}
		r.sort()
		if p.Temperature == 0 && p.DynamicRange == 0 && len(r) > 0 {
			r = r[:1]
		}
		return slices.DeleteFunc(r, func(t refToken) bool { return math.IsInf(t.l, -1) })
	}
	r := run(nil)
	if len(r) == 0 {
		return r, -1
	}
	pick := slices.Clone(r).draw(uniform(p.Seed, p.Choice, at, drawPick))
	if allowed == nil || allowed[pick] {
		return r, pick
	}
	u := uniform(p.Seed, p.Choice, at, drawAgain)
	if left := slices.DeleteFunc(slices.Clone(r), func(t refToken) bool { return !allowed[t.id] }); len(left) > 0 {
		return r, left.draw(u)
	}
	r = run(allowed)
	if len(r) == 0 {
		return r, -1
	}
	return r, slices.Clone(r).draw(u)
}

// allows is a constraint that lists its allowed tokens.
type allows []bool

func (a allows) Try(t int) bool { return a[t] }

func (a allows) Mask(dst []uint64) error {
	clear(dst)
	for i, ok := range a {
		if ok {
			dst[i/64] |= 1 << (i % 64)
		}
	}
	return nil
}

func chance(rng *rand.Rand, p float64) bool { return rng.Float64() < p }

// randomCase returns parameters, a text and a row that exercise every stage.
func randomCase(rng *rand.Rand) (Params, text, []float32) {
	n := []int{1, 2, 5, 40, 300, 2000}[rng.IntN(6)]
	p := Defaults()
	p.Seed, p.Choice = rng.Uint64(), rng.Uint32N(3)
	p.Temperature = []float64{0, 0.3, 0.8, 1, 1.7}[rng.IntN(5)]
	if chance(rng, 0.2) {
		p.DynamicRange, p.DynamicExponent = rng.Float64(), 0.5+rng.Float64()
	}
	if chance(rng, 0.5) {
		p.TopK = rng.IntN(2 * n)
	}
	if chance(rng, 0.5) {
		p.TopP = rng.Float64()
	}
	if chance(rng, 0.3) {
		p.MinP = rng.Float64() * rng.Float64()
	}
	if chance(rng, 0.3) {
		p.Typical = rng.Float64()
	}
	if chance(rng, 0.3) {
		p.TopNSigma = 3 * rng.Float64()
	}
	if chance(rng, 0.3) {
		p.XTCProbability, p.XTCThreshold = rng.Float64(), rng.Float64()*0.5
	}
	if chance(rng, 0.3) {
		p.MinKeep = rng.IntN(8)
	}
	if chance(rng, 0.4) {
		p.Repeat = 0.5 + rng.Float64()
		p.RepeatLastN = rng.IntN(12) - 1
	}
	if chance(rng, 0.4) {
		p.Frequency, p.Presence = 2*rng.Float64()-1, 2*rng.Float64()-1
		p.PresenceLast = rng.IntN(12) - 1
	}
	if chance(rng, 0.4) {
		p.DRYMultiplier, p.DRYAllowedLength, p.DRYLastN = rng.Float64(), 1+rng.IntN(3), rng.IntN(20)-1
	}
	p.Stages = DefaultStages()
	if chance(rng, 0.5) {
		rng.Shuffle(len(p.Stages), func(i, j int) { p.Stages[i], p.Stages[j] = p.Stages[j], p.Stages[i] })
		p.Stages = p.Stages[:rng.IntN(len(p.Stages)+1)]
		// A penalty after the temperature is scaled with it, so the two ways agree only up to
		// rounding.
		t := slices.Index(p.Stages, StageTemperature)
		for i, s := range p.Stages {
			if t >= 0 && i > t && (s == StagePenalties || s == StageDRY) {
				p.Stages[i], p.Stages[t] = p.Stages[t], p.Stages[i]
				t = i
			}
		}
	}
	for range rng.IntN(4) {
		p.Bias = append(p.Bias, Bias{rng.Int32N(int32(n)), float32(rng.NormFloat64() * 5)})
	}
	slices.SortFunc(p.Bias, func(a, b Bias) int { return int(a.Token - b.Token) })
	p.Bias = slices.CompactFunc(p.Bias, func(a, b Bias) bool { return a.Token == b.Token })
	x := text{}
	for i := range n {
		x.pieces = append(x.pieces, []string{"a", "b", "\n", "cd", `x"`, "*", ""}[i%7])
	}
	for range rng.IntN(30) {
		x.prompt = append(x.prompt, rng.Int32N(int32(min(n, 8))))
	}
	for range rng.IntN(30) {
		x.answer = append(x.answer, rng.Int32N(int32(min(n, 8))))
	}
	row := make([]float32, n)
	spread := 0.5 + 4*rng.Float64()
	for i := range row {
		row[i] = float32(rng.NormFloat64() * spread)
		switch {
		case chance(rng, 0.2):
			row[i] = float32(math.Round(float64(row[i]))) // ties
		case chance(rng, 0.02):
			row[i] = float32(math.Inf(-1))
		}
	}
	return p, x, row
}

func TestReference(t *testing.T) {
	t.Parallel()
	w := new(Work)
	chosen := 0
	for seed := range uint64(2000) {
		rng := rand.New(rand.NewPCG(seed, 1))
		p, x, row := randomCase(rng)
		var c Constraint
		var allowed allows
		if chance(rng, 0.5) {
			density := rng.Float64() * rng.Float64()
			for range row {
				allowed = append(allowed, chance(rng, density))
			}
			c = allowed
		}
		s, err := New(p, len(row), x.pieces)
		must.NoError(t, err)
		s.Prompt(x.prompt)
		for _, a := range x.answer {
			s.Accept(a)
		}
		before := slices.Clone(row)
		got, err := s.Choose(w, row, c)
		must.Eq(t, before, row, must.Sprintf("seed %d: the row has changed", seed))
		_, want := reference(p, x, row, allowed)
		if want < 0 {
			must.ErrorIs(t, err, ErrNone, must.Sprintf("seed %d", seed))
			continue
		}
		must.NoError(t, err, must.Sprintf("seed %d", seed))
		must.Eq(t, want, got, must.Sprintf("seed %d: %+v", seed, p))
		chosen++
	}
	must.Greater(t, 1500, chosen)
}

// TestCandidates compares the candidates after the stages, of which a draw shows only one.
func TestCandidates(t *testing.T) {
	t.Parallel()
	w := new(Work)
	for seed := range uint64(2000) {
		p, x, row := randomCase(rand.New(rand.NewPCG(seed, 2)))
		if p.Temperature == 0 {
			continue
		}
		s, err := New(p, len(row), x.pieces)
		must.NoError(t, err)
		s.Prompt(x.prompt)
		for _, a := range x.answer {
			s.Accept(a)
		}
		w.begin(row)
		s.bias(w)
		s.run(w)
		if math.IsInf(w.scale, 1) { // zero spread: the draw takes the largest
			w.restore()
			continue
		}
		got := []int32{}
		for i, l := range w.lg {
			if l > float32(math.Inf(-1)) {
				got = append(got, w.token(i))
			}
		}
		w.restore()
		r, _ := reference(p, x, row, nil)
		want := []int32{}
		for _, c := range r {
			want = append(want, c.id)
		}
		slices.Sort(want)
		must.Eq(t, want, got, must.Sprintf("seed %d: %+v", seed, p))
	}
}
