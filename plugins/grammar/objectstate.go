package grammar

import "slices"

// objFrame is derived from the state of an object.
type objFrame struct {
	allowed []int // declared properties that may come next
	closes  bool
	freeQ   rx // names of undeclared properties that may come next
	lang    rx // all names that may come next, or -1 if not yet computed; use Grammar.lang
}

// freeKey and namesKey identify sets of properties.
type freeKey struct {
	obj  *objNode
	used *usedList
}

type namesKey struct {
	obj     *objNode
	allowed string
	free    rx
}

// unused returns the undeclared names not yet used.
func (g *Grammar) unused(o *objNode, used *usedList) rx {
	if used == nil {
		return o.free
	}
	k := freeKey{o, used}
	if q, ok := g.freeNames[k]; ok {
		return q
	}
	q := g.set.and(g.unused(o, used.prev), g.set.not(g.set.literal(used.text)))
	if !g.set.alive(q) {
		q = rxNone
	}
	g.freeNames[k] = q
	g.charge(60)
	return q
}

// lang returns the names that may come next in f.
func (g *Grammar) lang(f *frame) rx {
	of := g.object(f)
	if of.lang >= 0 {
		return of.lang
	}
	o := f.key.obj
	b := make([]byte, (len(o.names)+7)/8)
	names := make([]string, len(of.allowed))
	for j, i := range of.allowed {
		names[j] = o.names[i]
		b[i/8] |= 1 << (i % 8)
	}
	k := namesKey{o, string(b), of.freeQ}
	q, ok := g.names[k]
	if !ok {
		q = g.set.alt(g.set.literals(names), of.freeQ)
		g.names[k] = q
		g.charge(100 + len(b))
	}
	of.lang = q
	return q
}

// continues reports whether another property may come in f.
func (g *Grammar) continues(f *frame) bool {
	of := g.object(f)
	return len(of.allowed) > 0 || of.freeQ != rxNone
}

// object computes what may follow in an object.
func (g *Grammar) object(f *frame) *objFrame {
	if f.obj != nil {
		return f.obj
	}
	k := f.key
	o := k.obj
	of := &objFrame{lang: -1, freeQ: rxNone}
	f.obj = of
	g.set.work -= 2 + len(o.names)/8
	g.charge(100 + 8*len(o.names))
	needed := make([]bool, len(o.names))
	needs := 0
	for i := range o.names {
		if !bit(k.seen, i) {
			needed[i] = needed[i] || o.required[i]
			continue
		}
		for _, d := range o.deps[i] {
			needed[d] = needed[d] || !bit(k.seen, d)
		}
	}
	for _, n := range needed {
		if n {
			needs++
		}
	}
	fits := func(more int) bool { return o.max < 0 || k.n+more <= o.max }
	for i := k.at; i < len(o.names); i++ {
		if bit(k.seen, i) {
			continue
		}
		more := needs
		if !needed[i] {
			more++
		}
		if fits(more) && g.sat(o.nodes[i]) && g.depsAhead(o, k.seen, i) {
			of.allowed = append(of.allowed, i)
		}
		if needed[i] && g.opts.Order == SchemaOrder {
			break
		}
	}
	if o.min > k.n && o.free == rxNone && g.opts.Order == SchemaOrder {
		of.allowed = g.enough(o, k, of.allowed)
	}
	if o.free != rxNone && fits(needs+1) && (needs == 0 || g.opts.Order == AnyOrder) {
		of.freeQ = g.unused(o, k.used)
	}
	if k.undone != 0 {
		of.allowed = slices.DeleteFunc(of.allowed, func(i int) bool { return !g.demandsAfter(k, i) })
		if of.freeQ != rxNone && !g.demandsAfter(k, len(o.names)) {
			of.freeQ = rxNone
		}
	}
	of.closes = needs == 0 && k.n >= o.min && k.undone == 0 && !g.repeats(f)
	if len(g.rivals(f)) > 0 && len(k.made.list())%2 == 0 { // no name is waiting for its value
		g.keepApart(f)
	}
	return of
}

// keepApart drops the names after which f could only become equal to its rivals.
func (g *Grammar) keepApart(f *frame) {
	of, o := f.obj, f.key.obj
	blocked := func(name string) bool {
		var out threads
		g.propertyOf(f, name, g.root, &out)
		return len(out.list) == 0
	}
	of.allowed = slices.DeleteFunc(of.allowed, func(i int) bool { return blocked(o.names[i]) })
	if of.freeQ == rxNone {
		return
	}
	names := map[string]bool{}
	for _, c := range f.rivals {
		for name := range c.obj {
			if _, declared := o.index[name]; !declared && !names[name] && g.set.match(of.freeQ, name) {
				names[name] = true
				if blocked(name) {
					of.freeQ = g.set.and(of.freeQ, g.set.not(g.set.literal(name)))
				}
			}
		}
	}
	if !g.set.alive(of.freeQ) {
		of.freeQ = rxNone
	}
}

// depsAhead reports whether the properties that property i requires are present or can still come.
func (g *Grammar) depsAhead(o *objNode, seen string, i int) bool {
	if len(o.deps[i]) == 0 {
		return true
	}
	given := make([]bool, len(o.names))
	given[i] = true
	for d, implied := range o.implied(given) {
		if implied && d != i && !bit(seen, d) && (d < i && g.opts.Order == SchemaOrder || !g.sat(o.nodes[d])) {
			return false
		}
	}
	return true
}

// enough keeps those of allowed after which enough other properties are left.
func (g *Grammar) enough(o *objNode, k frameKey, allowed []int) []int {
	var out []int
	for _, i := range allowed {
		left := 1
		for j := i + 1; j < len(o.names); j++ {
			if g.sat(o.nodes[j]) {
				left++
			}
		}
		if k.n+left >= o.min {
			out = append(out, i)
		}
	}
	return out
}

// comma continues after a comma in an object.
func (g *Grammar) comma(stk *stack, out *threads) {
	var tops []top
	g.set.work -= len(stk.tops)
	for _, x := range stk.tops {
		if g.continues(x.f) {
			tops = append(tops, x)
		}
	}
	if len(tops) > 0 {
		out.add(g.leaf(leafKey{kind: lName}), g.stackOf(tops))
	}
}

// endKey continues after a property's name.
func (g *Grammar) endKey(stk *stack, name string, out *threads) {
	g.set.work -= 3 * len(stk.tops)
	for _, x := range stk.tops {
		g.propertyOf(x.f, name, x.up, out)
	}
}

// propertyOf adds the ways in which the next property of f may be name.
func (g *Grammar) propertyOf(f *frame, name string, up *stack, out *threads) {
	k := f.key
	o := k.obj
	of := g.object(f)
	var child *node
	if i, declared := o.index[name]; declared {
		if !slices.Contains(of.allowed, i) {
			return
		}
		child = o.nodes[i]
		k.seen = withBit(k.seen, i)
		if g.opts.Order == SchemaOrder {
			k.at = i + 1
		}
	} else {
		if of.freeQ == rxNone || !g.set.match(of.freeQ, name) {
			return
		}
		child = o.rest
		if !o.simple {
			child = g.c.node(o.childLits(g.c, name))
		}
		k.used = g.used(k.used, name)
		if g.opts.Order == SchemaOrder {
			k.at = len(o.names)
		}
	}
	if o.count {
		k.n++
	}
	if k.kept {
		k.made = g.used(k.made, name)
	}
	g.value(k, child, name, up, out)
}

// someAhead reports whether the properties still required can come.
func (g *Grammar) someAhead(k frameKey) bool {
	if k.undone == 0 {
		return true
	}
	for j, p := range g.c.placesOf(k.obj) {
		if k.undone>>j&1 == 0 || p.free {
			continue
		}
		left := false
		for i := k.at; i < len(p.names); i++ {
			left = left || p.names[i] && !bit(k.seen, i)
		}
		if !left {
			return false
		}
	}
	return true
}

// demandsAfter reports whether the properties still required can be declared property i, or an
// undeclared one, and others after it.
func (g *Grammar) demandsAfter(k frameKey, i int) bool {
	if g.opts.Order == SchemaOrder {
		k.at = min(i+1, len(k.obj.names))
	}
	if i < len(k.obj.names) {
		k.seen = withBit(k.seen, i)
		for j, p := range g.c.placesOf(k.obj) {
			if p.names[i] {
				k.undone &^= 1 << j
			}
		}
	}
	return g.someAhead(k)
}

// value adds the ways in which the property name may have a value of child: each also fulfils some
// of the open demands.
func (g *Grammar) value(k frameKey, child *node, name string, up *stack, out *threads) {
	var open []int
	for i, r := range k.obj.some {
		if k.undone>>i&1 == 1 && g.set.match(r.lang, name) {
			open = append(open, i)
		}
	}
	for set := range 1 << min(len(open), 6) {
		n, lits := child, child.lits
		undone := k.undone
		for j, i := range open {
			if set>>j&1 == 1 {
				lits = append(slices.Clip(lits), k.obj.some[i].lits...)
				undone &^= 1 << i
			}
		}
		if set > 0 {
			n = g.c.node(lits)
		}
		if !g.sat(n) {
			continue
		}
		next := k
		next.undone = undone
		if !g.someAhead(next) {
			continue
		}
		f := g.frame(next)
		of := leafKey{kind: lColon, node: n, keep: k.kept, used: g.others(nil, g.excludedValue(f, name))}
		if of.used != nil && !g.begins(g.leaf(leafKey{kind: lValue, node: n, keep: true, used: of.used})) {
			continue
		}
		if k.obj.goesOn() || g.object(f).closes || g.continues(f) {
			out.add(g.leaf(of), g.stackOf([]top{{f, up}}))
		}
	}
}
