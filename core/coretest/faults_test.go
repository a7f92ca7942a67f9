package coretest_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// TestFaultIDsExplained checks that contributing/faults.md explains every fault ID that a
// comment or a document cites.
func TestFaultIDsExplained(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	explained, err := os.ReadFile(filepath.Join(root, "contributing", "faults.md"))
	must.NoError(t, err)
	id := regexp.MustCompile(`\b[CGS]-\d\d\b`)
	seen := 0
	must.NoError(t, filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (d.Name() == "bin" || d.Name() != ".." && strings.HasPrefix(d.Name(), ".")):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".go" && filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, cited := range id.FindAllString(string(text), -1) {
			seen++
			if !strings.Contains(string(explained), "| "+cited+" |") {
				t.Errorf("%s cites %s, which contributing/faults.md does not explain", path, cited)
			}
		}
		return nil
	}))
	must.Positive(t, seen)
}
