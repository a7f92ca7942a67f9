package jinja

import (
	"slices"
	"strings"
)

// maxNesting bounds nested expressions and blocks of a source.
const maxNesting = 150

type parser struct {
	tokens []token
	at     int
	depth  int
	soft   int // inside an if: unknown filters and tests fail only when reached
	loops  int
	names  []map[string]bool // names read, for each enclosing macro
	blocks map[string]bool   // names in use
}

func parse(tokens []token) (*Template, error) {
	p := &parser{tokens: tokens, blocks: map[string]bool{}}
	body, err := p.body()
	if err != nil {
		return nil, err
	}
	if p.peek().kind != tokEOF {
		return nil, p.fail("Encountered unknown tag '%s'.", p.tokens[p.at+1].text)
	}
	return &Template{body: body}, nil
}

func (p *parser) peek() token { return p.tokens[p.at] }

func (p *parser) look(n int) token {
	return p.tokens[min(p.at+n, len(p.tokens)-1)]
}

func (p *parser) next() token {
	t := p.tokens[p.at]
	if p.at < len(p.tokens)-1 {
		p.at++
	}
	return t
}

func (p *parser) fail(format string, args ...any) error {
	return p.failClass("TemplateSyntaxError", format, args...)
}

func (p *parser) failClass(class, format string, args ...any) error {
	return failAt(p.peek().line, class, format, args...)
}

// describe names a token for error messages.
func describe(t token) string {
	switch t.kind {
	case tokEOF:
		return "end of template"
	case tokBlockEnd:
		return "end of statement block"
	case tokVariableEnd:
		return "end of print statement"
	case tokNumber:
		return "number"
	case tokString:
		return "string"
	}
	return t.text
}

func (p *parser) isOp(op string) bool {
	t := p.peek()
	return t.kind == tokOperator && t.text == op
}

func (p *parser) isName(name string) bool {
	t := p.peek()
	return t.kind == tokName && t.text == name
}

func (p *parser) skipOp(op string) bool {
	if p.isOp(op) {
		p.next()
		return true
	}
	return false
}

func (p *parser) skipName(name string) bool {
	if p.isName(name) {
		p.next()
		return true
	}
	return false
}

func (p *parser) expectOp(op string) error {
	if !p.skipOp(op) {
		return p.fail("expected token '%s', got '%s'", op, describe(p.peek()))
	}
	return nil
}

func (p *parser) expectName() (string, error) {
	if t := p.peek(); t.kind != tokName {
		return "", p.fail("expected token 'name', got '%s'", describe(t))
	}
	return p.next().text, nil
}

func (p *parser) expectEnd() error {
	if p.peek().kind != tokBlockEnd {
		return p.fail("expected token 'end of statement block', got '%s'", describe(p.peek()))
	}
	p.next()
	return nil
}

// enter counts a level of nesting; leave ends it.
func (p *parser) enter() error {
	p.depth++
	if p.depth > maxNesting {
		return p.failClass(classLimit, "more than %d nested blocks or expressions", maxNesting)
	}
	return nil
}

func (p *parser) leave() { p.depth-- }

// body reads statements up to a block tag whose name is among ends, which it leaves in place.
func (p *parser) body(ends ...string) ([]stmt, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	var out []stmt
	for {
		t := p.peek()
		switch t.kind {
		case tokEOF:
			if len(ends) > 0 {
				return nil, p.fail("Unexpected end of template. The innermost block that needs to be closed wants '%s'.", strings.Join(ends, "' or '"))
			}
			return out, nil
		case tokData:
			p.next()
			out = append(out, &dataStmt{TemplateText(t.text)})
		case tokVariableBegin:
			p.next()
			e, err := p.tuple(true)
			if err != nil {
				return nil, err
			}
			if p.peek().kind != tokVariableEnd {
				return nil, p.fail("expected token 'end of print statement', got '%s'", describe(p.peek()))
			}
			p.next()
			out = append(out, &outputStmt{of: e, line: t.line})
		default:
			name := p.look(1)
			if name.kind != tokName {
				return nil, p.fail("tag name expected")
			}
			if slices.Contains(ends, name.text) {
				return out, nil
			}
			if strings.HasPrefix(name.text, "end") || name.text == "else" || name.text == "elif" {
				return out, p.unknownTag(name.text, ends)
			}
			p.next()
			s, err := p.statement()
			if err != nil {
				return nil, err
			}
			if s != nil {
				out = append(out, s)
			}
		}
	}
}

func (p *parser) unknownTag(name string, ends []string) error {
	if len(ends) == 0 {
		return p.fail("Encountered unknown tag '%s'.", name)
	}
	return p.fail("Encountered unknown tag '%s'. Jinja was looking for the following tags: '%s'.", name, strings.Join(ends, "' or '"))
}

// endTag reads the rest of the tag that body stopped at: its name and the end.
func (p *parser) endTag() error {
	p.next()
	p.next()
	return p.expectEnd()
}

// hard parses with unknown filters rejected at once, as Jinja does in a separate frame.
func (p *parser) hard(f func() error) error {
	soft := p.soft
	p.soft = 0
	defer func() { p.soft = soft }()
	return f()
}

// reserved lists the names that cannot be assigned to.
var reserved = []string{"true", "false", "none", "True", "False", "None"}
