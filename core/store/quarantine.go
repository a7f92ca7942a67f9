package store

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"io/fs"
	"path"
	"slices"

	"github.com/rbee-project/rbee/core"
)

// Files that do not match their announced digest go into quarantine/, which is never searched for
// models. They are kept for inspection.
const (
	quarantineDir   = "quarantine"
	quarantineFiles = 3        // the newest are kept
	quarantineBytes = 16 << 30 // all files together
)

// quarantine moves the arrived bytes into quarantine and restarts the partial file. where is the
// new path, or empty if the file was too large to keep.
func (t *transfer) quarantine(ctx context.Context) (where string, err error) {
	s, p := t.s, t.p
	size := p.state().size
	if p.notes == nil || size > quarantineBytes {
		return "", t.drop(0, true)
	}
	name := path.Join(quarantineDir, path.Base(p.name)+"-"+rand.Text()[:8])
	p.forget()
	if err := s.publish(p.name, name); err != nil {
		return "", spaceError(name, err)
	}
	s.log.Error("a file is not what its publisher announced: it was put into quarantine", "file", t.spec.Path, "path", name)
	if err := s.trimQuarantine(); err != nil {
		s.log.Warn("quarantine could not be trimmed", "error", err)
	}
	_, _ = p.file.Close(), p.notes.file.Close()
	if p.file, err = s.lockedFile(ctx, p.name); err != nil {
		return "", err
	}
	// Another process may have written in between.
	if err := p.file.Truncate(0); err != nil {
		return "", err
	}
	p.forget()
	next, _, err := s.openPartial(p.file, p.name, t.spec, t.want)
	if err != nil {
		return "", err
	}
	p.notes = next.notes
	return s.abs(name), t.drop(0, true)
}

// trimQuarantine removes the oldest files beyond the limits.
func (s *transfers) trimQuarantine() error {
	files, err := s.quarantined()
	if err != nil {
		return err
	}
	var failed []error
	total := int64(0)
	for i, f := range files {
		total += f.Size()
		if i >= quarantineFiles || total > quarantineBytes {
			failed = append(failed, s.root.Remove(path.Join(quarantineDir, f.Name())))
		}
	}
	return errors.Join(failed...)
}

// quarantined lists the files in quarantine, the newest first.
func (s *transfers) quarantined() ([]fs.FileInfo, error) {
	entries, err := fs.ReadDir(s.root.FS(), quarantineDir)
	if err != nil {
		return nil, err
	}
	var out []fs.FileInfo
	for _, e := range entries {
		info, err := e.Info()
		if err == nil {
			out = append(out, info)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	slices.SortFunc(out, func(a, b fs.FileInfo) int {
		return cmp.Or(b.ModTime().Compare(a.ModTime()), cmp.Compare(a.Name(), b.Name()))
	})
	return out, nil
}

// Quarantined lists the files that did not match their announced digest, newest first.
func (s *transfers) Quarantined() ([]core.File, error) {
	files, err := s.quarantined()
	out := make([]core.File, 0, len(files))
	for _, f := range files {
		out = append(out, core.File{Path: path.Join(quarantineDir, f.Name()), SizeBytes: f.Size()})
	}
	return out, err
}
