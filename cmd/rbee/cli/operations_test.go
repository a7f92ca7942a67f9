package cli

import (
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

// operationsTable is the table of contributing/operations.md: all 28 of the contract, then those
// beyond it.
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
// end-to-end tests cannot disagree. core/gateway has the same for the routes, core/hive and
// core/queen for the functions.
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
	root := (&app{}).rootCommand()
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

// Every operation has its edge cases in contributing/edge-cases.md, and the tests that are named
// there exist.
func TestEdgeCases(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..", "..")
	b, err := os.ReadFile(filepath.Join(root, "contributing", "edge-cases.md"))
	must.NoError(t, err)
	tests := map[string]map[string]bool{}
	rows := map[string]int{}
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		named := namedTest.FindAllStringSubmatch(cells[3], -1)
		rows[strings.TrimSpace(cells[1])] += len(named)
		for _, m := range named {
			if tests[m[1]] == nil {
				tests[m[1]] = testsOf(t, filepath.Join(root, filepath.FromSlash(m[1])))
			}
			must.True(t, tests[m[1]][m[2]], must.Sprintf("there is no %s in %s", m[2], m[1]))
		}
	}
	for n := 1; n <= 28; n++ {
		must.Positive(t, rows[strconv.Itoa(n)], must.Sprintf("no edge case of operation %d has a test", n))
	}
	for n := 1; n <= 10; n++ {
		must.Positive(t, rows[fmt.Sprintf("S-%02d", n)], must.Sprintf("S-%02d has no test", n))
	}
}

// testsOf are the names of the test functions in a folder.
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
