package gobuild

import (
	"cmp"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// moduleSource matches a package path and a version. Neither can be mistaken for a flag or a file.
var moduleSource = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._~-]*(/[a-zA-Z0-9._~-]+)*@[a-zA-Z0-9][a-zA-Z0-9._+-]*$`)

// WorkerType returns the part after "rbee-worker-" in the name of the folder or package, which is
// how such executables are named; empty: the name has another form.
func (s Source) WorkerType() string {
	path, _, _ := strings.Cut(s.module, "@")
	name, found := strings.CutPrefix(filepath.Base(cmp.Or(path, s.folder)), "rbee-worker-")
	if !found {
		return ""
	}
	return name
}

// Root returns the folder of the module that contains a folder, or the folder itself; empty: the
// source is downloaded.
func (s Source) Root() string {
	for dir := s.folder; dir != ""; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir
		}
		if dir == filepath.Dir(dir) {
			break
		}
	}
	return s.folder
}

// ParseSource parses the absolute path of a folder, or a package and a version:
// "example.org/bee/cmd/worker@v1.2.3". Errors: Invalid.
func ParseSource(text string) (Source, error) {
	switch {
	case len(text) > 1<<10, strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f }):
	case filepath.IsAbs(text):
		return Source{folder: filepath.Clean(text)}, nil
	case moduleSource.MatchString(text) && !strings.Contains(text, ".."):
		return Source{module: text}, nil
	}
	return Source{}, core.Errorf(core.Invalid, "not a source of a program").Hint(
		"It is the absolute path of a folder on the hive's machine, such as /srv/bee, or a package with a version, such as example.org/bee/cmd/worker@v1.2.3.")
}
