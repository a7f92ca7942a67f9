// Package bundle reads a folder of files that form one plugin: the files that belong to it, within
// bounds, and one digest over all of them.
package bundle

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Bounds of a bundle.
const (
	MaxFiles     = 4096
	MaxBytes     = 2 << 30 // total size of all files
	MaxPathBytes = 240     // length of a file's path within the folder
)

// File is one file of a bundle.
type File struct {
	Path       string // relative to the folder, with slashes
	SizeBytes  int64
	Executable bool
	Digest     string // "sha256:<hex>"; List leaves it empty
}

// List returns the files of a folder, sorted by path. Errors: NotFound; Unsupported for links and
// special files, Forbidden for files that users other than the owner can write, TooLarge beyond the
// bounds.
func List(dir string) ([]File, error) {
	root, err := os.OpenRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, core.Errorf(core.NotFound, "there is no folder %s", dir)
	}
	if err != nil {
		return nil, core.Wrap(err, core.Forbidden, "read plugin folder")
	}
	defer root.Close()
	var files []File
	total := int64(0)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		at := filepath.Join(dir, filepath.FromSlash(name))
		switch mode := info.Mode(); {
		case !mode.IsDir() && !mode.IsRegular():
			return core.Errorf(core.Unsupported, "%s is neither a file nor a folder", at).Hint("A plugin's folder holds plain files: put the file itself there, not a link to it.")
		case mode.Perm()&0o022 != 0:
			return core.Errorf(core.Forbidden, "%s has mode %s: other users could replace what runs here", at, mode).Hint("Run: chmod -R go-w %s", dir)
		case mode.IsDir():
			return nil
		}
		if total += info.Size(); len(files) == MaxFiles || total > MaxBytes || len(name) > MaxPathBytes {
			return core.Errorf(core.TooLarge, "%s has more than %d files, more than %d bytes, or a path longer than %d bytes", dir, MaxFiles, int64(MaxBytes), MaxPathBytes).Hint(
				"A plugin's folder holds the plugin only: keep models and data elsewhere.")
		}
		files = append(files, File{Path: name, SizeBytes: info.Size(), Executable: info.Mode().Perm()&0o111 != 0})
		return nil
	})
	if err != nil {
		return nil, core.WithKind(err, core.KindOf(err))
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return files, nil
}

// Sum returns the digest of a bundle, "sha256:<hex>", over the paths, modes and digests of its
// files, which must be in the order of List.
func Sum(files []File) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%q %t %s\n", f.Path, f.Executable, f.Digest)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}
