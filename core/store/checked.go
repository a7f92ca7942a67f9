package store

import (
	"context"
	"fmt"
	"maps"
	"path"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/core"
)

// checkedFile records, until the machine restarts, which blobs matched their digests.
const checkedFile = "checked.json"

// stamp identifies the state of a file by its metadata. Every change of the content changes it: the
// inode's change time follows the system's clock, and only those who can set the clock can set it.
type stamp struct {
	Device   uint64 `json:"device"`
	Inode    uint64 `json:"inode"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"` // nanoseconds
	Changed  int64  `json:"changed"`  // nanoseconds
}

// checked records which files matched their digests. Records of an earlier boot do not count: while
// the machine was off, the disk may have been changed elsewhere.
type checked struct {
	*folder

	mu     sync.Mutex // guards below
	read   bool
	blobs  map[string]stamp // by digest; stored on disk
	others map[string]stamp // by name relative to the store's folder, and digest; in memory only
}

// checkedRecord is the contents of checked.json.
type checkedRecord struct {
	Boot  string           `json:"boot"`
	Blobs map[string]stamp `json:"blobs"`
}

// stampNow returns the stamp of a file of the store. ok is false if the file system does not report
// enough.
func (s *folder) stampNow(name string) (stamp, bool) {
	info, err := s.root.Lstat(name)
	if err != nil || !info.Mode().IsRegular() {
		return stamp{}, false
	}
	return stampOf(info)
}

// readCheckedLocked loads the records of this boot's processes. The caller holds the lock.
func (s *checked) readCheckedLocked() {
	if s.read {
		return
	}
	s.read, s.blobs, s.others = true, map[string]stamp{}, map[string]stamp{}
	var r checkedRecord
	if boot := s.boot(); boot != "" && s.readJSON(checkedFile, &r) == nil && r.Boot == boot {
		maps.Copy(s.blobs, r.Blobs)
	}
}

// blobChecked reports whether a blob matched its digest and has not changed since.
func (s *checked) blobChecked(d digest) bool {
	now, ok := s.stampNow(blobName(d))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readCheckedLocked()
	then, known := s.blobs[d.String()]
	return ok && known && then == now
}

// noteBlob records that a blob with the stamp matched its digest.
func (s *checked) noteBlob(d digest, st stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readCheckedLocked()
	s.blobs[d.String()] = st
	boot := s.boot()
	if boot == "" {
		return
	}
	if err := s.writeJSON(checkedFile, checkedRecord{Boot: boot, Blobs: s.blobs}); err != nil {
		s.log.Warn("a checked file will be read again by the next process", "file", d.String(), "error", err)
	}
}

// CheckModel compares the files of a model, found as in Model, with their digests, unless that was
// done since the machine booted and they have not changed. A difference is core.Integrity, as in
// VerifyModel.
func (s *Store) CheckModel(ctx context.Context, name string, progress func(core.Progress)) error {
	r, err := s.findModel(name)
	if err != nil {
		return err
	}
	var todo []digest
	total, done := int64(0), int64(0)
	for _, f := range r.Model.Files {
		d, err := parseDigest(f.Digest)
		if err != nil {
			return err
		}
		if !s.blobChecked(d) {
			todo = append(todo, d)
			total += f.SizeBytes
		}
	}
	for _, d := range todo {
		_, err := s.verifyBlob(ctx, d, func(n int64) {
			done += n
			progress(core.Progress{Phase: "check " + r.Model.ID, Done: min(done, total), Total: total, Unit: "bytes"})
		})
		if err != nil {
			return fmt.Errorf("check model %s: %w", r.Model.ID, err)
		}
	}
	if len(todo) == 0 {
		return nil
	}
	if r, err = s.findModel(r.Model.ID); err == nil && r.Model.Damaged != "" {
		err = damagedModel(r.Model)
	}
	return err
}

// CheckBinary compares the files of the worker binary in that folder (the directory of BinaryPaths'
// executable) with their digests, unless this store has done so and they have not changed since. A
// difference is core.Integrity, as in VerifyBinary.
func (s *binaries) CheckBinary(ctx context.Context, folder string) error {
	all, err := s.current()
	if err != nil {
		return err
	}
	for _, r := range all {
		if s.abs(r.folder) == folder {
			return s.verifyBinary(ctx, r, true, func(int64) {})
		}
	}
	return core.Errorf(core.Conflict, "the worker binary in %s was replaced in the meantime", path.Base(folder))
}

// otherChecked reports whether a file matched a digest and has not changed since.
func (s *checked) otherChecked(name, digest string) bool {
	now, ok := s.stampNow(name)
	s.mu.Lock()
	defer s.mu.Unlock()
	then, known := s.others[name+"\x00"+digest]
	return ok && known && then == now
}

func (s *checked) noteOther(name, digest string, st stamp) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.readCheckedLocked()
	s.others[name+"\x00"+digest] = st
}

// forgetFolder drops the records of a removed folder.
func (s *checked) forgetFolder(folder string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key := range s.others {
		if strings.HasPrefix(key, folder+"/") {
			delete(s.others, key)
		}
	}
}

// stamped reads a file through read, and returns its stamp if the stamp was the same before and
// after.
func (s *folder) stamped(name string, read func() error) (st stamp, ok bool, err error) {
	before, ok := s.stampNow(name)
	if err := read(); err != nil {
		return stamp{}, false, err
	}
	after, still := s.stampNow(name)
	return after, ok && still && before == after, nil
}
