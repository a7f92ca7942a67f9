package jinja

import (
	"math"
	"math/big"
	"strings"
)

func (u *unaryExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	v, err := u.of.eval(in, s)
	if err != nil {
		return nil, err
	}
	if un, ok := v.(*undefined); ok {
		return nil, at(un.err(), u.line)
	}
	n, ok := number(v)
	if !ok {
		return nil, at(typeError("bad operand type for unary %s: '%s'", u.op, typeName(v)), u.line)
	}
	if u.op == "+" {
		return n, nil
	}
	if f, ok := n.(float64); ok {
		return -f, nil
	}
	return normalInt(new(big.Int).Neg(bigInt(n))), nil
}

func (b *binaryExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	if err := in.step(1); err != nil {
		return nil, err
	}
	left, err := b.left.eval(in, s)
	if err != nil {
		return nil, err
	}
	right, err := b.right.eval(in, s)
	if err != nil {
		return nil, err
	}
	v, err := in.binary(b.op, left, right)
	return v, at(err, b.line)
}

func (in *interp) binary(op string, a, b any) (any, error) {
	for _, v := range []any{a, b} {
		if u, ok := v.(*undefined); ok {
			return nil, u.err()
		}
	}
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			return in.arithmetic(op, x, y)
		}
	}
	switch op {
	case "+":
		return in.add(a, b)
	case "*":
		if n, ok := wholeNumber(b); ok {
			return in.repeat(a, n, b)
		}
		if n, ok := wholeNumber(a); ok {
			return in.repeat(b, n, a)
		}
	case "%":
		if t, ok := a.(Text); ok {
			return in.percent(t, b)
		}
	}
	return nil, typeError("unsupported operand type(s) for %s: '%s' and '%s'", operatorName(op), typeName(a), typeName(b))
}

func wholeNumber(v any) (int64, bool) {
	n, _ := number(v)
	i, ok := n.(int64)
	return i, ok
}

func operatorName(op string) string {
	if op == "**" {
		return "** or pow()"
	}
	return op
}

// add joins texts or lists.
func (in *interp) add(a, b any) (any, error) {
	switch x := a.(type) {
	case Text:
		y, ok := b.(Text)
		if !ok {
			return nil, typeError("can only concatenate str (not \"%s\") to str", typeName(b))
		}
		if x.markup || y.markup {
			x, y = escapeText(x), escapeText(y)
		}
		return in.join(x.markup || y.markup, x, y)
	case *list:
		y, ok := b.(*list)
		if !ok || x.tuple != y.tuple {
			return nil, typeError("can only concatenate %s (not \"%s\") to %s", typeName(a), typeName(b), typeName(a))
		}
		if err := in.chargeItems(len(x.items) + len(y.items)); err != nil {
			return nil, err
		}
		items := make([]any, 0, len(x.items)+len(y.items))
		return &list{items: append(append(items, x.items...), y.items...), tuple: x.tuple}, nil
	}
	return nil, typeError("unsupported operand type(s) for +: '%s' and '%s'", typeName(a), typeName(b))
}

func (in *interp) join(markup bool, parts ...Text) (any, error) {
	var b textBuilder
	for _, t := range parts {
		if err := in.charge(len(t.s)); err != nil {
			return nil, err
		}
		b.add(t)
	}
	t := b.text()
	t.markup = markup
	return t, nil
}

// escape is escapeText within the limits.
func (in *interp) escape(t Text) (any, error) {
	if err := in.remake(t, 6); err != nil {
		return nil, err
	}
	return escapeText(t), nil
}

// escapeText returns the text as HTML; Markup stays as it is.
func escapeText(t Text) Text {
	if t.markup {
		return t
	}
	out := t.mapRunes(func(r rune) string {
		switch r {
		case '&':
			return "&amp;"
		case '<':
			return "&lt;"
		case '>':
			return "&gt;"
		case '\'':
			return "&#39;"
		case '"':
			return "&#34;"
		}
		return string(r)
	})
	out.markup = true
	return out
}

// repeat returns v n times; other is the operand that an error names.
func (in *interp) repeat(v any, n int64, other any) (any, error) {
	n = max(n, 0)
	switch v := v.(type) {
	case Text:
		if len(v.s) > 0 && n > int64(in.bytes/len(v.s)) {
			return nil, in.charge(in.bytes + 1)
		}
		if err := in.charge(len(v.s) * int(n)); err != nil {
			return nil, err
		}
		if len(v.client) == 0 {
			return Text{s: strings.Repeat(v.s, int(n)), markup: v.markup}, nil
		}
		var b textBuilder
		for range n {
			b.add(v)
		}
		t := b.text()
		t.markup = v.markup
		return t, nil
	case *list:
		if len(v.items) > 0 && n > int64(in.bytes/len(v.items)) {
			return nil, in.charge(in.bytes + 1)
		}
		if err := in.chargeItems(len(v.items) * int(n)); err != nil {
			return nil, err
		}
		out := &list{tuple: v.tuple}
		if len(v.items) == 0 {
			return out, nil
		}
		for range n {
			out.items = append(out.items, v.items...)
		}
		return out, nil
	}
	return nil, typeError("unsupported operand type(s) for *: '%s' and '%s'", typeName(v), typeName(other))
}

func (in *interp) arithmetic(op string, a, b any) (any, error) {
	x, y := bigInt(a), bigInt(b)
	if x == nil || y == nil || op == "/" {
		return floatArithmetic(op, toFloat(a), toFloat(b))
	}
	if i, ok := a.(int64); ok {
		if j, ok := b.(int64); ok {
			if v, ok := smallArithmetic(op, i, j); ok {
				return v, nil
			}
		}
	}
	if x.BitLen()+y.BitLen() > maxBits {
		return nil, fail(classLimit, "a number is too large")
	}
	out := new(big.Int)
	switch op {
	case "+":
		out.Add(x, y)
	case "-":
		out.Sub(x, y)
	case "*":
		out.Mul(x, y)
	case "//", "%":
		if y.Sign() == 0 {
			return nil, &Error{Class: "ZeroDivisionError", Message: "integer division or modulo by zero"}
		}
		rest := new(big.Int)
		out.DivMod(x, y, rest) // Euclid's; Python rounds towards minus infinity
		if rest.Sign() != 0 && y.Sign() < 0 {
			out.Sub(out, big.NewInt(1))
			rest.Add(rest, y)
		}
		if op == "%" {
			out = rest
		}
	case "**":
		if y.Sign() < 0 {
			return floatArithmetic(op, toFloat(a), toFloat(b))
		}
		if x.BitLen() > 1 && (!y.IsInt64() || y.Int64() > maxBits/int64(x.BitLen())) {
			return nil, fail(classLimit, "a number is too large")
		}
		if x.BitLen() <= 1 && !y.IsInt64() {
			return nil, fail(classLimit, "a number is too large")
		}
		if x.BitLen() <= 1 { // 0, 1, -1: the parity decides
			e := int64(2) - y.Int64()%2
			if y.Sign() == 0 {
				e = 0
			}
			y = big.NewInt(e)
		}
		out.Exp(x, y, nil)
	}
	return normalInt(out), nil
}

// smallArithmetic returns the result of a fast path for operands that cannot overflow.
func smallArithmetic(op string, a, b int64) (any, bool) {
	const limit = 1 << 31
	if a >= limit || a <= -limit || b >= limit || b <= -limit {
		return nil, false
	}
	switch op {
	case "+":
		return a + b, true
	case "-":
		return a - b, true
	case "*":
		return a * b, true
	}
	return nil, false
}

func floatArithmetic(op string, a, b float64) (any, error) {
	switch op {
	case "+":
		return a + b, nil
	case "-":
		return a - b, nil
	case "*":
		return a * b, nil
	case "**":
		return math.Pow(a, b), nil
	}
	if b == 0 {
		return nil, errZero
	}
	switch op {
	case "/":
		return a / b, nil
	case "//":
		return math.Floor(a / b), nil
	}
	rest := math.Mod(a, b)
	if rest != 0 && (rest < 0) != (b < 0) {
		rest += b
	}
	return rest, nil
}
