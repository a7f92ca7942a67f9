package grammar

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// CompileRegex compiles a regular expression in the dialect of ECMA 262 that a text matches from
// end to end.
func CompileRegex(pattern string, opts Options) (*Grammar, error) {
	return newGrammar(opts, compileWork, func(g *Grammar) error {
		q, err := g.set.parseWholeRegex(pattern)
		if err != nil {
			return &Error{Reason: err.Error()}
		}
		return g.textOf(q)
	})
}

// CompileChoice compiles a choice among texts.
func CompileChoice(choices []string, opts Options) (*Grammar, error) {
	size := 0
	for _, c := range choices {
		if !utf8.ValidString(c) {
			return nil, &Error{Reason: fmt.Sprintf("choice %q is not valid UTF-8", c)}
		}
		size += len(c)
	}
	if size > opts.maxBytes() {
		return nil, &Error{Reason: fmt.Sprintf("choices are larger than %d bytes", opts.maxBytes())}
	}
	choices = slices.Clone(choices)
	return newGrammar(opts, compileWork+40*size, func(g *Grammar) error { return g.textOf(g.set.literals(choices)) })
}

// textOf begins with a text of q.
func (g *Grammar) textOf(q rx) error {
	alive := g.set.alive(q)
	if g.set.exhausted() {
		return &Error{Reason: errRegexSize.Error()}
	}
	if !alive {
		return &Error{Reason: "no text matches"}
	}
	g.first = config{thread: thread{g.leaf(leafKey{kind: lText, q: q}), g.root}}
	return nil
}

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
	ends    bool // matches any text at all
}

const (
	maxRuleStates = 100_000
	maxRuleDepth  = 200
	maxClosure    = 20_000
)

// gbnfParser reads the grammars of llama.cpp.
type gbnfParser struct {
	src    string
	pos    int
	set    *rxSet
	rules  map[string]*rule
	order  []*rule
	states int
	depth  int
}

// CompileGBNF compiles a grammar in the notation of llama.cpp. Its texts are those of the rule
// root.
func CompileGBNF(text string, opts Options) (*Grammar, error) {
	if len(text) > opts.maxBytes() {
		return nil, &Error{Reason: fmt.Sprintf("grammar is larger than %d bytes", opts.maxBytes())}
	}
	return newGrammar(opts, compileWork, func(g *Grammar) error { return g.compileRules(text) })
}

func (g *Grammar) compileRules(text string) error {
	g.charge(6 * len(text))
	p := &gbnfParser{src: text, set: g.set, rules: map[string]*rule{}}
	if err := p.parse(); err != nil {
		line := 1 + strings.Count(text[:min(p.pos, len(text))], "\n")
		return &Error{Reason: fmt.Sprintf("line %d: %v", line, err)}
	}
	root := p.rules["root"]
	if root == nil || !root.defined {
		return &Error{Reason: "no rule root"}
	}
	for _, r := range p.order {
		if !r.defined {
			return &Error{Reason: fmt.Sprintf("rule %s is not defined", r.name)}
		}
	}
	p.settle()
	if !root.ends {
		return &Error{Reason: "no text matches"}
	}
	if r := p.leftRecursion(); r != nil {
		return &Error{Reason: fmt.Sprintf("rule %s is left-recursive", r.name)}
	}
	if !g.enter(root.start) {
		return &Error{Reason: "grammar is too ambiguous"}
	}
	return nil
}

// enter begins with a rule. It reports false when it is too ambiguous.
func (g *Grammar) enter(start *ruleState) bool {
	// Stacks of different depth may be joined: so the root, too, is an alternative with a frame.
	bottom := g.frame(frameKey{rule: &ruleState{kind: rDone}})
	var out threads
	if !g.closure(start, g.stackOf([]top{{bottom, g.root}}), &out) {
		return false
	}
	g.first = g.collect(out.list, nil)
	return true
}

func (p *gbnfParser) rule(name string) *rule {
	r := p.rules[name]
	if r == nil {
		r = &rule{name: name}
		p.rules[name] = r
		p.order = append(p.order, r)
	}
	return r
}

func (p *gbnfParser) state(s ruleState) (*ruleState, error) {
	if p.states++; p.states > maxRuleStates {
		return nil, errors.New("grammar is too large")
	}
	p.set.charge(120)
	return &s, nil
}

func (p *gbnfParser) space(lines bool) {
	for p.pos < len(p.src) {
		switch c := p.src[p.pos]; {
		case c == ' ' || c == '\t' || lines && (c == '\n' || c == '\r'):
			p.pos++
		case c == '#':
			for p.pos < len(p.src) && p.src[p.pos] != '\n' {
				p.pos++
			}
		default:
			return
		}
	}
}

func (p *gbnfParser) word() string {
	start := p.pos
	for p.pos < len(p.src) {
		c := p.src[p.pos]
		if c != '-' && c != '_' && (c < '0' || c > '9') && (c|0x20 < 'a' || c|0x20 > 'z') {
			break
		}
		p.pos++
	}
	return p.src[start:p.pos]
}

func (p *gbnfParser) eat(text string) bool {
	if strings.HasPrefix(p.src[p.pos:], text) {
		p.pos += len(text)
		return true
	}
	return false
}

func (p *gbnfParser) parse() error {
	end, err := p.state(ruleState{kind: rEnd})
	if err != nil {
		return err
	}
	for p.space(true); p.pos < len(p.src); p.space(true) {
		name := p.word()
		if name == "" {
			return errors.New("expected the name of a rule")
		}
		p.space(false)
		if !p.eat("::=") {
			return fmt.Errorf("expected ::= after %s", name)
		}
		p.space(true)
		r := p.rule(name)
		if r.defined {
			return fmt.Errorf("rule %s is defined twice", name)
		}
		tree, err := p.alternatives(false)
		if err != nil {
			return err
		}
		if r.start, err = p.build(tree, end); err != nil {
			return err
		}
		r.defined = true
		if p.pos < len(p.src) && p.src[p.pos] != '\n' && p.src[p.pos] != '\r' {
			return fmt.Errorf("unexpected %q", p.src[p.pos])
		}
	}
	return nil
}

// gbnfTree is a parsed part of a rule.
type gbnfTree struct {
	kind     astKind // aClass, aConcat, aAlt, aRepeat, or aLook for a reference
	class    rx
	rule     *rule
	kids     []*gbnfTree
	min, max int32
}

func (p *gbnfParser) alternatives(nested bool) (*gbnfTree, error) {
	if p.depth++; p.depth > maxRuleDepth {
		return nil, errors.New("groups are nested too deeply")
	}
	defer func() { p.depth-- }()
	out := &gbnfTree{kind: aAlt}
	for {
		seq, err := p.sequence(nested)
		if err != nil {
			return nil, err
		}
		out.kids = append(out.kids, seq)
		if !p.eat("|") {
			break
		}
		p.space(true)
	}
	if len(out.kids) == 1 {
		return out.kids[0], nil
	}
	return out, nil
}

func (p *gbnfParser) sequence(nested bool) (*gbnfTree, error) {
	out := &gbnfTree{kind: aConcat}
	for p.pos < len(p.src) {
		before := len(out.kids)
		switch c := p.src[p.pos]; c {
		case '"':
			if err := p.literal(out); err != nil {
				return nil, err
			}
		case '[':
			class, err := p.class()
			if err != nil {
				return nil, err
			}
			out.kids = append(out.kids, &gbnfTree{kind: aClass, class: p.set.class(class)})
		case '.':
			p.pos++
			out.kids = append(out.kids, &gbnfTree{kind: aClass, class: rxAny})
		case '(':
			p.pos++
			p.space(true)
			inner, err := p.alternatives(true)
			if err != nil {
				return nil, err
			}
			if !p.eat(")") {
				return nil, errors.New("missing )")
			}
			out.kids = append(out.kids, inner)
		case '<', '!':
			return nil, errors.New("tokens as terminals are not supported")
		default:
			name := p.word()
			if name == "" {
				return out, nil
			}
			out.kids = append(out.kids, &gbnfTree{kind: aLook, rule: p.rule(name)})
		}
		p.space(nested)
		if err := p.repeat(out, before); err != nil {
			return nil, err
		}
		p.space(nested)
	}
	return out, nil
}

// repeat reads what follows the part of out from index before on: a literal counts as a whole.
func (p *gbnfParser) repeat(out *gbnfTree, before int) error {
	for p.pos < len(p.src) {
		lo, hi := int32(0), int32(rxUnbounded)
		switch p.src[p.pos] {
		case '*':
			p.pos++
		case '+':
			lo = 1
			p.pos++
		case '?':
			hi = 1
			p.pos++
		case '{':
			var n int
			var err error
			if lo, hi, n, err = parseBraces(strings.ReplaceAll(p.src[p.pos:min(len(p.src), p.pos+32)], " ", "")); err != nil || n == 0 {
				return errors.New("malformed repetition")
			}
			end := strings.IndexByte(p.src[p.pos:], '}')
			p.pos += end + 1
		default:
			return nil
		}
		inner := &gbnfTree{kind: aConcat, kids: append([]*gbnfTree(nil), out.kids[before:]...)}
		out.kids = append(out.kids[:before], &gbnfTree{kind: aRepeat, kids: []*gbnfTree{inner}, min: lo, max: hi})
	}
	return nil
}

func (p *gbnfParser) literal(out *gbnfTree) error {
	p.pos++
	for {
		if p.pos >= len(p.src) {
			return errors.New("unterminated literal")
		}
		if p.eat(`"`) {
			return nil
		}
		r, err := p.char()
		if err != nil {
			return err
		}
		out.kids = append(out.kids, &gbnfTree{kind: aClass, class: p.set.class([]runeRange{{r, r}})})
	}
}

func (p *gbnfParser) char() (rune, error) {
	if p.src[p.pos] != '\\' {
		r, n := utf8.DecodeRuneInString(p.src[p.pos:])
		if r == utf8.RuneError && n <= 1 {
			return 0, errors.New("invalid UTF-8")
		}
		p.pos += n
		return r, nil
	}
	if p.pos+1 >= len(p.src) {
		return 0, errors.New("trailing backslash")
	}
	c := p.src[p.pos+1]
	p.pos += 2
	var digits int
	switch c {
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'x':
		digits = 2
	case 'u':
		digits = 4
	case 'U':
		digits = 8
	case '"', '\\', '[', ']', '-', '^':
		return rune(c), nil
	default:
		return 0, fmt.Errorf("unknown escape \\%c", c)
	}
	if p.pos+digits > len(p.src) {
		return 0, errors.New("malformed escape")
	}
	v, err := strconv.ParseUint(p.src[p.pos:p.pos+digits], 16, 32)
	if err != nil || v > maxRune || v >= 0xD800 && v <= 0xDFFF {
		return 0, errors.New("malformed escape")
	}
	p.pos += digits
	return rune(v), nil
}

func (p *gbnfParser) class() ([]runeRange, error) {
	p.pos++
	negated := p.eat("^")
	var out []runeRange
	for {
		if p.pos >= len(p.src) {
			return nil, errors.New("missing ]")
		}
		if p.eat("]") {
			break
		}
		lo, err := p.char()
		if err != nil {
			return nil, err
		}
		hi := lo
		if p.pos+1 < len(p.src) && p.src[p.pos] == '-' && p.src[p.pos+1] != ']' {
			p.pos++
			if hi, err = p.char(); err != nil {
				return nil, err
			}
			if hi < lo {
				return nil, errors.New("character range is out of order")
			}
		}
		out = append(out, runeRange{lo, hi})
	}
	out = normalize(out)
	if negated {
		out = complement(out)
	}
	return out, nil
}

// build returns the state before t, which next follows.
func (p *gbnfParser) build(t *gbnfTree, next *ruleState) (*ruleState, error) {
	switch t.kind {
	case aClass:
		return p.state(ruleState{kind: rChar, class: t.class, next: next})
	case aLook:
		return p.state(ruleState{kind: rCall, rule: t.rule, next: next})
	case aAlt:
		split, err := p.state(ruleState{kind: rSplit})
		for _, k := range t.kids {
			if err != nil {
				return nil, err
			}
			var s *ruleState
			s, err = p.build(k, next)
			split.branches = append(split.branches, s)
		}
		return split, err
	case aRepeat:
		return p.buildRepeat(t, next)
	}
	var err error
	for i := len(t.kids) - 1; i >= 0 && err == nil; i-- {
		next, err = p.build(t.kids[i], next)
	}
	return next, err
}

func (p *gbnfParser) buildRepeat(t *gbnfTree, next *ruleState) (*ruleState, error) {
	tail := next
	if t.max == rxUnbounded {
		loop, err := p.state(ruleState{kind: rSplit})
		if err != nil {
			return nil, err
		}
		body, err := p.build(t.kids[0], loop)
		if err != nil {
			return nil, err
		}
		loop.branches = []*ruleState{body, next}
		tail = loop
	}
	for range max(t.max-t.min, 0) {
		body, err := p.build(t.kids[0], tail)
		if err != nil {
			return nil, err
		}
		if tail, err = p.state(ruleState{kind: rSplit, branches: []*ruleState{body, next}}); err != nil {
			return nil, err
		}
	}
	for range t.min {
		var err error
		if tail, err = p.build(t.kids[0], tail); err != nil {
			return nil, err
		}
	}
	return tail, nil
}

// settle finds out which rules match the empty text, and which any text at all.
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

// passes reports whether the end of the rule can be reached from s, over rules that ok allows,
// and over characters.
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

// leftRecursion returns a rule that begins with itself.
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

// closure adds the threads at the characters that may come at s within stk. It reports false
// when there are too many.
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
			if x.s.next.kind != rEnd { // the last call of a rule returns to the caller of the rule
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
