package main

import (
	"fmt"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// parsed returns a package of one file without imports.
func parsed(t *testing.T, text string) *goPackage {
	t.Helper()
	p := &goPackage{folder: "x", path: "x", fset: token.NewFileSet()}
	must.NoError(t, p.add("x.go", []byte("package x\n"+text)))
	must.NoError(t, p.check())
	return p
}

// told formats edits as short texts, "kind: old -> new".
func told(edits []*edit) []string {
	var all []string
	for _, e := range edits {
		all = append(all, fmt.Sprintf("%s: %s -> %s", e.kind, short(e.old, 40), short(e.to[0], 40)))
	}
	return all
}

func TestAnyEdits(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"a condition", `func f(a bool) { if a { println() } }`, []string{
			"negcond: a -> !(a)", "emptyif: { println() } -> { }", "remcall: println() -> ",
		}},
		{"an error", `func f(err error) error { if err != nil { return err }; return nil }`, []string{
			"droperr: { return err } -> { }", "retnil: err -> nil",
		}},
		{"operators", `func f(a, b int) bool { return a+1 < b && b == 2 }`, []string{
			"retzero: a+1 < b && b == 2 -> false", "logic: a+1 < b && b == 2 -> a+1 < b", "logic: a+1 < b && b == 2 -> b == 2",
			"logic: && -> ||", "cmp: < -> <=", "arith: + -> -", "const: 1 -> (1 + 1)", "const: 1 -> (1 - 1)", "eq: == -> !=",
			"const: 2 -> (2 + 1)", "const: 2 -> (2 - 1)",
		}},
		{"text is not added up", `func f(a string) string { return a + a }`, []string{`retzero: a + a -> ""`}},
		{"a literal's results are its own", `func f() func() string { return func() string { return "a" } }`, []string{
			`retzero: func() string { return "a" } -> nil`, `retzero: "a" -> ""`,
		}},
		{"outside of functions", `const n = 1`, []string{"const: 1 -> (1 + 1)", "const: 1 -> (1 - 1)"}},
		{"text for people", `type a int; func (a) String() string { return "a" }`, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			must.Eq(t, c.want, told(parsed(t, c.text).candidates(anyEdits)))
		})
	}
}

func TestPromises(t *testing.T) {
	const given = `
type file struct{}
func (file) Sync() error { return nil }
func (file) Close() error { return nil }
func (file) SetDeadline(int) error { return nil }
func open(string, int) file { return file{} }
var fs struct{ File file; ScopeAdmin, ScopeOperate int }
`
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"fsync", `func f(a file) error { return a.Sync() }`, []string{"fsync: a.Sync() -> error(nil)"}},
		{"what is let go of", `func f(a file) { defer a.Close(); _ = a.Close() }`, []string{"release: defer a.Close() -> ", "release: _ = a.Close() -> "}},
		{"a lock is none", `func f(m interface{ Unlock() }) { defer m.Unlock() }`, nil},
		{"modes", `func f() { open("a", 0o600); open("b", 0o700); open("c", 0o077) }`, []string{"mode: 0o600 -> 0o666", "mode: 0o700 -> 0o777"}},
		{"deadline", `func f(a file) { _ = a.SetDeadline(1) }`, []string{"deadline: a.SetDeadline(1) -> error(nil)"}},
		{"digest", `func f(digest, b string) bool { return digest != b }`, []string{"digest: digest != b -> (false && digest != b)"}},
		{"scope", `func f() int { return fs.ScopeAdmin }`, []string{"scope: ScopeAdmin -> ScopeOperate"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var found []*edit
			for _, e := range parsed(t, given+c.text).candidates(promises) {
				if e.function == "f" {
					found = append(found, e)
				}
			}
			must.Eq(t, c.want, told(found))
		})
	}
}

// settle uses the first alternative that compiles.
func TestSettle(t *testing.T) {
	p := parsed(t, `func f(g func() func()) { cancel := g(); defer cancel() }`)
	chosen := p.choose(p.candidates(promises), 1, 0)
	must.Eq(t, []string{"release: defer cancel() -> _ = cancel"}, told(chosen))
}

func TestChoose(t *testing.T) {
	text := "func f(a, b int) bool {\n\tif a < 3 {\n\t\treturn a == b\n\t}\n\treturn a > 2*b\n}\n"
	chosen := func(seed int64, n int) []*edit {
		p := parsed(t, text)
		return p.choose(p.candidates(anyEdits), seed, n)
	}
	must.Eq(t, told(chosen(7, 3)), told(chosen(7, 3)))
	must.Len(t, 2, chosen(7, 2))
	lines := map[int]bool{}
	for _, e := range chosen(7, 100) {
		must.False(t, lines[e.line], must.Sprintf("line %d twice", e.line))
		lines[e.line] = true
	}
	must.Len(t, 3, slices.Collect(maps.Keys(lines)))
}

// Woven code compiles, whatever the function looks like, and without edits behaves as before.
func TestWeave(t *testing.T) {
	for _, c := range []struct{ name, text, want string }{
		{"a function", `func f(a int) int { return a + 1 }`, "return m1__f(a)"},
		{"nothing returned", `func f(a *int) { *a = 1 }`, "m1__f(a); return"},
		{"names are missing", `func f(int, string) int { return 1 }`, "return m1__f(mutantP0, mutantP1)"},
		{"blank names", `func f(_ int, b ...string) int { return 1 }`, "return m1__f(mutantP0, b...)"},
		{"a method", `type a struct{ n int }; func (x *a) f() { x.n++ }`, "x.m1__f(); return"},
		{"a receiver without a name", `type a struct{}; func (a) f() int { return 1 }`, "return mutantP0.m1__f()"},
		{"type parameters", `func f[K comparable, V any](m map[K]V) int { return len(m) + 1 }`, "return m1__f[K, V](m)"},
		{"a type's parameters", `type a[T any] struct{}; func (x a[T]) f(T) int { return 1 }`, "return x.m1__f(mutantP0)"},
		{"a result with a name", `func f() (err error) { if true { return err }; return nil }`, "return m1__f()"},
		{"a literal within", `func f() func() int { return func() int { return 1 } }`, "return m1__f()"},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parsed(t, c.text)
			edits := map[int]*edit{}
			for i, e := range p.choose(p.candidates(anyEdits), 1, 0) {
				edits[i+1] = e
			}
			text, alone := p.weave(p.files[0], edits)
			must.SliceEmpty(t, alone)
			must.StrContains(t, string(text), c.want)
			text = append(text, "\nvar mutantNow int\nfunc mutantHit(int) {}\n"...)
			must.True(t, p.compiles(p.files[0], text), must.Sprint(string(text)))
			must.Eq(t, len(edits), strings.Count(string(text), "mutantHit(")-1)
		})
	}
}

func TestWeaveLeavesAlone(t *testing.T) {
	for _, c := range []struct{ name, text string }{
		{"no function", `var a = 1`},
		{"init", `func init() { println(1) }`},
		{"recover", `func f() { if recover() != nil { println(1) } }`},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := parsed(t, c.text)
			e := p.candidates(anyEdits)[0]
			text, alone := p.weave(p.files[0], map[int]*edit{4: e})
			must.Eq(t, []int{4}, alone)
			must.Eq(t, string(p.files[0].text), string(text))
		})
	}
}

func TestReach(t *testing.T) {
	text := `func f(a, b bool) {
	if a && b {
		println("in")
	} else if b {
		println("else")
	}
	switch {
	case a:
		for range 3 {
			println("loop")
		}
	}
}`
	p := parsed(t, text)
	for _, c := range []struct{ name, kind, old, at string }{
		{"a condition", "logic", "&&", "if a && b {"},
		{"a branch", "emptyif", `{ println("in") }`, `println("in")`},
		{"a condition behind else", "negcond", "b", "if a && b {"},
		{"a statement within", "remcall", `println("loop")`, `println("loop")`},
	} {
		t.Run(c.name, func(t *testing.T) {
			all := p.candidates(anyEdits)
			i := slices.IndexFunc(all, func(e *edit) bool { return e.kind == c.kind && short(e.old, 80) == c.old })
			must.NonNegative(t, i)
			at := p.reach(p.files[0], all[i])
			must.StrHasPrefix(t, c.at, string(p.files[0].text[at:]))
		})
	}
}

func TestGroups(t *testing.T) {
	var tests []test
	for i, took := range []int{1, 100, 300, 300, 5000} {
		tests = append(tests, test{name: fmt.Sprint("T", i), took: time.Duration(took) * time.Millisecond})
	}
	var got []string
	for _, g := range groups(tests) {
		got = append(got, fmt.Sprint(g.pattern, " ", g.limit-slack))
	}
	must.Eq(t, []string{"^(T0|T1|T2)$ 1.604s", "^(T3)$ 1.2s", "^(T4)$ 20s"}, got)
}

func TestCount(t *testing.T) {
	a, b, c := &edit{}, &edit{}, &edit{}
	results := map[*edit]result{a: {noticed: true}, b: {noticed: true, late: true}}
	must.Eq(t, "2 of 2 edits were noticed, 1 by tests that took too long, 1 were not tried", count([]*edit{a, b, c}, results))
}

// Edits of some packages kill every process they see.
func TestSandboxNeeded(t *testing.T) {
	t.Setenv("PATH", t.TempDir()) // unshare is not found
	_, err := newSandbox(t.Context(), t.TempDir(), "core/hive")
	must.ErrorContains(t, err, "may kill every process")
	b, err := newSandbox(t.Context(), t.TempDir(), "core/sched")
	must.NoError(t, err)
	must.False(t, b.isolated)
}

func TestFailed(t *testing.T) {
	must.Eq(t, "TestA/b", failed("=== RUN\n--- FAIL: TestA/b (0.1s)\n--- FAIL: TestA"))
	must.Eq(t, "panic: no", failed("ok\npanic: no\n"))
	must.Eq(t, "no test failed by itself", failed(""))
}

// noticedIn identifies the edits that an earlier run noticed by their text.
func TestNoticedIn(t *testing.T) {
	e := parsed(t, "func f(a int) bool { return a < 1 }").candidates(anyEdits)[1]
	e.folder = "core/x"
	file := filepath.Join(t.TempDir(), "out")
	must.NoError(t, os.WriteFile(file, []byte("survived  other  (no test reaches it)\nnoticed   "+e.String()+"  (TestA)\ncore/x: 1 of 2\n"), 0o600))
	known, err := noticedIn(file)
	must.NoError(t, err)
	must.Eq(t, map[string]bool{"core/x/x.go:2  in f  cmp: < -> <=": true}, known)
	must.Eq(t, "core/x/x.go:2  in f  cmp: < -> <=", e.String())
}
