package jinja

import (
	"strings"
	"unicode/utf8"
)

// replace replaces old by by, at most n times; below 0: everywhere.
func (in *interp) replace(t, old, by Text, n int) (Text, error) {
	found := strings.Count(t.s, old.s)
	if n < 0 || n > found {
		n = found
	}
	if err := in.step(n); err != nil {
		return Text{}, err
	}
	if err := in.charge(len(t.s)); err != nil {
		return Text{}, err
	}
	if n > 0 && len(by.s) > in.bytes/n {
		return Text{}, in.charge(in.bytes + 1)
	}
	if err := in.charge(n * len(by.s)); err != nil {
		return Text{}, err
	}
	if (t.client != nil || by.client != nil) && n > 0 { // origins: at most two spans each
		if err := in.chargeItems(n); err != nil {
			return Text{}, err
		}
	}
	var b textBuilder
	from := 0
	for i := range n {
		if old.s == "" {
			b.add(by)
			if i == n-1 {
				break
			}
			_, size := utf8.DecodeRuneInString(t.s[from:])
			b.add(t.slice(from, from+size))
			from += size
			continue
		}
		at := from + strings.Index(t.s[from:], old.s)
		b.add(t.slice(from, at))
		b.add(by)
		from = at + len(old.s)
	}
	b.add(t.slice(from, len(t.s)))
	out := b.text()
	out.markup = t.markup
	return out, nil
}

// joinStrings implements str.join: every item must be a string.
func (in *interp) joinStrings(sep Text, v any) (any, error) {
	items, err := in.iterate(v)
	if err != nil {
		return nil, err
	}
	parts := make([]Text, 0, len(items))
	for i, item := range items {
		t, ok := item.(Text)
		if !ok {
			return nil, typeError("sequence item %d: expected str instance, %s found", i, typeName(item))
		}
		parts = append(parts, t)
	}
	return in.joinTexts(sep, parts)
}

func (in *interp) joinTexts(sep Text, parts []Text) (Text, error) {
	if err := in.step(len(parts)); err != nil {
		return Text{}, err
	}
	size := max(len(parts)-1, 0) * len(sep.s)
	for _, t := range parts {
		size += len(t.s)
	}
	if err := in.charge(size); err != nil { // before allocating anything
		return Text{}, err
	}
	var b textBuilder
	b.b.Grow(size)
	for i, t := range parts {
		if i > 0 {
			b.add(sep)
		}
		b.add(t)
	}
	return b.text(), nil
}

// pad fills a text up to a width in characters.
func (in *interp) pad(how string, t Text, width int, fill Text) (Text, error) {
	if fill.runes() != 1 {
		return Text{}, typeError("The fill character must be exactly one character long")
	}
	missing := width - t.runes()
	if missing <= 0 {
		return t, nil
	}
	if missing > in.bytes/len(fill.s) {
		return Text{}, in.charge(in.bytes + 1)
	}
	if err := in.charge(len(t.s) + missing*len(fill.s)); err != nil {
		return Text{}, err
	}
	left, right := 0, missing
	switch how {
	case "rjust":
		left, right = missing, 0
	case "center":
		left = missing/2 + missing&width&1
		right = missing - left
	}
	client := fill.client != nil
	var b textBuilder
	b.addString(strings.Repeat(fill.s, left), client)
	b.add(t)
	b.addString(strings.Repeat(fill.s, right), client)
	out := b.text()
	out.markup = t.markup
	return out, nil
}

func (in *interp) expandTabs(t Text, size int) (Text, error) {
	if err := in.remake(t, 1); err != nil {
		return Text{}, err
	}
	var b textBuilder
	column := 0
	for c := range t.chars() {
		switch {
		case c.text == "\t" && size > 0:
			n := size - column%size
			if err := in.charge(n); err != nil {
				return Text{}, err
			}
			b.addString(strings.Repeat(" ", n), c.client)
			column += n
			continue
		case c.text == "\t":
			continue
		case c.text == "\n" || c.text == "\r":
			column = -1
		}
		column++
		b.addString(c.text, c.client)
	}
	return b.text(), nil
}
