package jinja

import (
	"strconv"
	"strings"
)

// maxWidth bounds widths and precisions in format strings.
const maxWidth = 4096

// spec is one conversion of a format string.
type spec struct {
	minus, plus, space, zero, alt, comma bool
	fill                                 rune
	align                                byte // '<', '>', '^', '='; 0: the type's default
	width, precision                     int  // precision -1: none
	verb                                 byte
}

// format implements Python's text.format(args, kw).
func (in *interp) format(t Text, args []any, kw *dict) (any, error) {
	var b textBuilder
	next := 0
	for at := 0; at < len(t.s); {
		n := strings.IndexAny(t.s[at:], "{}")
		if n < 0 {
			b.add(t.slice(at, len(t.s)))
			break
		}
		b.add(t.slice(at, at+n))
		at += n
		if at+1 < len(t.s) && t.s[at+1] == t.s[at] {
			b.add(t.slice(at, at+1))
			at += 2
			continue
		}
		if t.s[at] == '}' {
			return nil, fail("ValueError", "Single '}' encountered in format string")
		}
		end := strings.IndexByte(t.s[at:], '}')
		if end < 0 || strings.IndexByte(t.s[at+1:at+end], '{') >= 0 {
			return nil, fail("ValueError", "expected '}' before end of string")
		}
		out, err := in.formatField(t.s[at+1:at+end], args, kw, &next)
		if err != nil {
			return nil, err
		}
		out = t.slice(at, at+end+1).taint(out)
		if err := in.charge(len(out.s)); err != nil {
			return nil, err
		}
		b.add(out)
		at += end + 1
	}
	return b.text(), in.charge(len(t.s))
}

// formatField formats one replacement field: name, !conversion and :spec.
func (in *interp) formatField(field string, args []any, kw *dict, next *int) (Text, error) {
	field, format, _ := strings.Cut(field, ":")
	field, conversion, _ := strings.Cut(field, "!")
	if err := in.step(1); err != nil {
		return Text{}, err
	}
	v, err := in.fieldValue(field, args, kw, next)
	if err != nil {
		return Text{}, err
	}
	switch conversion {
	case "":
	case "r", "a":
		if v, err = in.repr(v); err != nil {
			return Text{}, err
		}
	case "s":
		if v, err = in.str(v); err != nil {
			return Text{}, err
		}
	default:
		return Text{}, fail("ValueError", "Unknown conversion specifier %s", conversion)
	}
	return in.formatValue(v, format)
}

func (in *interp) fieldValue(field string, args []any, kw *dict, next *int) (any, error) {
	name := field
	rest := ""
	if i := strings.IndexAny(field, ".["); i >= 0 {
		name, rest = field[:i], field[i:]
	}
	var v any
	if name == "" {
		name = strconv.Itoa(*next)
		*next++
	}
	if i, err := strconv.Atoi(name); err == nil {
		if i < 0 || i >= len(args) {
			return nil, fail("IndexError", "Replacement index %d out of range for positional args tuple", i)
		}
		v = args[i]
	} else {
		x, ok := kw.getString(name)
		if !ok {
			return nil, fail("KeyError", "%s", reprString(name))
		}
		v = x
	}
	for rest != "" {
		var key any
		index := rest[0] == '['
		rest = rest[1:]
		end := strings.IndexAny(rest, ".[")
		if index {
			end = strings.IndexByte(rest, ']')
			if end < 0 {
				return nil, fail("ValueError", "Missing ']' in format string")
			}
		} else if end < 0 {
			end = len(rest)
		}
		part := rest[:end]
		rest = rest[end:]
		if index {
			rest = rest[1:]
		}
		key = TemplateText(part)
		if i, err := strconv.Atoi(part); err == nil && index {
			key = int64(i)
		}
		var err error
		if index {
			v, err = in.index(v, key)
		} else {
			v, err = in.attribute(v, part)
		}
		if err != nil {
			return nil, err
		}
		if u, ok := v.(*undefined); ok {
			return nil, u.err()
		}
	}
	return v, nil
}

// formatValue implements Python's format(value, spec).
func (in *interp) formatValue(v any, format string) (Text, error) {
	if format == "" {
		return in.str(v)
	}
	f, err := parseSpec(format)
	if err != nil {
		return Text{}, err
	}
	n, isNumber := number(v)
	if _, isBool := v.(bool); isBool && f.verb == 0 {
		isNumber = false
		v = TemplateText(reprSimple(v))
	}
	if !isNumber {
		return in.formatText(f, v)
	}
	if _, isFloat := n.(float64); !isFloat && f.verb == 0 {
		f.verb = 'd'
	} else if isFloat && strings.IndexByte("dxXobn", f.verb) >= 0 && f.verb != 0 && f.verb != 'n' {
		return Text{}, fail("ValueError", "Unknown format code '%c' for object of type 'float'", f.verb)
	}
	if f.verb != 0 && strings.IndexByte("dxXobneEfFgG%", f.verb) < 0 {
		return Text{}, fail("ValueError", "Unknown format code '%c' for object of type '%s'", f.verb, typeName(v))
	}
	if f.verb == 'n' {
		f.verb = 'g'
		if _, isFloat := n.(float64); !isFloat {
			f.verb = 'd'
		}
	}
	if f.zero && f.align == 0 {
		f.align, f.fill = '=', '0'
	}
	return in.formatNumber(f, n)
}

func (in *interp) formatText(f spec, v any) (Text, error) {
	t, ok := v.(Text)
	if !ok {
		return Text{}, typeError("unsupported format string passed to %s.__format__", typeName(v))
	}
	if f.verb != 0 && f.verb != 's' {
		return Text{}, fail("ValueError", "Unknown format code '%c' for object of type 'str'", f.verb)
	}
	if f.precision >= 0 {
		t = t.slice(0, t.offset(f.precision))
	}
	how := map[byte]string{'>': "rjust", '^': "center"}[f.align]
	if how == "" {
		how = "ljust"
	}
	return in.pad(how, t, f.width, TemplateText(string(f.fill)))
}

// parseSpec reads [[fill]align][sign][#][0][width][,][.precision][type].
func parseSpec(s string) (spec, error) {
	f := spec{fill: ' ', precision: -1}
	bad := fail("ValueError", "Invalid format specifier %s", reprString(s))
	r := []rune(s)
	isAlign := func(i int) bool { return i < len(r) && strings.ContainsRune("<>^=", r[i]) }
	i := 0
	if isAlign(1) {
		f.fill, f.align, i = r[0], byte(r[1]), 2
	} else if isAlign(0) {
		f.align, i = byte(r[0]), 1
	}
	flag := func(c rune) bool {
		if i < len(r) && r[i] == c {
			i++
			return true
		}
		return false
	}
	f.plus = flag('+')
	if !f.plus && !flag('-') {
		f.space = flag(' ')
	}
	f.alt, f.zero = flag('#'), flag('0')
	rest := string(r[i:])
	width, n, err := parseWidth(rest, 0)
	if err != nil {
		return f, err
	}
	f.width = width
	if n < len(rest) && (rest[n] == ',' || rest[n] == '_') {
		f.comma = rest[n] == ','
		n++
	}
	if n < len(rest) && rest[n] == '.' {
		from := n + 1
		if f.precision, n, err = parseWidth(rest, from); err != nil {
			return f, err
		}
		if n == from {
			return f, fail("ValueError", "Format specifier missing precision")
		}
	}
	if n < len(rest) {
		f.verb = rest[n]
		n++
	}
	if n < len(rest) {
		return f, bad
	}
	return f, nil
}
