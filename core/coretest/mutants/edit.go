package main

import (
	"fmt"
	"go/ast"
	"go/token"
	"math/rand"
	"path"
	"slices"
	"strings"
)

// edit replaces one text with another.
type edit struct {
	file       *source
	folder     string
	line       int
	kind       string
	function   string // "(decl)": outside functions
	start, end int    // offsets
	old        string
	to         []string // alternatives; the first that compiles is used
}

// String describes the edit for people: place, function, old and new text.
func (e *edit) String() string {
	return fmt.Sprintf("%s:%d  in %s  %s: %s -> %s", path.Join(e.folder, e.file.name), e.line, e.function, e.kind,
		short(e.old, 80), short(e.to[0], 60))
}

func short(s string, n int) string {
	s = strings.Join(strings.Fields(s), " ")
	return s[:min(len(s), n)]
}

func (e *edit) same(o *edit) bool {
	return e.file == o.file && e.start == o.start && e.end == o.end && e.to[0] == o.to[0]
}

// apply returns the text of the edit's file with the edit applied.
func (e *edit) apply() []byte {
	return slices.Concat(e.file.text[:e.start], []byte(e.to[0]), e.file.text[e.end:])
}

// finder adds every edit that one node suggests. The signatures are those of the enclosing
// functions, the innermost last.
type finder func(n ast.Node, c *site)

// candidates returns all edits of the package, whether they compile or not.
func (p *goPackage) candidates(find finder) []*edit {
	var all []*edit
	for _, f := range p.edited() {
		c := &site{p: p, file: f, found: func(e *edit) { all = append(all, e) }}
		for _, d := range f.tree.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Body == nil || d.Name.Name == "String" || d.Name.Name == "GoString" {
					continue
				}
				c.function = d.Name.Name
				c.walk(p.signature(d.Name), d.Body, find)
			case *ast.GenDecl:
				if d.Tok == token.CONST || d.Tok == token.VAR {
					c.function = "(decl)"
					c.walk(nil, d, find)
				}
			}
		}
	}
	return all
}

// choose picks n edits that compile, at most one per line; a kind is weighted by the square root of
// its number of edits, so that frequent kinds do not hide the others. With n = 0 it returns all,
// including several of a line.
func (p *goPackage) choose(found []*edit, seed int64, n int) []*edit {
	var chosen []*edit
	if n == 0 {
		for _, e := range found {
			if p.settle(e) {
				chosen = append(chosen, e)
			}
		}
		return chosen
	}
	byKind := map[string][]*edit{}
	for _, e := range found {
		byKind[e.kind] = append(byKind[e.kind], e)
	}
	var kinds []string
	for k := range byKind {
		kinds = append(kinds, k)
	}
	slices.Sort(kinds)
	rng := rand.New(rand.NewSource(seed))
	for _, k := range kinds {
		rng.Shuffle(len(byKind[k]), func(i, j int) { byKind[k][i], byKind[k][j] = byKind[k][j], byKind[k][i] })
	}
	type place struct {
		file *source
		line int
	}
	used := map[place]bool{}
	for len(chosen) < n {
		k := draw(rng, kinds, byKind)
		if k == "" {
			break
		}
		e := byKind[k][0]
		byKind[k] = byKind[k][1:]
		at := place{e.file, e.line}
		if used[at] || !p.settle(e) {
			continue
		}
		used[at] = true
		chosen = append(chosen, e)
	}
	return chosen
}

// settle chooses the first alternative that compiles, and reports whether there is one.
func (p *goPackage) settle(e *edit) bool {
	for len(e.to) > 0 {
		if p.compiles(e.file, e.apply()) {
			return true
		}
		e.to = e.to[1:]
	}
	return false
}

func draw(rng *rand.Rand, kinds []string, byKind map[string][]*edit) string {
	var some []string
	var weights []float64
	sum := 0.0
	for _, k := range kinds {
		if n := len(byKind[k]); n > 0 {
			w := root(float64(n))
			some, weights, sum = append(some, k), append(weights, w), sum+w
		}
	}
	if len(some) == 0 {
		return ""
	}
	r := rng.Float64() * sum
	for i, w := range weights {
		if r < w {
			return some[i]
		}
		r -= w
	}
	return some[len(some)-1]
}

// root is Newton's method: earlier figures were drawn with it.
func root(x float64) float64 {
	z := x
	for range 40 {
		z = (z + x/z) / 2
	}
	return z
}
