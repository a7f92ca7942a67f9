package main

import (
	"bytes"
	"fmt"
	"go/ast"
	"slices"
	"strings"
)

// switchFile is the file that is added to the package. Its names are unlikely to exist in a
// package. Processes that a test starts run the same binary, with any environment: hence a file.
const switchFile = `package %s

import (
	mutantOS "os"
	mutantStrconv "strconv"
	mutantStrings "strings"
	mutantAtomic "sync/atomic"
)

// mutantNow is the active edit, 0 for none; mutantHits is the file that records the edits reached.
var mutantNow, mutantHits = mutantRead()

var mutantSeen [%d]mutantAtomic.Bool

func mutantRead() (int, string) {
	b, err := mutantOS.ReadFile(%q)
	if err != nil {
		panic(err)
	}
	now, hits, _ := mutantStrings.Cut(string(b), " ")
	n, err := mutantStrconv.Atoi(now)
	if err != nil {
		panic(err)
	}
	return n, hits
}

func mutantHit(n int) {
	if mutantHits == "" || mutantSeen[n].Swap(true) {
		return
	}
	f, err := mutantOS.OpenFile(mutantHits, mutantOS.O_WRONLY|mutantOS.O_APPEND, 0)
	if err != nil {
		return
	}
	f.WriteString(mutantStrconv.Itoa(n) + "\n")
	f.Close()
}
`

// insertion is a text at an offset that replaces length bytes.
type insertion struct {
	at, length int
	text       string
}

func insert(text []byte, all []insertion) []byte {
	slices.SortStableFunc(all, func(a, b insertion) int { return a.at - b.at })
	var out bytes.Buffer
	at := 0
	for _, i := range all {
		out.Write(text[at:i.at])
		out.WriteString(i.text)
		at = i.at + i.length
	}
	out.Write(text[at:])
	return out.Bytes()
}

// weave returns a file with all edits that can coexist in it, by their numbers, and the numbers of
// the others.
func (p *goPackage) weave(f *source, edits map[int]*edit) (text []byte, alone []int) {
	var all []insertion
	var copies bytes.Buffer
	var numbers []int
	for n := range edits {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	calls := map[*ast.FuncDecl]string{}
	var order []*ast.FuncDecl
	for _, n := range numbers {
		e := edits[n]
		d := p.function(f, e)
		if d == nil || d.Name.Name == "init" || usesRecover(d) {
			alone = append(alone, n)
			continue
		}
		if _, ok := calls[d]; !ok {
			order = append(order, d)
		}
		// In lower case: a test that calls every method of a type must not find the copies.
		name := fmt.Sprintf("m%d__%s", n, d.Name.Name)
		calls[d] += fmt.Sprintf("\n\tcase %d:\n\t\t%s", n, p.callOf(f, d, name))
		copies.WriteString("\n" + p.copyOf(f, d, name, e) + "\n")
		all = append(all, insertion{at: p.reach(f, e), text: fmt.Sprintf("mutantHit(%d); ", n)})
	}
	var first []insertion // the switch and a first statement may share an offset
	for _, d := range order {
		first = append(first, p.named(d)...)
		first = append(first, insertion{at: p.offset(d.Body.Lbrace) + 1, text: "\n\tswitch mutantNow {" + calls[d] + "\n\t}\n"})
	}
	all = append(first, all...)
	return append(insert(f.text, all), copies.Bytes()...), alone
}

// function returns the declaration whose body contains the edit, nil for none.
func (p *goPackage) function(f *source, e *edit) *ast.FuncDecl {
	for _, d := range f.tree.Decls {
		if d, ok := d.(*ast.FuncDecl); ok && d.Body != nil && p.offset(d.Body.Lbrace) < e.start && e.end <= p.offset(d.Body.Rbrace) {
			return d
		}
	}
	return nil
}

// usesRecover reports whether a function calls recover, which works only in the deferred function
// itself, not in functions that it calls.
func usesRecover(d *ast.FuncDecl) bool {
	found := false
	ast.Inspect(d.Body, func(n ast.Node) bool {
		if _, ok := n.(*ast.FuncLit); ok {
			return false
		}
		if call, ok := n.(*ast.CallExpr); ok && called(call) == "recover" {
			found = true
		}
		return true
	})
	return found
}

// copyOf returns the function with the edit under another name.
func (p *goPackage) copyOf(f *source, d *ast.FuncDecl, name string, e *edit) string {
	from := p.offset(d.Pos())
	text := insert(f.text[:p.offset(d.End())], []insertion{
		{at: p.offset(d.Name.Pos()), length: len(d.Name.Name), text: name},
		{at: e.start, length: e.end - e.start, text: e.to[0]},
	})
	return string(text[from:])
}

// paramName returns a name for an unnamed parameter; n counts those of a function.
func paramName(n int) string { return fmt.Sprintf("mutantP%d", n) }

// fields calls do with each parameter, the receiver first, and the name to use. For unnamed
// parameters, ident is nil and the position is that of the type.
func fields(d *ast.FuncDecl, do func(receiver bool, ident *ast.Ident, field *ast.Field, name string)) {
	n := 0
	each := func(list *ast.FieldList, receiver bool) {
		if list == nil {
			return
		}
		for _, f := range list.List {
			if len(f.Names) == 0 {
				do(receiver, nil, f, paramName(n))
				n++
			}
			for _, id := range f.Names {
				name := id.Name
				if name == "_" {
					name = paramName(n)
					n++
				}
				do(receiver, id, f, name)
			}
		}
	}
	each(d.Recv, true)
	each(d.Type.Params, false)
}

// named names every parameter.
func (p *goPackage) named(d *ast.FuncDecl) []insertion {
	var all []insertion
	fields(d, func(_ bool, id *ast.Ident, f *ast.Field, name string) {
		switch {
		case id == nil:
			all = append(all, insertion{at: p.offset(f.Type.Pos()), text: name + " "})
		case id.Name == "_":
			all = append(all, insertion{at: p.offset(id.Pos()), length: 1, text: name})
		}
	})
	return all
}

// callOf returns the statement that calls the copy and returns its results.
func (p *goPackage) callOf(f *source, d *ast.FuncDecl, name string) string {
	target := name
	var args []string
	fields(d, func(receiver bool, _ *ast.Ident, field *ast.Field, param string) {
		if receiver {
			target = param + "." + name
			return
		}
		if _, ok := field.Type.(*ast.Ellipsis); ok {
			param += "..."
		}
		args = append(args, param)
	})
	if d.Type.TypeParams != nil {
		var names []string
		for _, t := range d.Type.TypeParams.List {
			for _, id := range t.Names {
				names = append(names, id.Name)
			}
		}
		target += "[" + strings.Join(names, ", ") + "]"
	}
	call := target + "(" + strings.Join(args, ", ") + ")"
	if d.Type.Results == nil || len(d.Type.Results.List) == 0 {
		return call + "; return"
	}
	return "return " + call
}

// reach returns the offset at which a test reaches the edit: the statement around it or, because a
// branch that does nothing matters only to those who take it, the first statement of the branch.
func (p *goPackage) reach(f *source, e *edit) int {
	at := e.start
	ast.Inspect(f.tree, func(n ast.Node) bool {
		if n == nil || p.offset(n.End()) < e.end || p.offset(n.Pos()) > e.start {
			return false
		}
		for _, s := range statements(n) {
			if p.offset(s.Pos()) <= e.start && e.end <= p.offset(s.End()) {
				at = p.offset(s.Pos())
			}
		}
		if b, ok := n.(*ast.BlockStmt); ok && p.offset(b.Pos()) == e.start && p.offset(b.End()) == e.end && len(b.List) > 0 {
			at = p.offset(b.List[0].Pos())
		}
		return true
	})
	return at
}

// statements returns the statements of a list: another may be inserted before each.
func statements(n ast.Node) []ast.Stmt {
	switch n := n.(type) {
	case *ast.BlockStmt:
		return slices.DeleteFunc(slices.Clone(n.List), func(s ast.Stmt) bool {
			switch s.(type) {
			case *ast.CaseClause, *ast.CommClause:
				return true
			}
			return false
		})
	case *ast.CaseClause:
		return n.Body
	case *ast.CommClause:
		return n.Body
	}
	return nil
}
