package grammar

import "slices"

// objNode is one alternative for an object: an intersection of rules.
type objNode struct {
	id       int
	rules    []*objRule
	names    []string // declared, in order
	index    map[string]int
	children [][]lit
	nodes    []*node
	required []bool
	free     rx // names of undeclared properties
	min, max int
	deps     map[int][]int
	some     []someRule
	places   []somePlaces // for each rule of some; nil until computed
	classes  []nameClass  // of undeclared properties
	count    bool         // whether the number of properties matters
	building bool
	built    bool
	err      error
	others   []*node // of undeclared properties
	rest     *node   // of undeclared properties, when no patterns distinguish them
	simple   bool
}

func (c *compiler) object(rules []*objRule) *objNode {
	key := ruleKey(c, rules)
	o := c.objs[key]
	if o == nil {
		o = &objNode{id: len(c.objs), rules: rules}
		c.objs[key] = o
	}
	return o
}

// childLits returns the literals that the value of property name must satisfy.
func (o *objNode) childLits(c *compiler, name string) []lit {
	var out []lit
	for _, r := range o.rules {
		own, known := r.props[name]
		out = append(out, own...)
		for _, p := range r.patterns {
			if c.set.match(p.lang, name) {
				known = true
				out = append(out, p.lits...)
			}
		}
		if !known {
			out = append(out, r.rest...)
		}
	}
	return out
}

// build merges the rules of an object.
func (c *compiler) build(o *objNode) error {
	if o.built || o.building {
		return o.err
	}
	o.building = true
	o.err = c.merge(o)
	o.building, o.built = false, true
	return o.err
}

func (c *compiler) merge(o *objNode) error {
	o.index, o.max, o.deps, o.simple = map[string]int{}, -1, map[int][]int{}, true
	declare := func(name string) int {
		i, ok := o.index[name]
		if !ok {
			i = len(o.names)
			o.index[name] = i
			o.names = append(o.names, name)
			o.required = append(o.required, false)
		}
		return i
	}
	for _, r := range o.rules {
		for _, k := range r.order {
			declare(k)
		}
	}
	lang := rxAll
	for _, r := range o.rules {
		for _, k := range sortedKeys(r.props) {
			declare(k)
		}
		for _, k := range r.required {
			o.required[declare(k)] = true
		}
		for _, k := range sortedKeys(r.deps) {
			i := declare(k)
			for _, d := range r.deps[k] {
				o.deps[i] = append(o.deps[i], declare(d))
			}
		}
		o.min = max(o.min, r.min)
		if r.max >= 0 && (o.max < 0 || r.max < o.max) {
			o.max = r.max
		}
		o.some = append(o.some, r.some...)
		if len(r.patterns) > 0 {
			o.simple = false
		}
		for _, names := range r.names {
			l, err := c.stringLanguage(names)
			if err != nil {
				return err
			}
			lang = c.set.and(lang, l)
		}
	}
	if len(o.some) > 16 {
		return refuse("", "not", "too many negated properties")
	}
	for _, name := range o.names {
		c.set.charge(200 + len(name))
		lits := o.childLits(c, name)
		if !c.set.match(lang, name) {
			lits = []lit{{s: c.none}}
		}
		o.children = append(o.children, lits)
		o.nodes = append(o.nodes, c.node(lits))
	}
	o.count = o.min > 0 || o.max >= 0
	return c.undeclaredNames(o, lang)
}

// undeclaredNames finds the names of undeclared properties that have a possible value.
func (c *compiler) undeclaredNames(o *objNode, lang rx) error {
	// Every rule adds its patterns, and its rest for names that match none.
	classes := []nameClass{{lang, nil}}
	for _, r := range o.rules {
		var next []nameClass
		parts := []nameClass{{rxAll, nil}}
		for _, p := range r.patterns {
			var split []nameClass
			for _, x := range parts {
				yes, no := c.set.and(x.lang, p.lang), c.set.and(x.lang, c.set.not(p.lang))
				if c.set.alive(yes) {
					split = append(split, nameClass{yes, append(slices.Clip(x.lits), p.lits...)})
				}
				if c.set.alive(no) {
					split = append(split, nameClass{no, x.lits})
				}
			}
			if parts = split; len(parts) > 64 || c.set.exhausted() {
				return refuse("", "patternProperties", "too many combinations of patterns")
			}
		}
		none := rxAll
		for _, p := range r.patterns {
			none = c.set.and(none, c.set.not(p.lang))
		}
		for _, x := range classes {
			for _, y := range parts {
				both := c.set.and(x.lang, y.lang)
				if !c.set.alive(both) {
					continue
				}
				lits := append(slices.Clip(x.lits), y.lits...)
				if y.lits == nil && r.rest != nil {
					lits = append(lits, r.rest...)
				}
				next = append(next, nameClass{both, lits})
			}
		}
		if classes = next; len(classes) > 256 || c.set.exhausted() {
			return refuse("", "patternProperties", "too many combinations of patterns")
		}
	}
	o.free, o.classes = rxNone, classes
	for _, x := range classes {
		n := c.node(x.lits)
		ok, err := c.satisfiable(n)
		if err != nil {
			return err
		}
		if ok {
			o.free = c.set.alt(o.free, x.lang)
			o.rest = n
			o.others = append(o.others, n)
		}
	}
	if len(o.names) > 0 && o.free != rxNone {
		o.free = c.set.and(o.free, c.set.not(c.set.literals(o.names)))
	}
	if !c.set.alive(o.free) {
		o.free = rxNone
	}
	return nil
}

// implied returns the properties that are present whenever the given ones are.
func (o *objNode) implied(given []bool) []bool {
	if len(o.deps) == 0 {
		return given
	}
	out := slices.Clone(given)
	for changed := true; changed; {
		changed = false
		for i, list := range o.deps {
			for _, d := range list {
				if out[i] && !out[d] {
					out[d], changed = true, true
				}
			}
		}
	}
	return out
}

func (c *compiler) objectSat(o *objNode) (bool, error) {
	if o.building {
		return true, nil
	}
	if err := c.build(o); err != nil {
		return false, err
	}
	need, have := 0, 0
	required := o.implied(o.required)
	for i, n := range o.nodes {
		if !required[i] {
			have++
			continue
		}
		ok, err := c.satisfiable(n)
		if !ok || err != nil {
			return false, err
		}
		need++
	}
	if o.max >= 0 && max(need, o.min) > o.max {
		return false, nil
	}
	if len(o.some) > 0 {
		for _, p := range c.placesOf(o) {
			if !p.free && !slices.Contains(p.names, true) {
				return false, nil
			}
		}
	}
	if need < o.min && o.free == rxNone {
		have = 0
		for i, n := range o.nodes {
			if required[i] {
				continue
			}
			ok, err := c.satisfiable(n)
			if err != nil {
				return false, err
			}
			if ok {
				have++
			}
		}
		return need+have >= o.min, nil
	}
	return true, nil
}

// goesOn reports whether, obviously, every property that may come leaves an object that can be
// completed: it closes, or what is still required can come. A mask asks this for every name.
func (o *objNode) goesOn() bool {
	return o.min <= 0 && o.max < 0 && len(o.deps) == 0 && len(o.some) == 0
}

// nameClass is a set of names of undeclared properties, with the constraints on their values.
type nameClass struct {
	lang rx
	lits []lit
}

// somePlaces tells which properties can satisfy a rule's demand.
type somePlaces struct {
	names []bool // declared ones
	free  bool   // an undeclared one
}

// placesOf returns which properties can satisfy each demand of o.
func (c *compiler) placesOf(o *objNode) []somePlaces {
	if o.places != nil {
		return o.places
	}
	can := func(lits, more []lit) bool {
		ok, err := c.satisfiable(c.node(append(slices.Clip(lits), more...)))
		return ok || err != nil
	}
	out := make([]somePlaces, len(o.some))
	for j, r := range o.some {
		for i, name := range o.names {
			out[j].names = append(out[j].names, c.set.match(r.lang, name) && can(o.children[i], r.lits))
		}
		for _, x := range o.classes {
			out[j].free = out[j].free || c.set.alive(c.set.and(o.free, x.lang, r.lang)) && can(x.lits, r.lits)
		}
	}
	if c.depth == 0 { // otherwise an enclosing value may not be settled yet
		o.places = out
	}
	return out
}
