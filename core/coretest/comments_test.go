package coretest_test

import (
	"bufio"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shoenig/test/must"
)

// A comment line has at most 100 columns, counting a tab as four, unless it is one long word or a
// directive for a tool.
func TestCommentsFitColumns(t *testing.T) {
	t.Parallel()
	const columns = 100
	root := filepath.Join("..", "..")
	must.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() && strings.HasPrefix(d.Name(), ".") && path != root {
			if d != nil && d.IsDir() && err == nil {
				return filepath.SkipDir
			}
			return err
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, ".pb.go") {
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		lines := bufio.NewScanner(f)
		lines.Buffer(nil, 1<<20)
		for n := 1; lines.Scan(); n++ {
			line := lines.Text()
			text, ok := strings.CutPrefix(strings.TrimLeft(line, "\t"), "// ")
			wide := utf8.RuneCountInString(line) + 3*strings.Count(line[:len(line)-len(strings.TrimLeft(line, "\t"))], "\t")
			if ok && wide > columns && strings.Contains(strings.TrimSpace(text), " ") && !strings.Contains(text, "nolint") && !strings.Contains(text, "://") {
				t.Errorf("%s:%d: a comment of %d columns: wrap it at %d", path, n, wide, columns)
			}
		}
		return lines.Err()
	}))
}
