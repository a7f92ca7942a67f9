package grammar

import (
	"strconv"
	"strings"
)

func (s *schema) object() *objRule {
	if s.obj == nil {
		s.obj = &objRule{max: -1, props: map[string][]lit{}}
	}
	return s.obj
}

func (s *schema) array() *arrRule {
	if s.arr == nil {
		s.arr = &arrRule{max: -1}
	}
	return s.arr
}

func (s *schema) number() *numSpec {
	if s.num == nil {
		s.num = &numSpec{}
	}
	return s.num
}

func (p *parser) keywords(s *schema, v *jvalue) error {
	if ref := v.get("$ref"); ref != nil {
		if err := p.ref(s, ref); err != nil || !p.refSiblings() {
			return err
		}
	}
	for _, key := range []string{"$dynamicRef", "$recursiveRef"} {
		if ref := v.get(key); ref != nil {
			// Without other resources, a dynamic reference is an ordinary one.
			if len(p.resources) > 2 {
				return refuse(s.at, key, "not supported between several schemas")
			}
			if err := p.ref(s, ref); err != nil {
				return err
			}
		}
	}
	for _, step := range []func(*schema, *jvalue) error{p.typeKeywords, p.numberKeywords, p.stringKeywords, p.objectKeywords, p.arrayKeywords, p.combiners, p.unevaluated} {
		if err := step(s, v); err != nil {
			return err
		}
	}
	return nil
}

func (p *parser) typeKeywords(s *schema, v *jvalue) error {
	if t := v.get("type"); t != nil {
		list := []*jvalue{t}
		if t.kind == jArray {
			list = t.arr
		}
		s.types = 0
		integer, number := false, false
		for _, e := range list {
			switch e.str {
			case "null":
				s.types |= tNull
			case "boolean":
				s.types |= tTrue | tFalse
			case "number":
				s.types |= tNumber
				number = true
			case "integer":
				s.types |= tNumber
				integer = true
			case "string":
				s.types |= tString
			case "object":
				s.types |= tObject
			case "array":
				s.types |= tArray
			case "any":
				s.types = tAll
				number = true
			default:
				return refuse(s.at, "type", "unknown type %q", e.str)
			}
		}
		if integer && !number {
			s.number().integer = true
		}
		if n := v.get("nullable"); n != nil && n.kind == jTrue {
			s.types |= tNull
		}
	}
	if e := v.get("enum"); e != nil {
		if e.kind != jArray {
			return refuse(s.at, "enum", "must be an array")
		}
		s.enum = append([]*jvalue{}, e.arr...)
		if n := v.get("nullable"); n != nil && n.kind == jTrue {
			s.enum = append(s.enum, &jvalue{kind: jNull})
		}
	}
	if c := v.get("const"); c != nil {
		only := p.synthetic(s.at)
		only.enum = []*jvalue{c}
		s.all = append(s.all, lit{s: only})
	}
	return nil
}

func (p *parser) decimal(s *schema, v *jvalue, key string) (*decimal, error) {
	n := v.get(key)
	if n == nil {
		return nil, nil
	}
	if n.kind != jNumber {
		return nil, refuse(s.at, key, "must be a number")
	}
	d, err := parseDecimal(n.str)
	if err != nil {
		return nil, refuse(s.at, key, "%v", err)
	}
	return &d, nil
}

func (p *parser) numberKeywords(s *schema, v *jvalue) error {
	for _, k := range []struct {
		key, open string
		upper     bool
	}{{"minimum", "exclusiveMinimum", false}, {"maximum", "exclusiveMaximum", true}} {
		set := func(d *decimal, open bool) {
			b := &bound{at: *d, open: open}
			if k.upper {
				s.number().intersect(&numSpec{hi: b})
			} else {
				s.number().intersect(&numSpec{lo: b})
			}
		}
		d, err := p.decimal(s, v, k.key)
		if err != nil {
			return err
		}
		open := v.get(k.open)
		if d != nil {
			set(d, open != nil && open.kind == jTrue)
		}
		if open != nil && open.kind != jTrue && open.kind != jFalse {
			if d, err = p.decimal(s, v, k.open); err != nil {
				return err
			}
			set(d, true)
		}
	}
	d, err := p.decimal(s, v, "multipleOf")
	if err != nil || d == nil {
		return err
	}
	if d.zero() || d.neg {
		return refuse(s.at, "multipleOf", "must be above zero")
	}
	if !d.scaled(len(d.frac)).IsInt64() || d.scaled(len(d.frac)).Int64() > maxMultiple {
		return refuse(s.at, "multipleOf", "%s has too many digits", d)
	}
	s.number().multiples = append(s.number().multiples, *d)
	return nil
}

// count parses a keyword that bounds a count.
func (p *parser) count(s *schema, v *jvalue, key string, absent int) (int, error) {
	d, err := p.decimal(s, v, key)
	if err != nil || d == nil {
		return absent, err
	}
	if d.neg || !d.integer() {
		return 0, refuse(s.at, key, "must be a whole number")
	}
	if len(d.whole) > 9 {
		return 1e9, nil
	}
	n, _ := strconv.Atoi("0" + d.whole)
	return n, nil
}

func (p *parser) stringKeywords(s *schema, v *jvalue) error {
	lo, err := p.count(s, v, "minLength", 0)
	if err != nil {
		return err
	}
	hi, err := p.count(s, v, "maxLength", rxUnbounded)
	if err != nil {
		return err
	}
	if lo > p.opts.maxLength() {
		return refuse(s.at, "minLength", "%d is above the limit of %d", lo, p.opts.maxLength())
	}
	if hi > maxRepeat {
		hi = rxUnbounded // no document is that long
	}
	s.length = lengths{int32(lo), int32(hi)}
	if s.length.empty() {
		s.str = rxNone
	}
	if pat := v.get("pattern"); pat != nil {
		r, err := p.pattern(s, pat, "pattern")
		if err != nil {
			return err
		}
		s.restrict(p.set, r)
	}
	if f := v.get("format"); f != nil && f.kind == jString {
		r, err := p.format(f.str)
		if err != nil {
			return refuse(s.at, "format", "%v", err)
		}
		s.restrict(p.set, r)
	}
	return nil
}

// restrict restricts the strings of s to those matching r.
func (s *schema) restrict(set *rxSet, r rx) {
	q, of := set.split(r)
	s.str = set.and(s.str, q)
	s.length = s.length.intersect(of)
}

func (p *parser) pattern(s *schema, v *jvalue, key string) (rx, error) {
	if v.kind != jString {
		return rxNone, refuse(s.at, key, "must be a string")
	}
	return p.patternText(s, v.str, key)
}

func (p *parser) patternText(s *schema, text, key string) (rx, error) {
	if r, ok := p.patterns[text]; ok {
		return r, nil
	}
	r, err := p.set.parseRegex(text)
	if err != nil {
		return rxNone, refuse(s.at, key, "%v", err)
	}
	p.patterns[text] = r
	return r, nil
}

func (p *parser) format(name string) (rx, error) {
	pattern, ok := formats[name]
	switch {
	case name == "regex":
		pattern = []string{regexFormat()}
	case !ok:
		return rxAll, nil
	}
	if r, ok := p.patterns["format:"+name]; ok {
		return r, nil
	}
	r := rxAll
	for _, x := range pattern {
		part, err := p.set.parseWholeRegex(strings.TrimPrefix(x, "!"))
		if err != nil {
			return rxNone, err
		}
		if x[0] == '!' {
			part = p.set.not(part)
		}
		r = p.set.and(r, part)
	}
	p.patterns["format:"+name] = r
	return r, nil
}

func (p *parser) objectKeywords(s *schema, v *jvalue) error {
	if props := v.get("properties"); props != nil {
		if props.kind != jObject {
			return refuse(s.at, "properties", "must be an object")
		}
		o := s.object()
		o.order = props.keys
		for _, k := range props.keys {
			l, err := p.sub(s, props.obj[k], "properties", k)
			if err != nil {
				return err
			}
			o.props[k] = []lit{l}
		}
	}
	if pats := v.get("patternProperties"); pats != nil {
		if pats.kind != jObject {
			return refuse(s.at, "patternProperties", "must be an object")
		}
		for _, k := range pats.keys {
			r, err := p.patternText(s, k, "patternProperties")
			if err != nil {
				return err
			}
			l, err := p.sub(s, pats.obj[k], "patternProperties", k)
			if err != nil {
				return err
			}
			s.object().patterns = append(s.object().patterns, patternRule{src: k, lang: r, lits: []lit{l}})
		}
	}
	if rest := v.get("additionalProperties"); rest != nil {
		l, err := p.sub(s, rest, "additionalProperties")
		if err != nil {
			return err
		}
		if l.s != p.any {
			s.object().rest = []lit{l}
		}
	}
	if req := v.get("required"); req != nil && req.kind == jArray {
		for _, e := range req.arr {
			if e.kind != jString {
				return refuse(s.at, "required", "must be an array of strings")
			}
			s.object().required = append(s.object().required, e.str)
		}
	}
	lo, err := p.count(s, v, "minProperties", 0)
	if err != nil {
		return err
	}
	hi, err := p.count(s, v, "maxProperties", -1)
	if err != nil {
		return err
	}
	if lo > p.opts.maxItems() {
		return refuse(s.at, "minProperties", "%d is above the limit of %d", lo, p.opts.maxItems())
	}
	if lo > 0 || hi >= 0 {
		o := s.object()
		o.min, o.max = lo, hi
	}
	if names := v.get("propertyNames"); names != nil {
		l, err := p.sub(s, names, "propertyNames")
		if err != nil {
			return err
		}
		if l.s != p.any {
			s.object().names = append(s.object().names, []lit{l})
		}
	}
	return p.dependencies(s, v)
}

func (p *parser) dependencies(s *schema, v *jvalue) error {
	for _, key := range []string{"dependencies", "dependentRequired", "dependentSchemas"} {
		deps := v.get(key)
		if deps == nil {
			continue
		}
		if deps.kind != jObject {
			return refuse(s.at, key, "must be an object")
		}
		for _, k := range deps.keys {
			d := deps.obj[k]
			if d.kind == jString {
				d = &jvalue{kind: jArray, arr: []*jvalue{d}}
			}
			if d.kind == jArray && key != "dependentSchemas" {
				o := s.object()
				if o.deps == nil {
					o.deps = map[string][]string{}
				}
				for _, e := range d.arr {
					if e.kind != jString {
						return refuse(s.at, key, "must hold arrays of strings")
					}
					o.deps[k] = append(o.deps[k], e.str)
				}
				continue
			}
			l, err := p.sub(s, d, key, k)
			if err != nil {
				return err
			}
			without, with := p.synthetic(s.at), p.synthetic(s.at)
			without.object().props[k] = []lit{{s: p.none}}
			with.types = tObject
			with.object().required = []string{k}
			s.choice = append(s.choice, [][]lit{{{s: without}}, {{s: with}, l}})
		}
	}
	return nil
}

func (p *parser) arrayKeywords(s *schema, v *jvalue) error {
	prefix, rest := v.get("prefixItems"), v.get("items")
	prefixKey, restKey := "prefixItems", "items"
	if rest != nil && rest.kind == jArray {
		prefix, rest = rest, v.get("additionalItems")
		prefixKey, restKey = "items", "additionalItems"
	}
	if prefix != nil {
		if prefix.kind != jArray {
			return refuse(s.at, prefixKey, "must be an array of schemas")
		}
		for i, e := range prefix.arr {
			l, err := p.sub(s, e, prefixKey, strconv.Itoa(i))
			if err != nil {
				return err
			}
			s.array().prefix = append(s.array().prefix, []lit{l})
		}
	}
	if rest != nil {
		l, err := p.sub(s, rest, restKey)
		if err != nil {
			return err
		}
		if l.s != p.any {
			s.array().rest = []lit{l}
		}
	}
	lo, err := p.count(s, v, "minItems", 0)
	if err != nil {
		return err
	}
	hi, err := p.count(s, v, "maxItems", -1)
	if err != nil {
		return err
	}
	if lo > p.opts.maxItems() {
		return refuse(s.at, "minItems", "%d is above the limit of %d", lo, p.opts.maxItems())
	}
	if lo > 0 || hi >= 0 {
		a := s.array()
		a.min, a.max = lo, hi
	}
	if u := v.get("uniqueItems"); u != nil && u.kind == jTrue {
		s.array().unique = true
	}
	c := v.get("contains")
	if c == nil {
		return nil
	}
	l, err := p.sub(s, c, "contains")
	if err != nil {
		return err
	}
	lo, err = p.count(s, v, "minContains", 1)
	if err != nil {
		return err
	}
	hi, err = p.count(s, v, "maxContains", -1)
	if err != nil {
		return err
	}
	if lo > p.opts.maxItems() {
		return refuse(s.at, "minContains", "%d is above the limit of %d", lo, p.opts.maxItems())
	}
	s.array().contains = append(s.array().contains, containsRule{lits: []lit{l}, min: lo, max: hi})
	return nil
}

func (p *parser) combiners(s *schema, v *jvalue) error {
	if l := v.get("allOf"); l != nil {
		list, err := p.subs(s, l, "allOf")
		if err != nil {
			return err
		}
		s.all = append(s.all, list...)
	}
	if l := v.get("anyOf"); l != nil {
		list, err := p.subs(s, l, "anyOf")
		if err != nil {
			return err
		}
		var choice [][]lit
		for _, x := range list {
			choice = append(choice, []lit{x})
		}
		s.choice = append(s.choice, choice)
	}
	if l := v.get("oneOf"); l != nil {
		list, err := p.subs(s, l, "oneOf")
		if err != nil {
			return err
		}
		s.ones = append(s.ones, list)
	}
	if n := v.get("not"); n != nil {
		l, err := p.sub(s, n, "not")
		if err != nil {
			return err
		}
		s.all = append(s.all, lit{s: l.s, neg: true})
	}
	return p.conditional(s, v)
}

func (p *parser) conditional(s *schema, v *jvalue) error {
	cond := v.get("if")
	if cond == nil {
		return nil
	}
	c, err := p.sub(s, cond, "if")
	if err != nil {
		return err
	}
	yes, no := []lit{c}, []lit{{s: c.s, neg: true}}
	for _, x := range []struct {
		key string
		to  *[]lit
	}{{"then", &yes}, {"else", &no}} {
		if sub := v.get(x.key); sub != nil {
			l, err := p.sub(s, sub, x.key)
			if err != nil {
				return err
			}
			*x.to = append(*x.to, l)
		}
	}
	if len(yes)+len(no) > 2 {
		s.choice = append(s.choice, [][]lit{yes, no})
	}
	return nil
}
