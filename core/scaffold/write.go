package scaffold

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/rbee-project/rbee/core"
)

// writeFiles creates the folder with the files, and returns their names. On failure it removes a
// folder that it created.
func writeFiles(dir string, files map[string]string) (names []string, err error) {
	const what = "write plugin"
	there, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // source is for others to read
			return nil, core.Wrap(err, core.Internal, what)
		}
		defer func() {
			if err != nil {
				_ = os.RemoveAll(dir)
			}
		}()
	case err != nil:
		return nil, core.Wrap(err, core.Conflict, what)
	case len(there) > 0:
		return nil, core.Errorf(core.Conflict, "%s: %s has something in it", what, dir).Hint("Name another folder with --dir, or remove it.")
	}
	names = slices.Sorted(maps.Keys(files))
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(files[name]), 0o644); err != nil { //nolint:gosec // likewise
			return nil, core.Wrap(err, core.Internal, what)
		}
	}
	return names, nil
}
