package main

import (
	"go/ast"
	"go/token"
	"go/types"
	"strings"
)

// site is the place that a finder looks at.
type site struct {
	p          *goPackage
	file       *source
	function   string
	signatures []*types.Signature
	found      func(*edit)
}

func (c *site) add(kind string, from, to token.Pos, texts ...string) {
	start, end := c.p.offset(from), c.p.offset(to)
	c.found(&edit{
		file: c.file, folder: c.p.folder, line: c.p.fset.Position(from).Line, kind: kind, function: c.function,
		start: start, end: end, old: string(c.file.text[start:end]), to: texts,
	})
}

func (c *site) text(n ast.Node) string { return c.p.text(c.file, n) }

// walk calls find for every node below n; s is the function whose body is n, nil for none.
func (c *site) walk(s *types.Signature, n ast.Node, find finder) {
	if s != nil {
		c.signatures = append(c.signatures, s)
		defer func() { c.signatures = c.signatures[:len(c.signatures)-1] }()
	}
	ast.Inspect(n, func(n ast.Node) bool {
		if f, ok := n.(*ast.FuncLit); ok {
			if s, ok := c.p.info.Types[f].Type.(*types.Signature); ok {
				c.walk(s, f.Body, find)
				return false
			}
		}
		if n != nil {
			find(n, c)
		}
		return true
	})
}

func (p *goPackage) signature(name *ast.Ident) *types.Signature {
	s, _ := p.info.Defs[name].Type().(*types.Signature)
	return s
}

var (
	loosened = map[token.Token]string{token.LSS: "<=", token.LEQ: "<", token.GTR: ">=", token.GEQ: ">"}
	opposite = map[token.Token]string{token.ADD: "-", token.SUB: "+", token.MUL: "/", token.QUO: "*"}
)

// anyEdits finds edits that change conditions, operators, numbers and results, and edits that
// remove statements.
func anyEdits(n ast.Node, c *site) {
	switch v := n.(type) {
	case *ast.IfStmt:
		if c.isErrorCheck(v.Cond) {
			c.add("droperr", v.Body.Pos(), v.Body.End(), "{ }")
		} else {
			c.add("negcond", v.Cond.Pos(), v.Cond.End(), "!("+c.text(v.Cond)+")")
			c.add("emptyif", v.Body.Pos(), v.Body.End(), "{ }")
		}
	case *ast.BinaryExpr:
		c.operators(v)
	case *ast.ExprStmt:
		if call, ok := v.X.(*ast.CallExpr); ok && !isLog(call) && c.text(call.Fun) != "panic" {
			c.add("remcall", v.Pos(), v.End(), "")
		}
	case *ast.DeferStmt:
		if !strings.Contains(c.text(v.Call.Fun), "nlock") {
			c.add("remdefer", v.Pos(), v.End(), "")
		}
	case *ast.AssignStmt:
		if v.Tok != token.DEFINE {
			c.add("remassign", v.Pos(), v.End(), "")
		}
	case *ast.IncDecStmt:
		c.add("remassign", v.Pos(), v.End(), "")
	case *ast.SendStmt:
		c.add("remcall", v.Pos(), v.End(), "")
	case *ast.BranchStmt:
		switch {
		case v.Label != nil:
		case v.Tok == token.BREAK:
			c.add("branch", v.Pos(), v.End(), "continue")
		case v.Tok == token.CONTINUE:
			c.add("branch", v.Pos(), v.End(), "break")
		}
	case *ast.BasicLit:
		if v.Kind == token.INT {
			c.add("const", v.Pos(), v.End(), "("+v.Value+" + 1)")
			c.add("const", v.Pos(), v.End(), "("+v.Value+" - 1)")
		}
	case *ast.Ident:
		if other := map[string]string{"true": "false", "false": "true"}[v.Name]; other != "" {
			if o := c.p.info.Uses[v]; o != nil && o.Parent() == types.Universe {
				c.add("bool", v.Pos(), v.End(), other)
			}
		}
	case *ast.CommClause:
		if v.Comm != nil && strings.Contains(c.text(v.Comm), "Done()") {
			c.add("remcase", v.Pos(), v.End(), "")
		}
	case *ast.ReturnStmt:
		c.results(v)
	}
}

// isErrorCheck reports whether a condition is err != nil. Such a condition is not inverted: every
// test would notice.
func (c *site) isErrorCheck(cond ast.Expr) bool {
	b, ok := cond.(*ast.BinaryExpr)
	if !ok || b.Op != token.NEQ || !isNil(b.Y) {
		return false
	}
	t := c.p.info.Types[b.X].Type
	return t != nil && t.String() == "error"
}

func isNil(e ast.Expr) bool {
	id, ok := e.(*ast.Ident)
	return ok && id.Name == "nil"
}

func isLog(call *ast.CallExpr) bool {
	sel, ok := call.Fun.(*ast.SelectorExpr)
	if !ok {
		return false
	}
	switch sel.Sel.Name {
	case "Trace", "Debug", "Info", "Warn", "Error":
		return true
	}
	return false
}

func (c *site) operators(v *ast.BinaryExpr) {
	from, to := v.OpPos, v.OpPos+token.Pos(len(v.Op.String()))
	switch v.Op {
	case token.LSS, token.LEQ, token.GTR, token.GEQ:
		c.add("cmp", from, to, loosened[v.Op])
	case token.EQL:
		c.add("eq", from, to, "!=")
	case token.NEQ:
		if !isNil(v.Y) { // otherwise negcond covers it
			c.add("eq", from, to, "==")
		}
	case token.LAND, token.LOR:
		c.add("logic", v.Pos(), v.End(), c.text(v.X))
		c.add("logic", v.Pos(), v.End(), c.text(v.Y))
		c.add("logic", from, to, map[token.Token]string{token.LAND: "||", token.LOR: "&&"}[v.Op])
	case token.ADD, token.SUB, token.MUL, token.QUO:
		if b, ok := c.p.info.Types[v].Type.Underlying().(*types.Basic); ok && b.Info()&types.IsNumeric != 0 {
			c.add("arith", from, to, opposite[v.Op])
		}
	}
}

// results replaces each returned value with its zero value.
func (c *site) results(v *ast.ReturnStmt) {
	if len(c.signatures) == 0 {
		return
	}
	results := c.signatures[len(c.signatures)-1].Results()
	if results.Len() != len(v.Results) {
		return
	}
	for i, r := range v.Results {
		t := results.At(i).Type()
		zero := c.zero(t)
		if zero == "" || c.text(r) == zero {
			continue
		}
		kind := "retzero"
		if t.String() == "error" {
			kind = "retnil"
		}
		c.add(kind, r.Pos(), r.End(), zero)
	}
}

func (c *site) zero(t types.Type) string {
	switch u := t.Underlying().(type) {
	case *types.Basic:
		switch {
		case u.Info()&types.IsString != 0:
			return `""`
		case u.Info()&types.IsBoolean != 0:
			return "false"
		case u.Info()&types.IsNumeric != 0:
			return "0"
		}
	case *types.Pointer, *types.Slice, *types.Map, *types.Chan, *types.Interface, *types.Signature:
		return "nil"
	case *types.Struct:
		return types.TypeString(t, func(p *types.Package) string {
			if p == c.p.types {
				return ""
			}
			return p.Name()
		}) + "{}"
	}
	return ""
}
