package jinja

import "slices"

func (p *parser) statement() (stmt, error) {
	t := p.next()
	switch t.text {
	case "if":
		return p.ifStatement()
	case "for":
		return p.forStatement(t.line)
	case "set":
		return p.setStatement()
	case "macro":
		return p.macroStatement(t.line)
	case "call":
		return p.callStatement(t.line)
	case "filter":
		return p.filterStatement()
	case "with":
		return p.withStatement()
	case "block":
		return p.blockStatement()
	case "generation":
		return p.scoped("endgeneration")
	case "autoescape":
		e, err := p.expression()
		if err != nil {
			return nil, err
		}
		if c, ok := e.(*constExpr); !ok || truth(c.value) {
			return nil, p.fail("autoescape is not supported in chat templates")
		}
		return p.scoped("endautoescape")
	case "break", "continue":
		if p.loops == 0 {
			return nil, p.fail("'%s' outside loop", t.text)
		}
		if err := p.expectEnd(); err != nil {
			return nil, err
		}
		if t.text == "break" {
			return &breakStmt{}, nil
		}
		return &contStmt{}, nil
	case "include", "import", "from", "extends":
		return nil, p.fail("'%s' is not supported: a chat template is one file", t.text)
	}
	return nil, p.fail("Encountered unknown tag '%s'.", t.text)
}

func (p *parser) scoped(end string) (stmt, error) {
	if err := p.expectEnd(); err != nil {
		return nil, err
	}
	var body []stmt
	err := p.hard(func() (err error) {
		body, err = p.body(end)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &scopeStmt{body}, p.endTag()
}

func (p *parser) blockStatement() (stmt, error) {
	name, err := p.expectName()
	if err != nil {
		return nil, err
	}
	if p.blocks[name] {
		return nil, p.fail("block '%s' defined twice", name)
	}
	b := &blockStmt{}
	p.blocks[name] = true
	for p.peek().kind == tokName { // scoped, required
		p.next()
	}
	if err := p.expectEnd(); err != nil {
		return nil, err
	}
	if b.body, err = p.body("endblock"); err != nil {
		return nil, err
	}
	p.next()
	p.next()
	if p.isName(name) {
		p.next()
	}
	return b, p.expectEnd()
}

func (p *parser) ifStatement() (stmt, error) {
	if err := p.enter(); err != nil { // elif nests in the tree
		return nil, err
	}
	defer p.leave()
	p.soft++
	defer func() { p.soft-- }()
	s := &ifStmt{}
	var err error
	if s.cond, err = p.tuple(false); err != nil {
		return nil, err
	}
	if err := p.expectEnd(); err != nil {
		return nil, err
	}
	if s.then, err = p.body("elif", "else", "endif"); err != nil {
		return nil, err
	}
	p.next()
	switch p.next().text {
	case "elif":
		next, err := p.ifStatement()
		if err != nil {
			return nil, err
		}
		s.otherwise = []stmt{next}
		return s, nil
	case "else":
		if err := p.expectEnd(); err != nil {
			return nil, err
		}
		if s.otherwise, err = p.body("endif"); err != nil {
			return nil, err
		}
		return s, p.endTag()
	}
	return s, p.expectEnd()
}

func (p *parser) forStatement(line int) (stmt, error) {
	s := &forStmt{line: line}
	return s, p.hard(func() error { return p.forBody(s) })
}

func (p *parser) forBody(s *forStmt) (err error) {
	if s.target, err = p.targets("in"); err != nil {
		return err
	}
	if !p.skipName("in") {
		return p.fail("expected token 'in', got '%s'", describe(p.peek()))
	}
	if s.items, err = p.tuple(false); err != nil {
		return err
	}
	if p.skipName("if") {
		if s.filter, err = p.expression(); err != nil {
			return err
		}
	}
	s.recursive = p.skipName("recursive")
	if err := p.expectEnd(); err != nil {
		return err
	}
	p.loops++
	s.body, err = p.body("endfor", "else")
	p.loops--
	if err != nil {
		return err
	}
	p.next()
	if p.next().text == "endfor" {
		return p.expectEnd()
	}
	if err := p.expectEnd(); err != nil {
		return err
	}
	if s.otherwise, err = p.body("endfor"); err != nil {
		return err
	}
	return p.endTag()
}

// targets reads what set or for assigns to, up to the name end (for) or an operator.
func (p *parser) targets(end string) (target, error) {
	first, err := p.target()
	if err != nil || !p.isOp(",") {
		return first, err
	}
	t := target{parts: []target{first}, line: first.line}
	for p.skipOp(",") {
		if end != "" && p.isName(end) || p.isOp("=") || p.isOp(")") {
			break
		}
		part, err := p.target()
		if err != nil {
			return t, err
		}
		t.parts = append(t.parts, part)
	}
	return t, nil
}

func (p *parser) target() (target, error) {
	if err := p.enter(); err != nil {
		return target{}, err
	}
	defer p.leave()
	line := p.peek().line
	for open, end := range map[string]string{"(": ")", "[": "]"} {
		if !p.skipOp(open) {
			continue
		}
		t, err := p.targets("")
		if err != nil {
			return t, err
		}
		if t.parts == nil {
			t = target{parts: []target{t}, line: line}
		}
		return t, p.expectOp(end)
	}
	name, err := p.expectName()
	if err != nil {
		return target{}, err
	}
	if slices.Contains(reserved, name) {
		return target{}, p.fail("can't assign to '%s'", name)
	}
	t := target{name: name, line: line}
	if p.skipOp(".") {
		t.attr, err = p.expectName()
	}
	return t, err
}

func (p *parser) setStatement() (stmt, error) {
	t, err := p.targets("")
	if err != nil {
		return nil, err
	}
	if p.skipOp("=") {
		value, err := p.tuple(true)
		if err != nil {
			return nil, err
		}
		return &setStmt{t, value}, p.expectEnd()
	}
	s := &setBlockStmt{target: t}
	if s.filters, err = p.filters(); err != nil {
		return nil, err
	}
	if err := p.expectEnd(); err != nil {
		return nil, err
	}
	err = p.hard(func() (err error) {
		s.body, err = p.body("endset")
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, p.endTag()
}

// filters reads "| name(args)" any number of times.
func (p *parser) filters() ([]*filterExpr, error) {
	var out []*filterExpr
	for p.skipOp("|") {
		f, err := p.filterCall(nil)
		if err != nil {
			return nil, err
		}
		out = append(out, f)
	}
	return out, nil
}

func (p *parser) filterStatement() (stmt, error) {
	first, err := p.filterCall(nil)
	if err != nil {
		return nil, err
	}
	more, err := p.filters()
	if err != nil {
		return nil, err
	}
	s := &filterStmt{filters: append([]*filterExpr{first}, more...)}
	if err := p.expectEnd(); err != nil {
		return nil, err
	}
	err = p.hard(func() (err error) {
		s.body, err = p.body("endfilter")
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, p.endTag()
}

func (p *parser) withStatement() (stmt, error) {
	s := &withStmt{}
	for p.peek().kind != tokBlockEnd {
		if len(s.targets) > 0 {
			if err := p.expectOp(","); err != nil {
				return nil, err
			}
		}
		t, err := p.target()
		if err != nil {
			return nil, err
		}
		if err := p.expectOp("="); err != nil {
			return nil, err
		}
		value, err := p.expression()
		if err != nil {
			return nil, err
		}
		s.targets, s.values = append(s.targets, t), append(s.values, value)
	}
	p.next()
	err := p.hard(func() (err error) {
		s.body, err = p.body("endwith")
		return err
	})
	if err != nil {
		return nil, err
	}
	return s, p.endTag()
}

// signature reads the parameters of a macro or a call block.
func (p *parser) signature(m *macroDef) error {
	if err := p.expectOp("("); err != nil {
		return err
	}
	for !p.isOp(")") {
		if len(m.parameters) > 0 {
			if err := p.expectOp(","); err != nil {
				return err
			}
			if p.isOp(")") {
				break
			}
		}
		name, err := p.expectName()
		if err != nil {
			return err
		}
		if slices.Contains(reserved, name) {
			return p.fail("can't assign to '%s'", name)
		}
		m.parameters = append(m.parameters, name)
		if p.skipOp("=") {
			value, err := p.expression()
			if err != nil {
				return err
			}
			m.defaults = append(m.defaults, value)
		} else if len(m.defaults) > 0 {
			return p.fail("non-default argument follows default argument")
		}
	}
	return p.expectOp(")")
}

// macroBody reads the body of a macro up to end and records the names it uses.
func (p *parser) macroBody(m *macroDef, end string) error {
	names := map[string]bool{}
	p.names = append(p.names, names)
	loops := p.loops
	p.loops = 0
	err := p.hard(func() (err error) {
		m.body, err = p.body(end)
		return err
	})
	p.loops = loops
	p.names = p.names[:len(p.names)-1]
	m.varargs, m.kwargs, m.caller = names["varargs"], names["kwargs"], names["caller"]
	if err != nil {
		return err
	}
	return p.endTag()
}

func (p *parser) macroStatement(line int) (stmt, error) {
	name, err := p.expectName()
	if err != nil {
		return nil, err
	}
	m := &macroDef{name: name, line: line}
	if err := p.signature(m); err != nil {
		return nil, err
	}
	if err := p.expectEnd(); err != nil {
		return nil, err
	}
	return &macroStmt{m}, p.macroBody(m, "endmacro")
}

func (p *parser) callStatement(line int) (stmt, error) {
	m := &macroDef{name: "caller", line: line}
	if p.isOp("(") {
		if err := p.signature(m); err != nil {
			return nil, err
		}
	}
	e, err := p.expression()
	if err != nil {
		return nil, err
	}
	call, ok := e.(*callExpr)
	if !ok {
		return nil, p.fail("expected call")
	}
	if err := p.expectEnd(); err != nil {
		return nil, err
	}
	return &callStmt{call, m}, p.macroBody(m, "endcall")
}
