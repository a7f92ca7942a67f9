package jinja

import (
	"slices"
	"strings"
	"unicode/utf8"
)

// chars returns the set of characters given by the next argument; empty: white space.
func (c *call) chars(name string) (string, error) {
	v := c.arg(name, nil)
	if v == nil {
		return "", nil
	}
	t, err := textOf(v)
	return t.s, err
}

func stripText(t Text, in func(rune) bool, left, right bool) Text {
	from, to := 0, len(t.s)
	if left {
		from = len(t.s) - len(strings.TrimLeftFunc(t.s, in))
	}
	if right {
		to = max(from, len(strings.TrimRightFunc(t.s, in)))
	}
	return t.slice(from, to)
}

func (c *call) split(t Text, right bool) (any, error) {
	sep := c.arg("sep", nil)
	most, err := c.integer("maxsplit", -1)
	if err != nil {
		return nil, err
	}
	pieces := func(n int) error { // before allocating them
		if most >= 0 {
			n = min(n, most+1)
		}
		return c.in.chargeTexts(n)
	}
	if err := c.in.walk(t); err != nil {
		return nil, err
	}
	var items []any
	if sep == nil {
		if err := pieces(countWords(t.s)); err != nil {
			return nil, err
		}
		items = splitSpace(t, most, right)
	} else {
		by, err := textOf(sep)
		if err != nil {
			return nil, err
		}
		if by.s == "" {
			return nil, fail("ValueError", "empty separator")
		}
		if err := pieces(strings.Count(t.s, by.s) + 1); err != nil {
			return nil, err
		}
		items = splitBy(t, by.s, most, right)
	}
	return &list{items: items}, nil
}

// countWords returns the number of words in s, separated by white space.
func countWords(s string) int { return countFields(s, isSpace) }

func splitBy(t Text, sep string, most int, right bool) []any {
	var out []any
	from, to := 0, len(t.s)
	for most != 0 {
		if right {
			n := strings.LastIndex(t.s[:to], sep)
			if n < 0 {
				break
			}
			out = append(out, t.slice(n+len(sep), to))
			to = n
		} else {
			n := strings.Index(t.s[from:], sep)
			if n < 0 {
				break
			}
			out = append(out, t.slice(from, from+n))
			from += n + len(sep)
		}
		most--
	}
	out = append(out, t.slice(from, to))
	if right {
		slices.Reverse(out)
	}
	return out
}

func splitSpace(t Text, most int, right bool) []any {
	var out []any
	if right {
		for {
			t = stripText(t, isSpace, false, true)
			if t.s == "" {
				break
			}
			n := strings.LastIndexFunc(t.s, isSpace)
			if most == 0 || n < 0 {
				out = append(out, stripText(t, isSpace, n < 0, true))
				break
			}
			_, size := utf8.DecodeRuneInString(t.s[n:])
			out = append(out, t.slice(n+size, len(t.s)))
			t = t.slice(0, n)
			most--
		}
		slices.Reverse(out)
		return out
	}
	from := 0
	for {
		from += len(t.s[from:]) - len(strings.TrimLeftFunc(t.s[from:], isSpace))
		if from == len(t.s) {
			return out
		}
		n := strings.IndexFunc(t.s[from:], isSpace)
		if most == 0 || n < 0 {
			return append(out, t.slice(from, len(t.s)))
		}
		out = append(out, t.slice(from, from+n))
		from += n
		most--
	}
}

func (c *call) partition(t Text, right bool) (any, error) {
	sep, err := c.needText("sep")
	if err != nil {
		return nil, err
	}
	if sep.s == "" {
		return nil, fail("ValueError", "empty separator")
	}
	if err := c.in.charge(len(t.s)); err != nil {
		return nil, err
	}
	n := strings.Index(t.s, sep.s)
	if right {
		n = strings.LastIndex(t.s, sep.s)
	}
	items := []any{t, Text{}, Text{}}
	if n < 0 && right {
		items = []any{Text{}, Text{}, t}
	}
	if n >= 0 {
		end := n + len(sep.s)
		items = []any{t.slice(0, n), t.slice(n, end), t.slice(end, len(t.s))}
	}
	return &list{items: items, tuple: true}, nil
}
