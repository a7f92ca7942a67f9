// Package confine starts child processes that cannot reach certain files of their parent's user.
//
// On Linux it uses Landlock, which needs neither privileges nor a helper: one thread of this
// process gives up its access, starts the child, which inherits the restriction, and ends. On other
// systems, Start starts the child unconfined; Problem reports that.
package confine

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
)

// Access is what a confined process may do with a file, or with everything below a folder.
type Access int

const (
	// None allows only seeing names.
	None Access = iota
	// Read allows reading and executing.
	Read
	// Full allows everything that the user may do.
	Full
)

// Rules maps absolute paths to the access below them. The longest path that leads to a file
// decides; without a matching rule, access is Full. A path may not exist yet.
//
// A file that is created directly in a folder on the way to a rule, after the child started, is out
// of the child's reach, whatever its rule: Landlock only has lists of what is allowed.
type Rules map[string]Access

// With returns a copy of the rules with one more, which replaces a rule of the same path.
func (r Rules) With(path string, access Access) Rules {
	out := maps.Clone(r)
	if out == nil {
		out = Rules{}
	}
	out[path] = access
	return out
}

// Access returns the access that the rules allow to an existing file or folder. It is None if that
// cannot be determined.
func (r Rules) Access(path string) Access {
	rules, err := r.resolved()
	if err != nil {
		return None
	}
	if path, err = realPath(path); err != nil {
		return None
	}
	for ; ; path = filepath.Dir(path) {
		if access, named := rules[path]; named {
			return access
		}
		if path == filepath.Dir(path) {
			return Full
		}
	}
}

// Creates reports whether a confined process may create files directly in a folder.
func (r Rules) Creates(dir string) bool {
	rules, err := r.resolved()
	if err != nil || r.Access(dir) != Full {
		return false
	}
	dir, err = realPath(dir)
	return err == nil && !rules.below(dir)
}

// grant is one entry of the allow-list: everything at and below path.
type grant struct {
	path   string
	access Access
	dir    bool
}

// resolved returns the rules with every symbolic link in their paths resolved, as far as the paths
// exist.
func (r Rules) resolved() (Rules, error) {
	out := Rules{}
	for path, access := range r {
		real, err := realPath(path)
		if err != nil {
			return nil, err
		}
		// Two names of one place: the stricter rule applies.
		if have, ok := out[real]; !ok || access < have {
			out[real] = access
		}
	}
	return out, nil
}

// realPath resolves the links in the part of path that exists.
func realPath(path string) (string, error) {
	path = filepath.Clean(path)
	if !filepath.IsAbs(path) {
		return "", errors.New("a rule needs an absolute path")
	}
	real, err := filepath.EvalSymlinks(path)
	if !errors.Is(err, fs.ErrNotExist) || path == "/" {
		return real, err
	}
	parent, err := realPath(filepath.Dir(path))
	return filepath.Join(parent, filepath.Base(path)), err
}

// grants lists what the rules allow. The paths of the rules must not contain symbolic links.
func (r Rules) grants() []grant {
	var out []grant
	var walk func(dir string, access Access)
	walk = func(dir string, access Access) {
		for _, child := range r.children(dir, access) {
			path := filepath.Join(dir, child.Name())
			inside, named := r[path]
			if !named {
				inside = access
			}
			switch {
			case child.IsDir() && r.below(path):
				walk(path, inside)
			case inside != None && child.Type()&fs.ModeSymlink == 0: // a link's target has its own path
				out = append(out, grant{path: path, access: inside, dir: child.IsDir()})
			}
		}
	}
	access, named := r["/"]
	if !named {
		access = Full
	}
	if !r.below("/") {
		return []grant{{path: "/", access: access, dir: true}}
	}
	walk("/", access)
	return out
}

// below reports whether a rule concerns something below dir.
func (r Rules) below(dir string) bool {
	prefix := strings.TrimSuffix(dir, "/") + "/"
	for path := range r {
		if path != dir && strings.HasPrefix(path, prefix) {
			return true
		}
	}
	return false
}

// children lists the relevant entries of dir: all of them, or only those that lead to a rule if
// access is None or dir cannot be listed.
func (r Rules) children(dir string, access Access) []fs.DirEntry {
	if access != None {
		if f, err := os.Open(dir); err == nil {
			entries, err := f.ReadDir(-1)
			_ = f.Close()
			if err == nil {
				return entries
			}
		}
	}
	prefix := strings.TrimSuffix(dir, "/") + "/"
	names := map[string]bool{}
	var out []fs.DirEntry
	for path := range r {
		rest, ok := strings.CutPrefix(path, prefix)
		name, _, _ := strings.Cut(rest, "/")
		if !ok || name == "" || names[name] {
			continue
		}
		names[name] = true
		if info, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			out = append(out, fs.FileInfoToDirEntry(info))
		}
	}
	return out
}
