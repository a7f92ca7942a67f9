package grammar

import "slices"

// deny narrows p to values that violate s.
func (c *compiler) deny(p *partial, s *schema) error {
	if s.never {
		return nil
	}
	choice, err := c.violations(s)
	if err != nil {
		return err
	}
	p.choose(choice)
	return nil
}

func not(l lit) lit { return lit{s: l.s, neg: !l.neg} }

// violations returns the alternative ways to violate s.
func (c *compiler) violations(s *schema) ([][]lit, error) {
	if v, ok := c.negated[s]; ok {
		return v, nil
	}
	var out [][]lit
	add := func(fill func(*schema), more ...lit) {
		x := c.synthetic(s.at)
		fill(x)
		out = append(out, append([]lit{{s: x}}, more...))
	}
	if s.types != tAll {
		add(func(x *schema) { x.types = tAll &^ s.types })
	}
	c.denyScalars(s, add)
	if s.obj != nil {
		if err := c.denyObject(s, add); err != nil {
			return nil, err
		}
	}
	if s.arr != nil {
		if err := c.denyArray(s, add); err != nil {
			return nil, err
		}
	}
	if s.enum != nil {
		out = append(out, c.denyEnum(s))
	}
	for _, l := range s.all {
		out = append(out, []lit{not(l)})
	}
	for _, choice := range s.choice {
		v, err := c.denyChoice(s, choice)
		if err != nil {
			return nil, err
		}
		out = append(out, v...)
	}
	for _, list := range s.ones {
		var none []lit
		for i, a := range list {
			none = append(none, not(a))
			for _, b := range list[:i] {
				out = append(out, []lit{a, b})
			}
		}
		out = append(out, none)
	}
	c.negated[s] = out
	return out, nil
}

// denyChoice violates every branch of a choice: in each, one of its parts.
func (c *compiler) denyChoice(s *schema, choice [][]lit) ([][]lit, error) {
	out := [][]lit{nil}
	for _, branch := range choice {
		var next [][]lit
		for _, head := range out {
			for i, l := range branch {
				// the parts before l hold, so that the alternatives exclude each other
				x := append(slices.Clone(head), branch[:i]...)
				next = append(next, append(x, not(l)))
			}
		}
		if out = next; len(out) > unionBranches {
			return nil, refuse(s.at, "not", "too many combinations")
		}
	}
	return out, nil
}

func (c *compiler) denyEnum(s *schema) []lit {
	x := c.synthetic(s.at)
	out := []lit{{s: x}}
	var texts []string
	for _, v := range s.enum {
		switch v.kind {
		case jNull:
			x.types &^= tNull
		case jFalse:
			x.types &^= tFalse
		case jTrue:
			x.types &^= tTrue
		case jNumber:
			if d, err := parseDecimal(v.str); err == nil {
				x.number().except = append(x.number().except, d)
			}
		case jString:
			texts = append(texts, v.str)
		default:
			out = append(out, lit{s: c.constant(v), neg: true})
		}
	}
	if texts != nil {
		x.str = c.set.not(c.set.literals(texts))
	}
	return out
}

func (c *compiler) denyScalars(s *schema, add func(func(*schema), ...lit)) {
	number := func(spec numSpec) {
		add(func(x *schema) { x.types, x.num = tNumber, &spec })
	}
	if n := s.num; n != nil {
		if n.integer {
			number(numSpec{nonInt: true})
		}
		if n.nonInt {
			number(numSpec{integer: true})
		}
		if n.lo != nil {
			number(numSpec{hi: &bound{at: n.lo.at, open: !n.lo.open}})
		}
		if n.hi != nil {
			number(numSpec{lo: &bound{at: n.hi.at, open: !n.hi.open}})
		}
		for _, m := range n.multiples {
			number(numSpec{notMult: []decimal{m}})
		}
		for _, m := range n.notMult {
			number(numSpec{multiples: []decimal{m}})
		}
		for _, d := range n.except {
			number(numSpec{lo: &bound{at: d}, hi: &bound{at: d}})
		}
	}
	if s.str != rxAll {
		add(func(x *schema) { x.types, x.str = tString, c.set.not(s.str) })
	}
	if s.length.lo > 0 {
		add(func(x *schema) { x.types, x.length = tString, lengths{hi: s.length.lo - 1} })
	}
	if s.length.hi >= 0 {
		add(func(x *schema) { x.types, x.length = tString, lengths{lo: s.length.hi + 1, hi: rxUnbounded} })
	}
}

func (c *compiler) denyObject(s *schema, add func(func(*schema), ...lit)) error {
	o := s.obj
	object := func(fill func(*objRule)) {
		add(func(x *schema) {
			x.types = tObject
			fill(x.object())
		})
	}
	for _, r := range o.required {
		object(func(n *objRule) { n.props[r] = []lit{{s: c.none}} })
	}
	for _, k := range sortedKeys(o.props) {
		for _, l := range o.props[k] {
			if l.s == c.any && !l.neg {
				continue
			}
			object(func(n *objRule) { n.required, n.props[k] = []string{k}, []lit{not(l)} })
		}
	}
	for _, pat := range o.patterns {
		for _, l := range pat.lits {
			object(func(n *objRule) { n.some = []someRule{{pat.lang, []lit{not(l)}}} })
		}
	}
	if o.rest != nil {
		lang := c.undeclared(o)
		for _, l := range o.rest {
			object(func(n *objRule) { n.some = []someRule{{lang, []lit{not(l)}}} })
		}
	}
	if o.min > 0 {
		object(func(n *objRule) { n.max = o.min - 1 })
	}
	if o.max >= 0 {
		object(func(n *objRule) { n.min = o.max + 1 })
	}
	for _, names := range o.names {
		lang, err := c.stringLanguage(names)
		if err != nil {
			return err
		}
		object(func(n *objRule) { n.some = []someRule{{c.set.not(lang), nil}} })
	}
	for _, k := range sortedKeys(o.deps) {
		for _, d := range o.deps[k] {
			object(func(n *objRule) { n.required, n.props[d] = []string{k}, []lit{{s: c.none}} })
		}
	}
	if len(o.some) > 0 {
		for _, r := range o.some { // no property matching lang satisfies lits
			if len(r.lits) > 1 {
				return refuse(s.at, "not", "too many negations")
			}
			x := []lit{{s: c.none}}
			if len(r.lits) == 1 {
				x = []lit{not(r.lits[0])}
			}
			object(func(n *objRule) { n.patterns = []patternRule{{lang: r.lang, lits: x}} })
		}
	}
	return nil
}

// undeclared returns the names to which additionalProperties applies.
func (c *compiler) undeclared(o *objRule) rx {
	out := rxAll
	if len(o.props) > 0 {
		out = c.set.not(c.set.literals(sortedKeys(o.props)))
	}
	for _, p := range o.patterns {
		out = c.set.and(out, c.set.not(p.lang))
	}
	return out
}

func (c *compiler) denyArray(s *schema, add func(func(*schema), ...lit)) error {
	a := s.arr
	array := func(fill func(*arrRule)) {
		add(func(x *schema) {
			x.types = tArray
			fill(x.array())
		})
	}
	if a.unique {
		return refuse(s.at, "uniqueItems", "cannot be negated")
	}
	for i, lits := range a.prefix {
		for _, l := range lits {
			array(func(n *arrRule) {
				n.min = i + 1
				n.prefix = make([][]lit, i+1)
				n.prefix[i] = []lit{not(l)}
			})
		}
	}
	for _, l := range a.rest {
		array(func(n *arrRule) {
			n.contains = []containsRule{{lits: []lit{not(l)}, min: 1, max: -1, from: len(a.prefix)}}
		})
	}
	if a.min > 0 {
		array(func(n *arrRule) { n.max = a.min - 1 })
	}
	if a.max >= 0 {
		array(func(n *arrRule) { n.min = a.max + 1 })
	}
	for _, r := range a.contains {
		if r.min > 0 {
			array(func(n *arrRule) {
				n.contains = []containsRule{{lits: r.lits, min: 0, max: r.min - 1, from: r.from}}
			})
		}
		if r.max >= 0 {
			array(func(n *arrRule) {
				n.contains = []containsRule{{lits: r.lits, min: r.max + 1, max: -1, from: r.from}}
			})
		}
	}
	return nil
}
