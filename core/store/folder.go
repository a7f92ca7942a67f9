package store

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/disk"
)

// folder is the directory of a store: it opens, locks, writes, flushes and publishes files by name.
type folder struct {
	dir  string
	log  hclog.Logger
	root *os.Root
	boot func() string           // identifies this boot of the machine; empty: unknown
	fail func(step string) error // tests stop here; nil otherwise
}

func (s *folder) open() error {
	_, missing := os.Stat(s.dir)
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	// A folder whose directory entry is not on the disk can lose everything in it. This user may be
	// unable to open the parent folder, unless this call just created it.
	if err := syncPath(filepath.Dir(s.dir)); err != nil && missing != nil {
		return err
	}
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	s.root = root
	for _, d := range []string{blobsDir, modelsDir, partsDir, workersDir, partialDir, quarantineDir} {
		if err := root.MkdirAll(d, 0o700); err != nil {
			_ = root.Close()
			return err
		}
	}
	if err := s.syncDir("."); err != nil {
		_ = root.Close()
		return err
	}
	if err := s.cleanPartial(time.Now()); err != nil {
		s.log.Warn("leftovers of earlier transfers could not be removed", "error", err)
	}
	return nil
}

// Close releases the store's folder. Transfers must have ended.
func (s *folder) Close() error { return s.root.Close() }

// Dir returns the store's folder, an absolute path.
func (s *folder) Dir() string { return s.dir }

// abs returns the path of a file of the store for other processes.
func (s *folder) abs(name string) string { return filepath.Join(s.dir, filepath.FromSlash(name)) }

// cleanPartial removes what no running process holds: unfinished folders and nameless files at
// once, resumable files after a while.
func (s *folder) cleanPartial(now time.Time) error {
	entries, err := fs.ReadDir(s.root.FS(), partialDir)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range entries {
		name := path.Join(partialDir, e.Name())
		switch kind, _, _ := strings.Cut(e.Name(), "-"); kind {
		case "trash":
			failed = append(failed, s.root.RemoveAll(name))
		case "tmp":
			failed = append(failed, s.removeUnlocked(name, ""))
		case "stage":
			stage := strings.TrimSuffix(name, ".lock")
			failed = append(failed, s.removeUnlocked(stage+".lock", stage))
		case "sha256", "sha512":
			if file, ok := strings.CutSuffix(name, journalSuffix); ok {
				if _, err := s.root.Lstat(file); errors.Is(err, fs.ErrNotExist) {
					failed = append(failed, s.removeUnlocked(file, name))
				}
			} else if info, err := e.Info(); err == nil && now.Sub(info.ModTime()) > partialAge {
				failed = append(failed, s.removeUnlocked(name, journalName(name)))
			}
		}
	}
	return errors.Join(failed...)
}

// removeUnlocked removes a file unless a process has it locked. Before the file, it removes the
// folder that the file guards.
func (s *folder) removeUnlocked(name, folder string) error {
	f, err := s.root.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		if folder != "" {
			// its lock is created before it and removed after it, so no process holds it
			return s.root.RemoveAll(folder)
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if locked, err := tryLock(f); err != nil || !locked {
		return err
	}
	if same, err := s.isStill(f, name); err != nil || !same {
		return err
	}
	if folder != "" {
		if err := s.root.RemoveAll(folder); err != nil {
			return err
		}
	}
	return s.root.Remove(name)
}

// step returns an error at a step where a test wants to stop.
func (s *folder) step(name string) error {
	if s.fail == nil {
		return nil
	}
	return s.fail(name)
}

// publish renames name to its final place and flushes the change to the disk.
func (s *folder) publish(name, to string) error {
	if err := s.root.Rename(name, to); err != nil {
		return err
	}
	if err := s.syncDir(path.Dir(to)); err != nil {
		return err
	}
	return s.syncDir(path.Dir(name))
}

func syncPath(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *folder) syncDir(name string) error {
	d, err := s.root.Open(name)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// writeJSON writes v to a file of the store atomically.
func (s *folder) writeJSON(name string, v any) error {
	b, err := disk.Seal(v)
	if err != nil {
		return err
	}
	temp, f, err := s.tempFile()
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = s.publish(temp, name)
	}
	if err != nil {
		_ = s.root.Remove(temp)
		return spaceError(name, err)
	}
	return nil
}

// tempFile creates a locked file with a new name in partial/.
func (s *folder) tempFile() (string, *os.File, error) {
	for {
		name := path.Join(partialDir, "tmp-"+rand.Text())
		f, err := s.root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
		if err != nil {
			return "", nil, spaceError(name, err)
		}
		locked, err := tryLock(f)
		if err == nil && locked {
			if locked, err = s.isStill(f, name); locked {
				return name, f, nil
			}
		}
		_ = f.Close()
		if err != nil {
			return "", nil, err
		}
		// A process that opened the store removed it as a leftover just before it was locked.
	}
}

// readJSON reads a record; its errors are full sentences.
func (s *folder) readJSON(name string, v any) error {
	f, err := s.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return core.Errorf(core.NotFound, "%s is missing", path.Base(name))
	}
	if err != nil {
		return err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecordBytes+1))
	if err != nil {
		return err
	}
	if len(b) > maxRecordBytes {
		return core.Errorf(core.Integrity, "%s is larger than %d MiB", path.Base(name), maxRecordBytes>>20)
	}
	if err := disk.CheckSeal(b); err != nil {
		return core.Errorf(core.Integrity, "%s cannot be trusted: %w", path.Base(name), err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		return core.Errorf(core.Integrity, "%s cannot be read: %w", path.Base(name), err)
	}
	return nil
}
