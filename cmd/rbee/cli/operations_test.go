package cli

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/operation"
)

const (
	contractFile = "../../../contributing/operations.md"
	tableBegin   = "<!-- The table below is made from core/operation: UPDATE_OPERATIONS=1 go test ./cmd/rbee/cli -run TestOperationsTable -->\n"
	tableEnd     = "<!-- end of the table -->\n"
)

// contractRow is a row of the contract's prose: "| 7 | WorkerProcessList | …".
var contractRow = regexp.MustCompile(`(?m)^\| (\d+) \| (\w+) \|`)

// operationsTable returns the table of contributing/operations.md: all 28 of the contract, then
// those beyond it.
func operationsTable(titles map[int]string) string {
	var b strings.Builder
	b.WriteString("| # | Job | GET | CLI | Test |\n|---|---|---|---|---|\n")
	code := func(s string) string {
		if s == "" {
			return "–"
		}
		return "`" + s + "`"
	}
	row := func(number string, s operation.Spec) {
		var cli []string
		for _, c := range s.CLI {
			cli = append(cli, code("rbee "+c))
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", number, code(string(s.Name)), code(s.Get), strings.Join(cli, ", "), code(s.Test))
	}
	byNumber := map[int]operation.Spec{}
	for _, s := range operation.All() {
		byNumber[s.Number] = s
	}
	for n := 1; n <= len(titles); n++ {
		if s, ok := byNumber[n]; ok {
			row(strconv.Itoa(n), s)
		} else {
			fmt.Fprintf(&b, "| %d | not yet: %s | – | – | – |\n", n, titles[n])
		}
	}
	for _, s := range operation.All() {
		if s.Number == 0 {
			row("+", s)
		}
	}
	return b.String()
}

// The table of operations, its copy in the contract, the contract's prose, the commands and the
// end-to-end tests agree. core/gateway checks the same for the routes, core/hive and core/queen for
// the functions.
func TestOperationsTable(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile(contractFile)
	must.NoError(t, err)
	text := string(b)
	titles := map[int]string{}
	for _, m := range contractRow.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(m[1])
		must.NoError(t, err)
		titles[n] = m[2]
	}
	must.MapLen(t, 28, titles)

	before, rest, ok := strings.Cut(text, tableBegin)
	must.True(t, ok, must.Sprint("operations.md has no marker for the table"))
	old, after, ok := strings.Cut(rest, tableEnd)
	must.True(t, ok, must.Sprint("operations.md has no marker for the end of the table"))
	table := operationsTable(titles)
	if os.Getenv("UPDATE_OPERATIONS") != "" {
		must.NoError(t, os.WriteFile(contractFile, []byte(before+tableBegin+table+tableEnd+after), 0o644))
	} else {
		must.Eq(t, table, old, must.Sprint("UPDATE_OPERATIONS=1 go test ./cmd/rbee/cli -run TestOperationsTable writes it anew"))
	}

	tests := testsOf(t, filepath.Join("..", "e2e"))
	root := rootCommand(&app{})
	for _, s := range operation.All() {
		if s.Number > 0 {
			must.Eq(t, titles[s.Number], s.Title, must.Sprint(s.Name))
		}
		must.NotEq(t, 0, len(s.CLI), must.Sprintf("%s has no command", s.Name))
		for _, c := range s.CLI {
			cmd, left, err := root.Find(strings.Fields(c))
			must.NoError(t, err, must.Sprint(c))
			must.SliceEmpty(t, left, must.Sprintf("there is no command %q", "rbee "+c))
			must.NotEq(t, root, cmd, must.Sprint(c))
		}
		if s.Test != "" {
			must.True(t, tests[s.Test], must.Sprintf("%s: there is no test %s in cmd/rbee/e2e", s.Name, s.Test))
		}
	}
}

// namedTest is a test in contributing/edge-cases.md: a package and a function.
var namedTest = regexp.MustCompile("`((?:core|cmd|plugins)[a-z0-9/-]*)\\.(Test[A-Za-z0-9]+)`")

// Every operation has its edge cases in contributing/edge-cases.md. The tests named there exist,
// and contributing/proofs.json states for each what was undone to make it fail, in code that still
// exists, or that it was never seen to fail.
func TestEdgeCases(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	b, err := os.ReadFile(filepath.Join(root, "contributing", "edge-cases.md"))
	must.NoError(t, err)
	tests, named := map[string]map[string]bool{}, map[string]map[string]bool{}
	rows := map[string]int{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		inRow := namedTest.FindAllStringSubmatch(cells[3], -1)
		rows[strings.TrimSpace(cells[1])] += len(inRow)
		for _, m := range inRow {
			if named[m[1]] == nil {
				named[m[1]] = map[string]bool{}
			}
			named[m[1]][m[2]] = true
			if tests[m[1]] == nil {
				tests[m[1]] = testsOf(t, filepath.Join(root, filepath.FromSlash(m[1])))
			}
			must.True(t, tests[m[1]][m[2]], must.Sprintf("there is no %s in %s", m[2], m[1]))
		}
	}
	proofs := readProofs(t, root)
	for pkg, all := range named {
		for name := range all {
			_, ok := proofs[pkg+"."+name]
			must.True(t, ok, must.Sprintf("contributing/proofs.json does not say how %s.%s was seen to fail, or that it was not", pkg, name))
		}
	}
	for n := 1; n <= 28; n++ {
		must.Positive(t, rows[strconv.Itoa(n)], must.Sprintf("no edge case of operation %d has a test", n))
	}
	for n := 1; n <= 10; n++ {
		must.Positive(t, rows[fmt.Sprintf("S-%02d", n)], must.Sprintf("S-%02d has no test", n))
	}
}

// Every row of contributing/reports.md names existing tests, or states that there are none.
func TestReports(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	b, err := os.ReadFile(filepath.Join(root, "contributing", "reports.md"))
	must.NoError(t, err)
	rows := 0
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 || strings.Contains(cells[2], "---") || strings.TrimSpace(cells[2]) == "Tests" {
			continue
		}
		rows++
		named := namedTest.FindAllStringSubmatch(cells[2], -1)
		must.True(t, len(named) > 0 || strings.TrimSpace(cells[2]) == "none", must.Sprint(line))
		for _, m := range named {
			must.True(t, testsOf(t, filepath.Join(root, filepath.FromSlash(m[1])))[m[2]], must.Sprintf("there is no %s in %s", m[2], m[1]))
		}
	}
	must.Greater(t, 25, rows)
}

// proof is how a test was seen to fail; see core/coretest/proofs.
type proof struct {
	Test string `json:"test"`
	Undo []struct {
		File string `json:"file"`
		From string `json:"from"`
		To   string `json:"to"`
	} `json:"undo"`
	Unseen string `json:"unseen"`
}

// readProofs reads contributing/proofs.json by the names of the tests, and checks that what was
// undone can be undone again.
func readProofs(t *testing.T, root string) map[string]proof {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "contributing", "proofs.json"))
	must.NoError(t, err)
	var list []proof
	must.NoError(t, json.Unmarshal(b, &list))
	out := map[string]proof{}
	for _, p := range list {
		_, twice := out[p.Test]
		must.False(t, twice, must.Sprintf("%s is in proofs.json twice", p.Test))
		out[p.Test] = p
		must.NotEq(t, len(p.Undo) == 0, p.Unseen == "", must.Sprintf("%s: either what was undone, or why nobody has seen it fail", p.Test))
		i := strings.LastIndex(p.Test, ".")
		must.Positive(t, i)
		must.True(t, testsOf(t, filepath.Join(root, filepath.FromSlash(p.Test[:i])))[p.Test[i+1:]], must.Sprintf("there is no %s", p.Test))
		texts := map[string]string{}
		for _, e := range p.Undo {
			if texts[e.File] == "" {
				b, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(e.File)))
				must.NoError(t, err)
				texts[e.File] = string(b)
			}
			must.Eq(t, 1, strings.Count(texts[e.File], e.From), must.Sprintf("%s: %s has %q no more, or more than once: undo the defence anew (go run ./core/coretest/proofs -run …)", p.Test, e.File, e.From))
			texts[e.File] = strings.Replace(texts[e.File], e.From, e.To, 1)
		}
	}
	return out
}

// testsOf returns the names of the test functions in a folder.
func testsOf(t *testing.T, dir string) map[string]bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
	must.NoError(t, err)
	must.NotEq(t, 0, len(files))
	tests := map[string]bool{}
	for _, name := range files {
		f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
		must.NoError(t, err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
				tests[fn.Name.Name] = true
			}
		}
	}
	return tests
}
