package sampler

import "math"

// expSteps is the number of steps of powers between two powers of 2.
const expSteps = 64

// powers holds the bits of 2^(i/expSteps).
var powers = func() (t [expSteps]uint64) {
	for i := range t {
		t[i] = math.Float64bits(math.Exp2(float64(i) / expSteps))
	}
	return t
}()

// leastWeight is the exponent below which a weight counts as 0: next to a weight of 1, a million
// such weights are less than the rounding of a float64.
const leastWeight = -52

// weight returns e^x for x of at most 0, with a relative error below 1e-13, in a third of the time
// of math.Exp. It returns 0 for NaN.
//
// The usual argument reduction: x = k·ln2/64 + r, e^x = 2^(k/64)·e^r, where |r| ≤ ln2/128 and four
// terms of the series are enough.
func weight(x float64) float64 {
	if !(x > leastWeight) {
		return 0
	}
	k := int64(x*(expSteps/math.Ln2) - 0.5)
	r := x - float64(k)*(math.Ln2/expSteps)
	p := 1 + r*(1+r*(1.0/2+r*(1.0/6+r*(1.0/24))))
	return math.Float64frombits(powers[k&(expSteps-1)]+uint64(k>>6)<<52) * p
}
