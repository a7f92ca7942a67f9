package grammar

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
)

// node is the values that satisfy a conjunction of schemas, sorted by type: what a document may
// hold at one place.
type node struct {
	id                  int
	lits                []lit
	expanding, expanded bool
	err                 error
	literals            typeSet // of null, false and true
	str                 rx
	length              lengths // of strings, beside str
	nums                []*numMachine
	objs                []*objNode
	arrs                []*arrNode
	sat                 int8 // 0 unknown, 1 satisfiable, -1 not, 2 being found out
	depth               int
}

// objNode is one way to be an object: an intersection of rules.
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
	count    bool // whether the number of properties matters
	building bool
	built    bool
	err      error
	others   []*node // of undeclared properties
	rest     *node   // of undeclared properties, when no patterns tell them apart
	simple   bool
}

// arrNode is one way to be an array.
type arrNode struct {
	id       int
	rules    []*arrRule
	prefix   []*node
	rest     *node
	min, max int
	contains []containsRule
	unique   bool
	built    bool
	err      error
}

// compiler expands conjunctions of schemas into nodes.
type compiler struct {
	*parser
	nodes    map[string]*node
	list     []*node
	objs     map[string]*objNode
	arrs     map[string]*arrNode
	nums     map[string]*numMachine
	rules    map[any]int
	left     int // partial expansions that may still be made
	cut      int // depth of the shallowest unfinished node that a search for satisfiability met
	depth    int
	negated  map[*schema][][]lit
	enums    map[*schema]*enumeration
	overlaps map[*lit][][2]int // pairs of a oneOf that may both hold
	facts    map[*schema]*facts
	probing  int
}

const (
	maxPartials     = 4000
	maxExpansions   = 150_000
	maxNodes        = 50000
	unionBranches   = 1000
	maxProbeDepth   = 4
	maxConjunction  = 2000
	maxAlternatives = 128
)

func newCompiler(p *parser) *compiler {
	return &compiler{
		parser: p, nodes: map[string]*node{}, objs: map[string]*objNode{}, arrs: map[string]*arrNode{},
		nums: map[string]*numMachine{}, rules: map[any]int{}, left: maxExpansions, negated: map[*schema][][]lit{},
		enums: map[*schema]*enumeration{}, overlaps: map[*lit][][2]int{}, facts: map[*schema]*facts{},
	}
}

// node returns the node of a conjunction.
func (c *compiler) node(lits []lit) *node {
	keys := make([]lit, 0, len(lits))
	for _, l := range lits {
		if l.s == c.any && !l.neg || l.s == c.none && l.neg {
			continue
		}
		keys = append(keys, l)
	}
	slices.SortFunc(keys, func(a, b lit) int { return a.key() - b.key() })
	keys = slices.CompactFunc(keys, func(a, b lit) bool { return a.key() == b.key() })
	var b []byte
	for _, l := range keys {
		b = binary.AppendUvarint(b, uint64(l.key()))
	}
	if n := c.nodes[string(b)]; n != nil {
		return n
	}
	n := &node{id: len(c.list), lits: keys}
	c.nodes[string(b)] = n
	c.set.charge(300 + 24*len(keys) + len(b))
	c.list = append(c.list, n)
	return n
}

// partial is one conjunction on the way of being expanded into alternatives.
type partial struct {
	types   typeSet
	num     numSpec
	nums    bool // whether num says anything
	str     rx
	length  lengths
	objs    []*objRule
	arrs    []*arrRule
	done    []lit
	pending []lit
	choices [][][]lit
}

func (p *partial) clone() *partial {
	q := *p
	q.objs, q.arrs = slices.Clip(q.objs), slices.Clip(q.arrs)
	q.done, q.pending, q.choices = slices.Clip(q.done), slices.Clip(q.pending), slices.Clip(q.choices)
	return &q
}

// expand fills n in.
func (c *compiler) expand(n *node) error {
	if n.expanding {
		return refuse(n.at(), "propertyNames", "refers to itself")
	}
	if n.expanded {
		return n.err
	}
	n.expanding = true
	defer func() { n.expanding, n.expanded = false, true }()
	if len(c.list) > maxNodes || len(n.lits) > maxConjunction {
		n.err = refuse(n.at(), "", "too many combinations of schemas")
		return n.err
	}
	parts, err := c.partials(n)
	if err == nil {
		err = c.gather(n, parts)
	}
	n.err = err
	return err
}

func (n *node) at() string {
	if len(n.lits) == 0 {
		return ""
	}
	return n.lits[0].s.at
}

func (c *compiler) partials(n *node) ([]*partial, error) {
	work := []*partial{{types: tAll, str: rxAll, length: anyLength, pending: n.lits}}
	var out []*partial
	for len(work) > 0 {
		c.set.work -= 5
		if c.left--; c.left < 0 || len(out)+len(work) > maxPartials || c.set.exhausted() {
			return nil, refuse(n.at(), "", "too many combinations of schemas")
		}
		p := work[len(work)-1]
		work = work[:len(work)-1]
		ok, err := c.settle(p)
		if err != nil {
			return nil, err
		}
		if !ok {
			continue
		}
		if len(p.choices) == 0 {
			out = append(out, p)
			continue
		}
		choice := p.choices[0]
		p.choices = p.choices[1:]
		choice, settled := c.prune(p, choice)
		if settled {
			work = append(work, p)
			continue
		}
		for _, branch := range slices.Backward(choice) {
			q := p.clone()
			q.pending = append(q.pending, branch...)
			work = append(work, q)
		}
	}
	return out, nil
}

// settle applies what is pending. It reports false when nothing can satisfy p.
func (c *compiler) settle(p *partial) (bool, error) {
	for len(p.pending) > 0 {
		l := p.pending[0]
		p.pending = p.pending[1:]
		skip := false
		for _, d := range p.done {
			if d.s == l.s {
				if d.neg != l.neg {
					return false, nil
				}
				skip = true
				break
			}
		}
		if skip {
			continue
		}
		c.left--
		p.done = append(p.done, l)
		var err error
		if l.neg {
			err = c.deny(p, l.s)
		} else {
			err = c.apply(p, l.s)
		}
		if err != nil {
			return false, err
		}
		if p.types&tNumber != 0 && p.nums && p.num.empty() {
			p.types &^= tNumber
		}
		if p.str == rxNone || p.length.empty() {
			p.types &^= tString
		}
		if p.types == 0 {
			return false, nil
		}
	}
	return true, nil
}

func (c *compiler) apply(p *partial, s *schema) error {
	if s.never {
		p.types = 0
		return nil
	}
	p.types &= s.types
	if s.num != nil {
		p.num.intersect(s.num)
		p.nums = true
	}
	p.str = c.set.and(p.str, s.str)
	p.length = p.length.intersect(s.length)
	if s.obj != nil {
		p.objs = append(p.objs, s.obj)
	}
	if s.arr != nil {
		p.arrs = append(p.arrs, s.arr)
	}
	if s.enum != nil {
		c.enumerate(p, s)
	}
	p.pending = append(p.pending, s.all...)
	for _, choice := range s.choice {
		p.choose(choice)
	}
	for _, list := range s.ones {
		choice, err := c.exactlyOne(list, p)
		if err != nil {
			return err
		}
		p.choose(choice)
	}
	return nil
}

// choose adds a choice, or its only branch.
func (p *partial) choose(choice [][]lit) {
	switch len(choice) {
	case 0:
		p.types = 0
	case 1:
		p.pending = append(slices.Clip(p.pending), choice[0]...)
	default:
		p.choices = append(p.choices, choice)
	}
}

// enumerate narrows p to the values of an enumeration.
func (c *compiler) enumerate(p *partial, s *schema) {
	e := c.enums[s]
	if e == nil {
		e = c.enumOf(s)
		c.enums[s] = e
	}
	p.str = c.set.and(p.str, e.str)
	p.num.intersect(&numSpec{only: e.nums})
	p.nums = true
	if e.composites == nil {
		p.types &= e.types
		return
	}
	p.choose(e.composites)
}

// enumeration is the values of an enum, sorted by what they need.
type enumeration struct {
	types      typeSet
	str        rx
	nums       []decimal
	composites [][]lit // alternatives: each array and object, and what else there is
}

func (c *compiler) enumOf(s *schema) *enumeration {
	e := &enumeration{nums: []decimal{}}
	var texts []string
	for _, v := range s.enum {
		switch v.kind {
		case jNull:
			e.types |= tNull
		case jFalse:
			e.types |= tFalse
		case jTrue:
			e.types |= tTrue
		case jString:
			e.types |= tString
			texts = append(texts, v.str)
		case jNumber:
			if d, err := parseDecimal(v.str); err == nil {
				e.types |= tNumber
				e.nums = append(e.nums, d)
			}
		default:
			e.composites = append(e.composites, []lit{{s: c.constant(v)}})
		}
	}
	e.str = c.set.literals(texts)
	if e.composites != nil && e.types != 0 {
		rest := c.synthetic(s.at)
		rest.types = e.types
		e.composites = append([][]lit{{{s: rest}}}, e.composites...)
	}
	return e
}

// exactlyOne turns oneOf into alternatives that exclude each other, given what p already says.
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

// disjoint reports whether it is certain that nothing satisfies both.
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

// deny narrows p to what violates s.
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

// violations returns the alternatives of violating s.
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

// denyChoice violates every branch: of each, one of its parts.
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
		for _, r := range o.some { // no property of lang satisfies lits
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

// stringLanguage returns the strings that satisfy lits.
func (c *compiler) stringLanguage(lits []lit) (rx, error) {
	n := c.node(lits)
	if err := c.expand(n); err != nil {
		return rxNone, err
	}
	return c.set.bounded(n.str, n.length), nil
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

// gather joins the alternatives of a node.
func (c *compiler) gather(n *node, parts []*partial) error {
	var strs []*partial
	seenNum := map[*numMachine]bool{}
	for _, p := range parts {
		n.literals |= p.types & (tNull | tFalse | tTrue)
		if p.types&tString != 0 {
			strs = append(strs, p)
		}
		if p.types&tNumber != 0 {
			for _, spec := range p.num.split() {
				m, err := c.machine(&spec)
				if err != nil {
					return refuse(n.at(), "multipleOf", "%v", err)
				}
				if !seenNum[m] {
					seenNum[m] = true
					n.nums = append(n.nums, m)
				}
			}
		}
		if p.types&tObject != 0 {
			if o := c.object(p.objs); !slices.Contains(n.objs, o) {
				n.objs = append(n.objs, o)
			}
		}
		if p.types&tArray != 0 {
			if a := c.array(p.arrs); !slices.Contains(n.arrs, a) {
				n.arrs = append(n.arrs, a)
			}
		}
	}
	if len(n.objs)+len(n.arrs) > maxAlternatives {
		return refuse(n.at(), "", "too many combinations of schemas")
	}
	c.gatherStrings(n, strs)
	if slices.ContainsFunc(n.nums, func(m *numMachine) bool { return m.any }) {
		n.nums = slices.DeleteFunc(n.nums, func(m *numMachine) bool { return !m.any })
	}
	return nil
}

// gatherStrings joins the strings of the alternatives. Only where all have the same lengths, these
// stay apart.
func (c *compiler) gatherStrings(n *node, parts []*partial) {
	n.str, n.length = rxNone, anyLength
	same := true
	for _, p := range parts {
		same = same && p.length == parts[0].length
	}
	for _, p := range parts {
		if same {
			n.str, n.length = c.set.alt(n.str, p.str), p.length
		} else {
			n.str = c.set.alt(n.str, c.set.bounded(p.str, p.length))
		}
	}
}

// hasString reports whether any string satisfies n.
func (c *compiler) hasString(n *node) bool {
	switch {
	case n.str == rxNone:
		return false
	case n.length.any() || c.set.countable(n.str, n.length):
		return c.set.alive(n.str)
	}
	return c.set.alive(c.set.bounded(n.str, n.length))
}

func (c *compiler) machine(spec *numSpec) (*numMachine, error) {
	var b strings.Builder
	put := func(x *bound) {
		if x != nil {
			b.WriteString(x.at.String())
			if x.open {
				b.WriteByte('o')
			}
		}
		b.WriteByte(';')
	}
	if spec.integer {
		b.WriteByte('i')
	}
	if spec.nonInt {
		b.WriteByte('n')
	}
	put(spec.lo)
	put(spec.hi)
	for _, list := range []*[]decimal{&spec.multiples, &spec.except, &spec.notMult} {
		slices.SortFunc(*list, decimal.cmp)
		*list = slices.CompactFunc(*list, func(a, b decimal) bool { return a.cmp(b) == 0 })
		for _, d := range *list {
			b.WriteString(d.String())
			b.WriteByte(',')
		}
		b.WriteByte(';')
	}
	if m := c.nums[b.String()]; m != nil {
		return m, nil
	}
	copied := *spec
	m, err := newNumMachine(&copied)
	if err == nil {
		m.work = &c.set.work
		if m.alive(m.start()); m.visited > maxNumStates/2 {
			return nil, errors.New("too many states")
		}
		m.id = len(c.nums)
		c.nums[b.String()] = m
	}
	return m, err
}

// ruleKey names a set of rules.
func ruleKey[R any](c *compiler, rules []*R) string {
	ids := make([]int, len(rules))
	for i, r := range rules {
		id, ok := c.rules[r]
		if !ok {
			id = len(c.rules)
			c.rules[r] = id
		}
		ids[i] = id
	}
	slices.Sort(ids)
	var b []byte
	for _, id := range ids {
		b = binary.AppendUvarint(b, uint64(id))
	}
	return string(b)
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

func (c *compiler) array(rules []*arrRule) *arrNode {
	key := ruleKey(c, rules)
	a := c.arrs[key]
	if a == nil {
		a = &arrNode{id: len(c.arrs), rules: rules}
		c.arrs[key] = a
	}
	return a
}

// childLits returns what the property name must satisfy.
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

// undeclaredNames finds the names of undeclared properties that a value exists for.
func (c *compiler) undeclaredNames(o *objNode, lang rx) error {
	// Every rule adds its patterns; where none matches, its rest.
	type class struct {
		lang rx
		lits []lit
	}
	classes := []class{{lang, nil}}
	for _, r := range o.rules {
		var next []class
		parts := []class{{rxAll, nil}}
		for _, p := range r.patterns {
			var split []class
			for _, x := range parts {
				yes, no := c.set.and(x.lang, p.lang), c.set.and(x.lang, c.set.not(p.lang))
				if c.set.alive(yes) {
					split = append(split, class{yes, append(slices.Clip(x.lits), p.lits...)})
				}
				if c.set.alive(no) {
					split = append(split, class{no, x.lits})
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
				next = append(next, class{both, lits})
			}
		}
		if classes = next; len(classes) > 256 || c.set.exhausted() {
			return refuse("", "patternProperties", "too many combinations of patterns")
		}
	}
	o.free = rxNone
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

func (c *compiler) buildArray(a *arrNode) error {
	if a.built {
		return a.err
	}
	a.built = true
	a.err = c.mergeArray(a)
	return a.err
}

func (c *compiler) mergeArray(a *arrNode) error {
	a.max = -1
	n := 0
	for _, r := range a.rules {
		n = max(n, len(r.prefix))
		a.min = max(a.min, r.min)
		if r.max >= 0 && (a.max < 0 || r.max < a.max) {
			a.max = r.max
		}
		a.contains = append(a.contains, r.contains...)
		a.unique = a.unique || r.unique
	}
	if len(a.contains) > 8 {
		return refuse("", "contains", "too many in one array")
	}
	at := func(i int) *node {
		var lits []lit
		for _, r := range a.rules {
			if i < len(r.prefix) {
				lits = append(lits, r.prefix[i]...)
			} else {
				lits = append(lits, r.rest...)
			}
		}
		return c.node(lits)
	}
	for i := range n {
		a.prefix = append(a.prefix, at(i))
	}
	a.rest = at(n)
	return nil
}

func (a *arrNode) item(i int) *node {
	if i < len(a.prefix) {
		return a.prefix[i]
	}
	return a.rest
}

// satisfiable reports whether any value satisfies n. It reports true where it cannot tell.
func (c *compiler) satisfiable(n *node) (bool, error) {
	switch n.sat {
	case 1:
		return true, nil
	case -1:
		return false, nil
	case 2:
		c.cut = min(c.cut, n.depth)
		return false, nil
	}
	if n.expanding {
		return true, nil
	}
	if !n.expanded {
		if err := c.expand(n); err != nil {
			return false, err
		}
	} else if n.err != nil {
		return false, n.err
	}
	if n.literals != 0 || c.hasString(n) {
		n.sat = 1
		return true, nil
	}
	for _, m := range n.nums {
		if m.alive(m.start()) {
			n.sat = 1
			return true, nil
		}
	}
	c.depth++
	n.sat, n.depth = 2, c.depth
	outer := c.cut
	c.cut = n.depth
	found, err := c.composite(n)
	cut := c.cut
	c.cut = min(outer, cut)
	c.depth--
	n.sat = 0
	if err != nil {
		return false, err
	}
	switch {
	case found:
		n.sat = 1
	case cut >= n.depth:
		n.sat = -1
	}
	return found, nil
}

func (c *compiler) composite(n *node) (bool, error) {
	for _, a := range n.arrs {
		if ok, err := c.arraySat(a); ok || err != nil {
			return ok, err
		}
	}
	for _, o := range n.objs {
		if ok, err := c.objectSat(o); ok || err != nil {
			return ok, err
		}
	}
	return false, nil
}

func (c *compiler) objectSat(o *objNode) (bool, error) {
	if o.building {
		return true, nil
	}
	if err := c.build(o); err != nil {
		return false, err
	}
	need, have := 0, 0
	for i, n := range o.nodes {
		if !o.required[i] {
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
	if need < o.min && o.free == rxNone {
		have = 0
		for i, n := range o.nodes {
			if o.required[i] {
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

func (c *compiler) arraySat(a *arrNode) (bool, error) {
	if err := c.buildArray(a); err != nil {
		return false, err
	}
	need := a.min
	for _, r := range a.contains {
		if r.min > 0 {
			need = max(need, r.from+r.min)
		}
	}
	if a.max >= 0 && need > a.max {
		return false, nil
	}
	for i := range min(need, len(a.prefix)+1) {
		ok, err := c.satisfiable(a.item(i))
		if !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// known is what is plain about the objects that satisfy a partial conjunction.
type known struct {
	required, forbidden map[string]bool
	values              map[string]map[string]bool // of properties: canonical texts of the only values
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

// prune drops the branches that plainly contradict p. It reports that the choice is settled when
// one of them plainly holds already.
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

// holds reports whether every object of which k is known plainly satisfies s.
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

// separate reports whether two sets of values are known and share nothing.
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

// contradicts reports whether no object of which k is known satisfies s, plainly.
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

// within reports whether s is an enumeration that holds all values.
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

// plain reports whether s says nothing beyond enum and allOf, or only what a string is.
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

// facts are what is plain about a schema, without expanding it.
type facts struct {
	types    typeSet
	values   map[string]bool // canonical texts of the only values; nil: others too
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

// apart reports whether it is plain that no value has both sets of facts, and those given, if any.
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

// loops reports a schema that refers to itself without a property or an item in between.
func (c *compiler) loops(s *schema, state map[*schema]bool) *schema {
	if open, known := state[s]; known {
		if open {
			return s
		}
		return nil
	}
	state[s] = true
	defer func() { state[s] = false }()
	try := func(lits []lit) *schema {
		for _, l := range lits {
			if x := c.loops(l.s, state); x != nil {
				return x
			}
		}
		return nil
	}
	if x := try(s.all); x != nil {
		return x
	}
	for _, list := range s.ones {
		if x := try(list); x != nil {
			return x
		}
	}
	for _, choice := range s.choice {
		for _, branch := range choice {
			if x := try(branch); x != nil {
				return x
			}
		}
	}
	return nil
}
