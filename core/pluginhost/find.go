package pluginhost

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/bundle"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// Executable is a plugin found in the plugin folder.
type Executable struct {
	Kind sdk.Kind `json:"kind"`
	Name string   `json:"name"` // after rbee-<kind>-
	Path string   `json:"path"`
	// Folder is set if the plugin is a folder of files; Path is then the file in it with the
	// folder's name.
	Folder string `json:"folder,omitempty"`
	// Problem explains why it cannot be launched; empty: it can.
	Problem string `json:"problem,omitempty"`
}

// Find returns the plugin of that kind and name. Errors: NotFound with the nearest names as hint,
// Forbidden for a file that others can write, Unsupported for a file that is not executable.
func (h *Host) Find(kind sdk.Kind, name string) (Executable, error) {
	return h.findFile(fmt.Sprintf("rbee-%s-%s", kind, name))
}

// List returns the plugins of the plugin folder, ordered by kind and name; those that cannot be
// launched have a Problem. A missing folder counts as empty.
func (h *Host) List() ([]Executable, error) {
	entries, err := os.ReadDir(h.o.PluginDir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, core.Errorf(core.Internal, "list plugins: plugin folder: %w", err)
	}
	var out []Executable
	for _, e := range entries {
		kind, name, ok := splitName(e.Name())
		if !ok {
			continue
		}
		x := Executable{Kind: kind, Name: name}
		var err error
		if x.Path, x.Folder, err = locate(filepath.Join(h.o.PluginDir, e.Name())); err != nil {
			x.Problem = err.Error()
			if hint := core.HintOf(err); hint != "" {
				x.Problem += ". " + hint
			}
		}
		out = append(out, x)
	}
	slices.SortFunc(out, func(a, b Executable) int {
		return strings.Compare(string(a.Kind)+" "+a.Name, string(b.Kind)+" "+b.Name)
	})
	return out, nil
}

func splitName(file string) (sdk.Kind, string, bool) {
	for _, kind := range []sdk.Kind{sdk.KindWorker, sdk.KindCatalog} {
		if name, ok := strings.CutPrefix(file, fmt.Sprintf("rbee-%s-", kind)); ok {
			return kind, name, config.ValidPluginName(name)
		}
	}
	return "", "", false
}

func (h *Host) findFile(file string) (Executable, error) {
	const op = "find plugin"
	kind, name, ok := splitName(file)
	if !ok {
		return Executable{}, core.Errorf(core.Invalid, "%s: %q is no plugin's file name: it is rbee-worker-NAME or rbee-catalog-NAME with a name of lower-case letters, digits, dashes and underscores", op, file)
	}
	path, err := filepath.Abs(filepath.Join(h.o.PluginDir, file))
	if err != nil {
		return Executable{}, core.Wrap(err, core.Internal, op)
	}
	exe, folder, err := locate(path)
	if core.KindOf(err) == core.NotFound {
		return Executable{}, core.Errorf(core.NotFound, "%s: there is no %s in %s", op, file, h.o.PluginDir).Hint("%s", h.namesHint(kind, name))
	}
	if err != nil {
		return Executable{}, err
	}
	return Executable{Kind: kind, Name: name, Path: exe, Folder: folder}, nil
}

// locate returns what is launched for a path: the file itself, or for a folder the file in it that
// has the folder's name. exe is also set if err is not nil.
func locate(path string) (exe, folder string, err error) {
	if info, err := os.Lstat(path); err != nil || !info.IsDir() {
		return path, "", checkExecutable(path)
	}
	exe = filepath.Join(path, filepath.Base(path))
	if _, err := bundle.List(path); err != nil {
		return exe, path, core.Prefix(err, "find plugin")
	}
	err = checkExecutable(exe)
	if core.KindOf(err) == core.NotFound {
		err = core.Errorf(core.Unsupported, "find plugin: the folder %s has no file %s", path, filepath.Base(path)).Hint(
			"What is started in a plugin's folder has the folder's name.")
	}
	return exe, path, err
}

func (h *Host) namesHint(kind sdk.Kind, name string) string {
	found, err := h.List()
	var names []string
	for _, e := range found {
		if e.Kind == kind {
			names = append(names, e.Name)
		}
	}
	switch {
	case err != nil || len(names) == 0:
		return fmt.Sprintf("There is no %s plugin at all: set plugin_dir to the folder where the plugins are.", kind)
	case len(core.Nearest(name, names)) > 0:
		return fmt.Sprintf("Did you mean %q? There are: %s.", core.Nearest(name, names)[0], strings.Join(names, ", "))
	}
	return fmt.Sprintf("There are: %s.", strings.Join(names, ", "))
}

// checkExecutable returns why the file may not be launched; nil: it may.
func checkExecutable(path string) error {
	const op = "find plugin"
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return core.Errorf(core.NotFound, "%s: there is no %s", op, path)
	case err != nil:
		return core.Wrap(err, core.Forbidden, op)
	case !info.Mode().IsRegular():
		return core.Errorf(core.Unsupported, "%s: %s is not a regular file", op, path).Hint("Put the executable itself there, not a link to it.")
	case info.Mode().Perm()&0o022 != 0:
		return core.Errorf(core.Forbidden, "%s: %s has mode %s: other users could replace what runs here", op, path, info.Mode()).Hint("Run: chmod go-w %s", path)
	case info.Mode().Perm()&0o111 == 0:
		return core.Errorf(core.Unsupported, "%s: %s is not executable", op, path).Hint("Run: chmod u+x %s", path)
	}
	return nil
}

// fileKey changes whenever a file's content does, as far as the file system can tell. An inode's
// change time cannot be set without setting the system's clock.
type fileKey struct {
	path     string // where there are no inodes
	size     int64
	modified time.Time
	inode    any // device, number and time of change
}

func fileKeyOf(path string, info fs.FileInfo) fileKey {
	key := fileKey{size: info.Size(), modified: info.ModTime(), inode: inodeOf(info)}
	if key.inode == nil {
		key.path = path
	}
	return key
}

// Digest returns the SHA-256 of a file as it is on disk now, "sha256:<hex>". Errors: Internal.
func (h *Host) Digest(path string) (string, error) {
	sum, err := h.digest(path, false)
	if err != nil {
		return "", core.Wrap(err, core.Internal, "read plugin")
	}
	return "sha256:" + sum, nil
}

// CodeDigest returns the digest of what a spec launches, as it is on disk now: of the executable,
// or of the whole folder. Errors: Internal, and those of a folder.
func (h *Host) CodeDigest(s Spec) (string, error) {
	if s.Folder == "" {
		return h.Digest(s.Executable)
	}
	return h.folderDigest(s.Folder, false)
}

func (h *Host) folderDigest(dir string, fresh bool) (string, error) {
	files, err := bundle.List(dir)
	if err != nil {
		return "", core.Prefix(err, "read plugin")
	}
	for i, f := range files {
		sum, err := h.digest(filepath.Join(dir, filepath.FromSlash(f.Path)), fresh)
		if err != nil {
			return "", core.Wrap(err, core.Internal, "read plugin")
		}
		files[i].Digest = "sha256:" + sum
	}
	return bundle.Sum(files), nil
}

// digest returns the SHA-256 of the file in lower-case hex. It is cached as long as the file does
// not change, unless fresh is set.
func (h *Host) digest(path string, fresh bool) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return "", err
	}
	key := fileKeyOf(path, info)
	h.mu.Lock()
	known := h.digests[key]
	h.mu.Unlock()
	if known != "" && !fresh {
		return known, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	hexSum := hex.EncodeToString(sum.Sum(nil))
	h.mu.Lock()
	defer h.mu.Unlock()
	h.digests[key] = hexSum
	return hexSum, nil
}
