package grammar

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// Array items that must be unique, and all their contents, are recorded as entries: the text of a
// scalar, or a composite, whose text is equal for equal values. An item that began like former
// ones, its rivals, must still become a different value. So at each place a value is excluded if
// there would not be more ways to continue after it than rivals with the same value there.

// composite is a finished object or array.
type composite struct {
	obj map[string]string // entries by name
	arr []string          // entries; nil in an object
}

// entryOf returns the entry of a scalar with text that ended in a position of l. It reports false
// for numbers too large to be compared.
func entryOf(l *leaf, text []byte) (string, bool) {
	switch l.kind {
	case lString:
		return `"` + string(text), true
	case lNumber:
		d, err := parseDecimal(string(text))
		if err != nil {
			return "", false
		}
		return d.String(), true
	}
	return string(text), true
}

func isObject(entry string) bool { return entry[0] == '{' }

func isComposite(entry string) bool { return entry[0] == '{' || entry[0] == '[' }

// keeps reports whether the values in a frame are recorded.
func (f *frame) keeps() bool { return f.key.kept || f.key.arr != nil && f.key.arr.unique }

// record adds a finished value to the innermost objects or arrays that record their values.
func (g *Grammar) record(stk *stack, entry string) *stack {
	tops := make([]top, len(stk.tops))
	for i, x := range stk.tops {
		if k := x.f.key; x.f.keeps() {
			if k.kept {
				k.made = g.used(k.made, entry)
			}
			if k.arr != nil && k.arr.unique {
				k.used = g.used(k.used, entry)
			}
			x.f = g.frame(k)
		}
		tops[i] = x
	}
	return g.stackOf(tops)
}

// list returns the texts of u, oldest first.
func (u *usedList) list() []string {
	var out []string
	for ; u != nil; u = u.prev {
		out = append(out, u.text)
	}
	slices.Reverse(out)
	return out
}

// entry returns the entry of the finished object or array in f.
func (g *Grammar) entry(f *frame) string {
	parts := f.key.made.list()
	g.set.work -= len(parts)
	c := &composite{}
	b := []byte{'['}
	if f.key.obj != nil {
		b[0] = '{'
		c.obj = make(map[string]string, len(parts)/2)
		for i := 0; i < len(parts); i += 2 {
			c.obj[parts[i]] = parts[i+1]
		}
		parts = parts[:0]
		for _, name := range sortedKeys(c.obj) {
			parts = append(parts, name, c.obj[name])
		}
	} else {
		c.arr = parts
	}
	for _, p := range parts {
		b = binary.AppendUvarint(b, uint64(len(p)))
		b = append(b, p...)
	}
	if g.composites[string(b)] == nil {
		g.composites[string(b)] = c
		g.charge(200 + 2*len(b))
	}
	return string(b)
}

// rivals returns the values that f must differ from but has matched so far.
func (g *Grammar) rivals(f *frame) []*composite {
	if f.key.avoid == nil || f.rivalsKnown {
		return f.rivals
	}
	f.rivalsKnown = true
	parts := f.key.made.list()
	for u := f.key.avoid; u != nil; u = u.prev {
		g.set.work -= 1 + len(parts)/4
		if c := g.composites[u.text]; c != nil && c.begins(parts) {
			f.rivals = append(f.rivals, c)
		}
	}
	g.charge(8 * len(f.rivals))
	return f.rivals
}

// begins reports whether parts are a prefix of c: items, or names and entries. The last name may
// have no entry yet.
func (c *composite) begins(parts []string) bool {
	if c.obj == nil {
		return len(parts) <= len(c.arr) && slices.Equal(parts, c.arr[:len(parts)])
	}
	for i := 0; i < len(parts); i += 2 {
		entry, ok := c.obj[parts[i]]
		if !ok || i+1 < len(parts) && entry != parts[i+1] {
			return false
		}
	}
	return true
}

// repeats reports whether f, if it closed now, would equal one of its rivals.
func (g *Grammar) repeats(f *frame) bool {
	rivals := g.rivals(f)
	if len(rivals) == 0 {
		return false
	}
	n := len(f.key.made.list())
	return slices.ContainsFunc(rivals, func(c *composite) bool { return 2*len(c.obj)+len(c.arr) == n })
}

// excluded returns the entries that the next value of f must differ from: part returns a rival's
// entry there, ways the number of ways in which f can continue after it, up to enough.
func (g *Grammar) excluded(f *frame, part func(*composite) (string, bool), ways func(enough int) int) []string {
	rivals := g.rivals(f)
	if len(rivals) == 0 {
		return nil
	}
	same := map[string]int{}
	for _, c := range rivals {
		if e, ok := part(c); ok {
			same[e]++
		}
	}
	left := ways(len(rivals) + 1)
	var out []string
	for _, e := range sortedKeys(same) {
		if left <= same[e] {
			out = append(out, e)
		}
	}
	return out
}

// others adds entries to a list of values to differ from.
func (g *Grammar) others(list *usedList, entries []string) *usedList {
	for _, e := range entries {
		list = g.used(list, e)
	}
	return list
}

// excludedItem returns the entries that the next item of f must differ from, so that f can differ
// from its rivals.
func (g *Grammar) excludedItem(f *frame) []string {
	if f.key.avoid == nil {
		return nil
	}
	at := len(f.key.made.list())
	return g.excluded(f, func(c *composite) (string, bool) {
		if at < len(c.arr) {
			return c.arr[at], true
		}
		return "", false
	}, func(enough int) int { return g.c.waysOfArray(f.key.arr, at+1, enough, 0) })
}

// excludedValue does the same for the value of a property, whose name is the last part of f.
func (g *Grammar) excludedValue(f *frame, name string) []string {
	if f.key.avoid == nil {
		return nil
	}
	return g.excluded(f, func(c *composite) (string, bool) {
		e, ok := c.obj[name]
		return e, ok
	}, func(enough int) int { return g.c.waysOfObject(f.key, g.opts.Order, enough, 0) })
}

// opened returns the frame of an object or array that begins at l, and whether it can become an
// unused value.
func (g *Grammar) opened(k frameKey, l *leaf) (*frame, bool) {
	k.kept = l.keep
	if l.used == nil {
		return g.frame(k), true
	}
	n := 0
	for _, e := range l.used.list() {
		g.set.work--
		if isComposite(e) && isObject(e) == (k.obj != nil) && g.c.holdsComposite(k, g.composites[e], g.composites) {
			k.avoid = g.used(k.avoid, e)
			n++
		}
	}
	if n == 0 {
		return g.frame(k), true
	}
	if k.obj != nil {
		return g.frame(k), g.c.waysOfObject(k, g.opts.Order, n+1, 0) > n
	}
	return g.frame(k), g.c.waysOfArray(k.arr, 0, n+1, 0) > n
}

// holdsComposite reports whether c may be a value of the object or array of k. The result is exact
// only if no keyword relates several properties or items.
func (c *compiler) holdsComposite(k frameKey, v *composite, all map[string]*composite) bool {
	if v == nil {
		return false
	}
	if k.arr != nil {
		if len(v.arr) < k.arr.min || k.arr.max >= 0 && len(v.arr) > k.arr.max {
			return false
		}
		for i, e := range v.arr {
			if !c.holdsEntry(k.arr.item(i), e, all) {
				return false
			}
		}
		return true
	}
	o := k.obj
	for i, name := range o.names {
		if _, ok := v.obj[name]; !ok && o.required[i] {
			return false
		}
	}
	for name, e := range v.obj {
		if i, declared := o.index[name]; declared {
			if !c.holdsEntry(o.nodes[i], e, all) {
				return false
			}
		} else if !c.set.match(o.free, name) || !c.holdsEntry(c.node(o.childLits(c, name)), e, all) {
			return false
		}
	}
	return true
}

// holdsEntry reports whether an entry may be a value of n.
func (c *compiler) holdsEntry(n *node, entry string, all map[string]*composite) bool {
	if ok, err := c.satisfiable(n); err != nil || !ok {
		return false
	}
	c.set.work--
	switch {
	case isComposite(entry):
		v := all[entry]
		return slices.ContainsFunc(n.objs, func(o *objNode) bool { return isObject(entry) && c.holdsComposite(frameKey{obj: o}, v, all) }) ||
			slices.ContainsFunc(n.arrs, func(a *arrNode) bool { return !isObject(entry) && c.holdsComposite(frameKey{arr: a}, v, all) })
	case entry[0] == '"':
		return c.set.match(c.set.bounded(n.str, n.length), entry[1:])
	case entry == "null":
		return n.literals&tNull != 0
	case entry == "true":
		return n.literals&tTrue != 0
	case entry == "false":
		return n.literals&tFalse != 0
	}
	d, err := parseDecimal(entry)
	return err == nil && slices.ContainsFunc(n.nums, func(m *numMachine) bool { return m.holds(d) })
}

// holds reports whether d is one of the numbers of m.
func (m *numMachine) holds(d decimal) bool {
	if m.any {
		return true
	}
	state := m.start()
	for _, b := range []byte(d.String()) {
		if state = m.next(state, b); state == "" {
			return false
		}
	}
	return m.isFinal(state)
}

const maxWaysDepth = 6 // maximum nesting of objects and arrays that are counted

// ways returns how many values n has, up to enough. It returns enough when unsure; alternatives
// that share values are counted too high.
func (c *compiler) ways(n *node, enough, depth int) int {
	if ok, err := c.satisfiable(n); err != nil || !ok {
		return 0
	}
	if depth > maxWaysDepth {
		return enough
	}
	c.set.work--
	count, finite := c.countScalars(n, enough)
	if !finite {
		return enough
	}
	for _, o := range n.objs {
		if count >= enough {
			break
		}
		if ok, err := c.objectSat(o); ok && err == nil {
			count += c.waysOfObject(frameKey{obj: o, seen: string(make([]byte, (len(o.names)+7)/8))}, AnyOrder, enough, depth+1)
		}
	}
	for _, a := range n.arrs {
		if count >= enough {
			break
		}
		if ok, err := c.arraySat(a); ok && err == nil {
			count += c.waysOfArray(a, 0, enough, depth+1)
		}
	}
	return min(count, enough)
}

// waysOfObject returns in how many ways an object can continue from k, up to enough. It ignores
// constraints between properties, and on their number, so the true number may be lower.
func (c *compiler) waysOfObject(k frameKey, order Order, enough, depth int) int {
	o := k.obj
	if o.free != rxNone {
		return enough
	}
	total := 1
	for i, n := range o.nodes {
		if bit(k.seen, i) || i < k.at && order == SchemaOrder {
			continue
		}
		ways := c.ways(n, enough, depth)
		if !o.required[i] {
			ways++
		}
		if total = min(total*ways, enough); total == 0 {
			return 0
		}
	}
	return total
}

// waysOfArray returns in how many ways an array can continue from item number at, up to enough. It
// ignores constraints between items, so the true number may be lower.
func (c *compiler) waysOfArray(a *arrNode, at, enough, depth int) int {
	end := a.max
	if ok, err := c.satisfiable(a.rest); err != nil || !ok {
		if end < 0 || end > len(a.prefix) {
			end = len(a.prefix)
		}
	} else if end < 0 {
		return enough
	}
	total, ways := 0, 1
	for n := at; n <= end && total < enough && ways > 0; n++ {
		if n >= a.min {
			total += ways
		}
		if n < end {
			ways = min(ways*c.ways(a.item(n), enough, depth), enough)
		}
	}
	return min(total, enough)
}

// countScalars returns how many scalars satisfy n, and whether that number is exact.
func (c *compiler) countScalars(n *node, enough int) (int, bool) {
	count := bits.OnesCount8(uint8(n.literals))
	for _, m := range n.nums {
		k, finite := m.spec.count()
		if !finite {
			return 0, false
		}
		count += k
	}
	texts, finite := c.set.count(c.set.bounded(n.str, n.length), enough)
	return count + texts, finite
}

// opens reports whether an object, or an array, may begin at the value l.
func (g *Grammar) opens(l *leaf, object bool) bool {
	if l.used == nil {
		return object && len(l.node.objs) > 0 || !object && len(l.node.arrs) > 0
	}
	var out threads
	b := byte('[')
	if object {
		b = '{'
	}
	g.open(thread{l, g.root}, b, &out)
	return len(out.list) > 0
}
