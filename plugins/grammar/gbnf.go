package grammar

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	maxRuleStates = 100_000
	maxRuleDepth  = 200
	maxClosure    = 20_000
)

// gbnfParser parses llama.cpp's grammars.
type gbnfParser struct {
	src    string
	pos    int
	set    *rxSet
	rules  map[string]*rule
	order  []*rule
	states int
	depth  int
}

// CompileGBNF compiles a grammar in llama.cpp's notation. It accepts the texts of the rule root.
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

// repeat reads a quantifier for the part of out from index before on: a literal counts as a whole.
func (p *gbnfParser) repeat(out *gbnfTree, before int) error {
	for p.pos < len(p.src) {
		lo, hi, ok := quantifier(p.src[p.pos])
		switch {
		case ok:
			p.pos++
		case p.src[p.pos] == '{':
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

// build returns the state before t, followed by next.
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
