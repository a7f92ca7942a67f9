package grammar

import (
	"maps"
	"slices"
	"strconv"
)

// evaluated is the set of properties and items of a value that a schema, with those that apply in
// the same place, evaluates.
type evaluated struct {
	names    map[string]bool
	patterns map[string]bool
	props    bool // all properties
	prefix   int  // the first items
	items    bool // all items
}

func (e evaluated) with(o evaluated) evaluated {
	e.names, e.patterns = maps.Clone(e.names), maps.Clone(e.patterns)
	if e.names == nil {
		e.names, e.patterns = map[string]bool{}, map[string]bool{}
	}
	maps.Copy(e.names, o.names)
	maps.Copy(e.patterns, o.patterns)
	e.props, e.items = e.props || o.props, e.items || o.items
	e.prefix = max(e.prefix, o.prefix)
	return e
}

// adds reports whether o evaluates something that e does not.
func (e evaluated) adds(o evaluated) bool {
	for k := range o.names {
		if !e.names[k] && !e.props {
			return true
		}
	}
	for k := range o.patterns {
		if !e.patterns[k] && !e.props {
			return true
		}
	}
	return o.props && !e.props || o.items && !e.items || o.prefix > e.prefix && !e.items
}

// evaluationCase is one possible outcome of the conditions of a schema.
type evaluationCase struct {
	lits []lit
	of   evaluated
}

const maxEvaluationCases = 32

// evaluation collects what a schema evaluates: unconditionally, and under conditions, each with
// several possible outcomes.
type evaluation struct {
	p       *parser
	key     string // the keyword that it is for
	self    *jvalue
	always  evaluated
	choices [][]evaluationCase
	open    map[*jvalue]bool
}

// unevaluated parses unevaluatedProperties and unevaluatedItems. The properties and items that they
// apply to are determined for every outcome of the conditions beside them.
func (p *parser) unevaluated(s *schema, v *jvalue) error {
	if p.draft != 0 && p.draft < 2019 {
		return nil // an unknown keyword
	}
	for _, key := range []string{"unevaluatedProperties", "unevaluatedItems"} {
		u := v.get(key)
		if u == nil {
			continue
		}
		rest, err := p.sub(s, u, key)
		if err != nil {
			return err
		}
		if rest.s == p.any {
			continue
		}
		e := &evaluation{p: p, key: key, self: v, open: map[*jvalue]bool{}}
		if err := e.read(s, v); err != nil {
			return err
		}
		if err := e.apply(s, rest); err != nil {
			return err
		}
	}
	return nil
}

// read collects what v evaluates, a schema that applies in the same place as s.
func (e *evaluation) read(s *schema, v *jvalue) error {
	if v.kind != jObject || e.open[v] {
		return nil
	}
	e.open[v] = true
	defer delete(e.open, v)
	e.always = e.always.with(e.own(v))
	if e.key == "unevaluatedItems" && v.get("contains") != nil && e.p.draft != 2019 && !e.always.items {
		return refuse(s.at, e.key, "not supported together with contains")
	}
	for _, key := range []string{"$dynamicRef", "$recursiveRef"} {
		if v.get(key) != nil {
			return refuse(s.at, e.key, "not supported together with %s", key)
		}
	}
	if ref := v.get("$ref"); ref != nil {
		base := e.p.bases[v]
		if base == nil {
			base = e.p.resources[""]
		}
		if target := e.p.resolve(ref.str, base); target != nil {
			if err := e.read(s, target); err != nil {
				return err
			}
		}
	}
	if all := v.get("allOf"); all != nil {
		for _, x := range all.arr {
			if err := e.read(s, x); err != nil {
				return err
			}
		}
	}
	return e.conditions(s, v)
}

// own returns what v itself evaluates.
func (e *evaluation) own(v *jvalue) evaluated {
	o := evaluated{names: map[string]bool{}, patterns: map[string]bool{}}
	if props := v.get("properties"); props != nil {
		for _, k := range props.keys {
			o.names[k] = true
		}
	}
	if pats := v.get("patternProperties"); pats != nil {
		for _, k := range pats.keys {
			o.patterns[k] = true
		}
	}
	has := func(key string) bool { return v.get(key) != nil }
	o.props = has("additionalProperties") || v != e.self && has("unevaluatedProperties")
	o.items = v != e.self && has("unevaluatedItems")
	if prefix := v.get("prefixItems"); prefix != nil {
		o.prefix = len(prefix.arr)
	}
	switch items := v.get("items"); {
	case items == nil:
	case items.kind == jArray:
		o.prefix = max(o.prefix, len(items.arr))
		o.items = o.items || has("additionalItems")
	default:
		o.items = true
	}
	return o
}

// conditions collects what the conditions of v evaluate.
func (e *evaluation) conditions(s *schema, v *jvalue) error {
	one := func(x *jvalue, path ...string) (lit, error) { return e.p.sub(s, x, path...) }
	if list := v.get("oneOf"); list != nil {
		var cases []evaluationCase
		for i, x := range list.arr { // exactly one holds
			l, err := one(x, "oneOf", strconv.Itoa(i))
			if err != nil {
				return err
			}
			c, err := e.branch(s, []lit{l}, x)
			if err != nil {
				return err
			}
			cases = append(cases, c)
		}
		e.choices = append(e.choices, cases)
	}
	if list := v.get("anyOf"); list != nil {
		if len(list.arr) > 4 {
			return refuse(s.at, e.key, "not supported beside so many schemas in anyOf")
		}
		var cases []evaluationCase
		for set := 1; set < 1<<len(list.arr); set++ { // those in the set hold, the others do not
			var lits []lit
			var held []*jvalue
			for i, x := range list.arr {
				l, err := one(x, "anyOf", strconv.Itoa(i))
				if err != nil {
					return err
				}
				if set>>i&1 == 0 {
					l = not(l)
				} else {
					held = append(held, x)
				}
				lits = append(lits, l)
			}
			c, err := e.branch(s, lits, held...)
			if err != nil {
				return err
			}
			cases = append(cases, c)
		}
		e.choices = append(e.choices, cases)
	}
	if cond := v.get("if"); cond != nil {
		l, err := one(cond, "if")
		if err != nil {
			return err
		}
		yes, err := e.branch(s, []lit{l}, cond, v.get("then"))
		if err != nil {
			return err
		}
		no, err := e.branch(s, []lit{not(l)}, v.get("else"))
		if err != nil {
			return err
		}
		e.choices = append(e.choices, []evaluationCase{yes, no})
	}
	for _, key := range []string{"dependentSchemas", "dependencies"} {
		deps := v.get(key)
		if deps == nil {
			continue
		}
		for _, k := range deps.keys {
			if deps.obj[k].kind == jArray {
				continue
			}
			with := e.p.synthetic(s.at)
			with.types = tObject
			with.object().required = []string{k}
			yes, err := e.branch(s, []lit{{s: with}}, deps.obj[k])
			if err != nil {
				return err
			}
			e.choices = append(e.choices, []evaluationCase{yes, {lits: []lit{{s: with, neg: true}}}})
		}
	}
	return nil
}

// branch returns the case in which lits hold, and with them the schemas of list.
func (e *evaluation) branch(s *schema, lits []lit, list ...*jvalue) (evaluationCase, error) {
	inner := &evaluation{p: e.p, key: e.key, self: e.self, open: e.open}
	for _, x := range list {
		if x == nil {
			continue
		}
		if err := inner.read(s, x); err != nil {
			return evaluationCase{}, err
		}
	}
	for _, cases := range inner.choices {
		if slices.ContainsFunc(cases, func(c evaluationCase) bool { return e.relevant(inner.always, c.of) }) {
			return evaluationCase{}, refuse(s.at, e.key, "not supported beside conditions within conditions")
		}
	}
	return evaluationCase{lits, inner.always}, nil
}

// relevant reports whether o adds to have anything that the keyword concerns.
func (e *evaluation) relevant(have, o evaluated) bool {
	if e.key == "unevaluatedProperties" {
		return have.adds(evaluated{names: o.names, patterns: o.patterns, props: o.props})
	}
	return have.adds(evaluated{prefix: o.prefix, items: o.items})
}

// apply requires of s that everything unevaluated satisfies rest.
func (e *evaluation) apply(s *schema, rest lit) error {
	cases := []evaluationCase{{of: e.always}}
	for _, choice := range e.choices {
		if !slices.ContainsFunc(choice, func(c evaluationCase) bool { return e.relevant(e.always, c.of) }) {
			continue
		}
		var next []evaluationCase
		for _, a := range cases {
			for _, b := range choice {
				next = append(next, evaluationCase{append(slices.Clip(a.lits), b.lits...), a.of.with(b.of)})
			}
		}
		if cases = next; len(cases) > maxEvaluationCases {
			return refuse(s.at, e.key, "too many combinations of conditions")
		}
	}
	var out [][]lit
	for _, c := range cases {
		others, err := e.others(s, c.of, rest)
		if err != nil {
			return err
		}
		out = append(out, append(slices.Clip(c.lits), others...))
	}
	if len(out) == 1 {
		s.all = append(s.all, out[0]...)
	} else {
		s.choice = append(s.choice, out)
	}
	return nil
}

// others returns a schema that requires rest of everything unevaluated.
func (e *evaluation) others(s *schema, of evaluated, rest lit) ([]lit, error) {
	x := e.p.synthetic(s.at)
	if e.key == "unevaluatedItems" {
		if of.items {
			return nil, nil
		}
		a := x.array()
		for range of.prefix {
			a.prefix = append(a.prefix, nil)
		}
		a.rest = []lit{rest}
		return []lit{{s: x}}, nil
	}
	if of.props {
		return nil, nil
	}
	o := x.object()
	for k := range of.names {
		o.props[k] = []lit{{s: e.p.any}}
	}
	for _, k := range sortedKeys(of.patterns) {
		r, err := e.p.patternText(s, k, "patternProperties")
		if err != nil {
			return nil, err
		}
		o.patterns = append(o.patterns, patternRule{src: k, lang: r, lits: []lit{{s: e.p.any}}})
	}
	o.rest = []lit{rest}
	return []lit{{s: x}}, nil
}
