package grammar

import (
	"encoding/binary"
	"slices"
)

// frame is an unfinished object or array, interned.
type frame struct {
	id  int
	key frameKey
	obj *objFrame // computed on demand

	rivals      []*composite // see Grammar.rivals
	rivalsKnown bool
}

type frameKey struct {
	obj    *objNode
	arr    *arrNode
	at     int        // object: first declared property that may come next; array: items so far
	n      int        // properties so far, if their number matters
	seen   string     // object: bit set of declared properties; array: counts of contains
	used   *usedList  // names of undeclared properties, or unique items
	rule   *ruleState // where a rule of a GBNF grammar returns to
	undone uint16     // properties still required, as indices of obj.some
	kept   bool       // within an item that must differ from others: its contents are recorded
	made   *usedList  // of a kept object: names and entries; of an array: entries
	avoid  *usedList  // objects or arrays that it must differ from
}

// usedList is an interned list of texts: names, or entries (see unique.go). The last one is first.
type usedList struct {
	prev *usedList
	text string
}

// stack holds what encloses a position: alternatives for the innermost object or array, each with
// its own enclosing stack. Stacks are interned; the empty one is the root.
type stack struct {
	id   int
	tops []top
}

type top struct {
	f  *frame
	up *stack
}

// thread is one interpretation of a document so far.
type thread struct {
	leaf *leaf
	stk  *stack
}

// config is a state: usually one thread, rarely several. text is the recorded part of the name or
// item in progress.
type config struct {
	thread
	more *many
	text []byte
}

// many is an interned set of threads.
type many struct {
	id      int
	threads []thread
	keep    bool          // the threads record a text
	next    *[256]*config // results of steps that do not depend on a text
}

func (c *config) dead() bool { return c.leaf == nil && c.more == nil }

func (c *config) list(buf *[1]thread) []thread {
	if c.more != nil {
		return c.more.threads
	}
	buf[0] = c.thread
	return buf[:]
}

func (g *Grammar) frame(k frameKey) *frame {
	if f := g.frames[k]; f != nil {
		return f
	}
	f := &frame{id: g.nextID(), key: k}
	g.frames[k] = f
	g.charge(200)
	return f
}

func (g *Grammar) used(prev *usedList, text string) *usedList {
	k := usedList{prev, text}
	if u := g.usedLists[k]; u != nil {
		return u
	}
	u := &usedList{prev, text}
	g.usedLists[k] = u
	g.charge(100 + len(text))
	return u
}

func (g *Grammar) stackOf(tops []top) *stack {
	if len(tops) == 1 {
		if s := g.single[tops[0]]; s != nil {
			return s
		}
		s := &stack{id: g.nextID(), tops: slices.Clone(tops)}
		g.single[tops[0]] = s
		g.charge(120)
		return s
	}
	g.set.work -= 1 + len(tops)/2
	slices.SortFunc(tops, func(a, b top) int {
		if a.f != b.f {
			return a.f.id - b.f.id
		}
		return a.up.id - b.up.id
	})
	b := g.buf[:0]
	for _, t := range tops {
		b = binary.AppendUvarint(b, uint64(t.f.id))
		b = binary.AppendUvarint(b, uint64(t.up.id))
	}
	g.buf = b
	if s := g.stacks[string(b)]; s != nil {
		return s
	}
	s := &stack{id: g.nextID(), tops: slices.Clone(tops)}
	g.stacks[string(b)] = s
	g.charge(120 + 40*len(tops))
	return s
}

// join returns a stack with the alternatives of all stacks in list.
func (g *Grammar) join(list []*stack) *stack {
	if !slices.ContainsFunc(list, func(s *stack) bool { return s != list[0] }) {
		return list[0]
	}
	var tops []top
	var ups map[*frame][]*stack // of frames in more than one stack
	at := map[*frame]int{}
	for _, s := range list {
		g.set.work -= len(s.tops)
		for _, t := range s.tops {
			i, ok := at[t.f]
			switch {
			case !ok:
				at[t.f] = len(tops)
				tops = append(tops, t)
			case tops[i].up != t.up:
				if ups == nil {
					ups = map[*frame][]*stack{}
				}
				if ups[t.f] == nil {
					ups[t.f] = []*stack{tops[i].up}
				}
				ups[t.f] = append(ups[t.f], t.up)
			}
		}
	}
	for f, list := range ups {
		tops[at[f]].up = g.join(list)
	}
	return g.stackOf(tops)
}

// joined merges threads at the same position.
func (g *Grammar) joined(threads []thread) []thread {
	if len(threads) < 2 {
		return threads
	}
	n := 0
	stacks := map[*leaf][]*stack{}
	for _, t := range threads {
		if stacks[t.leaf] == nil {
			threads[n] = t
			n++
		}
		stacks[t.leaf] = append(stacks[t.leaf], t.stk)
	}
	for i, t := range threads[:n] {
		threads[i].stk = g.join(stacks[t.leaf])
	}
	return threads[:n]
}

// collect builds a state from threads.
func (g *Grammar) collect(threads []thread, text []byte) config {
	threads = g.joined(threads)
	n := len(threads)
	switch n {
	case 0:
		return config{}
	case 1:
		if threads[0].leaf.kind != lRule {
			return config{thread: threads[0], text: text}
		}
	}
	slices.SortFunc(threads, func(a, b thread) int { return a.leaf.id - b.leaf.id })
	b := g.buf[:0]
	for _, t := range threads {
		b = binary.AppendUvarint(b, uint64(t.leaf.id))
		b = binary.AppendUvarint(b, uint64(t.stk.id))
	}
	g.buf = b
	m := g.manys[string(b)]
	if m == nil {
		m = &many{id: g.nextID(), threads: slices.Clone(threads)}
		for _, t := range threads {
			m.keep = m.keep || t.leaf.keep
		}
		g.manys[string(b)] = m
		g.charge(100 + 20*n)
	}
	return config{more: m, text: text}
}

// step returns the state after b; it is dead when b is not allowed. The text of the result may
// share memory with that of c.
func (g *Grammar) step(c *config, b byte) config {
	if c.more == nil {
		l := c.leaf
		to := g.next(l, b)
		if to == nil {
			return config{}
		}
		if to != structural {
			text := c.text
			if l.keep {
				text = remember(text, l, to, b)
			}
			return config{thread: thread{to, c.stk}, text: text}
		}
	}
	m := c.more
	if m == nil || m.keep {
		return g.stepSlow(c, b)
	}
	if m.next == nil {
		m.next = new([256]*config)
		g.charge(2048)
	}
	to := m.next[b]
	if to == nil {
		x := g.stepSlow(c, b)
		x.text = slices.Clip(x.text) // shared from now on
		to = &x
		m.next[b] = to
		g.charge(64)
	}
	return *to
}

func (g *Grammar) stepSlow(c *config, b byte) config {
	var one [1]thread
	var out threads
	out.text = c.text
	for _, t := range c.list(&one) {
		g.set.work -= 2
		g.advance(t, b, c.text, &out)
	}
	return g.collect(out.list, out.text)
}

// threads collects the results of a step. All threads have the same recorded text.
type threads struct {
	list []thread
	text []byte
}

func (o *threads) add(l *leaf, s *stack) { o.list = append(o.list, thread{l, s}) }

// advance adds the threads that t becomes after b.
func (g *Grammar) advance(t thread, b byte, text []byte, out *threads) {
	to := g.next(t.leaf, b)
	if to == nil {
		return
	}
	if to != structural {
		if t.leaf.keep {
			out.text = remember(text, t.leaf, to, b)
		}
		out.add(to, t.stk)
		return
	}
	switch t.leaf.kind {
	case lValue:
		g.open(t, b, out)
	case lString:
		g.endValue(t, text, out)
	case lLiteral:
		g.endValue(t, append(text, b), out)
	case lNumber:
		var ended threads
		g.endValue(t, text, &ended)
		for _, x := range ended.list {
			g.advance(x, b, nil, out)
		}
	case lRule:
		g.closure(t.leaf.rule, t.stk, out)
	case lKey:
		g.endKey(t.stk, string(text), out)
		out.text = nil
	case lObject, lName:
		if b == '}' {
			g.close(t.stk, out)
			return
		}
		for _, x := range t.stk.tops {
			if g.continues(x.f) {
				q := g.lang(x.f)
				out.add(g.leaf(leafKey{kind: lKey, keep: true, q: q}), g.stackOf([]top{x}))
			}
		}
		out.text = nil
	case lArray:
		if b == ']' {
			g.close(t.stk, out)
			return
		}
		var items threads
		g.items(t.stk, &items)
		for _, x := range items.list {
			g.advance(x, b, nil, out)
		}
	case lAfter:
		switch {
		case b != ',':
			if len(t.stk.tops) > 0 && (t.stk.tops[0].f.key.obj != nil) == (b == '}') {
				g.close(t.stk, out)
			}
		case len(t.stk.tops) == 0:
		case t.stk.tops[0].f.key.obj != nil:
			g.comma(t.stk, out)
		default:
			g.items(t.stk, out)
		}
	}
}

// open enters an object or an array.
func (g *Grammar) open(t thread, b byte, out *threads) {
	var tops []top
	if b == '{' {
		for _, o := range t.leaf.node.objs {
			if ok, err := g.c.objectSat(o); ok && err == nil {
				k := frameKey{obj: o, undone: uint16(1<<len(o.some) - 1)}
				if len(o.names) > 0 {
					k.seen = string(make([]byte, (len(o.names)+7)/8))
				}
				if f, ok := g.opened(k, t.leaf); ok {
					tops = append(tops, top{f, t.stk})
				}
			}
		}
		if len(tops) > 0 {
			out.add(g.leaf(leafKey{kind: lObject}), g.stackOf(tops))
		}
		return
	}
	for _, a := range t.leaf.node.arrs {
		if ok, err := g.c.arraySat(a); ok && err == nil {
			if f, ok := g.opened(frameKey{arr: a, seen: string(make([]byte, 2*len(a.contains)))}, t.leaf); ok {
				tops = append(tops, top{f, t.stk})
			}
		}
	}
	if len(tops) > 0 {
		out.add(g.leaf(leafKey{kind: lArray}), g.stackOf(tops))
	}
}

// endValue continues after a scalar.
func (g *Grammar) endValue(t thread, text []byte, out *threads) {
	stk := t.stk
	if t.leaf.keep {
		g.set.work -= 1 + len(text)/8
		entry, ok := entryOf(t.leaf, text)
		if !ok {
			return
		}
		stk = g.record(stk, entry)
	}
	g.afterValue(stk, out)
	out.text = nil
}

// close leaves the innermost object or array.
func (g *Grammar) close(stk *stack, out *threads) {
	var ups []*stack
	g.set.work -= len(stk.tops)
	for _, x := range stk.tops {
		switch {
		case !g.closes(x.f):
		case x.f.key.kept:
			ups = append(ups, g.record(x.up, g.entry(x.f)))
		default:
			ups = append(ups, x.up)
		}
	}
	if ups != nil {
		g.afterValue(g.join(ups), out)
	}
}

func (g *Grammar) closes(f *frame) bool {
	if f.key.obj != nil {
		return g.object(f).closes
	}
	a := f.key.arr
	if f.key.at < a.min || g.repeats(f) {
		return false
	}
	for i, r := range a.contains {
		if f.counted(i) < r.min {
			return false
		}
	}
	return true
}

func bit(set string, i int) bool { return set[i/8]>>(i%8)&1 == 1 }

func withBit(set string, i int) string {
	b := []byte(set)
	b[i/8] |= 1 << (i % 8)
	return string(b)
}

// final reports whether the document may end here.
func (g *Grammar) final(c *config) bool {
	var one [1]thread
	for _, t := range c.list(&one) {
		if t.leaf == nil {
			continue
		}
		if len(t.stk.tops) > 0 {
			if g.endsBehind(t) {
				return true
			}
			continue
		}
		if t.leaf.kind == lAfter || t.leaf.final {
			return true
		}
	}
	return false
}
