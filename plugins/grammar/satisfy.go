package grammar

import "slices"

// complete expands everything that a document can reach from n, so that what cannot be guaranteed
// is refused at once.
func (c *compiler) complete(n *node) error {
	state := map[*schema]bool{}
	for _, l := range n.lits {
		if x := c.loops(l.s, state); x != nil {
			return refuse(x.at, "$ref", "refers to itself")
		}
	}
	queue := []*node{n}
	seen := map[*node]bool{n: true}
	visit := func(n *node) {
		if n != nil && !seen[n] {
			seen[n] = true
			queue = append(queue, n)
		}
	}
	for i := 0; i < len(queue); i++ {
		n := queue[i]
		for _, l := range n.lits {
			if x := c.loops(l.s, state); x != nil {
				return refuse(x.at, "$ref", "refers to itself")
			}
		}
		if _, err := c.satisfiable(n); err != nil {
			return err
		}
		if n.sat < 0 {
			continue
		}
		for _, o := range n.objs {
			if err := c.build(o); err != nil {
				return err
			}
			for _, x := range o.nodes {
				visit(x)
			}
			for _, x := range o.others {
				visit(x)
			}
			for _, r := range o.some {
				visit(c.node(r.lits))
			}
		}
		for _, a := range n.arrs {
			if err := c.buildArray(a); err != nil {
				return err
			}
			for _, x := range a.prefix {
				visit(x)
			}
			visit(a.rest)
			for _, r := range a.contains {
				visit(c.node(append(slices.Clip(a.rest.lits), r.lits...)))
			}
		}
	}
	if ok, err := c.satisfiable(n); err != nil || !ok {
		if err == nil {
			err = refuse("", "", "no value satisfies the schema")
		}
		return err
	}
	return nil
}

// satisfiable reports whether any value satisfies n. It reports true when unsure.
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

// loops returns an error for a schema that refers to itself without a property or an item in
// between.
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

func (g *Grammar) sat(n *node) bool {
	ok, err := g.c.satisfiable(n)
	return ok && err == nil
}
