package jinja

import (
	"math"
	"math/big"
	"strings"
)

// percent implements Python's text % values.
func (in *interp) percent(t Text, v any) (any, error) {
	args := []any{v}
	if l, ok := v.(*list); ok && l.tuple {
		args = l.items
	}
	var b textBuilder
	next := 0
	for at := 0; at < len(t.s); {
		n := strings.IndexByte(t.s[at:], '%')
		if n < 0 {
			b.add(t.slice(at, len(t.s)))
			break
		}
		b.add(t.slice(at, at+n))
		at += n
		spec, key, size, err := parsePercent(t.s[at:])
		if err != nil {
			return nil, err
		}
		if spec.verb == '%' {
			b.add(t.slice(at, at+1))
			at += size
			continue
		}
		value, err := percentValue(v, args, key, &next)
		if err != nil {
			return nil, err
		}
		out, err := in.formatPercent(spec, value, t.markup)
		if err != nil {
			return nil, err
		}
		out = t.slice(at, at+size).taint(out)
		if err := in.charge(len(out.s)); err != nil {
			return nil, err
		}
		b.add(out)
		at += size
	}
	if next < len(args) && !isLookup(v) {
		return nil, typeError("not all arguments converted during string formatting")
	}
	out := b.text()
	out.markup = t.markup
	return out, in.charge(len(t.s))
}

// isLookup reports whether Python's % treats the value as a mapping, whose entries need not all be
// used.
func isLookup(v any) bool {
	l, isList := v.(*list)
	_, isDict := v.(*dict)
	return isDict || isList && !l.tuple
}

func parsePercent(s string) (f spec, key *string, size int, err error) {
	f.precision, f.fill = -1, ' '
	i := 1
	if i < len(s) && s[i] == '(' {
		end := strings.IndexByte(s[i:], ')')
		if end < 0 {
			return f, nil, 0, fail("ValueError", "incomplete format key")
		}
		name := s[i+1 : i+end]
		key = &name
		i += end + 1
	}
	for ; i < len(s) && strings.IndexByte("-+ 0#", s[i]) >= 0; i++ {
		switch s[i] {
		case '-':
			f.minus = true
		case '+':
			f.plus = true
		case ' ':
			f.space = true
		case '0':
			f.zero = true
		case '#':
			f.alt = true
		}
	}
	f.width, i, err = parseWidth(s, i)
	if err == nil && i < len(s) && s[i] == '.' {
		f.precision, i, err = parseWidth(s, i+1)
	}
	if err != nil {
		return f, nil, 0, err
	}
	for i < len(s) && strings.IndexByte("hlL", s[i]) >= 0 {
		i++
	}
	if i >= len(s) {
		return f, nil, 0, fail("ValueError", "incomplete format")
	}
	f.verb = s[i]
	return f, key, i + 1, nil
}

func parseWidth(s string, i int) (width, next int, err error) {
	for ; i < len(s) && isDecimal(s[i]); i++ {
		if width = width*10 + int(s[i]-'0'); width > maxWidth {
			return 0, 0, fail(classLimit, "a width in a format string is over %d", maxWidth)
		}
	}
	return width, i, nil
}

func percentValue(v any, args []any, key *string, next *int) (any, error) {
	if key != nil {
		d, ok := v.(*dict)
		if !ok {
			return nil, typeError("format requires a mapping")
		}
		*next = len(args)
		value, ok := d.getString(*key)
		if !ok {
			return nil, fail("KeyError", "%s", reprString(*key))
		}
		return value, nil
	}
	if *next >= len(args) {
		return nil, typeError("not enough arguments for format string")
	}
	*next++
	return args[*next-1], nil
}

func (in *interp) formatPercent(f spec, v any, markup bool) (Text, error) {
	switch f.verb {
	case 's', 'r', 'a':
		t, err := in.str(v)
		if f.verb != 's' {
			t, err = in.repr(v)
		}
		if err != nil {
			return Text{}, err
		}
		if markup {
			t = escapeText(t)
		}
		if f.precision >= 0 {
			t = t.slice(0, t.offset(f.precision))
		}
		if f.minus {
			return in.pad("ljust", t, f.width, TemplateText(" "))
		}
		return in.pad("rjust", t, f.width, TemplateText(" "))
	case 'c':
		if t, ok := v.(Text); ok && t.runes() == 1 {
			return in.pad("rjust", t, f.width, TemplateText(" "))
		}
		n, ok := v.(int64)
		if !ok || n < 0 || n > 0x10ffff {
			return Text{}, typeError("%%c requires int or char")
		}
		return TemplateText(string(rune(n))), nil
	}
	n, ok := number(v)
	if !ok {
		if u, ok := v.(*undefined); ok {
			return Text{}, u.err()
		}
		return Text{}, typeError("%%%c format: a real number is required, not %s", f.verb, typeName(v))
	}
	switch {
	case strings.IndexByte("diu", f.verb) >= 0:
		f.verb = 'd'
		if fl, ok := n.(float64); ok {
			whole, err := truncate(fl)
			if err != nil {
				return Text{}, err
			}
			n = whole
		}
	case strings.IndexByte("oxX", f.verb) >= 0:
		if _, ok := n.(float64); ok {
			return Text{}, typeError("%%%c format: an integer is required, not float", f.verb)
		}
	case strings.IndexByte("eEfFgG", f.verb) < 0:
		return Text{}, fail("ValueError", "unsupported format character %s", reprString(string(f.verb)))
	}
	if f.minus {
		f.align = '<'
	} else if f.zero {
		f.align, f.fill = '=', '0'
	}
	return in.formatNumber(f, n)
}

// truncate returns the integer part of a float.
func truncate(f float64) (any, error) {
	if math.IsNaN(f) {
		return nil, fail("ValueError", "cannot convert float NaN to integer")
	}
	if math.IsInf(f, 0) {
		return nil, fail("OverflowError", "cannot convert float infinity to integer")
	}
	n, _ := big.NewFloat(math.Trunc(f)).Int(nil)
	return normalInt(n), nil
}
