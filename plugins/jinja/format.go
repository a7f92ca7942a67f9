package jinja

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

// maxWidth bounds widths and precisions in format strings.
const maxWidth = 4096

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

// isLookup reports whether Python's % takes the value for a mapping, whose entries need not all be
// used.
func isLookup(v any) bool {
	l, isList := v.(*list)
	_, isDict := v.(*dict)
	return isDict || isList && !l.tuple
}

// spec is one conversion of a format string.
type spec struct {
	minus, plus, space, zero, alt, comma bool
	fill                                 rune
	align                                byte // '<', '>', '^', '='; 0: the type's own
	width, precision                     int  // precision -1: none
	verb                                 byte
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

// truncate returns the whole part of a float as an integer.
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

// formatNumber writes a number with its sign, separators and padding.
func (in *interp) formatNumber(f spec, v any) (Text, error) {
	digits, negative := numberDigits(f, v)
	sign := ""
	switch {
	case negative:
		sign = "-"
	case f.plus:
		sign = "+"
	case f.space:
		sign = " "
	}
	if f.alt {
		if prefix := map[byte]string{'x': "0x", 'X': "0X", 'o': "0o", 'b': "0b"}[f.verb]; prefix != "" {
			sign += prefix
		}
	}
	if f.comma {
		digits = groupDigits(digits)
	}
	fill := TemplateText(string(f.fill))
	switch f.align {
	case '=':
		padded, err := in.pad("rjust", TemplateText(digits), f.width-len(sign), fill)
		return TemplateText(sign + padded.s), err
	case '<':
		return in.pad("ljust", TemplateText(sign+digits), f.width, fill)
	case '^':
		return in.pad("center", TemplateText(sign+digits), f.width, fill)
	}
	return in.pad("rjust", TemplateText(sign+digits), f.width, fill)
}

func numberDigits(f spec, v any) (digits string, negative bool) {
	if bases := map[byte]int{'d': 10, 'n': 10, 'x': 16, 'X': 16, 'o': 8, 'b': 2}; bases[f.verb] != 0 {
		n := bigInt(v)
		digits = new(big.Int).Abs(n).Text(bases[f.verb])
		if f.verb == 'X' {
			digits = strings.ToUpper(digits)
		}
		for len(digits) < f.precision {
			digits = "0" + digits
		}
		return digits, n.Sign() < 0
	}
	x := toFloat(v)
	negative = math.Signbit(x)
	x = math.Abs(x)
	precision := f.precision
	if precision < 0 {
		precision = 6
	}
	switch f.verb {
	case 0: // of format() without a type: as repr, but rounded where a precision is given
		if f.precision < 0 {
			return reprFloat(x), negative
		}
		return formatGeneral(x, precision, true), negative
	case '%':
		return strconv.FormatFloat(x*100, 'f', precision, 64) + "%", negative
	case 'e', 'f':
		digits = strconv.FormatFloat(x, f.verb, precision, 64)
	case 'E':
		digits = strings.ToUpper(strconv.FormatFloat(x, 'e', precision, 64))
	case 'F':
		digits = strings.ToUpper(strconv.FormatFloat(x, 'f', precision, 64))
	case 'G':
		digits = strings.ToUpper(formatGeneral(x, precision, false))
	default:
		digits = formatGeneral(x, precision, false)
	}
	return digits, negative
}

// formatGeneral implements %g: the shorter of two notations, without trailing zeros.
func formatGeneral(x float64, precision int, point bool) string {
	precision = max(precision, 1)
	s := strconv.FormatFloat(x, 'e', precision-1, 64)
	mantissa, exponent, _ := strings.Cut(s, "e")
	e, _ := strconv.Atoi(exponent)
	trim := func(s string) string {
		if strings.Contains(s, ".") {
			s = strings.TrimRight(strings.TrimRight(s, "0"), ".")
		}
		return s
	}
	if e < -4 || e >= precision {
		return trim(mantissa) + "e" + exponent
	}
	s = trim(strconv.FormatFloat(x, 'f', max(precision-1-e, 0), 64))
	if point && !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// groupDigits puts a comma between thousands.
func groupDigits(s string) string {
	whole, rest := s, ""
	if i := strings.IndexAny(s, ".e%"); i >= 0 {
		whole, rest = s[:i], s[i:]
	}
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	return whole + rest
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

// roundHalfEven rounds to a number of decimal places as Python's round does.
func roundHalfEven(x float64, places int) float64 {
	if places > 300 || math.IsInf(x, 0) || math.IsNaN(x) {
		return x
	}
	if places >= 0 {
		y, err := strconv.ParseFloat(strconv.FormatFloat(x, 'f', places, 64), 64)
		if err != nil {
			return x
		}
		return y
	}
	if places < -308 {
		return 0
	}
	p := math.Pow(10, float64(-places))
	return math.RoundToEven(x/p) * p
}

// sizeText formats a size as the filter filesizeformat does.
func sizeText(bytes float64, binary bool) string {
	base, prefixes := 1000.0, []string{"kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB"}
	if binary {
		base, prefixes = 1024, []string{"KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB"}
	}
	switch {
	case bytes == 1:
		return "1 Byte"
	case bytes < base:
		return fmt.Sprintf("%d Bytes", int(bytes))
	}
	for i, prefix := range prefixes {
		unit := math.Pow(base, float64(i+2))
		if bytes < unit || i == len(prefixes)-1 {
			return fmt.Sprintf("%.1f %s", base*bytes/unit, prefix)
		}
	}
	return ""
}
