package main

import (
	"go/ast"
	"go/constant"
	"go/token"
	"go/types"
	"regexp"
	"slices"
	"strings"
)

var (
	syncs     = regexp.MustCompile(`^(Sync|fsync|SyncDir|syncDir|SyncFolder|syncFolder|syncParents|SyncParents|Fdatasync)$`)
	releases  = regexp.MustCompile(`(?i)^(close\w*|release\w*|stop|cancel|end|kill\w*|free|unlock|done|remove|removeall|clean\w*|forget|delete)$`)
	deadlines = regexp.MustCompile(`^Set(Read|Write)?Deadline$`)
	timeouts  = regexp.MustCompile(`(?i)timeout$`)
	digests   = regexp.MustCompile(`(?i)digest|sha256|checksum|\bcrc|\bsum\b|\bmac\b|hash`)
	compares  = regexp.MustCompile(`^(bytes\.Equal|hmac\.Equal|strings\.EqualFold)$`)
)

// promises finds edits that break what people rely on without seeing it: bytes on disk, closed
// files, released resources, cancelled waits, digests, scopes.
func promises(n ast.Node, c *site) {
	switch v := n.(type) {
	case *ast.CallExpr:
		c.call(v)
	case *ast.ExprStmt:
		if call, ok := v.X.(*ast.CallExpr); ok {
			c.statement(v, call)
		}
	case *ast.AssignStmt:
		if len(v.Lhs) == 1 && len(v.Rhs) == 1 && c.text(v.Lhs[0]) == "_" { // _ = f.Close()
			if call, ok := v.Rhs[0].(*ast.CallExpr); ok {
				c.statement(v, call)
			}
		}
	case *ast.DeferStmt:
		if name := called(v.Call); !strings.Contains(strings.ToLower(name), "unlock") && name != "recover" {
			c.add("release", v.Pos(), v.End(), c.unused(v.Call)...)
		}
	case *ast.BasicLit:
		if v.Kind == token.INT && strings.HasPrefix(v.Value, "0o") {
			c.mode(v)
		}
	case *ast.KeyValueExpr:
		if key := c.text(v.Key); timeouts.MatchString(key) && c.text(v.Value) != "0" {
			c.add("deadline", v.Value.Pos(), v.Value.End(), "0")
		}
	case *ast.BinaryExpr:
		switch whole := c.text(v); {
		case isFixed(v.X) || isFixed(v.Y) || !digests.MatchString(whole):
		case v.Op == token.NEQ:
			c.add("digest", v.Pos(), v.End(), "(false && "+whole+")")
		case v.Op == token.EQL:
			c.add("digest", v.Pos(), v.End(), "(true || "+whole+")")
		}
	case *ast.SelectorExpr:
		c.scope(v)
	}
}

// called returns the name of the function or method that is called, "" for a literal.
func called(call *ast.CallExpr) string {
	switch f := call.Fun.(type) {
	case *ast.Ident:
		return f.Name
	case *ast.SelectorExpr:
		return f.Sel.Name
	}
	return ""
}

// call removes effects from a call whose result is used.
func (c *site) call(v *ast.CallExpr) {
	whole, name := c.text(v.Fun), called(v)
	arg := func(i int) string { return c.text(v.Args[i]) }
	replace := func(kind string, i int, with ...string) { c.add(kind, v.Args[i].Pos(), v.Args[i].End(), with...) }
	never := []string{"1<<62", "time.Duration(1<<62)"}
	switch {
	case syncs.MatchString(name) && isError(c.p.info.Types[v].Type):
		c.add("fsync", v.Pos(), v.End(), "error(nil)")
	case whole == "context.WithTimeout" || whole == "context.WithDeadline":
		c.add("deadline", v.Pos(), v.End(), "context.WithCancel("+arg(0)+")",
			"func() (context.Context, context.CancelFunc) { _ = "+arg(1)+"; return context.WithCancel("+arg(0)+") }()")
	case deadlines.MatchString(name):
		c.add("deadline", v.Pos(), v.End(), "error(nil)")
	case whole == "time.After" || whole == "time.NewTimer" || whole == "time.AfterFunc":
		replace("deadline", 0, never...)
	case whole == "io.LimitReader" || whole == "io.CopyN":
		replace("limit", len(v.Args)-1, "1<<62")
	case whole == "http.MaxBytesReader":
		replace("limit", 2, "1<<62")
	case compares.MatchString(whole) && digests.MatchString(c.text(v)) && !slices.ContainsFunc(v.Args, isFixed):
		c.add("digest", v.Pos(), v.End(), "(true || "+c.text(v)+")")
	case whole == "subtle.ConstantTimeCompare":
		c.add("digest", v.Pos(), v.End(), "(1 | "+c.text(v)+")")
	}
}

// isFixed reports whether an expression is a number, a text or nil: digests are never compared with
// these.
func isFixed(e ast.Expr) bool {
	_, ok := e.(*ast.BasicLit)
	return ok || isNil(e)
}

func isError(t types.Type) bool { return t != nil && t.String() == "error" }

// statement removes a call that releases something.
func (c *site) statement(s ast.Stmt, call *ast.CallExpr) {
	name := called(call)
	if strings.HasSuffix(c.text(call.Fun), ".mu.Unlock") || isLog(call) {
		return
	}
	if releases.MatchString(name) {
		c.add("release", s.Pos(), s.End(), c.unused(call)...)
	}
}

// unused returns statements that do nothing but use what the removed call would have used.
func (c *site) unused(call *ast.CallExpr) []string {
	texts := []string{""}
	switch f := call.Fun.(type) {
	case *ast.Ident:
		texts = append(texts, "_ = "+f.Name)
	case *ast.SelectorExpr:
		texts = append(texts, "_ = "+c.text(f.X))
	}
	return texts
}

// mode makes a file or a folder accessible to everyone.
func (c *site) mode(v *ast.BasicLit) {
	n, ok := constant.Int64Val(constant.MakeFromLiteral(v.Value, token.INT, 0))
	if !ok || n&0o600 == 0 || n > 0o777 { // a mask
		return
	}
	open := "0o666"
	if n&0o100 != 0 {
		open = "0o777"
	}
	if v.Value != open {
		c.add("mode", v.Pos(), v.End(), open)
	}
}

// weaker maps a scope to one that more tokens have.
var weaker = map[string]string{"ScopeAdmin": "ScopeOperate", "ScopeOperate": "ScopeRead", "ScopeRead": "ScopeInfer"}

// scope requires a weaker scope.
func (c *site) scope(v *ast.SelectorExpr) {
	if to, ok := weaker[v.Sel.Name]; ok {
		c.add("scope", v.Sel.Pos(), v.Sel.End(), to)
	}
}
