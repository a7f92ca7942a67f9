package coretest_test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

var (
	code       = regexp.MustCompile("`([^`]+)`")
	identifier = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*$`)
	// named matches a file or folder of the repository; <noun> stands for any name.
	named = regexp.MustCompile(`^(core|cmd|raft|proto|plugins|contributing)/[a-z0-9_/.<>-]+$|^[A-Za-z.]+\.(md|example)$`)
)

// The checklists in contributing name files that exist, and each file contains what they cite from
// it: a checklist cannot become outdated.
func TestChecklists(t *testing.T) {
	t.Parallel()
	root := filepath.Join("..", "..")
	lists, err := filepath.Glob(filepath.Join(root, "contributing", "add-*.md"))
	must.NoError(t, err)
	must.Greater(t, 7, len(lists))
	for _, list := range lists {
		text, err := os.ReadFile(list)
		must.NoError(t, err)
		for line := range strings.Lines(string(text)) {
			var row strings.Builder // the text of the files named in the line of a table
			any := false
			for _, m := range code.FindAllStringSubmatch(line, -1) {
				if !named.MatchString(m[1]) {
					continue
				}
				pattern := strings.ReplaceAll(m[1], "<noun>", "*")
				files, err := filepath.Glob(filepath.Join(root, filepath.FromSlash(pattern)))
				must.NoError(t, err)
				must.NotEq(t, 0, len(files), must.Sprintf("%s names %s, which is not there", filepath.Base(list), m[1]))
				any = any || strings.Contains(pattern, "*")
				for _, f := range files {
					if b, err := os.ReadFile(f); err == nil {
						row.Write(b)
					}
				}
			}
			if !strings.HasPrefix(line, "|") || row.Len() == 0 || any {
				continue
			}
			for _, m := range code.FindAllStringSubmatch(line, -1) {
				if identifier.MatchString(m[1]) {
					must.StrContains(t, row.String(), m[1], must.Sprintf("%s: %s", filepath.Base(list), line))
				}
			}
		}
	}
}
