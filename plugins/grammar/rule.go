package grammar

import "slices"

type ruleKind uint8

const (
	rEnd   ruleKind = iota // the rule ends
	rChar                  // a character of class, then next
	rCall                  // another rule, then next
	rSplit                 // any of branches
	rDone                  // the text ends
	rJSON                  // a JSON value of node, then next
	rText                  // a text of the expression class, then next
)

// ruleState is a position within a rule of a GBNF grammar.
type ruleState struct {
	kind     ruleKind
	class    rx
	rule     *rule
	next     *ruleState
	branches []*ruleState
	node     *node
}

type rule struct {
	name    string
	start   *ruleState
	defined bool
	empty   bool // matches the empty text
	ends    bool // matches some text
}

// enter starts a rule. It reports false when the rule is too ambiguous.
func (g *Grammar) enter(start *ruleState) bool {
	// Stacks of different depth may be joined, so the root needs a frame as well.
	bottom := g.frame(frameKey{rule: &ruleState{kind: rDone}})
	var out threads
	if !g.closure(start, g.stackOf([]top{{bottom, g.root}}), &out) {
		return false
	}
	g.first = g.collect(out.list, nil)
	return true
}

// settle determines which rules match the empty text, and which match any text at all.
func (p *gbnfParser) settle() {
	for changed := true; changed; {
		changed = false
		for _, r := range p.order {
			if !r.empty && r.start.passes(map[*ruleState]bool{}, func(r *rule) bool { return r.empty }, false) {
				r.empty, changed = true, true
			}
			if !r.ends && r.start.passes(map[*ruleState]bool{}, func(r *rule) bool { return r.ends }, true) {
				r.ends, changed = true, true
			}
		}
	}
}

// passes reports whether the end of the rule is reachable from s, through calls of rules that ok
// allows, and through characters.
func (s *ruleState) passes(seen map[*ruleState]bool, ok func(*rule) bool, chars bool) bool {
	queue := []*ruleState{s}
	for len(queue) > 0 {
		s := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if seen[s] {
			continue
		}
		seen[s] = true
		switch s.kind {
		case rEnd:
			return true
		case rChar:
			if chars && s.class != rxNone {
				queue = append(queue, s.next)
			}
		case rCall:
			if ok(s.rule) {
				queue = append(queue, s.next)
			}
		case rSplit:
			queue = append(queue, s.branches...)
		}
	}
	return false
}

// leftRecursion returns a left-recursive rule, or nil.
func (p *gbnfParser) leftRecursion() *rule {
	state := map[*rule]int{}
	var visit func(r *rule) *rule
	visit = func(r *rule) *rule {
		switch state[r] {
		case 1:
			return r
		case 2:
			return nil
		}
		state[r] = 1
		seen := map[*ruleState]bool{}
		queue := []*ruleState{r.start}
		for len(queue) > 0 {
			s := queue[len(queue)-1]
			queue = queue[:len(queue)-1]
			if seen[s] {
				continue
			}
			seen[s] = true
			switch s.kind {
			case rCall:
				if x := visit(s.rule); x != nil {
					return x
				}
				if s.rule.empty {
					queue = append(queue, s.next)
				}
			case rSplit:
				queue = append(queue, s.branches...)
			}
		}
		state[r] = 2
		return nil
	}
	for _, r := range p.order {
		if x := visit(r); x != nil {
			return x
		}
	}
	return nil
}

// closure adds the threads for the characters that may come at s within stk. It reports false when
// there are too many.
func (g *Grammar) closure(s *ruleState, stk *stack, out *threads) bool {
	type item struct {
		s   *ruleState
		stk *stack
	}
	seen := map[item]bool{}
	queue := []item{{s, stk}}
	for len(queue) > 0 {
		x := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		if seen[x] {
			continue
		}
		if seen[x] = true; len(seen) > maxClosure || g.set.exhausted() {
			g.set.work = -1
			return false
		}
		g.set.work--
		switch x.s.kind {
		case rChar:
			if x.s.class != rxNone {
				out.add(g.leaf(leafKey{kind: lRule, q: x.s.class, rule: x.s.next}), x.stk)
			}
		case rCall:
			if !x.s.rule.ends {
				continue
			}
			stk := x.stk
			if x.s.next.kind != rEnd { // tail call: return to the caller of the rule
				stk = g.stackOf([]top{{g.frame(frameKey{rule: x.s.next}), stk}})
			}
			queue = append(queue, item{x.s.rule.start, stk})
		case rSplit:
			for _, b := range slices.Backward(x.s.branches) {
				queue = append(queue, item{b, x.stk})
			}
		case rEnd:
			for _, t := range x.stk.tops {
				queue = append(queue, item{t.f.key.rule, t.up})
			}
		case rDone:
			out.add(g.leaf(leafKey{kind: lEnd}), x.stk)
		case rJSON:
			out.add(g.leaf(leafKey{kind: lValue, node: x.s.node}), g.stackOf([]top{{g.frame(frameKey{rule: x.s.next}), x.stk}}))
		case rText:
			if g.set.nullable(x.s.class) {
				queue = append(queue, item{x.s.next, x.stk})
			}
			g.characters(x.s, func(class rx, next *ruleState) {
				out.add(g.leaf(leafKey{kind: lRule, q: class, rule: next}), x.stk)
			})
		}
	}
	return true
}
