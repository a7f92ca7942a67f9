package sampler

import "math/bits"

// Philox returns four random words for a counter and a key: Philox4x32-10 of J. K. Salmon, M. A.
// Moraes, R. O. Dror and D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3" (SC'11). It is
// stateless: the same counter and key give the same words, and the words of different counters are
// practically independent.
func Philox(counter [4]uint32, key [2]uint32) [4]uint32 {
	const (
		m0, m1 = 0xD2511F53, 0xCD9E8D57
		w0, w1 = 0x9E3779B9, 0xBB67AE85
	)
	c, k := counter, key
	for range 10 {
		hi0, lo0 := bits.Mul32(m0, c[0])
		hi1, lo1 := bits.Mul32(m1, c[2])
		c = [4]uint32{hi1 ^ c[1] ^ k[0], lo1, hi0 ^ c[3] ^ k[1], lo0}
		k[0] += w0
		k[1] += w1
	}
	return c
}

// The draws at a position.
const (
	drawPick  = iota // the unconstrained choice
	drawXTC          // whether XTC removes tokens
	drawAgain        // the choice among allowed tokens after a refusal
)

// uniform returns the random number of a draw at a position of a text, in [0, 1).
func uniform(seed uint64, choice uint32, position uint64, draw uint32) float64 {
	r := Philox([4]uint32{uint32(position), uint32(position >> 32), draw, choice}, [2]uint32{uint32(seed), uint32(seed >> 32)})
	return float64((uint64(r[1])<<32|uint64(r[0]))>>11) / (1 << 53)
}
