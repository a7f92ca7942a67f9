package grammar

import (
	"encoding/binary"
	"errors"
	"slices"
	"strings"
)

// node is the set of values that satisfy a conjunction of schemas, sorted by type: the possible
// values at one place of a document.
type node struct {
	id                  int
	lits                []lit
	expanding, expanded bool
	err                 error
	literals            typeSet // null, false and true
	str                 rx
	length              lengths // of strings, besides str
	nums                []*numMachine
	objs                []*objNode
	arrs                []*arrNode
	sat                 int8 // 0 unknown, 1 satisfiable, -1 not, 2 in progress
	depth               int
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
	left     int // partial expansions left
	cut      int // depth of the shallowest unfinished node found by a search for satisfiability
	depth    int
	negated  map[*schema][][]lit
	enums    map[*schema]*enumeration
	overlaps map[*lit][][2]int // pairs of oneOf branches that may both hold
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
	maxAlternatives = 1000
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

// partial is a conjunction while it is being expanded into alternatives.
type partial struct {
	types   typeSet
	num     numSpec
	nums    bool // num has constraints
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

// expand expands n in place.
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

// settle applies the pending literals. It reports false when nothing can satisfy p.
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

// enumeration holds the values of an enum, sorted by how they are matched.
type enumeration struct {
	types      typeSet
	str        rx
	nums       []decimal
	composites [][]lit // alternatives: one per array and object, and one for all scalars
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

// ruleKey returns a key for a set of rules.
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
