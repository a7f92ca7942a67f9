// Package disk makes files and folders that outlast a loss of power once its functions have
// returned, and files that tell whether they are as they were written. Its errors are those of
// package os: callers classify them.
package disk

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
)

// MakeFolder makes a folder with mode 0700, and those above it that are missing. A folder that was
// there before keeps its mode. Its name is synced as well where possible: the process that made it
// may have been cut short. It is safe for concurrent use.
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
		_ = SyncFolder(filepath.Dir(path)) // the folder above may be another user's
		return nil
	}
	for _, p := range missing {
		if err := SyncFolder(filepath.Dir(p)); err != nil {
			return err
		}
	}
	return nil
}

// SyncFolder flushes the names in a folder.
func SyncFolder(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Replace gives a file this content: after a loss of power it has the old or the new one, whole.
// The folder must be there.
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

// Unnamed makes a file with mode 0600 in a folder and takes its name away at once: its bytes go
// when it is closed, or with the process. Nothing of it outlasts a loss of power. The folder must
// be there.
func Unnamed(folder string) (*os.File, error) {
	f, err := os.CreateTemp(folder, ".unnamed-*") // 0600
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// Append adds a line to a file, and makes the file with mode 0600 if it is missing. The folder must
// be there.
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

// Remove removes a file for good. One that is not there is removed.
func Remove(path string) error {
	if err := os.Remove(path); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	}
	return SyncFolder(filepath.Dir(path))
}

// Rename gives a file or a folder another name. Folders that are on the disk stay so.
func Rename(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	if err := SyncFolder(filepath.Dir(to)); err != nil || filepath.Dir(from) == filepath.Dir(to) {
		return err
	}
	return SyncFolder(filepath.Dir(from))
}
