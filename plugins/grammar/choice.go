package grammar

import "slices"

// exactlyOne turns oneOf into mutually exclusive alternatives, given the constraints already in p.
func (c *compiler) exactlyOne(list []lit, p *partial) ([][]lit, error) {
	if len(list) > unionBranches {
		return nil, refuse(list[0].s.at, "oneOf", "more than %d alternatives", unionBranches)
	}
	pairs, ok := c.overlaps[&list[0]]
	if !ok {
		for i, a := range list {
			for j, b := range list[:i] {
				if c.set.exhausted() {
					return nil, refuse(a.s.at, "oneOf", "too many overlapping alternatives")
				}
				if !c.disjoint(a, b) {
					pairs = append(pairs, [2]int{i, j})
				}
			}
		}
		c.overlaps[&list[0]] = pairs
	}
	out := make([][]lit, len(list))
	for i, a := range list {
		out[i] = []lit{a}
	}
	if len(pairs) == 0 {
		return out, nil
	}
	given := &facts{types: p.types, required: map[string]bool{}}
	for _, o := range p.objs {
		for _, k := range o.required {
			given.required[k] = true
		}
	}
	for _, x := range pairs {
		a, b := list[x[0]], list[x[1]]
		if !a.neg && !b.neg && apart(c.factsOf(a.s, 0), c.factsOf(b.s, 0), given) {
			continue
		}
		out[x[0]] = append(out[x[0]], not(b))
		out[x[1]] = append(out[x[1]], not(a))
	}
	return out, nil
}

// disjoint reports whether certainly no value satisfies both.
func (c *compiler) disjoint(a, b lit) bool {
	if a.s.never || b.s.never {
		return true
	}
	if !a.neg && !b.neg && apart(c.factsOf(a.s, 0), c.factsOf(b.s, 0), nil) {
		return true
	}
	c.set.work -= 2
	if c.probing >= maxProbeDepth {
		return false
	}
	c.set.work -= 20
	c.probing++
	defer func() { c.probing-- }()
	depth, cut := c.depth, c.cut
	ok, err := c.satisfiable(c.node([]lit{a, b}))
	c.depth, c.cut = depth, cut
	return err == nil && !ok
}

// known is what is obvious about the objects that satisfy a partial conjunction.
type known struct {
	required, forbidden map[string]bool
	values              map[string]map[string]bool // by property: canonical texts of the only possible values
}

func (c *compiler) knownOf(p *partial) *known {
	k := &known{required: map[string]bool{}, forbidden: map[string]bool{}, values: map[string]map[string]bool{}}
	for _, o := range p.objs {
		for _, r := range o.required {
			k.required[r] = true
		}
		for name, lits := range o.props {
			for _, l := range lits {
				switch {
				case l.s.never && !l.neg:
					k.forbidden[name] = true
				case !l.neg:
					if v := c.factsOf(l.s, 4).values; v != nil && k.values[name] == nil {
						k.values[name] = v
					}
				}
			}
		}
	}
	return k
}

// prune drops the branches that obviously contradict p. It reports that the choice is settled when
// a branch obviously holds already.
func (c *compiler) prune(p *partial, choice [][]lit) (left [][]lit, settled bool) {
	if len(p.objs) == 0 || p.types != tObject {
		return choice, false
	}
	k := c.knownOf(p)
	for _, branch := range choice {
		if len(branch) == 1 && !branch[0].neg && c.holds(k, branch[0].s) {
			return nil, true
		}
		if !slices.ContainsFunc(branch, func(l lit) bool { return !l.neg && c.contradicts(k, l.s) }) {
			left = append(left, branch)
		}
	}
	return left, false
}

// holds reports whether every object described by k obviously satisfies s.
func (c *compiler) holds(k *known, s *schema) bool {
	o := s.obj
	if s.never || s.types&tObject == 0 || o == nil || s.enum != nil || len(s.all)+len(s.choice)+len(s.ones) > 0 ||
		len(o.patterns)+len(o.names)+len(o.deps)+len(o.some) > 0 || o.rest != nil || o.min > 0 || o.max >= 0 {
		return false
	}
	for _, r := range o.required {
		if !k.required[r] {
			return false
		}
	}
	for name, lits := range o.props {
		for _, l := range lits {
			if k.forbidden[name] || l.s == c.any && !l.neg {
				continue
			}
			v := k.values[name]
			if !l.neg || v == nil || !separate(v, c.factsOf(l.s, 4).values) {
				return false
			}
		}
	}
	return true
}

// separate reports whether two sets of values are known and disjoint.
func separate(a, b map[string]bool) bool {
	if a == nil || b == nil {
		return false
	}
	for v := range a {
		if b[v] {
			return false
		}
	}
	return true
}

// contradicts reports whether obviously no object described by k satisfies s.
func (c *compiler) contradicts(k *known, s *schema) bool {
	if s.never || s.types&tObject == 0 {
		return true
	}
	if s.obj == nil {
		return false
	}
	for _, r := range s.obj.required {
		if k.forbidden[r] {
			return true
		}
	}
	for name, lits := range s.obj.props {
		if !k.required[name] && !slices.Contains(s.obj.required, name) {
			continue
		}
		for _, l := range lits {
			if l.s.never && !l.neg || l.s == c.any && l.neg {
				return true
			}
			v := k.values[name]
			if v == nil {
				continue
			}
			if !l.neg && separate(v, c.factsOf(l.s, 4).values) || l.neg && c.within(v, l.s) {
				return true
			}
		}
	}
	return false
}

// within reports whether s is an enumeration that contains all values.
func (c *compiler) within(values map[string]bool, s *schema) bool {
	for len(s.all) == 1 && !s.all[0].neg && s.plain() && s.enum == nil {
		s = s.all[0].s
	}
	if s.enum == nil || len(s.all) > 0 || !s.plain() {
		return false
	}
	of := map[string]bool{}
	for _, v := range s.enum {
		of[v.canonical()] = true
	}
	for v := range values {
		if !of[v] {
			return false
		}
	}
	return true
}

// plain reports whether s has no keywords besides enum and allOf, or only constrains strings.
func (s *schema) plain() bool {
	if s.enum != nil && s.types == tString {
		for _, v := range s.enum {
			if v.kind != jString {
				return false
			}
		}
	} else if s.types != tAll {
		return false
	}
	return !s.never && s.num == nil && s.str == rxAll && s.length.any() && s.obj == nil && s.arr == nil && len(s.choice)+len(s.ones) == 0
}

// facts are the obvious properties of a schema, without expanding it.
type facts struct {
	types    typeSet
	values   map[string]bool // canonical texts of the only possible values; nil: not limited
	props    map[string]*facts
	required map[string]bool
}

const maxFactDepth = 8

func (c *compiler) factsOf(s *schema, depth int) *facts {
	if f := c.facts[s]; f != nil {
		return f
	}
	f := &facts{types: s.types}
	if depth > maxFactDepth {
		return f
	}
	if s.enum != nil {
		f.values = map[string]bool{}
		for _, v := range s.enum {
			f.values[v.canonical()] = true
		}
	}
	if s.obj != nil && depth < 4 {
		f.props, f.required = map[string]*facts{}, map[string]bool{}
		for k, lits := range s.obj.props {
			if len(lits) == 1 && !lits[0].neg {
				f.props[k] = c.factsOf(lits[0].s, depth+4)
			}
		}
		for _, k := range s.obj.required {
			f.required[k] = true
		}
	}
	for _, l := range s.all {
		if !l.neg {
			f.meet(c.factsOf(l.s, depth+1))
		}
	}
	if depth == 0 {
		c.facts[s] = f
	}
	return f
}

func (f *facts) meet(g *facts) {
	f.types &= g.types
	if f.values == nil {
		f.values = g.values
	}
	for k, v := range g.props {
		if f.props == nil {
			f.props = map[string]*facts{}
		}
		if f.props[k] == nil || f.props[k].values == nil {
			f.props[k] = v
		}
	}
	for k := range g.required {
		if f.required == nil {
			f.required = map[string]bool{}
		}
		f.required[k] = true
	}
}

// apart reports whether obviously no value has both sets of facts, together with given, which may
// be nil.
func apart(a, b, given *facts) bool {
	types := a.types & b.types
	if given != nil {
		types &= given.types
	}
	if types == 0 {
		return true
	}
	if a.values != nil && b.values != nil {
		shared := false
		for v := range a.values {
			shared = shared || b.values[v]
		}
		if !shared {
			return true
		}
	}
	if types != tObject {
		return false
	}
	for k, x := range a.props {
		y := b.props[k]
		if y != nil && (a.required[k] || b.required[k] || given != nil && given.required[k]) && apart(x, y, nil) {
			return true
		}
	}
	return false
}
