package grammar

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Part describes a piece of a text in which fixed texts and JSON alternate. Literal, JSON, Text,
// Regex, Until, Sequence, OneOf and Repeat create parts; CompileParts compiles one. The zero Part
// is the empty text.
type Part struct {
	kind     partKind
	text     string
	parts    []Part
	min, max int
}

type partKind uint8

const (
	partSequence partKind = iota
	partLiteral
	partJSON
	partRegex
	partUntil
	partOneOf
	partRepeat
	partText
)

// Literal is a fixed text. It must be valid UTF-8.
func Literal(text string) Part { return Part{kind: partLiteral, text: text} }

// JSON is a JSON document that satisfies schema. References within the schema see only that schema.
// A number extends over every character that may belong to it, so what follows must begin with
// another one.
func JSON(schema []byte) Part { return Part{kind: partJSON, text: string(schema)} }

// Regex is a text that pattern matches as a whole, as in CompileRegex. Where both the pattern and
// what follows allow a text, either may have produced it.
func Regex(pattern string) Part { return Part{kind: partRegex, text: pattern} }

// Until is any text that contains none of markers, such as the text before Literal(marker).
func Until(markers ...string) Part {
	p := Part{kind: partUntil}
	for _, m := range markers {
		p.parts = append(p.parts, Literal(m))
	}
	return p
}

// Text is the characters of a string that satisfies schema, without quotes and escapes, and that
// each of also allows as well; those must be parts from Regex and Until.
func Text(schema []byte, also ...Part) Part {
	return Part{kind: partText, text: string(schema), parts: also}
}

// Sequence is the concatenation of parts.
func Sequence(parts ...Part) Part { return Part{kind: partSequence, parts: parts} }

// OneOf is any one of parts.
func OneOf(parts ...Part) Part { return Part{kind: partOneOf, parts: parts} }

// Repeat is part at least least and at most most times; a negative most means unbounded.
func Repeat(part Part, least, most int) Part {
	return Part{kind: partRepeat, parts: []Part{part}, min: least, max: most}
}

// CompileParts compiles a text that is composed of parts. It refuses what it cannot guarantee, with
// an *Error; Error.Pointer is then relative to the schema of the part.
func CompileParts(p Part, opts Options) (*Grammar, error) {
	return newGrammar(opts, compileWork, func(g *Grammar) error { return g.compileParts(p) })
}

func (g *Grammar) compileParts(p Part) error {
	g.c = newCompiler(newParser(&jvalue{kind: jObject}, &g.opts, g.set))
	b := &partBuilder{g: g, left: g.opts.maxBytes(), rules: &gbnfParser{set: g.set, rules: map[string]*rule{}}}
	start, err := b.build(p, &ruleState{kind: rEnd})
	if err != nil {
		if e, ok := errors.AsType[*Error](err); ok {
			return e
		}
		return &Error{Reason: err.Error()}
	}
	g.mixed = true
	if !g.enter(start) {
		return &Error{Reason: "parts are too ambiguous"}
	}
	return nil
}

// partBuilder converts parts to the states of one rule, from the last to the first.
type partBuilder struct {
	g     *Grammar
	rules *gbnfParser // counts states
	left  int         // bytes of parts left
	depth int
	count int // of schemas
}

func (b *partBuilder) build(p Part, next *ruleState) (*ruleState, error) {
	if b.depth++; b.depth > maxRuleDepth {
		return nil, errors.New("parts are nested too deeply")
	}
	defer func() { b.depth-- }()
	if b.left -= len(p.text); b.left < 0 {
		return nil, fmt.Errorf("parts are larger than %d bytes", b.g.opts.maxBytes())
	}
	var err error
	switch p.kind {
	case partSequence:
		for i := len(p.parts) - 1; i >= 0 && err == nil; i-- {
			next, err = b.build(p.parts[i], next)
		}
		return next, err
	case partLiteral:
		return b.literal(p.text, next)
	case partJSON:
		node, err := b.schema(p.text)
		if err != nil {
			return nil, err
		}
		return b.rules.state(ruleState{kind: rJSON, node: node, next: next})
	case partText, partUntil, partRegex:
		q, err := b.expression(p)
		if err == nil && !b.g.set.alive(q) {
			err = errors.New("no text satisfies a part")
		}
		if err != nil {
			return nil, err
		}
		return b.rules.state(ruleState{kind: rText, class: q, next: next})
	case partOneOf:
		if len(p.parts) == 0 {
			return nil, errors.New("a choice of parts is empty")
		}
		split := ruleState{kind: rSplit}
		for _, k := range p.parts {
			s, err := b.build(k, next)
			if err != nil {
				return nil, err
			}
			split.branches = append(split.branches, s)
		}
		return b.rules.state(split)
	}
	return b.repeat(p, next)
}

// expression returns the expression of a part that contains neither JSON nor sequences with other
// parts.
func (b *partBuilder) expression(p Part) (rx, error) {
	set := b.g.set
	switch p.kind {
	case partRegex:
		return set.parseWholeRegex(p.text)
	case partUntil:
		q := rxAll
		for _, m := range p.parts {
			if m.text == "" || !utf8.ValidString(m.text) {
				return 0, fmt.Errorf("marker %q is empty or not valid UTF-8", m.text)
			}
			if b.left -= len(m.text); b.left < 0 {
				return 0, fmt.Errorf("parts are larger than %d bytes", b.g.opts.maxBytes())
			}
			q = set.and(q, set.not(set.concat(rxAll, set.concat(set.literal(m.text), rxAll))))
		}
		return q, nil
	case partText:
		n, err := b.schema(p.text)
		if err != nil {
			return 0, err
		}
		q := n.str
		if q != rxNone {
			q = set.bounded(q, n.length)
		}
		for _, x := range p.parts {
			more, err := b.expression(x)
			if err != nil {
				return 0, err
			}
			q = set.and(q, more)
		}
		return q, nil
	}
	return 0, errors.New("a part is not a text")
}

func (b *partBuilder) literal(text string, next *ruleState) (*ruleState, error) {
	if !utf8.ValidString(text) {
		return nil, fmt.Errorf("literal %q is not valid UTF-8", text)
	}
	runes := []rune(text)
	for _, r := range slices.Backward(runes) {
		var err error
		if next, err = b.rules.state(ruleState{kind: rChar, class: b.g.set.class([]runeRange{{r, r}}), next: next}); err != nil {
			return nil, err
		}
	}
	return next, nil
}

func (b *partBuilder) repeat(p Part, next *ruleState) (*ruleState, error) {
	if p.min < 0 || p.max >= 0 && p.max < p.min {
		return nil, errors.New("a repetition of parts is out of order")
	}
	tail := next
	if p.max < 0 {
		loop, err := b.rules.state(ruleState{kind: rSplit})
		if err != nil {
			return nil, err
		}
		body, err := b.build(p.parts[0], loop)
		if err != nil {
			return nil, err
		}
		loop.branches = []*ruleState{body, next}
		tail = loop
	}
	for i := range max(p.max, p.min) {
		body, err := b.build(p.parts[0], tail)
		if err != nil {
			return nil, err
		}
		tail = body
		if i < p.max-p.min { // the last ones are optional, and built first
			if tail, err = b.rules.state(ruleState{kind: rSplit, branches: []*ruleState{body, next}}); err != nil {
				return nil, err
			}
		}
	}
	return tail, nil
}

// schema parses one schema as a separate resource.
func (b *partBuilder) schema(text string) (*node, error) {
	root, err := parseJSON(text, maxSchemaDepth, maxSchemaValues)
	if err != nil {
		return nil, refuse("", "", "schema: %v", err)
	}
	c := b.g.c
	c.parser.draft = draftOf(root)
	b.count++
	c.parser.index(root, &resource{root: root, uri: &url.URL{Scheme: "part", Opaque: strconv.Itoa(b.count)}}, true)
	s, err := c.parse(root, "")
	if err != nil {
		return nil, err
	}
	n := c.node([]lit{{s: s}})
	return n, c.complete(n)
}

// draftOf returns the draft of JSON Schema that a schema declares, or 0.
func draftOf(root *jvalue) int {
	if uri := root.get("$schema"); uri != nil {
		for text, draft := range map[string]int{"draft-03": 4, "draft-04": 4, "draft-06": 6, "draft-07": 7, "2019-09": 2019, "2020-12": 2020} {
			if strings.Contains(uri.str, text) {
				return draft
			}
		}
	}
	return 0
}

// textKey identifies a position within a regular expression, and the rule state after it.
type textKey struct {
	q    rx
	next *ruleState
}

// text returns the state at q, an expression followed by next.
func (g *Grammar) text(q rx, next *ruleState) *ruleState {
	k := textKey{q, next}
	s := g.texts[k]
	if s == nil {
		s = &ruleState{kind: rText, class: q, next: next}
		g.texts[k] = s
		g.charge(120)
	}
	return s
}

// characters calls add with each class of characters that may come at q, and the state after them.
func (g *Grammar) characters(s *ruleState, add func(class rx, next *ruleState)) {
	e := g.set.edges(s.class)
	var order []rx
	ranges := map[rx][]runeRange{}
	for i, to := range e.next {
		if to == rxNone || !g.set.alive(to) {
			continue
		}
		hi := rune(maxRune)
		if i+1 < len(e.from) {
			hi = e.from[i+1] - 1
		}
		if ranges[to] == nil {
			order = append(order, to)
		}
		ranges[to] = append(ranges[to], runeRange{e.from[i], hi})
	}
	for _, to := range order {
		add(g.set.class(normalize(ranges[to])), g.text(to, s.next))
	}
}

// afterValue continues after a JSON value: within the enclosing object or array, or within the
// enclosing rule.
func (g *Grammar) afterValue(stk *stack, out *threads) {
	if !g.mixed {
		out.add(g.leaf(leafKey{kind: lAfter}), stk)
		return
	}
	rest := make([]top, 0, len(stk.tops))
	for _, t := range stk.tops {
		if t.f.key.rule != nil {
			g.closure(t.f.key.rule, t.up, out)
		} else {
			rest = append(rest, t)
		}
	}
	if len(rest) > 0 {
		out.add(g.leaf(leafKey{kind: lAfter}), g.stackOf(rest))
	}
}

// endsBehind reports whether the text may end after the number at t.
func (g *Grammar) endsBehind(t thread) bool {
	if !g.mixed || t.leaf.kind != lNumber || !t.leaf.final {
		return false
	}
	var out threads
	g.afterValue(t.stk, &out)
	for _, x := range out.list {
		if x.leaf.kind == lEnd {
			return true
		}
	}
	return false
}
