package jinja

import "slices"

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
		if err := in.hashing(key); err != nil {
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

var errZero = &Error{Class: "ZeroDivisionError", Message: "division by zero"}

// maxBits bounds integers, in bits.
const maxBits = 16384

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
		if err := in.walk(v); err != nil {
			return nil, err
		}
		if err := in.chargeItems(n); err != nil {
			return nil, err
		}
		chars := slices.AppendSeq(make([]char, 0, n), v.chars())
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
