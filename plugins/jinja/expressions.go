package jinja

import (
	"slices"
	"strings"
)

// tuple reads one expression, or several separated by commas as a tuple. Without cond, an if ends
// the expression.
func (p *parser) tuple(cond bool) (expr, error) {
	read := p.or
	if cond {
		read = p.expression
	}
	first, err := read()
	if err != nil || !p.isOp(",") {
		return first, err
	}
	t := &tupleExpr{items: []expr{first}}
	for p.skipOp(",") {
		if p.endsTuple() {
			break
		}
		item, err := read()
		if err != nil {
			return nil, err
		}
		t.items = append(t.items, item)
	}
	return t, nil
}

func (p *parser) endsTuple() bool {
	switch p.peek().kind {
	case tokVariableEnd, tokBlockEnd:
		return true
	}
	return p.isOp(")")
}

// expression reads an expression with its conditions: a if b else c.
func (p *parser) expression() (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	e, err := p.or()
	if err != nil {
		return nil, err
	}
	for p.skipName("if") {
		c := &condExpr{then: e}
		p.soft++
		if c.cond, err = p.or(); err == nil && p.skipName("else") {
			c.otherwise, err = p.expression()
		}
		p.soft--
		if err != nil {
			return nil, err
		}
		e = c
	}
	return e, nil
}

func (p *parser) or() (expr, error) {
	left, err := p.and()
	for err == nil && p.skipName("or") {
		var right expr
		right, err = p.and()
		left = &orExpr{left, right}
	}
	return left, err
}

func (p *parser) and() (expr, error) {
	left, err := p.not()
	for err == nil && p.skipName("and") {
		var right expr
		right, err = p.not()
		left = &andExpr{left, right}
	}
	return left, err
}

func (p *parser) not() (expr, error) {
	if !p.skipName("not") {
		return p.compare()
	}
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	e, err := p.not()
	return &notExpr{e}, err
}

var comparisons = []string{"==", "!=", "<", "<=", ">", ">="}

func (p *parser) compare() (expr, error) {
	line := p.peek().line
	first, err := p.sum()
	if err != nil {
		return nil, err
	}
	c := &compareExpr{first: first, line: line}
	for {
		t := p.peek()
		var op string
		switch {
		case t.kind == tokOperator && slices.Contains(comparisons, t.text):
			op = t.text
			p.next()
		case p.isName("in"):
			op = "in"
			p.next()
		case p.isName("not") && p.look(1).kind == tokName && p.look(1).text == "in":
			op = "not in"
			p.next()
			p.next()
		case len(c.ops) == 0:
			return first, nil
		default:
			return c, nil
		}
		right, err := p.sum()
		if err != nil {
			return nil, err
		}
		c.ops, c.rest = append(c.ops, op), append(c.rest, right)
	}
}

// binary reads operands with next, separated by any of the operators, from left to right.
func (p *parser) binary(next func() (expr, error), ops ...string) (expr, error) {
	left, err := next()
	for err == nil {
		t := p.peek()
		if t.kind != tokOperator || !slices.Contains(ops, t.text) {
			return left, nil
		}
		p.next()
		var right expr
		right, err = next()
		left = &binaryExpr{op: t.text, left: left, right: right, line: t.line}
	}
	return left, err
}

func (p *parser) sum() (expr, error)     { return p.binary(p.concat, "+", "-") }
func (p *parser) product() (expr, error) { return p.binary(p.power, "*", "/", "//", "%") }
func (p *parser) power() (expr, error) {
	return p.binary(func() (expr, error) { return p.unary(true) }, "**")
}

func (p *parser) concat() (expr, error) {
	first, err := p.product()
	if err != nil || !p.isOp("~") {
		return first, err
	}
	c := &concatExpr{parts: []expr{first}}
	for p.skipOp("~") {
		part, err := p.product()
		if err != nil {
			return nil, err
		}
		c.parts = append(c.parts, part)
	}
	return c, nil
}

func (p *parser) unary(filters bool) (expr, error) {
	if err := p.enter(); err != nil {
		return nil, err
	}
	defer p.leave()
	t := p.peek()
	var e expr
	var err error
	if p.isOp("-") || p.isOp("+") {
		p.next()
		if e, err = p.unary(false); err == nil {
			e = &unaryExpr{op: t.text, of: e, line: t.line}
		}
	} else {
		e, err = p.primary()
	}
	if err == nil {
		e, err = p.postfix(e)
	}
	if err == nil && filters {
		e, err = p.filtered(e)
	}
	return e, err
}

func (p *parser) primary() (expr, error) {
	t := p.next()
	switch t.kind {
	case tokName:
		switch t.text {
		case "true", "True":
			return &constExpr{true}, nil
		case "false", "False":
			return &constExpr{false}, nil
		case "none", "None":
			return &constExpr{nil}, nil
		}
		for _, names := range p.names {
			names[t.text] = true
		}
		return &nameExpr{t.text, t.line}, nil
	case tokString:
		parts := []string{t.text}
		for p.peek().kind == tokString {
			parts = append(parts, p.next().text)
		}
		return &constExpr{TemplateText(strings.Join(parts, ""))}, nil
	case tokNumber:
		return &constExpr{t.value}, nil
	case tokOperator:
		switch t.text {
		case "(":
			if p.skipOp(")") {
				return &tupleExpr{}, nil
			}
			e, err := p.tuple(true)
			if err != nil {
				return nil, err
			}
			return e, p.expectOp(")")
		case "[":
			items, err := p.list("]")
			return &listExpr{items}, err
		case "{":
			return p.dict()
		}
	}
	p.at = max(p.at-1, 0)
	return nil, p.fail("unexpected '%s'", describe(t))
}

// list reads expressions with commas between them, up to the closing bracket.
func (p *parser) list(end string) ([]expr, error) {
	var items []expr
	for !p.skipOp(end) {
		if len(items) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
			if p.skipOp(end) {
				break
			}
		}
		item, err := p.expression()
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	return items, nil
}

func (p *parser) dict() (expr, error) {
	d := &dictExpr{}
	for !p.skipOp("}") {
		if len(d.keys) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
			if p.skipOp("}") {
				break
			}
		}
		key, err := p.expression()
		if err != nil {
			return nil, err
		}
		if err := p.expectOp(":"); err != nil {
			return nil, err
		}
		value, err := p.expression()
		if err != nil {
			return nil, err
		}
		d.keys, d.values = append(d.keys, key), append(d.values, value)
	}
	return d, nil
}

// maxPostfix bounds attributes, indexes, calls and filters in a row: each is a level of the tree.
const maxPostfix = 200

func (p *parser) postfix(e expr) (expr, error) {
	for n := 0; ; n++ {
		if n > maxPostfix {
			return nil, p.failClass(classLimit, "more than %d attributes, indexes and calls in a row", maxPostfix)
		}
		line := p.peek().line
		var err error
		switch {
		case p.skipOp("."):
			e, err = p.dot(e, line)
		case p.skipOp("["):
			e, err = p.subscript(e, line)
		case p.isOp("("):
			c := &callExpr{f: e, line: line}
			c.args, err = p.arguments()
			e = c
		default:
			return e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *parser) dot(e expr, line int) (expr, error) {
	t := p.next()
	switch {
	case t.kind == tokName:
		return &attrExpr{e, t.text, line}, nil
	case t.kind == tokNumber:
		if _, ok := t.value.(int64); ok {
			return &indexExpr{e, &constExpr{t.value}, line}, nil
		}
	}
	return nil, p.fail("expected name or number")
}

func (p *parser) subscript(e expr, line int) (expr, error) {
	var items []expr
	for !p.skipOp("]") {
		if len(items) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
		}
		item, err := p.sliceOrIndex()
		if err != nil {
			return nil, err
		}
		items = append(items, item)
	}
	switch len(items) {
	case 0:
		return nil, p.fail("expected subscript expression")
	case 1:
		return &indexExpr{e, items[0], line}, nil
	}
	return &indexExpr{e, &tupleExpr{items}, line}, nil
}

func (p *parser) sliceOrIndex() (expr, error) {
	var parts [3]expr
	n, colons := 0, 0
	for {
		switch {
		case p.isOp("]") || p.isOp(","):
			if colons == 0 {
				if parts[0] == nil {
					return nil, p.fail("expected subscript expression")
				}
				return parts[0], nil
			}
			return &sliceExpr{parts[0], parts[1], parts[2]}, nil
		case p.skipOp(":"):
			colons++
			if n = colons; n > 2 {
				return nil, p.fail("unexpected ':'")
			}
		case parts[n] == nil:
			e, err := p.expression()
			if err != nil {
				return nil, err
			}
			parts[n] = e
		default:
			return nil, p.fail("expected token ',', got '%s'", describe(p.peek()))
		}
	}
}

func (p *parser) arguments() (arguments, error) {
	var a arguments
	if err := p.expectOp("("); err != nil {
		return a, err
	}
	for first := true; !p.skipOp(")"); first = false {
		if !first {
			if err := p.expectOp(","); err != nil {
				return a, err
			}
			if p.skipOp(")") {
				break
			}
		}
		if err := p.argument(&a); err != nil {
			return a, err
		}
	}
	return a, nil
}

func (p *parser) argument(a *arguments) (err error) {
	switch {
	case p.isOp("*") && a.list == nil && a.dict == nil:
		p.next()
		a.list, err = p.expression()
	case p.isOp("**") && a.dict == nil:
		p.next()
		a.dict, err = p.expression()
	case p.peek().kind == tokName && p.look(1).kind == tokOperator && p.look(1).text == "=" && a.dict == nil:
		name := p.next().text
		p.next()
		if slices.Contains(a.names, name) {
			return p.fail("keyword argument repeated: %s", name)
		}
		var value expr
		value, err = p.expression()
		a.names, a.keywords = append(a.names, name), append(a.keywords, value)
	case len(a.names) == 0 && a.list == nil && a.dict == nil:
		var value expr
		value, err = p.expression()
		a.positional = append(a.positional, value)
	default:
		return p.fail("invalid syntax for function call expression")
	}
	return err
}

// filtered reads filters, tests and calls after an expression.
func (p *parser) filtered(e expr) (expr, error) {
	for n := 0; ; n++ {
		if n > maxPostfix {
			return nil, p.failClass(classLimit, "more than %d filters and tests in a row", maxPostfix)
		}
		var err error
		switch {
		case p.skipOp("|"):
			e, err = p.filterCall(e)
		case p.isName("is"):
			e, err = p.test(e)
		case p.isOp("("):
			c := &callExpr{f: e, line: p.peek().line}
			c.args, err = p.arguments()
			e = c
		default:
			return e, nil
		}
		if err != nil {
			return nil, err
		}
	}
}

func (p *parser) filterCall(of expr) (*filterExpr, error) {
	f := &filterExpr{of: of, line: p.peek().line}
	var err error
	if f.name, err = p.dotted(); err != nil {
		return nil, err
	}
	if f.f = filterNamed(f.name); f.f == nil && p.soft == 0 {
		return nil, p.failClass("TemplateAssertionError", "No filter named '%s'.", f.name)
	}
	if p.isOp("(") {
		f.args, err = p.arguments()
	}
	return f, err
}

func (p *parser) dotted() (string, error) {
	name, err := p.expectName()
	for err == nil && p.skipOp(".") {
		var more string
		more, err = p.expectName()
		name += "." + more
	}
	return name, err
}

func (p *parser) test(of expr) (expr, error) {
	t := &testExpr{of: of, line: p.next().line}
	t.negated = p.skipName("not")
	var err error
	if t.name, err = p.dotted(); err != nil {
		return nil, err
	}
	if t.f = testNamed(t.name); t.f == nil && p.soft == 0 {
		return nil, p.failClass("TemplateAssertionError", "No test named '%s'.", t.name)
	}
	next := p.peek()
	switch {
	case p.isOp("("):
		t.args, err = p.arguments()
	case next.kind == tokName && !slices.Contains([]string{"else", "or", "and", "if", "is", "in", "not"}, next.text),
		next.kind == tokString, next.kind == tokNumber, p.isOp("["), p.isOp("{"):
		var arg expr
		if arg, err = p.primary(); err == nil {
			arg, err = p.postfix(arg)
		}
		t.args.positional = []expr{arg}
	case p.isName("is"):
		return nil, p.fail("You cannot chain multiple tests with is")
	}
	return t, err
}
