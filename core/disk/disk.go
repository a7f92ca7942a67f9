// Package disk makes files and folders that survive a loss of power once its functions have
// returned, and sealed files that reveal any later change. Its errors are those of package os:
// callers classify them.
package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// MakeFolder creates a folder with mode 0700, and its missing parents. An existing folder keeps its
// mode. MakeFolder syncs an existing folder's name as well where possible: its creator may have
// been interrupted. It is safe for concurrent use.
func MakeFolder(path string) error {
	path = filepath.Clean(path)
	var missing []string // the deepest first
	for p := path; ; p = filepath.Dir(p) {
		if _, err := os.Stat(p); err == nil || p == filepath.Dir(p) {
			break
		}
		missing = append(missing, p)
	}
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	if len(missing) == 0 {
		_ = SyncFolder(filepath.Dir(path)) // the parent may belong to another user
		return nil
	}
	for _, p := range missing {
		if err := SyncFolder(filepath.Dir(p)); err != nil {
			return err
		}
	}
	return nil
}

// SyncFolder flushes the names in a folder to disk.
func SyncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Replace sets a file's content: after a loss of power the file has the old or the new content,
// whole. The folder must exist.
func Replace(path string, data []byte, mode fs.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// Unnamed creates a file with mode 0600 in a folder and unlinks it at once: its bytes are freed
// when the file is closed or the process exits. Nothing of it survives a loss of power. The folder
// must exist.
func Unnamed(folder string) (*os.File, error) {
	f, err := os.CreateTemp(folder, ".unnamed-*") // mode 0600
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Append adds a line to a file, creating the file with mode 0600 if it is missing. The folder must
// exist.
func Append(path, line string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(line + "\n")
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// Remove removes a file durably. A missing file is not an error.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// Rename renames a file or a folder durably: it syncs the folders that hold the old and the new
// name.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := SyncFolder(filepath.Dir(to)); err != nil || filepath.Dir(from) == filepath.Dir(to) {
		return err
	}
	return SyncFolder(filepath.Dir(from))
}
