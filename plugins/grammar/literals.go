package grammar

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// literal returns the expression that matches exactly text.
func (s *rxSet) literal(text string) rx { return s.literals([]string{text}) }

// literals returns the expression that matches any of the texts, as a tree by their characters.
func (s *rxSet) literals(texts []string) rx {
	sorted := slices.Clone(texts)
	if len(texts) == 0 {
		return rxNone
	}
	slices.Sort(sorted)
	return s.literalTree(slices.Compact(sorted), 0)
}

func (s *rxSet) literalTree(sorted []string, at int) (out rx) {
	// A single text is built from its end, so that a long one needs no deep recursion.
	if len(sorted) == 1 {
		out := rxEmpty
		for rest := sorted[0][at:]; rest != ""; {
			r, n := utf8.DecodeLastRuneInString(rest)
			rest = rest[:len(rest)-n]
			out = s.concat(s.class([]runeRange{{r, r}}), out)
		}
		return out
	}
	if n := commonPrefix(sorted, at); n > at {
		out := s.literalTree(sorted, n)
		for rest := sorted[0][at:n]; rest != ""; {
			r, k := utf8.DecodeLastRuneInString(rest)
			rest = rest[:len(rest)-k]
			out = s.concat(s.class([]runeRange{{r, r}}), out)
		}
		return out
	}
	var kids []rx
	var key string
	if len(sorted) > 2 {
		var rests strings.Builder
		for _, text := range sorted {
			rests.WriteString(text[at:])
			rests.WriteByte(0xff)
		}
		key = rests.String()
		if r, ok := s.trees[key]; ok {
			return r
		}
		defer func() { s.trees[key] = out }()
	}
	for i := 0; i < len(sorted); {
		if len(sorted[i]) == at {
			kids = append(kids, rxEmpty)
			i++
			continue
		}
		r, n := utf8.DecodeRuneInString(sorted[i][at:])
		j := i + 1
		for j < len(sorted) && len(sorted[j]) >= at+n && sorted[j][at:at+n] == sorted[i][at:at+n] {
			j++
		}
		kids = append(kids, s.concat(s.class([]runeRange{{r, r}}), s.literalTree(sorted[i:j], at+n)))
		i = j
	}
	return s.alt(kids...)
}

// commonPrefix returns the end of the longest common prefix of sorted texts, in whole characters.
func commonPrefix(sorted []string, at int) int {
	a, b := sorted[0], sorted[len(sorted)-1]
	n := at
	for n < len(a) && n < len(b) {
		r, k := utf8.DecodeRuneInString(a[n:])
		if q, _ := utf8.DecodeRuneInString(b[n:]); q != r {
			break
		}
		n += k
	}
	return n
}
