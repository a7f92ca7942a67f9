package grammar

import "errors"

// comparison relates the digits read so far to a magnitude.
type comparison struct {
	mag  decimal
	need uint8 // allowed outcomes: bit 0 less, bit 1 equal, bit 2 greater
}

const (
	isLess uint8 = 1 << iota
	isEqual
	isGreater
)

// residue tracks the digits read so far modulo m, for multiples of m / 10^places.
type residue struct {
	mod    int64
	places int
	not    bool
}

// numMachine reads the numbers of one numSpec: for each sign, the constraints on their magnitude.
type numMachine struct {
	id       int
	spec     *numSpec
	any      bool
	possible [2]bool
	compare  [2][]comparison
	residues []residue
	maxWhole int
	maxFrac  int
	known    map[string]bool // whether a state is alive
	visited  int             // states visited by searches
	work     *int            // left for searches
}

func newNumMachine(spec *numSpec) (*numMachine, error) {
	m := &numMachine{spec: spec, any: spec.unlimited()}
	for side := range 2 {
		neg := side == 1
		lo, hi := spec.lo, spec.hi
		if neg {
			lo, hi = hi, lo
		}
		m.possible[side] = true
		if hi != nil { // a bound on the magnitude, or out of reach
			if hi.at.neg == neg || hi.at.zero() {
				need := isLess | isEqual
				if hi.open {
					need = isLess
				}
				m.compare[side] = append(m.compare[side], comparison{hi.at.abs(), need})
			} else {
				m.possible[side] = false
			}
		}
		if lo != nil && (lo.at.neg == neg || lo.at.zero()) {
			need := isGreater | isEqual
			if lo.open {
				need = isGreater
			}
			m.compare[side] = append(m.compare[side], comparison{lo.at.abs(), need})
		}
		for _, x := range spec.except {
			if x.neg == neg || x.zero() {
				m.compare[side] = append(m.compare[side], comparison{x.abs(), isLess | isGreater})
			}
		}
		for _, c := range m.compare[side] {
			m.maxWhole, m.maxFrac = max(m.maxWhole, len(c.mag.whole)), max(m.maxFrac, len(c.mag.frac))
		}
	}
	for i, list := range [][]decimal{spec.multiples, spec.notMult} {
		for _, x := range list {
			mod := x.abs().scaled(len(x.frac))
			if mod.Sign() == 0 || !mod.IsInt64() || mod.Int64() > maxMultiple {
				return nil, errors.New("multipleOf is zero or too large")
			}
			m.residues = append(m.residues, residue{mod: mod.Int64(), places: len(x.frac), not: i == 1})
			m.maxFrac = max(m.maxFrac, len(x.frac))
		}
	}
	if spec.nonInt {
		m.residues = append(m.residues, residue{mod: 1, not: true})
	}
	return m, nil
}

type numPhase uint8

const (
	nStart numPhase = iota
	nMinus
	nZero  // the whole part is 0
	nWhole // digits of the whole part
	nPoint
	nFrac
	nExp
	nExpSign
	nExpDigits
)

// numState is a position within a number. It is encoded as a string for comparison and storage.
type numState struct {
	phase numPhase
	neg   bool
	n     int // digits of the whole part read, at most one more than any bound has
	f     int // digits of the fraction read, likewise
	cmp   []uint8
	res   []int64 // residue, or -1 after a nonzero digit beyond the places
}

func (s *numState) encode(b []byte) []byte {
	b = append(b, byte(s.phase), 0)
	if s.neg {
		b[len(b)-1] = 1
	}
	b = append(b, byte(s.n), byte(s.n>>8), byte(s.f), byte(s.f>>8))
	b = append(b, s.cmp...)
	for _, r := range s.res {
		b = append(b, byte(r), byte(r>>8), byte(r>>16), byte(r>>24))
	}
	return b
}

func (m *numMachine) decode(b string) numState {
	s := numState{phase: numPhase(b[0]), neg: b[1] == 1}
	s.n, s.f = int(b[2])|int(b[3])<<8, int(b[4])|int(b[5])<<8
	b = b[6:]
	if s.phase >= nMinus && !m.any {
		k := len(m.compare[s.side()])
		s.cmp, b = []byte(b[:k]), b[k:]
	}
	for i := range len(b) / 4 {
		r := uint32(b[4*i]) | uint32(b[4*i+1])<<8 | uint32(b[4*i+2])<<16 | uint32(b[4*i+3])<<24
		s.res = append(s.res, int64(int32(r)))
	}
	return s
}

func (s *numState) side() int {
	if s.neg {
		return 1
	}
	return 0
}

// begin sets the sign.
func (m *numMachine) begin(s *numState, neg bool) bool {
	s.neg = neg
	if m.any {
		return true
	}
	if !m.possible[s.side()] {
		return false
	}
	s.cmp = make([]uint8, len(m.compare[s.side()]))
	for i := range s.cmp {
		s.cmp[i] = isEqual
	}
	s.res = make([]int64, len(m.residues))
	return true
}

// step reads one byte of a number and reports whether it is allowed.
func (m *numMachine) step(s *numState, c byte) bool {
	digit := c >= '0' && c <= '9'
	switch s.phase {
	case nStart:
		if c == '-' {
			s.phase = nMinus
			return m.begin(s, true)
		}
		return digit && m.begin(s, false) && m.first(s, c)
	case nMinus:
		return digit && m.first(s, c)
	case nZero, nWhole:
		switch {
		case digit && s.phase == nWhole:
			return m.whole(s, c)
		case c == '.':
			s.phase = nPoint
			return !m.spec.integer && m.endWhole(s)
		}
		return m.exponent(s, c)
	case nPoint, nFrac:
		if digit {
			s.phase = nFrac
			return m.fraction(s, c)
		}
		return s.phase == nFrac && m.exponent(s, c)
	case nExp:
		if c == '+' || c == '-' {
			s.phase = nExpSign
			return true
		}
		fallthrough
	case nExpSign, nExpDigits:
		s.phase = nExpDigits
		return digit
	}
	return false
}

func (m *numMachine) exponent(s *numState, c byte) bool {
	s.phase = nExp
	return m.any && (c == 'e' || c == 'E')
}

func (m *numMachine) first(s *numState, c byte) bool {
	if c == '0' {
		s.phase = nZero
		return true
	}
	s.phase = nWhole
	return m.whole(s, c)
}

func (m *numMachine) whole(s *numState, c byte) bool {
	if m.any {
		return true
	}
	for i, x := range m.compare[s.side()] {
		switch {
		case s.n >= len(x.mag.whole):
			s.cmp[i] = isGreater
		case s.cmp[i] == isEqual:
			s.cmp[i] = order(c, x.mag.whole[s.n])
		}
	}
	s.n = min(s.n+1, m.maxWhole+1)
	m.digit(s, c)
	return true
}

func order(a, b byte) uint8 {
	switch {
	case a < b:
		return isLess
	case a > b:
		return isGreater
	}
	return isEqual
}

func (m *numMachine) digit(s *numState, c byte) {
	for i, r := range m.residues {
		if s.res[i] >= 0 {
			s.res[i] = (s.res[i]*10 + int64(c-'0')) % r.mod
		}
	}
}

// endWhole settles the comparisons with magnitudes that have more digits before the point.
func (m *numMachine) endWhole(s *numState) bool {
	if !m.any {
		for i, x := range m.compare[s.side()] {
			if s.n < len(x.mag.whole) {
				s.cmp[i] = isLess
			}
		}
		s.n = 0
	}
	return true
}

func (m *numMachine) fraction(s *numState, c byte) bool {
	if m.any {
		return true
	}
	for i, x := range m.compare[s.side()] {
		if s.cmp[i] == isEqual {
			d := byte('0')
			if s.f < len(x.mag.frac) {
				d = x.mag.frac[s.f]
			}
			s.cmp[i] = order(c, d)
		}
	}
	for i, r := range m.residues {
		switch {
		case s.res[i] < 0:
		case s.f < r.places:
			s.res[i] = (s.res[i]*10 + int64(c-'0')) % r.mod
		case c != '0':
			s.res[i] = -1
			if !r.not {
				return false
			}
		}
	}
	s.f = min(s.f+1, m.maxFrac+1)
	return true
}

// final reports whether a number may end here.
func (m *numMachine) final(s *numState) bool {
	switch s.phase {
	case nZero, nWhole, nFrac, nExpDigits:
	default:
		return false
	}
	if m.any {
		return true
	}
	for i, x := range m.compare[s.side()] {
		c := s.cmp[i]
		if s.phase != nFrac && s.n < len(x.mag.whole) || c == isEqual && s.fracLeft(x) {
			c = isLess
		}
		if x.need&c == 0 {
			return false
		}
	}
	for i, r := range m.residues {
		x := s.res[i]
		for k := s.f; x >= 0 && k < r.places; k++ {
			x = x * 10 % r.mod
		}
		if (x == 0) == r.not {
			return false
		}
	}
	return true
}

// fracLeft reports whether digits of the magnitude's fraction are still unread.
func (s *numState) fracLeft(x comparison) bool { return s.f < len(x.mag.frac) }

const (
	numberBytes  = "0123456789.-eE+"
	maxNumStates = 50_000
	numWork      = 5 // per visit
)

// start returns the encoded state before a number.
func (m *numMachine) start() string { return string((&numState{}).encode(nil)) }

// next returns the encoded state after c, or "" when no number of the set continues that way.
func (m *numMachine) next(state string, c byte) string {
	s := m.decode(state)
	if !m.step(&s, c) {
		return ""
	}
	out := string(s.encode(nil))
	if !m.alive(out) {
		return ""
	}
	return out
}

func (m *numMachine) isFinal(state string) bool {
	s := m.decode(state)
	return m.final(&s)
}

// alive reports whether a number of the set continues from state. It reports true when the search
// takes too long.
func (m *numMachine) alive(state string) bool {
	if m.any {
		return true
	}
	if ok, known := m.known[state]; known {
		return ok
	}
	if m.known == nil {
		m.known = map[string]bool{}
	}
	// A breadth-first search for the shortest way to the end.
	from := map[string]string{state: ""}
	queue := []string{state}
	for i := 0; i < len(queue); i++ {
		at := queue[i]
		if m.isFinal(at) || m.known[at] {
			for at != "" {
				m.known[at] = true
				at = from[at]
			}
			return true
		}
		*m.work -= numWork
		if m.visited++; m.visited > maxNumStates || *m.work < 0 {
			return true
		}
		for _, c := range []byte(numberBytes) {
			s := m.decode(at)
			if !m.step(&s, c) {
				continue
			}
			out := string(s.encode(nil))
			if _, seen := from[out]; seen {
				continue
			}
			if ok, known := m.known[out]; known && !ok {
				continue
			}
			from[out] = at
			queue = append(queue, out)
		}
	}
	for at := range from {
		m.known[at] = false
	}
	return false
}
