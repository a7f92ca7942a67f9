package jinja

import (
	"math"
	"math/big"
	"slices"
	"strings"
)

func (c *constExpr) eval(*interp, *scope) (any, error) { return c.value, nil }

func (n *nameExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.step(1); err != nil {
		return nil, err
	}
	if v, ok := s.get(n.name); ok {
		return v, nil
	}
	if f := globalNamed(n.name); f != nil {
		return f, nil
	}
	return undefinedf("'%s' is undefined", n.name), nil
}

func (in *interp) evalAll(items []expr, s *scope) ([]any, error) {
	if err := in.chargeItems(len(items)); err != nil {
		return nil, err
	}
	out := make([]any, len(items))
	for i, item := range items {
		v, err := item.eval(in, s)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

func (l *listExpr) eval(in *interp, s *scope) (any, error) {
	items, err := in.evalAll(l.items, s)
	return &list{items: items}, err
}

func (t *tupleExpr) eval(in *interp, s *scope) (any, error) {
	items, err := in.evalAll(t.items, s)
	return &list{items: items, tuple: true}, err
}

func (d *dictExpr) eval(in *interp, s *scope) (any, error) {
	out := &dict{}
	if err := in.chargeItems(2 * len(d.keys)); err != nil {
		return nil, err
	}
	for i, k := range d.keys {
		key, err := k.eval(in, s)
		if err != nil {
			return nil, err
		}
		v, err := d.values[i].eval(in, s)
		if err != nil {
			return nil, err
		}
		if err := out.set(key, v); err != nil {
			return nil, err
		}
	}
	return out, nil
}

func (*sliceExpr) eval(*interp, *scope) (any, error) { return nil, typeError("a slice is not a value") }

func (c *condExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	v, err := c.cond.eval(in, s)
	if err != nil {
		return nil, err
	}
	switch {
	case truth(v):
		return c.then.eval(in, s)
	case c.otherwise == nil:
		return undefinedf("the inline if-expression evaluated to false and no else section was defined."), nil
	}
	return c.otherwise.eval(in, s)
}

func (n *notExpr) eval(in *interp, s *scope) (any, error) {
	v, err := n.of.eval(in, s)
	return !truth(v), err
}

func (a *andExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	v, err := a.left.eval(in, s)
	if err != nil || !truth(v) {
		return v, err
	}
	return a.right.eval(in, s)
}

func (o *orExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	v, err := o.left.eval(in, s)
	if err != nil || truth(v) {
		return v, err
	}
	return o.right.eval(in, s)
}

func (c *concatExpr) eval(in *interp, s *scope) (any, error) {
	var b textBuilder
	for _, part := range c.parts {
		v, err := part.eval(in, s)
		if err != nil {
			return nil, err
		}
		t, err := in.str(v)
		if err != nil {
			return nil, err
		}
		if err := in.charge(len(t.s)); err != nil {
			return nil, err
		}
		b.add(t)
	}
	return b.text(), nil
}

func (c *compareExpr) eval(in *interp, s *scope) (any, error) {
	left, err := c.first.eval(in, s)
	if err != nil {
		return nil, err
	}
	for i, op := range c.ops {
		right, err := c.rest[i].eval(in, s)
		if err != nil {
			return nil, err
		}
		ok, err := in.compare(op, left, right)
		if err != nil {
			return nil, at(err, c.line)
		}
		if !ok {
			return false, nil
		}
		left = right
	}
	return true, nil
}

func (in *interp) compare(op string, a, b any) (bool, error) {
	switch op {
	case "==", "!=":
		same, err := in.equal(a, b)
		return same == (op == "=="), err
	case "in", "not in":
		found, err := in.contains(b, a)
		return found == (op == "in"), err
	}
	order, err := in.order(a, b, op)
	if err != nil || order == unordered {
		return false, err
	}
	switch op {
	case "<":
		return order < 0, nil
	case "<=":
		return order <= 0, nil
	case ">":
		return order > 0, nil
	}
	return order >= 0, nil
}

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

var errZero = &Error{Class: "ZeroDivisionError", Message: "division by zero"}

// maxBits bounds integers, in bits.
const maxBits = 16384

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

func (a *attrExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	if err := in.step(1); err != nil {
		return nil, err
	}
	v, err := a.of.eval(in, s)
	if err != nil {
		return nil, err
	}
	out, err := in.attribute(v, a.name)
	return out, at(err, a.line)
}

func (i *indexExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	if err := in.step(1); err != nil {
		return nil, err
	}
	v, err := i.of.eval(in, s)
	if err != nil {
		return nil, err
	}
	var out any
	if sl, ok := i.index.(*sliceExpr); ok {
		out, err = sl.apply(in, s, v)
	} else {
		var key any
		if key, err = i.index.eval(in, s); err == nil {
			out, err = in.index(v, key)
		}
	}
	return out, at(err, i.line)
}

func (e *sliceExpr) apply(in *interp, s *scope, v any) (any, error) {
	bound := func(of expr) (*int, error) {
		if of == nil {
			return nil, nil //nolint:nilnil // None
		}
		x, err := of.eval(in, s)
		if err != nil || x == nil {
			return nil, err
		}
		i, ok := wholeNumber(x)
		if !ok {
			return nil, typeError("slice indices must be integers or None or have an __index__ method")
		}
		j := int(i)
		return &j, nil
	}
	from, err := bound(e.from)
	if err != nil {
		return nil, err
	}
	to, err := bound(e.to)
	if err != nil {
		return nil, err
	}
	by, err := bound(e.step)
	if err != nil {
		return nil, err
	}
	return in.slice(v, from, to, by)
}

// slice returns v[from:to:by]; nil stands for an omitted bound.
func (in *interp) slice(v any, from, to, by *int) (any, error) {
	step := 1
	if by != nil {
		step = *by
	}
	if step == 0 {
		return nil, fail("ValueError", "slice step cannot be zero")
	}
	switch v := v.(type) {
	case Text:
		n := v.runes()
		if err := in.scan(v); err != nil {
			return nil, err
		}
		a, b := sliceBounds(n, from, to, step)
		if err := in.charge(len(v.s)); err != nil {
			return nil, err
		}
		if step == 1 {
			from := v.offset(a)
			return v.slice(from, max(v.offset(max(a, b)), from)), nil
		}
		chars := slices.Collect(v.chars())
		if err := in.chargeItems(len(chars)); err != nil {
			return nil, err
		}
		var out textBuilder
		for i := a; step > 0 && i < b || step < 0 && i > b; i += step {
			out.addString(chars[i].text, chars[i].client)
		}
		t := out.text()
		t.markup = v.markup
		return t, nil
	case *list:
		a, b := sliceBounds(len(v.items), from, to, step)
		out := &list{tuple: v.tuple}
		if step == 1 {
			out.items = v.items[a:max(a, b):max(a, b)]
			return out, nil
		}
		if err := in.chargeItems(len(v.items)); err != nil {
			return nil, err
		}
		for i := a; step > 0 && i < b || step < 0 && i > b; i += step {
			out.items = append(out.items, v.items[i])
		}
		return out, nil
	case *undefined:
		return nil, v.err()
	case *dict:
		return nil, typeError("unhashable type: 'slice'")
	}
	return nil, typeError("'%s' object is not subscriptable", typeName(v))
}

// sliceBounds returns the first index and the one to stop at, as Python's slice.indices does. A
// step longer than the sequence acts like its length.
func sliceBounds(n int, from, to *int, step int) (a, b int) {
	clamp := func(p *int, otherwise, low, high int) int {
		if p == nil {
			return otherwise
		}
		i := *p
		if i < 0 {
			i = max(i+n, low)
		}
		return min(i, high)
	}
	if step > 0 {
		return clamp(from, 0, 0, n), clamp(to, n, 0, n)
	}
	return clamp(from, n-1, -1, n-1), clamp(to, -1, -1, n-1)
}

// values evaluates the arguments of a call.
func (a *arguments) values(in *interp, s *scope) ([]any, *dict, error) {
	args, err := in.evalAll(a.positional, s)
	if err != nil {
		return nil, nil, err
	}
	if a.list != nil {
		v, err := a.list.eval(in, s)
		if err != nil {
			return nil, nil, err
		}
		items, err := in.iterate(v)
		if err != nil {
			return nil, nil, err
		}
		if err := in.chargeItems(len(items)); err != nil {
			return nil, nil, err
		}
		args = append(args, items...)
	}
	var kw *dict
	if len(a.names) > 0 || a.dict != nil {
		kw = &dict{}
	}
	for i, name := range a.names {
		v, err := a.keywords[i].eval(in, s)
		if err != nil {
			return nil, nil, err
		}
		if err := kw.set(TemplateText(name), v); err != nil {
			return nil, nil, err
		}
	}
	if a.dict == nil {
		return args, kw, nil
	}
	v, err := a.dict.eval(in, s)
	if err != nil {
		return nil, nil, err
	}
	d, ok := v.(*dict)
	if !ok {
		return nil, nil, typeError("argument after ** must be a mapping, not %s", typeName(v))
	}
	if err := in.chargeItems(d.len()); err != nil {
		return nil, nil, err
	}
	for i, k := range d.keys {
		if _, ok := k.(Text); !ok {
			return nil, nil, typeError("keywords must be strings")
		}
		if err := kw.set(k, d.values[i]); err != nil {
			return nil, nil, err
		}
	}
	return args, kw, nil
}

func (c *callExpr) eval(in *interp, s *scope) (any, error) {
	v, err := c.invoke(in, s, nil)
	return v, at(err, c.line)
}

// invoke calls; caller is the body of a call block, or nil.
func (c *callExpr) invoke(in *interp, s *scope, caller *function) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	if err := in.step(1); err != nil {
		return nil, err
	}
	f, err := c.f.eval(in, s)
	if err != nil {
		return nil, err
	}
	args, kw, err := c.args.values(in, s)
	if err != nil {
		return nil, err
	}
	if caller != nil {
		if kw == nil {
			kw = &dict{}
		}
		if err := kw.set(TemplateText("caller"), caller); err != nil {
			return nil, err
		}
	}
	switch f := f.(type) {
	case *function:
		return f.call(in, args, kw)
	case *loop:
		if f.again == nil {
			return nil, typeError("The loop must have the 'recursive' marker to be called recursively.")
		}
		if len(args) != 1 {
			return nil, typeError("loop() takes one argument")
		}
		return f.again(args[0], f.depth+1)
	case *undefined:
		return nil, f.err()
	}
	return nil, typeError("'%s' object is not callable", typeName(f))
}

func (f *filterExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	v, err := f.of.eval(in, s)
	if err != nil {
		return nil, err
	}
	return f.apply(in, s, v)
}

// apply filters a value.
func (f *filterExpr) apply(in *interp, s *scope, v any) (any, error) {
	if err := in.step(1); err != nil {
		return nil, err
	}
	if f.f == nil {
		return nil, at(fail("TemplateRuntimeError", "No filter named '%s' found.", f.name), f.line)
	}
	args, kw, err := f.args.values(in, s)
	if err != nil {
		return nil, at(err, f.line)
	}
	out, err := in.filter(f.name, f.f, v, args, kw)
	return out, at(err, f.line)
}

// filter calls a filter.
func (in *interp) filter(name string, f filter, v any, args []any, kw *dict) (any, error) {
	c := &call{in: in, name: name, args: args, kw: kw}
	out, err := f(c, v)
	if err == nil {
		err = c.finish()
	}
	return out, err
}

func (t *testExpr) eval(in *interp, s *scope) (any, error) {
	if err := in.enter(); err != nil {
		return nil, err
	}
	defer in.leave()
	v, err := t.of.eval(in, s)
	if err != nil {
		return nil, err
	}
	if t.f == nil {
		return nil, at(fail("TemplateRuntimeError", "No test named '%s' found.", t.name), t.line)
	}
	args, kw, err := t.args.values(in, s)
	if err != nil {
		return nil, at(err, t.line)
	}
	ok, err := in.test(t.name, t.f, v, args, kw)
	return ok != t.negated, at(err, t.line)
}

func (in *interp) test(name string, f test, v any, args []any, kw *dict) (bool, error) {
	c := &call{in: in, name: name, args: args, kw: kw}
	ok, err := f(c, v)
	if err == nil {
		err = c.finish()
	}
	return ok, err
}
