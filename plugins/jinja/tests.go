package jinja

import "math/big"

// testNamed returns a test of Jinja's, or nil. It is a switch, not a table, because select looks
// tests up itself.
func testNamed(name string) test {
	simple := func(is func(v any) bool) test {
		return func(_ *call, v any) (bool, error) { return is(v), nil }
	}
	compare := func(op string) test {
		return func(c *call, v any) (bool, error) {
			other, err := c.need("other")
			if err != nil {
				return false, err
			}
			return c.in.compare(op, v, other)
		}
	}
	switch name {
	case "defined", "undefined":
		return simple(func(v any) bool {
			_, is := v.(*undefined)
			return is == (name == "undefined")
		})
	case "none":
		return simple(func(v any) bool { return v == nil })
	case "boolean":
		return simple(func(v any) bool { _, is := v.(bool); return is })
	case "true":
		return simple(func(v any) bool { return v == true })
	case "false":
		return simple(func(v any) bool { return v == false })
	case "integer":
		return simple(func(v any) bool { return typeName(v) == "int" })
	case "float":
		return simple(func(v any) bool { return typeName(v) == "float" })
	case "number":
		return simple(func(v any) bool { _, is := number(v); return is })
	case "string":
		return simple(func(v any) bool { _, is := v.(Text); return is })
	case "mapping":
		return simple(func(v any) bool { _, is := v.(*dict); return is })
	case "iterable":
		return simple(isIterable)
	case "sequence":
		return simple(isSequence)
	case "callable":
		return simple(func(v any) bool {
			switch v.(type) {
			case *function, *undefined, *loop:
				return true
			}
			return false
		})
	case "escaped":
		return simple(func(v any) bool { t, is := v.(Text); return is && t.markup })
	case "lower", "upper":
		return func(c *call, v any) (bool, error) {
			t, err := c.in.str(v)
			is := textPredicate("is" + name)
			return is(t.s), err
		}
	case "odd", "even":
		return func(c *call, v any) (bool, error) { return c.in.divisible(v, int64(2), name == "odd") }
	case "divisibleby":
		return func(c *call, v any) (bool, error) {
			by, err := c.need("num")
			if err != nil {
				return false, err
			}
			return c.in.divisible(v, by, false)
		}
	case "eq", "equalto", "==":
		return compare("==")
	case "ne", "!=":
		return compare("!=")
	case "lt", "lessthan", "<":
		return compare("<")
	case "le", "<=":
		return compare("<=")
	case "gt", "greaterthan", ">":
		return compare(">")
	case "ge", ">=":
		return compare(">=")
	case "in":
		return compare("in")
	case "sameas":
		return func(c *call, v any) (bool, error) {
			other, err := c.need("other")
			if err != nil {
				return false, err
			}
			if typeName(v) != typeName(other) {
				return false, nil
			}
			return c.in.equal(v, other)
		}
	case "filter", "test":
		return func(_ *call, v any) (bool, error) {
			t, ok := v.(Text)
			if !ok {
				return false, nil
			}
			if name == "filter" {
				return filterNamed(t.s) != nil, nil
			}
			return testNamed(t.s) != nil, nil
		}
	}
	return nil
}

func isIterable(v any) bool {
	switch v.(type) {
	case Text, *list, *dict, *view, *generator, *undefined, *loop:
		return true
	}
	return false
}

// isSequence reports whether the value has a length and items by index, as Jinja asks; dicts and
// undefined values do.
func isSequence(v any) bool {
	switch v.(type) {
	case Text, *list, *dict, *undefined:
		return true
	}
	return false
}

// divisible reports whether v % by is zero, or, with odd, whether it is one.
func (in *interp) divisible(v, by any, odd bool) (bool, error) {
	x, ok := number(v)
	y, ok2 := number(by)
	if u, isUndefined := v.(*undefined); isUndefined {
		return false, u.err()
	}
	if !ok || !ok2 {
		if t, isText := v.(Text); isText { // Python formats the text, and the result is not a number
			_, err := in.percent(t, by)
			return false, err
		}
		return false, typeError("unsupported operand type(s) for %%: '%s' and '%s'", typeName(v), typeName(by))
	}
	a, b := bigInt(x), bigInt(y)
	if a == nil || b == nil {
		rest, err := floatArithmetic("%", toFloat(x), toFloat(y))
		return err == nil && (odd && rest == 1.0 || !odd && rest == 0.0), err
	}
	if b.Sign() == 0 {
		return false, &Error{Class: "ZeroDivisionError", Message: "integer modulo by zero"}
	}
	return (new(big.Int).Mod(a, b).Sign() == 0) != odd, nil
}
