package jinja

import (
	"context"
	"errors"
	"time"
)

// interp is one run of a template.
type interp struct {
	ctx   context.Context //nolint:containedctx // of this run alone
	out   *textBuilder
	now   time.Time
	steps int // steps left
	bytes int // bytes left
	depth int // nesting levels left
}

// newInterp returns a run. size is the number of bytes of text in the variables: the bounds on work
// grow with it.
func newInterp(ctx context.Context, l Limits, size int) *interp {
	in := &interp{ctx: ctx, now: l.Now, steps: l.Steps, bytes: l.Bytes, depth: l.Depth}
	if in.now.IsZero() {
		in.now = time.Unix(0, 0).UTC()
	}
	if in.steps == 0 {
		in.steps = defaultSteps + size
	}
	if in.bytes == 0 {
		in.bytes = defaultBytes + bytesPerByte*size
	}
	if in.depth == 0 {
		in.depth = defaultDepth
	}
	return in
}

// contextEvery is the number of steps between checks of the context.
const contextEvery = 1024

// step counts n steps.
func (in *interp) step(n int) error {
	before := in.steps
	in.steps -= n
	if in.steps < 0 {
		return fail(classLimit, "the template takes too many steps")
	}
	if before/contextEvery != in.steps/contextEvery {
		return in.ctx.Err()
	}
	return nil
}

// scanBytes is how many bytes of a text are read for one step.
const scanBytes = 16

// scan counts the steps of reading a text once.
func (in *interp) scan(t Text) error { return in.step(len(t.s) / scanBytes) }

// walkBytes is how many bytes of a text are processed character by character in one step.
const walkBytes = 4

// walk counts the steps of processing a text character by character.
func (in *interp) walk(t Text) error { return in.step(len(t.s) / walkBytes) }

// remake counts the steps of processing a text, and the bytes of the result, at most times as long
// as the text, before it is made.
func (in *interp) remake(t Text, times int) error {
	if err := in.walk(t); err != nil {
		return err
	}
	return in.charge(times * len(t.s))
}

// charge counts n bytes before they are made.
func (in *interp) charge(n int) error {
	if n > in.bytes || n < 0 {
		return fail(classLimit, "the template makes too much text")
	}
	in.bytes -= n
	return nil
}

// valueBytes is the charge for an item of a list: two words for the interface, two or three for its
// value.
const valueBytes = 40

func (in *interp) chargeItems(n int) error { return in.chargeEach(n, valueBytes) }

// textBytes is the charge for a text as an item of a list: two words for the interface, six for the
// text, two for its origins.
const textBytes = 80

func (in *interp) chargeTexts(n int) error { return in.chargeEach(n, textBytes) }

func (in *interp) chargeEach(n, size int) error {
	if n > in.bytes/size {
		return fail(classLimit, "the template makes too many values")
	}
	if err := in.step(n); err != nil {
		return err
	}
	return in.charge(n * size)
}

// enter counts a level of nesting; leave ends it.
func (in *interp) enter() error {
	if in.depth == 0 {
		return fail(classLimit, "the template is nested too deep")
	}
	in.depth--
	return nil
}

func (in *interp) leave() { in.depth++ }

// scope holds the variables of a block. It looks for missing names in its parent. A block has few
// variables: a slice is faster than a map, and smaller.
type scope struct {
	parent *scope
	vars   []variable
}

type variable struct {
	name  string
	value any
}

func (s *scope) set(name string, v any) {
	for i := range s.vars {
		if s.vars[i].name == name {
			s.vars[i].value = v
			return
		}
	}
	s.vars = append(s.vars, variable{name, v})
}

func (s *scope) get(name string) (any, bool) {
	for ; s != nil; s = s.parent {
		for i := range s.vars {
			if s.vars[i].name == name {
				return s.vars[i].value, true
			}
		}
	}
	return nil, false
}

var (
	errBreak    = errors.New("break outside of a loop")
	errContinue = errors.New("continue outside of a loop")
)

func (in *interp) run(body []stmt, s *scope) error {
	if err := in.enter(); err != nil {
		return err
	}
	defer in.leave()
	for _, st := range body {
		if err := in.step(1); err != nil {
			return err
		}
		if err := st.exec(in, s); err != nil {
			return err
		}
	}
	return nil
}

// capture runs a body and returns what it prints.
func (in *interp) capture(body []stmt, s *scope) (Text, error) {
	var b textBuilder
	outer := in.out
	in.out = &b
	err := in.run(body, s)
	in.out = outer
	if err != nil {
		return Text{}, err
	}
	return b.text(), nil
}

// print appends to the output.
func (in *interp) print(t Text) error {
	if err := in.charge(len(t.s)); err != nil {
		return err
	}
	in.out.add(t)
	return nil
}

// at adds the line to an error that has none.
func at(err error, line int) error {
	e, ok := err.(*Error) //nolint:errorlint // errors of this package are never wrapped inside of it
	if !ok || e.Line != 0 {
		return err
	}
	return &Error{Class: e.Class, Message: e.Message, Line: line}
}

func (d *dataStmt) exec(in *interp, _ *scope) error { return in.print(d.text) }

func (o *outputStmt) exec(in *interp, s *scope) error {
	v, err := o.of.eval(in, s)
	if err != nil {
		return at(err, o.line)
	}
	t, err := in.str(v)
	if err != nil {
		return at(err, o.line)
	}
	return in.print(t)
}

func (i *ifStmt) exec(in *interp, s *scope) error {
	v, err := i.cond.eval(in, s)
	if err != nil {
		return err
	}
	if truth(v) {
		return in.run(i.then, s)
	}
	return in.run(i.otherwise, s)
}

// loop is the variable of that name inside a for.
type loop struct {
	items   []any
	at      int
	depth   int // 1: the outermost of a recursive loop
	last    []any
	changed bool
	again   func(items any, depth int) (any, error) // nil: not recursive
}

func (f *forStmt) exec(in *interp, s *scope) error {
	v, err := f.items.eval(in, s)
	if err != nil {
		return at(err, f.line)
	}
	return at(f.run(in, s, v, 1), f.line)
}

func (f *forStmt) run(in *interp, s *scope, v any, depth int) error {
	items, err := in.iterate(v)
	if err != nil {
		return err
	}
	if f.filter != nil {
		if items, err = f.filtered(in, s, items); err != nil {
			return err
		}
	}
	l := &loop{items: items, depth: depth}
	if f.recursive {
		l.again = func(items any, depth int) (any, error) {
			var b textBuilder
			outer := in.out
			in.out = &b
			err := f.run(in, s, items, depth)
			in.out = outer
			return b.text(), err
		}
	}
	if err := in.enter(); err != nil {
		return err
	}
	defer in.leave()
	for l.at = range items {
		if err := in.step(1); err != nil {
			return err
		}
		round := &scope{parent: s}
		round.set("loop", l)
		if err := in.assign(f.target, items[l.at], round); err != nil {
			return err
		}
		err := in.run(f.body, round)
		if errors.Is(err, errBreak) {
			return nil
		}
		if err != nil && !errors.Is(err, errContinue) {
			return err
		}
	}
	if len(items) == 0 {
		return in.run(f.otherwise, &scope{parent: s})
	}
	return nil
}

func (f *forStmt) filtered(in *interp, s *scope, items []any) ([]any, error) {
	var out []any
	for _, item := range items {
		if err := in.step(1); err != nil {
			return nil, err
		}
		round := &scope{parent: s}
		if err := in.assign(f.target, item, round); err != nil {
			return nil, err
		}
		v, err := f.filter.eval(in, round)
		if err != nil {
			return nil, err
		}
		if truth(v) {
			if err := in.charge(valueBytes); err != nil {
				return nil, err
			}
			out = append(out, item)
		}
	}
	return out, nil
}

// assign assigns a value to a name or an attribute of a namespace, or its items to several targets.
func (in *interp) assign(t target, v any, s *scope) error {
	switch {
	case t.parts != nil:
		items, err := in.iterate(v)
		if err != nil {
			if _, ok := v.(*undefined); !ok {
				err = typeError("cannot unpack non-iterable %s object", typeName(v))
			}
			return at(err, t.line)
		}
		if len(items) < len(t.parts) {
			return at(fail("ValueError", "not enough values to unpack (expected %d, got %d)", len(t.parts), len(items)), t.line)
		}
		if len(items) > len(t.parts) {
			return at(fail("ValueError", "too many values to unpack (expected %d)", len(t.parts)), t.line)
		}
		for i, part := range t.parts {
			if err := in.assign(part, items[i], s); err != nil {
				return err
			}
		}
		return nil
	case t.attr != "":
		of, _ := s.get(t.name)
		ns, ok := of.(*namespace)
		if !ok {
			return at(fail("TemplateRuntimeError", "cannot assign attribute on non-namespace object"), t.line)
		}
		if err := in.charge(valueBytes); err != nil {
			return err
		}
		return ns.attrs.set(TemplateText(t.attr), v)
	}
	s.set(t.name, v)
	return nil
}

func (st *setStmt) exec(in *interp, s *scope) error {
	v, err := st.value.eval(in, s)
	if err != nil {
		return at(err, st.target.line)
	}
	return in.assign(st.target, v, s)
}

func (st *setBlockStmt) exec(in *interp, s *scope) error {
	t, err := in.capture(st.body, &scope{parent: s})
	if err != nil {
		return err
	}
	v, err := in.filterAll(st.filters, t, s)
	if err != nil {
		return err
	}
	return in.assign(st.target, v, s)
}

func (in *interp) filterAll(filters []*filterExpr, v any, s *scope) (any, error) {
	for _, f := range filters {
		var err error
		if v, err = f.apply(in, s, v); err != nil {
			return nil, err
		}
	}
	return v, nil
}

func (st *filterStmt) exec(in *interp, s *scope) error {
	t, err := in.capture(st.body, &scope{parent: s})
	if err != nil {
		return err
	}
	v, err := in.filterAll(st.filters, t, s)
	if err != nil {
		return err
	}
	text, err := in.str(v)
	if err != nil {
		return err
	}
	return in.print(text)
}

func (w *withStmt) exec(in *interp, s *scope) error {
	inner := &scope{parent: s}
	for i, t := range w.targets {
		v, err := w.values[i].eval(in, s)
		if err != nil {
			return at(err, t.line)
		}
		if err := in.assign(t, v, inner); err != nil {
			return err
		}
	}
	return in.run(w.body, inner)
}

func (st *scopeStmt) exec(in *interp, s *scope) error { return in.run(st.body, &scope{parent: s}) }
func (b *blockStmt) exec(in *interp, s *scope) error  { return in.run(b.body, &scope{parent: s}) }
func (*breakStmt) exec(*interp, *scope) error         { return errBreak }
func (*contStmt) exec(*interp, *scope) error          { return errContinue }

func (m *macroStmt) exec(in *interp, s *scope) error {
	if err := in.charge(valueBytes); err != nil {
		return err
	}
	s.set(m.macro.name, m.macro.function(s))
	return nil
}

func (c *callStmt) exec(in *interp, s *scope) error {
	caller := c.caller.function(s)
	v, err := c.call.invoke(in, s, caller)
	if err != nil {
		return at(err, c.call.line)
	}
	t, err := in.str(v)
	if err != nil {
		return err
	}
	return in.print(t)
}

// function returns the macro as a value; s is the scope that it is defined in.
func (m *macroDef) function(s *scope) *function {
	return &function{name: m.name, call: func(in *interp, args []any, kw *dict) (any, error) {
		inner := &scope{parent: s}
		if err := m.bind(in, inner, args, kw); err != nil {
			return nil, err
		}
		return in.capture(m.body, inner)
	}}
}

// bind gives the parameters of a macro their values.
func (m *macroDef) bind(in *interp, s *scope, args []any, kw *dict) error {
	rest := &dict{}
	given := map[string]any{}
	for i := range kw.len() {
		name, _ := kw.keys[i].(Text)
		if m.parameter(name.s) >= len(args) {
			given[name.s] = kw.values[i]
			continue
		}
		if err := rest.set(name, kw.values[i]); err != nil {
			return err
		}
	}
	for i, name := range m.parameters {
		if i < len(args) {
			s.set(name, args[i])
			continue
		}
		v, ok := given[name]
		if first := len(m.parameters) - len(m.defaults); !ok && i >= first {
			var err error
			if v, err = m.defaults[i-first].eval(in, s); err != nil {
				return err
			}
		} else if !ok {
			v = undefinedf("parameter '%s' was not provided", name)
		}
		s.set(name, v)
	}
	caller, hasCaller := rest.getString("caller")
	switch {
	case m.caller && m.parameter("caller") < 0:
		if !hasCaller {
			caller = undefinedf("No caller defined")
		}
		s.set("caller", caller)
		rest = rest.without("caller")
	case hasCaller && !m.kwargs && m.name != "caller":
		return typeError("macro '%s' was invoked with two values for the special caller argument. This is most likely a bug.", m.name)
	}
	if m.kwargs {
		s.set("kwargs", rest)
	} else if rest.len() > 0 {
		name, _ := rest.keys[0].(Text)
		return typeError("macro '%s' takes no keyword argument %s", m.name, reprString(name.s))
	}
	var more []any
	if len(args) > len(m.parameters) {
		more = args[len(m.parameters):]
	}
	if m.varargs {
		s.set("varargs", &list{items: more, tuple: true})
	} else if len(more) > 0 {
		return typeError("macro '%s' takes not more than %d argument(s)", m.name, len(m.parameters))
	}
	return nil
}

// parameter returns the position of a parameter, or -1.
func (m *macroDef) parameter(name string) int {
	for i, p := range m.parameters {
		if p == name {
			return i
		}
	}
	return -1
}

// without returns a copy that lacks the key.
func (d *dict) without(key string) *dict {
	out := &dict{}
	for i, k := range d.keys {
		if t, ok := k.(Text); ok && t.s == key {
			continue
		}
		_ = out.set(k, d.values[i])
	}
	return out
}
