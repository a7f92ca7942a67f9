package grammar

import (
	"math"
	"slices"
)

// arrNode is one alternative for an array.
type arrNode struct {
	id       int
	rules    []*arrRule
	prefix   []*node
	rest     *node
	min, max int
	contains []containsRule
	unique   bool
	counts   [][]bool // which items can count for each contains rule, the rest last
	built    bool
	err      error
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
	for i, r := range a.contains {
		if r.min > 0 && c.places(a, i, 0) < r.min {
			return false, nil
		}
	}
	if a.unique && len(a.prefix) == 0 && need > 1 {
		if ok, err := c.satisfiable(a.rest); err != nil || !ok || c.ways(a.rest, need, 0) < need {
			return false, err
		}
	}
	for i := range min(need, len(a.prefix)+1) {
		ok, err := c.satisfiable(a.item(i))
		if !ok || err != nil {
			return false, err
		}
	}
	return true, nil
}

// places returns how many items, starting at an index, can count for rule i.
func (c *compiler) places(a *arrNode, i, from int) int {
	r := a.contains[i]
	if a.counts == nil {
		a.counts = make([][]bool, len(a.contains))
	}
	counts := a.counts[i]
	if counts == nil {
		for k := range len(a.prefix) + 1 {
			ok, err := c.satisfiable(c.node(append(slices.Clip(a.item(k).lits), r.lits...)))
			counts = append(counts, ok || err != nil)
		}
		if c.depth == 0 { // otherwise an enclosing value may not be settled yet
			a.counts[i] = counts
		}
	}
	n := 0
	from = max(from, r.from)
	end := len(a.prefix)
	if a.max >= 0 {
		end = min(end, a.max)
	}
	for k := from; k < end; k++ {
		if counts[k] {
			n++
		}
	}
	if counts[len(a.prefix)] {
		if a.max < 0 {
			return math.MaxInt
		}
		n += max(a.max-max(from, len(a.prefix)), 0)
	}
	return n
}

// items adds the ways in which an array may continue with another item.
func (g *Grammar) items(stk *stack, out *threads) {
	for _, x := range stk.tops {
		k := x.f.key
		a := k.arr
		if a.max >= 0 && k.at >= a.max {
			continue
		}
		child := a.item(k.at)
		index := k.at
		if k.at++; a.max < 0 {
			k.at = min(k.at, a.horizon())
		}
		g.item(x, k, child, index, 0, out)
	}
	out.text = nil
}

// begins reports whether any value can begin at l: unique items may have run out.
func (g *Grammar) begins(l *leaf) bool {
	if l.class == nil {
		g.fill(l)
	}
	return slices.ContainsFunc(l.to, func(to *leaf) bool { return to != nil && to != l })
}

// horizon returns the index from which on all items are treated alike.
func (a *arrNode) horizon() int {
	n := max(len(a.prefix), a.min)
	for _, r := range a.contains {
		n = max(n, r.from)
	}
	return n
}

// item adds an item of child for each way in which it may count for the rules from i on.
func (g *Grammar) item(x top, k frameKey, child *node, index, i int, out *threads) {
	a := k.arr
	if i == len(a.contains) {
		if !g.sat(child) || !g.itemsFit(k) {
			return
		}
		used := g.others(k.used, g.excludedItem(x.f))
		value := g.leaf(leafKey{kind: lValue, node: child, keep: x.f.keeps(), used: used})
		if used != nil && !g.begins(value) {
			return
		}
		out.add(value, g.stackOf([]top{{g.frame(k), x.up}}))
		return
	}
	r := a.contains[i]
	n := x.f.counted(i)
	if index < r.from || n >= r.min && r.max < 0 {
		g.item(x, k, child, index, i+1, out)
		return
	}
	if r.max < 0 || n < r.max {
		counted := k
		b := []byte(k.seen)
		b[2*i], b[2*i+1] = byte(n+1), byte((n+1)>>8)
		counted.seen = string(b)
		g.item(x, counted, g.c.node(append(slices.Clip(child.lits), r.lits...)), index, i+1, out)
	}
	if r.max >= 0 {
		child = g.c.node(append(slices.Clip(child.lits), g.denied(r.lits)))
	}
	g.item(x, k, child, index, i+1, out)
}

// denied returns the negation of a conjunction.
func (g *Grammar) denied(lits []lit) lit {
	if len(lits) == 1 {
		return not(lits[0])
	}
	s := g.conjunctions[&lits[0]]
	if s == nil {
		s = g.c.synthetic("")
		s.all = lits
		g.conjunctions[&lits[0]] = s
	}
	return lit{s: s, neg: true}
}

// itemsFit reports whether the items still required fit.
func (g *Grammar) itemsFit(k frameKey) bool {
	a := k.arr
	if len(a.contains) == 0 {
		return true
	}
	f := &frame{key: k}
	for i, r := range a.contains {
		if missing := r.min - f.counted(i); missing > 0 && missing > g.c.places(a, i, k.at) {
			return false
		}
	}
	return true
}

func (f *frame) counted(i int) int { return int(f.key.seen[2*i]) | int(f.key.seen[2*i+1])<<8 }
