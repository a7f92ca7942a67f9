package pluginhost

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/confine"
)

// Walls define how plugins are isolated.
type Walls struct {
	// Rules are the files that plugins may access, beside their own folders; nil: all that the user
	// may.
	Rules confine.Rules
	// Homes are people's home folders, with symlinks resolved. Plugins see nothing in them except
	// what Rules, a block of the configuration or an environment variable names.
	Homes []string
	// HomeDir is the parent of the plugins' persistent home folders, where their libraries may keep
	// files; empty: a plugin's private folder is its home.
	HomeDir string
	// User returns the user that the plugin of a kind and name, such as "worker-cpu", runs as; nil:
	// this process's.
	User func(name string) *confine.User
	// Roots are folders of this process that such a user may traverse, to reach what a plugin needs
	// there.
	Roots []string
	// Problem describes what these walls lack; empty: nothing.
	Problem string
}

// Confined describes how to start a process that is a plugin, or that will start one.
type Confined struct {
	Name       string   // determines the user, such as "worker-cpu"; empty: this process's user
	Executable string   // of the plugin; its folder may be read
	Dir        string   // private folder: for sockets and temporary files
	Read       []string // further readable paths, absolute
	Write      []string // further writable paths, likewise
	Home       string   // empty: Dir

	user *confine.User // takes precedence over Name's; nil: Name's
}

// Confinement explains why plugins are not confined, or not as much as possible; empty: they are.
func (h *Host) Confinement() string {
	if h.o.Walls.Rules == nil {
		return "confinement is off"
	}
	var missing []string
	for _, problem := range []string{confine.Problem(), h.o.Walls.Problem} {
		if problem != "" {
			missing = append(missing, problem)
		}
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(h.asRoot)) {
		missing = append(missing, h.asRoot[name])
	}
	return strings.Join(missing, "; ")
}

// StartConfined starts cmd within the host's walls. Its home folder is c.Home; its temporary folder
// is c.Dir if it may not use the system's.
func (h *Host) StartConfined(cmd *exec.Cmd, c Confined) error {
	if h.o.Walls.Rules == nil {
		return cmd.Start()
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	if c.Home == "" {
		c.Home = c.Dir
	}
	if v, _ := lookup(cmd.Env, "HOME"); !strings.HasPrefix(v, c.Dir+"/") {
		cmd.Env = append(cmd.Env, "HOME="+c.Home)
	}
	user := c.user
	if user == nil && c.Name != "" {
		user = h.userFor(c.Name, func(u *confine.User) error { return errors.Join(u.Runs(cmd.Path), h.runs(u, c.Executable)) })
	}
	if user != nil {
		if err := h.prepare(user, cmd, c); err != nil {
			return err
		}
		user.Use(cmd)
	}
	if confine.Problem() != "" {
		return cmd.Start()
	}
	rules := h.rules(c)
	temp := os.TempDir()
	if v, ok := lookup(cmd.Env, "TMPDIR"); ok {
		temp = v
	}
	if !rules.Creates(temp) || user != nil && user.Enters(temp) != nil {
		cmd.Env = append(cmd.Env, "TMPDIR="+c.Dir)
	}
	return confine.Start(cmd, rules)
}

// prepare gives a user access to what it needs to run a process.
func (h *Host) prepare(u *confine.User, cmd *exec.Cmd, c Confined) error {
	if err := h.give(u, c.Dir); err != nil {
		return err
	}
	for _, path := range c.Read {
		// Hidden paths stay hidden, even if a block names them.
		if h.o.Walls.Rules.Access(path) == confine.None {
			continue
		}
		if err := h.admitModel(u, path); err != nil {
			return err
		}
	}
	return nil
}

// user returns the user that the plugin of a kind and name runs as, if its block names no files;
// nil: this process's.
func (h *Host) user(name string) *confine.User {
	if h.o.Walls.User == nil {
		return nil
	}
	return h.o.Walls.User(name)
}

// userOf is user for a plugin whose files may be inaccessible to that user, or whose block may name
// such files.
func (h *Host) userOf(name string, s Spec) *confine.User {
	return h.userFor(name, func(u *confine.User) error {
		paths := blockPaths(s)
		for _, entry := range originFiles(filepath.Base(s.Executable), h.o.Environ()) {
			_, path, _ := strings.Cut(entry, "=")
			paths = append(paths, path)
		}
		for _, path := range paths {
			if err := u.Reads(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if s.Folder != "" && !h.inRoots(s.Folder) {
			if err := u.Reads(s.Folder); err != nil {
				return err
			}
		}
		return h.runs(u, s.Executable)
	})
}

// runs returns why a user cannot run a plugin's executable; nil: it can, or will be given access,
// as the executable is in a folder of this process.
func (h *Host) runs(u *confine.User, executable string) error {
	if h.inRoots(executable) {
		return nil
	}
	return u.Runs(executable)
}

func (h *Host) inRoots(path string) bool {
	return slices.ContainsFunc(h.o.Walls.Roots, func(root string) bool {
		rel, err := filepath.Rel(root, path)
		return err == nil && filepath.IsLocal(rel)
	})
}

// userFor is user if can reports no problem. Otherwise the plugin runs as this process's user, and
// Confinement reports it.
func (h *Host) userFor(name string, can func(*confine.User) error) *confine.User {
	u := h.user(name)
	if u == nil {
		return nil
	}
	why := ""
	if err := can(u); err != nil {
		why = fmt.Sprintf("%s runs as root, as it needs what only root reads: %v", name, err)
	}
	h.mu.Lock()
	was := h.asRoot[name]
	if h.asRoot[name] = why; why == "" {
		delete(h.asRoot, name)
	}
	h.mu.Unlock()
	if why == "" {
		return u
	}
	if why != was {
		h.o.Logger.Warn("a plugin runs as root", "problem", why)
	}
	return nil
}

// admit gives a plugin's user read access to a path in one of this process's folders.
func (h *Host) admit(u *confine.User, path string) error {
	if u == nil || path == "" {
		return nil
	}
	for _, root := range h.o.Walls.Roots {
		if err := u.Admit(root, path); err != nil {
			return core.Wrap(err, core.Internal, "let the plugin's user read")
		}
	}
	return nil
}

// admitModel is admit for a model, whose path may be one of several symlinks to its files.
func (h *Host) admitModel(u *confine.User, path string) error {
	info, err := os.Lstat(path)
	if u == nil || err != nil || info.Mode()&os.ModeSymlink == 0 {
		return h.admit(u, path)
	}
	parts, err := filepath.Glob(filepath.Join(filepath.Dir(path), "*.gguf"))
	if err != nil {
		return core.Wrap(err, core.Internal, "let the plugin's user read")
	}
	for _, part := range parts {
		real, err := filepath.EvalSymlinks(part)
		if err != nil {
			return core.Wrap(err, core.Internal, "let the plugin's user read")
		}
		if err := h.admit(u, real); err != nil {
			return err
		}
	}
	return h.admit(u, filepath.Dir(path))
}

// give makes the plugin's user the owner of a folder, and lets it traverse the parents.
func (h *Host) give(u *confine.User, dir string) error {
	if u == nil {
		return nil
	}
	if err := u.Own(dir); err != nil {
		return core.Wrap(err, core.Internal, "give the plugin its folder")
	}
	for _, root := range h.o.Walls.Roots {
		if err := u.Pass(root, dir); err != nil {
			return core.Wrap(err, core.Internal, "let the plugin's user through to its folder")
		}
	}
	return nil
}

// home creates the home folder of a plugin; empty: it has none.
func (h *Host) home(name string, u *confine.User) (string, error) {
	if h.o.Walls.Rules == nil || h.o.Walls.HomeDir == "" {
		return "", nil
	}
	dir := filepath.Join(h.o.Walls.HomeDir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", core.Wrap(err, core.Internal, "make the plugin's home folder")
	}
	return dir, h.give(u, dir)
}

// rules returns the host's rules for one process.
func (h *Host) rules(c Confined) confine.Rules {
	w := h.o.Walls
	rules := maps.Clone(w.Rules)
	for _, home := range w.Homes {
		if rules.Access(home) != confine.None {
			rules[home] = confine.None
		}
	}
	if folder := filepath.Dir(c.Executable); c.Executable != "" && rules.Access(folder) == confine.None {
		rules[folder] = confine.Read
	}
	allow := func(access confine.Access, paths []string) {
		for _, path := range paths {
			real, err := filepath.EvalSymlinks(path)
			// What the host's rules hide is hidden from all plugins, even if a block names it.
			if err != nil || !filepath.IsAbs(path) || w.Rules.Access(real) == confine.None || rules.Access(real) >= access {
				continue
			}
			rules[real] = access
			for _, home := range w.Homes {
				if home == real {
					hideDotFiles(rules, home)
				}
			}
		}
	}
	allow(confine.Read, c.Read)
	allow(confine.Full, c.Write)
	for _, dir := range []string{c.Dir, c.Home} {
		if rules.Access(dir) != confine.Full {
			rules[dir] = confine.Full
		}
	}
	return rules
}

// hideDotFiles hides what programs keep in a visible home folder: keys, tokens, history, start-up
// files.
func hideDotFiles(rules confine.Rules, home string) {
	entries, err := os.ReadDir(home)
	if err != nil {
		return
	}
	for _, e := range entries {
		path := filepath.Join(home, e.Name())
		if _, named := rules[path]; !named && strings.HasPrefix(e.Name(), ".") {
			rules[path] = confine.None
		}
	}
}
