package jinja

import (
	"math"
	"math/big"
	"strconv"
	"strings"
)

// numberFilter returns a filter of numbers, or nil.
func numberFilter(name string) filter {
	switch name {
	case "abs":
		return filterAbs
	case "filesizeformat":
		return func(c *call, v any) (any, error) {
			f, err := c.in.toNumber(v)
			return TemplateText(sizeText(f, c.boolean("binary", false))), err
		}
	case "float":
		return filterFloat
	case "int":
		return filterInt
	case "round":
		return filterRound
	}
	return nil
}

// toNumber converts a value to a number, as it is or from its text.
func (in *interp) toNumber(v any) (float64, error) {
	if n, ok := number(v); ok {
		return toFloat(n), nil
	}
	switch v := v.(type) {
	case Text:
		if err := in.walk(v); err != nil {
			return 0, err
		}
		f, ok := parseFloat(v.s)
		if !ok {
			return 0, fail("ValueError", "could not convert string to float: %s", reprString(v.s))
		}
		return f, nil
	case *undefined:
		return 0, v.err()
	}
	return 0, typeError("float() argument must be a string or a real number, not '%s'", typeName(v))
}

// parseFloat reads a number as Python's float() does.
func parseFloat(s string) (float64, bool) {
	s = strings.TrimFunc(s, isSpace)
	if len(s) > maxDigits || strings.HasPrefix(strings.TrimLeft(strings.ToLower(s), "+-"), "0x") {
		return 0, false
	}
	for i := range len(s) { // Python allows single underscores between digits only
		if s[i] == '_' && (i == 0 || i == len(s)-1 || !isDecimal(s[i-1]) || !isDecimal(s[i+1])) {
			return 0, false
		}
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	return f, err == nil || math.IsInf(f, 0)
}

func filterAbs(_ *call, v any) (any, error) {
	n, _ := number(v)
	switch n := n.(type) {
	case int64:
		return normalInt(new(big.Int).Abs(big.NewInt(n))), nil
	case *big.Int:
		return new(big.Int).Abs(n), nil
	case float64:
		return math.Abs(n), nil
	}
	if u, isUndefined := v.(*undefined); isUndefined {
		return nil, u.err()
	}
	return nil, typeError("bad operand type for abs(): '%s'", typeName(v))
}

func filterFloat(c *call, v any) (any, error) {
	otherwise := c.arg("default", 0.0)
	if u, ok := v.(*undefined); ok {
		return nil, u.err()
	}
	f, err := c.in.toNumber(v)
	if err != nil && !IsLimit(err) {
		return otherwise, nil
	}
	return f, err
}

func filterInt(c *call, v any) (any, error) {
	otherwise := c.arg("default", int64(0))
	base, err := c.integer("base", 10)
	if err != nil {
		return nil, err
	}
	if u, ok := v.(*undefined); ok {
		return nil, u.err()
	}
	if t, ok := v.(Text); ok {
		if err := c.in.walk(t); err != nil {
			return nil, err
		}
		s := strings.TrimFunc(t.s, isSpace)
		if len(s) > maxDigits {
			return otherwise, nil
		}
		s = strings.ToLower(s)
		for b, prefix := range map[int]string{16: "0x", 8: "0o", 2: "0b"} {
			if base == b {
				s = strings.Replace(s, prefix, "", 1)
			}
		}
		if base < 2 || base > 36 {
			return otherwise, nil
		}
		if n, ok := new(big.Int).SetString(strings.ReplaceAll(s, "_", ""), base); ok {
			return normalInt(n), nil
		}
	}
	if n, ok := number(v); ok {
		if _, isFloat := n.(float64); !isFloat {
			return n, nil
		}
	}
	f, err := c.in.toNumber(v)
	if err != nil && !IsLimit(err) {
		return otherwise, nil
	}
	if err != nil {
		return nil, err
	}
	n, err := truncate(f)
	if err != nil {
		return otherwise, nil //nolint:nilerr // as Jinja does
	}
	return n, nil
}

func filterRound(c *call, v any) (any, error) {
	places, err := c.integer("precision", 0)
	if err != nil {
		return nil, err
	}
	how, err := c.text("method", "common")
	if err != nil {
		return nil, err
	}
	n, ok := number(v)
	if !ok {
		if u, ok := v.(*undefined); ok {
			return nil, u.err()
		}
		return nil, typeError("type %s doesn't define __round__ method", typeName(v))
	}
	p := math.Pow(10, float64(places))
	switch how.s {
	case "common":
		if _, isFloat := n.(float64); !isFloat && places >= 0 {
			return n, nil
		} else if !isFloat {
			return truncate(roundHalfEven(toFloat(n), places))
		}
		return roundHalfEven(toFloat(n), places), nil
	case "ceil":
		return math.Ceil(toFloat(n)*p) / p, nil
	case "floor":
		return math.Floor(toFloat(n)*p) / p, nil
	}
	return nil, fail("FilterArgumentError", "method must be common, ceil or floor")
}
