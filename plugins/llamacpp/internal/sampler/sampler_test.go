package sampler

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/shoenig/test/must"
)

// TestPhilox checks the test vectors of the authors' Random123, file kat_vectors.
func TestPhilox(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		counter [4]uint32
		key     [2]uint32
		want    [4]uint32
	}{
		{want: [4]uint32{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}},
		{
			[4]uint32{0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff},
			[2]uint32{0xffffffff, 0xffffffff},
			[4]uint32{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd},
		},
		{
			[4]uint32{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344},
			[2]uint32{0xa4093822, 0x299f31d0},
			[4]uint32{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1},
		},
	} {
		must.Eq(t, c.want, Philox(c.counter, c.key))
	}
}

func TestWeight(t *testing.T) {
	t.Parallel()
	must.Eq(t, 1, weight(0))
	must.Eq(t, 0, weight(math.NaN()))
	must.Eq(t, 0, weight(math.Inf(-1)))
	worst := 0.0
	for x := 0.0; x > leastWeight; x -= 0.000_317 {
		worst = max(worst, math.Abs(weight(x)/math.Exp(x)-1))
	}
	must.Less(t, 1e-13, worst)
}

func TestUniform(t *testing.T) {
	t.Parallel()
	var buckets [20]int
	const n = 200_000
	for i := range uint64(n) {
		u := uniform(i%7, uint32(i%3), i, uint32(i%2))
		must.True(t, u >= 0 && u < 1)
		buckets[int(u*20)]++
	}
	for _, b := range buckets {
		must.Between(t, n/20*95/100, b, n/20*105/100)
	}
}

func newRow(rng *rand.Rand, n int) []float32 {
	row := make([]float32, n)
	for i := range row {
		row[i] = float32(rng.NormFloat64() * 3)
	}
	return row
}

func must2(t *testing.T, p Params, n int) *Sampler {
	t.Helper()
	s, err := New(p, n, nil)
	must.NoError(t, err)
	return s
}

// TestContinuation continues a text in another sampler, whose prompt includes the answer so far.
func TestContinuation(t *testing.T) {
	t.Parallel()
	p := Defaults()
	p.Seed, p.TopP, p.Repeat, p.XTCProbability, p.XTCThreshold = 7, 0.9, 1.3, 0.5, 0.05
	rng := rand.New(rand.NewPCG(1, 1))
	rows := [][]float32{}
	for range 40 {
		rows = append(rows, newRow(rng, 500))
	}
	generate := func(w *Work, prompt []int32, rows [][]float32) []int32 {
		s := must2(t, p, 500)
		s.Prompt(prompt)
		var out []int32
		for _, row := range rows {
			token, err := s.Choose(w, row, nil)
			must.NoError(t, err)
			s.Accept(token)
			out = append(out, token)
		}
		return out
	}
	prompt := []int32{1, 2, 3, 4, 5}
	whole := generate(new(Work), prompt, rows)
	for cut := range len(rows) {
		rest := generate(new(Work), append(slices.Clone(prompt), whole[:cut]...), rows[cut:])
		must.Eq(t, whole[cut:], rest)
	}
	p.Seed = 8
	must.NotEq(t, whole, generate(new(Work), prompt, rows))
	p.Seed, p.Choice = 7, 1
	must.NotEq(t, whole, generate(new(Work), prompt, rows))
}

// TestConstraintDistribution draws often and compares the result with the free distribution,
// conditioned on allowed tokens.
func TestConstraintDistribution(t *testing.T) {
	t.Parallel()
	row := []float32{2, 1.5, 1, 0.5, 0, -0.5, -1, -8}
	allowed := allows{false, true, false, true, true, false, true, true}
	p := Defaults()
	p.TopK, p.Temperature = 6, 0.9 // leaves 1, 3 and 4 of the allowed ones
	want := map[int32]float64{}
	total := 0.0
	for i := range 6 {
		if allowed[i] {
			want[int32(i)] = math.Exp(float64(row[i]) / 0.9)
			total += want[int32(i)]
		}
	}
	const n = 200_000
	got := map[int32]int{}
	w := new(Work)
	for seed := range uint64(n) {
		p.Seed = seed
		token, err := must2(t, p, len(row)).Choose(w, row, allowed)
		must.NoError(t, err)
		got[token]++
	}
	must.Eq(t, len(want), len(got))
	for token, x := range want {
		must.InDelta(t, x/total, float64(got[token])/n, 0.005)
	}
}

// TestConstraintBeyondTopK falls back to tokens that the stages would have removed.
func TestConstraintBeyondTopK(t *testing.T) {
	t.Parallel()
	row := []float32{5, 4, 3, 2, 1, 0}
	p := Defaults()
	p.TopK = 2
	token, err := must2(t, p, 6).Choose(new(Work), row, allows{false, false, false, false, false, true})
	must.NoError(t, err)
	must.Eq(t, 5, token)
	p.Temperature = 0
	token, err = must2(t, p, 6).Choose(new(Work), row, allows{false, false, false, true, true, true})
	must.NoError(t, err)
	must.Eq(t, 3, token)
	_, err = must2(t, p, 6).Choose(new(Work), row, make(allows, 6))
	must.ErrorIs(t, err, ErrNone)
}

func TestBiasForbids(t *testing.T) {
	t.Parallel()
	p := Defaults()
	for i := range 5 {
		p.Bias = append(p.Bias, Bias{int32(i), float32(math.Inf(-1))})
	}
	_, err := must2(t, p, 5).Choose(new(Work), make([]float32, 5), nil)
	must.ErrorIs(t, err, ErrNone)
	token, err := must2(t, p, 6).Choose(new(Work), make([]float32, 6), nil)
	must.NoError(t, err)
	must.Eq(t, 5, token)
}

func TestLogProbs(t *testing.T) {
	t.Parallel()
	w := new(Work)
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 3))
		row := newRow(rng, 1+rng.IntN(3000))
		if seed%3 == 0 {
			for i := range row {
				row[i] = float32(math.Round(float64(row[i])))
			}
		}
		var r refList
		for i, l := range row {
			r = append(r, refToken{int32(i), float64(l)})
		}
		r.sort()
		ps := r.probabilities()
		n := rng.IntN(30)
		got, top := w.LogProbs(row, r[len(r)/2].id, n, nil)
		must.InDelta(t, math.Log(ps[len(r)/2]), got, 1e-9)
		must.SliceLen(t, min(n, MaxLogProbs, len(row)), top)
		for i, x := range top {
			must.Eq(t, r[i].id, x.Token)
			must.InDelta(t, math.Log(ps[i]), x.LogProb, 1e-9)
		}
	}
	inf := float32(math.Inf(-1))
	got, top := w.LogProbs([]float32{inf, 1, inf}, 0, 20, nil)
	must.Eq(t, math.Inf(-1), got)
	must.Eq(t, 0, top[0].LogProb)
	must.Eq(t, math.Inf(-1), top[2].LogProb)
}

func TestCheck(t *testing.T) {
	t.Parallel()
	nan, inf := math.NaN(), math.Inf(1)
	for want, change := range map[string]func(p *Params){
		"temperature":           func(p *Params) { p.Temperature = nan },
		"top_p":                 func(p *Params) { p.TopP = 1.1 },
		"min_p":                 func(p *Params) { p.MinP = -inf },
		"typical_p":             func(p *Params) { p.Typical = nan },
		"top_n_sigma":           func(p *Params) { p.TopNSigma = inf },
		"xtc_threshold":         func(p *Params) { p.XTCThreshold = -1 },
		"dry_base":              func(p *Params) { p.DRYBase = inf },
		"dry_penalty_last_n":    func(p *Params) { p.DRYLastN = -2 },
		"dry_allowed_length":    func(p *Params) { p.DRYAllowedLength = 0 },
		"repeat_penalty":        func(p *Params) { p.Repeat = 0 },
		"repeat_last_n":         func(p *Params) { p.RepeatLastN = math.MinInt },
		"dry_sequence_breakers": func(p *Params) { p.DRYBreakers = make([]string, 1_000_000) },
		"logit_bias":            func(p *Params) { p.Bias = make([]Bias, 1_000_000) },
		"samplers":              func(p *Params) { p.Stages = make([]Stage, 1_000_000) },
	} {
		p := Defaults()
		must.NoError(t, p.Check(10))
		change(&p)
		e, ok := errors.AsType[*Error](p.Check(10))
		must.True(t, ok, must.Sprint(want))
		must.Eq(t, want, e.Param)
	}
	for _, b := range []Bias{{10, 1}, {-1, 1}, {1, float32(nan)}, {1, float32(inf)}} {
		p := Defaults()
		p.Bias = []Bias{b}
		must.Error(t, p.Check(10))
	}
}

func TestParseStages(t *testing.T) {
	t.Parallel()
	names := []string{}
	for _, s := range DefaultStages() {
		names = append(names, s.String())
	}
	stages, err := ParseStages(names)
	must.NoError(t, err)
	must.Eq(t, DefaultStages(), stages)
	stages, err = ParseStageLetters("edskypmxt")
	must.NoError(t, err)
	must.Eq(t, DefaultStages(), stages)
	_, err = ParseStages([]string{"mirostat"})
	must.ErrorContains(t, err, `samplers has "mirostat"`)
	_, err = ParseStageLetters("kz")
	must.Error(t, err)
}

// FuzzChoose checks, for any parameters and logits, that Choose ends without a panic, restores the
// row and chooses an allowed token.
func FuzzChoose(f *testing.F) {
	f.Add([]byte{}, []byte{})
	for seed := range uint64(8) {
		rng := rand.New(rand.NewPCG(seed, 4))
		a, b := make([]byte, 160), make([]byte, 4*rng.IntN(300))
		for i := range a {
			a[i] = byte(rng.Uint32())
		}
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		f.Add(a, b)
	}
	special := []float64{0, 1, -1, math.NaN(), math.Inf(1), math.Inf(-1), 0.5, 1e-300, 1e300, 2}
	f.Fuzz(func(t *testing.T, params, logits []byte) {
		next := func() uint64 {
			var b [8]byte
			params = params[copy(b[:], params):]
			return binary.LittleEndian.Uint64(b[:])
		}
		number := func() float64 {
			x := next()
			if x%3 == 0 {
				return special[x/3%uint64(len(special))]
			}
			return float64(x%1000) / 500
		}
		row := make([]float32, min(len(logits)/4, 4096))
		for i := range row {
			row[i] = math.Float32frombits(binary.LittleEndian.Uint32(logits[4*i:]))
		}
		p := Defaults()
		p.Temperature, p.TopP, p.MinP, p.TopK = number(), number(), number(), int(int32(next()))
		p.Typical, p.TopNSigma, p.XTCProbability, p.XTCThreshold = number(), number(), number(), number()
		p.DynamicRange, p.DynamicExponent, p.MinKeep = number(), number(), int(int16(next()))
		p.DRYMultiplier, p.DRYBase, p.DRYAllowedLength, p.DRYLastN = number(), number(), int(int8(next())), int(int8(next()))
		p.Repeat, p.Frequency, p.Presence, p.RepeatLastN = number(), number(), number(), int(int8(next()))
		for range next() % 4 {
			p.Bias = append(p.Bias, Bias{int32(next()), float32(number())})
		}
		for range next() % 12 {
			p.Stages = append(p.Stages, Stage(next()%uint64(stageCount)))
		}
		s, err := New(p, len(row), nil)
		if err != nil {
			return
		}
		allowed := make(allows, len(row))
		for i := range allowed {
			allowed[i] = next()%2 == 0
		}
		before := slices.Clone(row)
		w := new(Work)
		for i := range 12 {
			var c Constraint
			if i%2 == 0 {
				c = allowed
			}
			token, err := s.Choose(w, row, c)
			for i := range row {
				if math.Float32bits(row[i]) != math.Float32bits(before[i]) && before[i] == before[i] {
					t.Fatal("the row has changed")
				}
			}
			if err != nil {
				if !errors.Is(err, ErrNone) {
					t.Fatal(err)
				}
				continue
			}
			if token < 0 || int(token) >= len(row) || c != nil && !allowed[token] {
				t.Fatalf("token %d", token)
			}
			w.LogProbs(row, token, i, nil)
			s.Accept(token)
		}
	})
}

// benchmarkRow resembles the logits of a model: a few likely tokens above a broad bulk.
func benchmarkRow(n int) []float32 {
	rng := rand.New(rand.NewPCG(1, 1))
	row := make([]float32, n)
	for i := range row {
		row[i] = float32(rng.NormFloat64() * 2)
	}
	for range 40 {
		row[rng.IntN(n)] += float32(8 + 4*rng.Float64())
	}
	return row
}

func benchmarkCases() map[string]func(p *Params) {
	return map[string]func(p *Params){
		"greedy":      func(p *Params) { p.Temperature = 0 },
		"temperature": func(p *Params) { p.Temperature = 0.8 },
		"top_k":       func(p *Params) { p.TopK, p.TopP, p.MinP, p.Temperature = 40, 0.95, 0.05, 0.8 },
		"top_p":       func(p *Params) { p.TopP, p.Temperature = 0.95, 0.8 },
		"min_p":       func(p *Params) { p.MinP, p.Temperature = 0.05, 0.8 },
		"penalties": func(p *Params) {
			p.TopK, p.TopP, p.Temperature, p.Repeat, p.Presence, p.Frequency = 40, 0.95, 0.8, 1.1, 0.5, 0.5
		},
		"dry":     func(p *Params) { p.TopK, p.DRYMultiplier = 40, 0.8 },
		"typical": func(p *Params) { p.Typical = 0.9 },
	}
}

func benchmarkSampler(tb testing.TB, n int, change func(p *Params)) *Sampler {
	p := Defaults()
	change(&p)
	s, err := New(p, n, nil)
	must.NoError(tb, err)
	rng := rand.New(rand.NewPCG(1, 1))
	for range 1000 {
		s.Accept(rng.Int32N(300))
	}
	return s
}

func TestNoAllocation(t *testing.T) {
	row := benchmarkRow(5000)
	for name, change := range benchmarkCases() {
		s, w := benchmarkSampler(t, len(row), change), new(Work)
		allowed := make(allows, len(row))
		for i := range allowed {
			allowed[i] = i%3 == 0
		}
		i, constraints := uint64(0), []Constraint{nil, allowed}
		choose := func() {
			s.p.Seed = i % 20
			i++
			for _, c := range constraints {
				_, err := s.Choose(w, row, c)
				must.NoError(t, err)
			}
		}
		for range 20 {
			choose()
		}
		must.Eq(t, 0, testing.AllocsPerRun(50, choose), must.Sprint(name))
	}
}

func BenchmarkChoose(b *testing.B) {
	for _, n := range []int{49_152, 128_256} {
		row := benchmarkRow(n)
		for name, change := range benchmarkCases() {
			b.Run(fmt.Sprintf("%dk/%s", n/1000, name), func(b *testing.B) {
				s, w := benchmarkSampler(b, n, change), new(Work)
				b.ReportAllocs()
				for b.Loop() {
					s.position++
					if _, err := s.Choose(w, row, nil); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
		b.Run(fmt.Sprintf("%dk/logprobs", n/1000), func(b *testing.B) {
			w := new(Work)
			var dst []LogProb
			for b.Loop() {
				_, dst = w.LogProbs(row, 7, 20, dst[:0])
			}
		})
		b.Run(fmt.Sprintf("%dk/masked", n/1000), func(b *testing.B) {
			s, w := benchmarkSampler(b, n, benchmarkCases()["top_k"]), new(Work)
			allowed := make(allows, n)
			for i := range allowed {
				allowed[i] = i%5 == 0 && row[i] < 5
			}
			bits := make([]uint64, (n+63)/64)
			must.NoError(b, allowed.Mask(bits))
			for b.Loop() {
				s.position++
				if _, err := s.Choose(w, row, copied(bits)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// copied is a constraint with a nearly free mask.
type copied []uint64

func (c copied) Try(t int) bool { return c[t/64]>>(t%64)&1 != 0 }

func (c copied) Mask(dst []uint64) error {
	copy(dst, c)
	return nil
}
