package grammar

import "slices"

// rxEdges holds the derivatives of an expression: next[i] is that by the characters from from[i] up
// to from[i+1]. Surrogates are not characters; they may lie inside any range.
type rxEdges struct {
	from []rune
	next []rx
}

func (e *rxEdges) by(r rune) rx { return e.next[e.index(r)] }

// index returns the index of the range that contains r.
func (e *rxEdges) index(r rune) int {
	i, found := slices.BinarySearch(e.from, r)
	if !found {
		i--
	}
	return i
}

// derive returns the expression that must match after the character c.
func (s *rxSet) derive(r rx, c rune) rx {
	s.work--
	n := s.nodes[r] // a copy: the slice grows below
	switch n.kind {
	case kClass:
		if inClass(n.class, c) {
			return rxEmpty
		}
		return rxNone
	case kConcat:
		left := s.concat(s.derive(n.a, c), n.b)
		if s.nodes[n.a].nullable {
			return s.alt(left, s.derive(n.b, c))
		}
		return left
	case kAlt:
		kids := make([]rx, 0, len(n.kids))
		for _, k := range n.kids {
			if d := s.derive(k, c); d != rxNone {
				kids = append(kids, d)
			}
		}
		return s.alt(kids...)
	case kAnd:
		kids := make([]rx, len(n.kids))
		for i, k := range n.kids {
			if kids[i] = s.derive(k, c); kids[i] == rxNone {
				return rxNone
			}
		}
		return s.and(kids...)
	case kNot:
		return s.not(s.derive(n.a, c))
	case kRepeat:
		d := s.derive(n.a, c)
		if d == rxNone {
			return rxNone
		}
		lo, hi := max(n.min-1, 0), n.max
		if hi != rxUnbounded {
			hi--
		}
		return s.concat(d, s.repeat(n.a, lo, hi))
	}
	return rxNone
}

// breaks holds the first characters of the ranges over which a derivative is constant, and the
// classes that determine it.
type breaks struct {
	at      map[rune]struct{}
	classes []rx
}

// breaks collects the breaks of r.
func (s *rxSet) breaks(r rx, out *breaks) {
	n := &s.nodes[r]
	switch n.kind {
	case kClass:
		if len(out.classes) <= maxAlike {
			if slices.Contains(out.classes, r) {
				return
			}
			out.classes = append(out.classes, r)
		}
		for _, x := range n.class {
			out.at[x.lo] = struct{}{}
			switch {
			case x.hi == 0xD7FF:
				out.at[0xE000] = struct{}{}
			case x.hi < maxRune:
				out.at[x.hi+1] = struct{}{}
			}
		}
	case kConcat:
		s.breaks(n.a, out)
		if s.nodes[n.a].nullable {
			s.breaks(n.b, out)
		}
	case kAlt, kAnd:
		for _, k := range n.kids {
			s.breaks(k, out)
		}
	case kNot, kRepeat:
		s.breaks(n.a, out)
	}
}

// maxAlike bounds pairwise comparisons: of the classes that determine a derivative, and of
// alternatives that may contain each other.
const maxAlike = 64

// edges returns the derivatives of r by every character. Characters in the same classes share one:
// \s alone has ten ranges.
func (s *rxSet) edges(r rx) *rxEdges {
	if e := s.nodes[r].edges; e != nil {
		return e
	}
	b := breaks{at: map[rune]struct{}{0: {}}}
	s.breaks(r, &b)
	from := make([]rune, 0, len(b.at))
	for c := range b.at {
		from = append(from, c)
	}
	slices.Sort(from)
	s.work -= len(from) / 4
	e := &rxEdges{}
	known := map[uint64]rx{}
	for _, c := range from {
		var d rx
		if len(b.classes) > maxAlike {
			d = s.derive(r, c)
		} else {
			in := s.membership(b.classes, c)
			var ok bool
			if d, ok = known[in]; !ok {
				d = s.derive(r, c)
				known[in] = d
			}
		}
		if k := len(e.next); k > 0 && e.next[k-1] == d {
			continue
		}
		e.from = append(e.from, c)
		e.next = append(e.next, d)
	}
	s.nodes[r].edges = e
	s.charge(64 + 16*len(e.from))
	return e
}

// membership returns the classes that contain c, one bit each.
func (s *rxSet) membership(classes []rx, c rune) uint64 {
	var in uint64
	for i, k := range classes {
		if inClass(s.nodes[k].class, c) {
			in |= 1 << i
		}
	}
	return in
}
