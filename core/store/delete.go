package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"regexp"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// pins holds blobs that must stay although no record lists them yet. Their owner is about to write
// one.
type pins []digest

// pin protects a blob, which may not exist yet, from removal.
func (s *Store) pin(p *pins, d digest) {
	if d.algorithm != "sha256" || slices.Contains(*p, d) {
		return
	}
	s.records.Lock()
	defer s.records.Unlock()
	if s.pinned == nil {
		s.pinned = map[digest]int{}
	}
	s.pinned[d]++
	*p = append(*p, d)
}

// unpin releases the blobs. If free is set, it removes those that nothing needs.
func (s *Store) unpin(p pins, free bool) {
	s.records.Lock()
	defer s.records.Unlock()
	for _, d := range p {
		if s.pinned[d]--; s.pinned[d] == 0 {
			delete(s.pinned, d)
		}
	}
	if !free {
		return
	}
	records, err := s.modelRecords()
	if err == nil {
		_, err = s.freeBlobsLocked(records, p, false)
	}
	if err != nil {
		s.log.Warn("failed to remove unneeded files", "error", err)
	}
}

// DeleteModel removes a model, found as in Model and possibly damaged, and those of its files that
// no other model needs. If dryRun is set, it only reports what it would do. It does not know who
// uses the model: the caller must not delete a loaded one. Errors: NotFound with the nearest names.
func (s *Store) DeleteModel(name string, dryRun bool) (core.ModelDeleteResult, error) {
	s.records.Lock()
	defer s.records.Unlock()
	r, err := s.findModel(name)
	if err != nil {
		return core.ModelDeleteResult{}, err
	}
	records, err := s.modelRecords()
	if err != nil {
		return core.ModelDeleteResult{}, err
	}
	others := slices.DeleteFunc(records, func(o modelRecord) bool { return o.Model.ID == r.Model.ID })
	var own []digest
	for _, f := range r.Model.Files {
		if d, err := parseDigest(f.Digest); err == nil {
			own = append(own, d)
		}
	}
	out := core.ModelDeleteResult{Model: r.Model.ID, Files: []core.File{}, DryRun: dryRun}
	if !dryRun {
		// Remove the record first: a crash then leaves unneeded files, not a model that lacks some.
		if err := s.root.Remove(recordName(r.Model.ID)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return out, fmt.Errorf("delete model %s: %w", r.Model.ID, err)
		}
		if err := s.syncDir(modelsDir); err != nil {
			return out, fmt.Errorf("delete model %s: %w", r.Model.ID, err)
		}
	}
	freed, err := s.freeBlobsLocked(others, own, dryRun)
	for _, b := range freed {
		out.FreedBytes += b.size
		i := slices.IndexFunc(r.Model.Files, func(f core.File) bool { return f.Digest == b.digest.String() })
		out.Files = append(out.Files, core.File{Path: r.Model.Files[i].Path, SizeBytes: b.size, Digest: b.digest.String()})
	}
	if err != nil {
		return out, fmt.Errorf("delete model %s: %w", r.Model.ID, err)
	}
	return out, nil
}

// freeBlobsLocked removes and returns those of the blobs that no record lists and no caller has
// pinned; with dryRun it only returns them. It is the only place that deletes blobs. The caller
// holds s.records.
func (s *Store) freeBlobsLocked(records []modelRecord, among []digest, dryRun bool) ([]blob, error) {
	needed, err := s.neededBy(records)
	if err != nil {
		return nil, err
	}
	var freed []blob
	for _, d := range slices.CompactFunc(slices.SortedFunc(slices.Values(among), compareDigests), func(a, b digest) bool { return a == b }) {
		if d.algorithm != "sha256" || needed[d] || s.pinned[d] > 0 {
			continue
		}
		b := blob{digest: d}
		for _, name := range []string{blobName(d), damagedName(d)} {
			info, err := s.root.Lstat(name)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err == nil && !dryRun {
				err = s.root.RemoveAll(name)
			}
			if err != nil {
				return freed, err
			}
			b.size += info.Size()
		}
		if b.size > 0 {
			freed = append(freed, b)
		}
		if !dryRun {
			if err := s.root.RemoveAll(partsFolder(d)); err != nil {
				return freed, err
			}
		}
	}
	return freed, nil
}

func compareDigests(a, b digest) int { return strings.Compare(a.String(), b.String()) }

var digestText = regexp.MustCompile(`sha256:[0-9a-f]{64}`)

// neededBy returns the blobs that records list. It includes those of an unreadable record, which a
// newer version may be able to read.
func (s *Store) neededBy(records []modelRecord) (map[digest]bool, error) {
	needed := map[digest]bool{}
	for _, r := range records {
		for _, f := range r.Model.Files {
			if d, err := parseDigest(f.Digest); err == nil {
				needed[d] = true
			}
		}
		if len(r.Model.Files) > 0 {
			continue
		}
		text, err := s.recordText(r.Model.ID)
		if err != nil {
			return nil, err
		}
		for _, t := range digestText.FindAllString(text, -1) {
			if d, err := parseDigest(t); err == nil {
				needed[d] = true
			}
		}
	}
	return needed, nil
}

func (s *Store) recordText(id string) (string, error) {
	f, err := s.root.Open(recordName(id))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxRecordBytes))
	return string(b), err
}
