package grammar

import "slices"

// prev is the kind of character before a position.
type prev uint8

const (
	prevStart prev = iota
	prevWord
	prevOther
	prevKinds // number of kinds
)

type regexCompiler struct {
	set   *rxSet
	left  int
	inner bool // text follows, so $ cannot match
}

// plain translates a tree without assertions.
func (c *regexCompiler) plain(a *ast) rx {
	s := c.set
	switch a.kind {
	case aClass:
		return s.class(a.class)
	case aConcat:
		out := rxEmpty
		for _, k := range slices.Backward(a.kids) {
			out = s.concat(c.plain(k), out)
		}
		return out
	case aAlt:
		kids := make([]rx, len(a.kids))
		for i, k := range a.kids {
			kids[i] = c.plain(k)
		}
		return s.alt(kids...)
	case aRepeat:
		return s.repeat(c.plain(a.kids[0]), a.min, a.max)
	}
	return rxEmpty
}

type regexTail func(prev) (rx, error)

// match translates a at a position after at, followed by the result of tail for the position after
// a.
func (c *regexCompiler) match(a *ast, at prev, tail regexTail) (rx, error) {
	if c.left--; c.left < 0 || c.set.exhausted() {
		return rxNone, errRegexSize
	}
	s := c.set
	if !a.asserts {
		return c.before(c.plain(a), at, tail)
	}
	switch a.kind {
	case aStart:
		if at != prevStart {
			return rxNone, nil
		}
		return tail(at)
	case aEnd:
		if c.inner {
			return rxNone, nil
		}
		rest, err := tail(at)
		return s.and(rxEmpty, rest), err
	case aWord, aNotWord:
		rest, err := tail(at)
		next := s.concat(s.class(wordClass), rxAll) // a word character follows
		if (at == prevWord) == (a.kind == aWord) {
			next = s.not(next)
		}
		return s.and(rest, next), err
	case aLook, aNotLook:
		inner, err := c.match(a.kids[0], at, func(prev) (rx, error) { return rxAll, nil })
		if err != nil {
			return rxNone, err
		}
		if a.kind == aNotLook {
			inner = s.not(inner)
		}
		rest, err := tail(at)
		return s.and(inner, rest), err
	case aConcat:
		return c.sequence(a.kids, at, tail)
	case aAlt:
		out := rxNone
		for _, k := range a.kids {
			r, err := c.match(k, at, tail)
			if err != nil {
				return rxNone, err
			}
			out = s.alt(out, r)
		}
		return out, nil
	case aRepeat: // once, never, or perhaps
		if a.max == 0 {
			return tail(at)
		}
		out, err := c.match(a.kids[0], at, tail)
		if err == nil && a.max == rxUnbounded { // only the last repetition may match a $
			var round rx
			inner := c.inner
			c.inner = true
			round, err = c.match(a.kids[0], at, func(prev) (rx, error) { return rxEmpty, nil })
			c.inner = inner
			out = s.concat(s.repeat(round, 0, rxUnbounded), out)
		}
		if err != nil || a.min > 0 {
			return out, err
		}
		none, err := tail(at)
		return s.alt(out, none), err
	}
	return rxNone, errRegexSize
}

func (c *regexCompiler) sequence(kids []*ast, at prev, tail regexTail) (rx, error) {
	type result struct {
		r    rx
		done bool
	}
	known := make([][prevKinds]result, len(kids)+1)
	var from func(int, prev) (rx, error)
	from = func(i int, at prev) (rx, error) {
		if k := known[i][at]; k.done {
			return k.r, nil
		}
		var r rx
		var err error
		if i == len(kids) {
			r, err = tail(at)
		} else {
			r, err = c.match(kids[i], at, func(next prev) (rx, error) { return from(i+1, next) })
		}
		known[i][at] = result{r, err == nil}
		return r, err
	}
	return from(0, at)
}

// before concatenates r and its tail. If the tail depends on the character before it, r is split by
// its last character.
func (c *regexCompiler) before(r rx, at prev, tail regexTail) (rx, error) {
	s := c.set
	word, err := tail(prevWord)
	if err != nil {
		return rxNone, err
	}
	other, err := tail(prevOther)
	if err != nil {
		return rxNone, err
	}
	same := rxNone
	if s.nullable(r) {
		if same, err = tail(at); err != nil {
			return rxNone, err
		}
	}
	if word == other && (!s.nullable(r) || same == word) {
		return s.concat(r, word), nil
	}
	endsIn := func(class []runeRange) rx { return s.and(r, s.concat(rxAll, s.class(class))) }
	return s.alt(same, s.concat(endsIn(wordClass), word), s.concat(endsIn(complement(wordClass)), other)), nil
}
