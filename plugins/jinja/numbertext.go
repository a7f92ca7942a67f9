package jinja

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
)

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
	case 0: // of format() without a type: like repr, but rounded if a precision is given
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
