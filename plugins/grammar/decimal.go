package grammar

import (
	"errors"
	"math/big"
	"slices"
	"strconv"
	"strings"
)

// decimal is an exact number: digits without leading or trailing zeros around the point.
type decimal struct {
	neg   bool
	whole string // "" for 0.x
	frac  string
}

const maxDecimalDigits = 400

var errDecimalSize = errors.New("number has too many digits")

func parseDecimal(text string) (decimal, error) {
	var d decimal
	s := text
	if strings.HasPrefix(s, "-") {
		d.neg, s = true, s[1:]
	}
	exp := 0
	if i := strings.IndexAny(s, "eE"); i >= 0 {
		n, err := strconv.Atoi(strings.TrimPrefix(s[i+1:], "+"))
		if err != nil || n > maxDecimalDigits || n < -maxDecimalDigits {
			return d, errDecimalSize
		}
		exp, s = n, s[:i]
	}
	whole, frac, _ := strings.Cut(s, ".")
	if len(whole)+len(frac) > maxDecimalDigits {
		return d, errDecimalSize
	}
	for ; exp > 0; exp-- {
		if frac == "" {
			frac = "0"
		}
		whole, frac = whole+frac[:1], frac[1:]
	}
	for ; exp < 0; exp++ {
		if whole == "" {
			whole = "0"
		}
		whole, frac = whole[:len(whole)-1], whole[len(whole)-1:]+frac
	}
	d.whole, d.frac = strings.TrimLeft(whole, "0"), strings.TrimRight(frac, "0")
	if d.zero() {
		d.neg = false
	}
	return d, nil
}

func (d decimal) zero() bool { return d.whole == "" && d.frac == "" }

func (d decimal) integer() bool { return d.frac == "" }

func (d decimal) String() string {
	s := d.whole
	if s == "" {
		s = "0"
	}
	if d.frac != "" {
		s += "." + d.frac
	}
	if d.neg {
		s = "-" + s
	}
	return s
}

func (d decimal) abs() decimal { d.neg = false; return d }

// cmpAbs compares magnitudes.
func (d decimal) cmpAbs(e decimal) int {
	if len(d.whole) != len(e.whole) {
		return len(d.whole) - len(e.whole)
	}
	if c := strings.Compare(d.whole, e.whole); c != 0 {
		return c
	}
	return strings.Compare(d.frac, e.frac)
}

func (d decimal) cmp(e decimal) int {
	switch {
	case d.neg && e.neg:
		return e.cmpAbs(d)
	case d.neg:
		return -1
	case e.neg:
		return 1
	}
	return d.cmpAbs(e)
}

// scaled returns d × 10^places, which must be an integer.
func (d decimal) scaled(places int) *big.Int {
	n, _ := new(big.Int).SetString("0"+d.whole+d.frac+strings.Repeat("0", places-len(d.frac)), 10)
	if d.neg {
		n.Neg(n)
	}
	return n
}

// bound is one end of a range of numbers.
type bound struct {
	at   decimal
	open bool // the end itself is excluded
}

// numSpec is a set of numbers: a range, the multiples of a number, all except some values.
type numSpec struct {
	integer   bool
	nonInt    bool // no integers; arises only from the negation of "integer"
	lo, hi    *bound
	multiples []decimal
	except    []decimal
	notMult   []decimal
	only      []decimal // nil: any; emptied by split
}

const maxMultiple = 20_000

// contains reports whether d belongs to the set.
func (n *numSpec) contains(d decimal) bool {
	if n.integer && !d.integer() || n.nonInt && d.integer() {
		return false
	}
	if n.lo != nil {
		if c := d.cmp(n.lo.at); c < 0 || c == 0 && n.lo.open {
			return false
		}
	}
	if n.hi != nil {
		if c := d.cmp(n.hi.at); c > 0 || c == 0 && n.hi.open {
			return false
		}
	}
	for _, m := range n.multiples {
		if !multipleOf(d, m) {
			return false
		}
	}
	for _, m := range n.notMult {
		if multipleOf(d, m) {
			return false
		}
	}
	return !slices.ContainsFunc(n.except, func(x decimal) bool { return x.cmp(d) == 0 })
}

func multipleOf(d, m decimal) bool {
	places := max(len(d.frac), len(m.frac))
	return new(big.Int).Rem(d.scaled(places), m.scaled(places)).Sign() == 0
}

// intersect narrows n to its intersection with o.
func (n *numSpec) intersect(o *numSpec) {
	n.integer = n.integer || o.integer
	n.nonInt = n.nonInt || o.nonInt
	if o.lo != nil && (n.lo == nil || o.lo.at.cmp(n.lo.at) > 0 || o.lo.at.cmp(n.lo.at) == 0 && o.lo.open) {
		n.lo = o.lo
	}
	if o.hi != nil && (n.hi == nil || o.hi.at.cmp(n.hi.at) < 0 || o.hi.at.cmp(n.hi.at) == 0 && o.hi.open) {
		n.hi = o.hi
	}
	n.multiples = append(slices.Clip(n.multiples), o.multiples...)
	n.except = append(slices.Clip(n.except), o.except...)
	n.notMult = append(slices.Clip(n.notMult), o.notMult...)
	switch {
	case o.only == nil:
	case n.only == nil:
		n.only = o.only
	default:
		both := []decimal{}
		for _, d := range n.only {
			if slices.ContainsFunc(o.only, func(x decimal) bool { return x.cmp(d) == 0 }) {
				both = append(both, d)
			}
		}
		n.only = both
	}
}

// split returns the set as sets without a list of values: one per value.
func (n *numSpec) split() []numSpec {
	if n.only == nil {
		return []numSpec{*n}
	}
	var out []numSpec
	for _, d := range n.only {
		if n.contains(d) {
			out = append(out, numSpec{lo: &bound{at: d}, hi: &bound{at: d}})
		}
	}
	return out
}

// count returns an upper bound on the number of values in the set, and whether one is known.
func (n *numSpec) count() (int, bool) {
	if n.lo == nil || n.hi == nil {
		return 0, false
	}
	if n.lo.at.cmp(n.hi.at) == 0 {
		return 1, true
	}
	if !n.integer {
		return 0, false
	}
	lo, hi := n.lo.at, n.hi.at
	if !lo.integer() || !hi.integer() {
		return 0, false
	}
	size := new(big.Int).Sub(hi.scaled(0), lo.scaled(0))
	if !size.IsInt64() || size.Int64() > 1<<12 {
		return 0, false
	}
	count := 0
	for x, last := lo.scaled(0), hi.scaled(0); x.Cmp(last) <= 0; x.Add(x, big.NewInt(1)) {
		if d, err := parseDecimal(x.String()); err == nil && n.contains(d) {
			count++
		}
	}
	return count, true
}

// empty reports whether the range is obviously empty. The number's machine decides exactly.
func (n *numSpec) empty() bool {
	if n.integer && n.nonInt || n.only != nil && len(n.only) == 0 {
		return true
	}
	if n.lo == nil || n.hi == nil {
		return false
	}
	c := n.lo.at.cmp(n.hi.at)
	if c == 0 && !n.lo.open && !n.hi.open {
		return !n.contains(n.lo.at)
	}
	return c >= 0
}

// unlimited reports whether every number belongs to the set: only then exponents are accepted.
func (n *numSpec) unlimited() bool {
	return !n.integer && !n.nonInt && n.lo == nil && n.hi == nil && len(n.multiples)+len(n.except)+len(n.notMult) == 0
}
