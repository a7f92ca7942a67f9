package coretest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// The mutexes listed in design.md exist in the code, and the list includes each mutex of core/hive
// with the comment "guards below".
func TestListedLocks(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	text, err := os.ReadFile(filepath.Join(root, "contributing", "design.md"))
	must.NoError(t, err)
	_, table, ok := strings.Cut(string(text), "| Mutex | Guards |")
	must.True(t, ok)
	table, _, _ = strings.Cut(table, "\n\n")
	listed := map[string]bool{}
	for _, m := range regexp.MustCompile("`([a-z]+\\.[A-Za-z]+)\\.mu`").FindAllStringSubmatch(table, -1) {
		listed[m[1]] = true
	}
	must.Greater(t, 10, len(listed))
	structs, mutexes := regexp.MustCompile(`^type (\w+) struct`), regexp.MustCompile(`^\tmu +sync\.(RW)?Mutex`)
	inCode := map[string]bool{}
	for _, dir := range []string{"core", "raft"} {
		must.NoError(t, filepath.WalkDir(filepath.Join(root, dir), func(path string, _ os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			b, err := os.ReadFile(path)
			name := ""
			for line := range strings.Lines(string(b)) {
				if m := structs.FindStringSubmatch(line); m != nil {
					name = filepath.Base(filepath.Dir(path)) + "." + m[1]
				}
				if mutexes.MatchString(line) {
					inCode[name] = true
					if filepath.Base(filepath.Dir(path)) == "hive" && strings.Contains(line, "guards below") && !listed[name] {
						t.Errorf("design.md does not list %s.mu", name)
					}
				}
			}
			return err
		}))
	}
	for name := range listed {
		must.True(t, inCode[name], must.Sprintf("design.md lists %s.mu, which is not in the code", name))
	}
}
