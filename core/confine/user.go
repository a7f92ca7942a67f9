package confine

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
)

// User is the user that a process runs as, in numeric IDs: it needs no account.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary
}

// Use makes cmd run as the user, which requires root. A nil user changes nothing.
func (u *User) Use(cmd *exec.Cmd) {
	if u == nil {
		return
	}
	attr := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Credential = &syscall.Credential{Uid: u.UID, Gid: u.GID, Groups: u.Groups}
	cmd.SysProcAttr = &attr
}

// Enters returns the reason why the user cannot enter an existing folder, judging by the modes of
// all folders on the way; nil: it can. It ignores access control lists.
func (u *User) Enters(dir string) error {
	dir, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return err
	}
	for ; ; dir = filepath.Dir(dir) {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if !u.may(info, 1) {
			return fmt.Errorf("%s is closed to other users (%s)", dir, info.Mode())
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
	}
}

// Runs returns the reason why the user cannot read and execute a file; nil: it can.
func (u *User) Runs(file string) error {
	info, err := os.Stat(file)
	if err != nil {
		return err
	}
	if err := u.Enters(filepath.Dir(file)); err != nil {
		return err
	}
	if !u.may(info, 5) {
		return fmt.Errorf("%s cannot be executed by other users (%s)", file, info.Mode())
	}
	return nil
}

// Reads returns the reason why the user cannot read a file, or a folder and the files in it; nil:
// it can. It checks the first thousand of those files.
func (u *User) Reads(path string) error {
	path, err := filepath.EvalSymlinks(path)
	if err != nil {
		return err
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if err := u.Enters(filepath.Dir(path)); err != nil {
		return err
	}
	if !info.IsDir() {
		return u.opens(path, info)
	}
	if !u.may(info, 5) {
		return fmt.Errorf("%s is closed to other users (%s)", path, info.Mode())
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	entries, _ := f.ReadDir(1000) // a partial list on an error
	for _, e := range entries {
		if info, err := e.Info(); err == nil && info.Mode().IsRegular() {
			if err := u.opens(filepath.Join(path, e.Name()), info); err != nil {
				return err
			}
		}
	}
	return nil
}

func (u *User) opens(path string, info fs.FileInfo) error {
	if !u.may(info, 4) {
		return fmt.Errorf("%s cannot be read by other users (%s)", path, info.Mode())
	}
	return nil
}

// may reports whether the mode grants the user these bits, such as 1 for entering.
func (u *User) may(info fs.FileInfo, bits fs.FileMode) bool {
	have := info.Mode().Perm()
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		switch {
		case stat.Uid == u.UID:
			have >>= 6
		case stat.Gid == u.GID, slices.Contains(u.Groups, stat.Gid):
			have >>= 3
		}
	}
	return have&bits == bits
}

// Own makes the user the owner of a folder, which nobody else may enter.
func (u *User) Own(dir string) error {
	if err := os.Lchown(dir, int(u.UID), int(u.GID)); err != nil {
		return err
	}
	return os.Chmod(dir, 0o700)
}

// Pass lets the user's group enter the folders from root down to the one that holds path. It leaves
// a path outside root alone, and modes that already suffice.
func (u *User) Pass(root, path string) error {
	if !within(root, path) {
		return nil
	}
	for dir := filepath.Dir(path); len(dir) >= len(root); dir = filepath.Dir(dir) {
		if err := u.admit(dir, func(fs.FileMode) fs.FileMode { return 0o010 }); err != nil {
			return err
		}
	}
	return nil
}

// Admit lets the user's group reach path, as Pass does, and read and execute everything at and
// below it, as far as the owner may. It grants no write access.
func (u *User) Admit(root, path string) error {
	if !within(root, path) {
		return nil
	}
	if err := u.Pass(root, path); err != nil {
		return err
	}
	return filepath.WalkDir(path, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Type()&^fs.ModeDir != 0 {
			return err
		}
		return u.admit(path, func(mode fs.FileMode) fs.FileMode { return mode & 0o500 >> 3 })
	})
}

func within(root, path string) bool {
	rel, err := filepath.Rel(root, path)
	return err == nil && filepath.IsLocal(rel)
}

func (u *User) admit(path string, more func(fs.FileMode) fs.FileMode) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	mode := info.Mode().Perm()
	bits := more(mode)
	if mode&(bits>>3) == bits>>3 {
		return nil // all users may
	}
	want := mode | bits
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Gid != u.GID {
		if err := os.Lchown(path, -1, int(u.GID)); err != nil {
			return err
		}
	}
	if want == mode {
		return nil
	}
	return os.Chmod(path, want)
}
