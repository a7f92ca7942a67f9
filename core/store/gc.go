package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// restAge is the idle time after which GC considers a partial file abandoned.
const restAge = 24 * time.Hour

// InUse tells GC what it must not remove.
type InUse struct {
	Models []string // digests of the models that workers have loaded
	// reports whether a worker runs, or is about to run, from that folder of a worker binary
	Folder func(folder string) bool
}

// GC removes what nothing needs: files that no model lists, transfers abandoned a day ago, files in
// quarantine, and worker binaries replaced by a later revision. If dryRun is set, it only reports
// what it would remove. It keeps what is being fetched or used right now.
func (s *Store) GC(now time.Time, use InUse, dryRun bool) (core.StoreGCResult, error) {
	out := core.StoreGCResult{Removed: []core.StoreItem{}, DryRun: dryRun}
	for _, part := range []func() ([]core.StoreItem, error){
		func() ([]core.StoreItem, error) { return s.gcBlobs(use.Models, dryRun) },
		func() ([]core.StoreItem, error) { return s.gcPartial(now, dryRun) },
		func() ([]core.StoreItem, error) { return s.gcQuarantine(dryRun) },
		func() ([]core.StoreItem, error) { return s.gcSuperseded(use.Folder, dryRun) },
	} {
		items, err := part()
		out.Removed = append(out.Removed, items...)
		for _, i := range items {
			out.FreedBytes += i.SizeBytes
		}
		if err != nil {
			return out, fmt.Errorf("clean up the store: %w", err)
		}
	}
	return out, nil
}

// gcBlobs removes the files that no model lists.
func (s *Store) gcBlobs(loaded []string, dryRun bool) ([]core.StoreItem, error) {
	s.records.Lock()
	defer s.records.Unlock()
	records, err := s.modelRecords()
	if err != nil {
		return nil, err
	}
	entries, err := fs.ReadDir(s.root.FS(), blobsDir)
	if err != nil {
		return nil, err
	}
	keep := s.loadedBlobs(loaded)
	var among []digest
	for _, e := range entries {
		name := strings.TrimPrefix(e.Name(), "damaged-")
		if d, err := parseDigest(strings.Replace(name, "-", ":", 1)); err == nil && !keep[d] {
			among = append(among, d)
		}
	}
	freed, err := s.freeBlobsLocked(records, among, dryRun)
	var out []core.StoreItem
	for _, b := range freed {
		out = append(out, core.StoreItem{Kind: core.StoreFile, Name: b.digest.String(), SizeBytes: b.size, Reason: "no model needs it"})
	}
	return out, err
}

// loadedBlobs returns the files of loaded models, with or without a record.
func (s *Store) loadedBlobs(models []string) map[digest]bool {
	keep := map[digest]bool{}
	for _, text := range models {
		d, err := parseDigest(text)
		if err != nil || d.algorithm == "" {
			continue
		}
		keep[d] = true
		links, err := fs.ReadDir(s.root.FS(), partsFolder(d))
		if err != nil {
			continue // it is not split
		}
		for _, l := range links {
			target, err := s.root.Readlink(path.Join(partsFolder(d), l.Name()))
			if err != nil {
				continue
			}
			if part, err := parseDigest(strings.Replace(path.Base(target), "-", ":", 1)); err == nil {
				keep[part] = true
			}
		}
	}
	return keep
}

// gcPartial removes transfers that have been idle for a day, and leftovers of killed processes.
func (s *Store) gcPartial(now time.Time, dryRun bool) ([]core.StoreItem, error) {
	entries, err := fs.ReadDir(s.root.FS(), partialDir)
	if err != nil {
		return nil, err
	}
	var out []core.StoreItem
	var failed []error
	for _, e := range entries {
		kind, _, _ := strings.Cut(e.Name(), "-")
		name := path.Join(partialDir, e.Name())
		info, err := e.Info()
		if err != nil || strings.HasSuffix(name, journalSuffix) || kind != "sha256" && kind != "sha512" || now.Sub(info.ModTime()) < restAge {
			continue
		}
		busy, err := s.busy(name)
		if err == nil && !busy && !dryRun {
			err = s.removeUnlocked(name, journalName(name))
		}
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if !busy {
			out = append(out, core.StoreItem{Kind: core.StorePartial, Name: e.Name(), SizeBytes: info.Size(), Reason: "its transfer was given up"})
		}
	}
	if !dryRun {
		failed = append(failed, s.cleanPartial(now))
	}
	return out, errors.Join(failed...)
}

// busy reports whether some process has a file of the store locked.
func (s *folder) busy(name string) (bool, error) {
	f, err := s.root.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil // its owner has just published or removed it
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	locked, err := tryLock(f)
	return !locked, err
}

func (s *Store) gcQuarantine(dryRun bool) ([]core.StoreItem, error) {
	files, err := s.quarantined()
	if err != nil {
		return nil, err
	}
	var out []core.StoreItem
	for _, f := range files {
		if !dryRun {
			if err := s.root.RemoveAll(path.Join(quarantineDir, f.Name())); err != nil {
				return out, err
			}
		}
		out = append(out, core.StoreItem{Kind: core.StoreQuarantine, Name: f.Name(), SizeBytes: f.Size(), Reason: "it did not have its announced digest"})
	}
	return out, nil
}

func (s *binaries) gcSuperseded(inUse func(folder string) bool, dryRun bool) ([]core.StoreItem, error) {
	old, err := s.superseded(inUse)
	if err != nil {
		return nil, err
	}
	var out []core.StoreItem
	for _, r := range old {
		size, err := s.folderBytes(r.folder)
		if err == nil && !dryRun {
			err = s.removeFolder(r.folder)
		}
		if err != nil {
			return out, err
		}
		out = append(out, core.StoreItem{Kind: core.StoreBinary, Name: r.typ + "@" + folderName(r.version, r.number), SizeBytes: size, Reason: "a later one has replaced it"})
	}
	return out, nil
}

// superseded lists the unused worker binaries that were replaced by a later revision, or by other
// code of the same versions of plugin and engine, for example after a rebuild of a plugin.
func (s *binaries) superseded(inUse func(folder string) bool) ([]revision, error) {
	all, err := s.revisions()
	if err != nil {
		return nil, err
	}
	current, err := s.current()
	if err != nil {
		return nil, err
	}
	rebuilt := func(r revision) bool {
		i := slices.IndexFunc(current, func(c revision) bool { return c.folder == r.folder })
		if i < 0 || current[i].damaged != "" {
			return false
		}
		b := current[i].manifest.Binary
		return slices.ContainsFunc(current, func(c revision) bool {
			o := c.manifest.Binary
			return c.damaged == "" && c.folder != r.folder && c.typ == r.typ && c.baseVersion() == current[i].baseVersion() && o.EngineName == b.EngineName && o.EngineVersion == b.EngineVersion &&
				o.Digest != b.Digest && newer(c, current[i])
		})
	}
	var out []revision
	for i, r := range all {
		replaced := i+1 < len(all) && all[i+1].id() == r.id()
		if (replaced || rebuilt(r)) && !inUse(s.abs(r.folder)) {
			out = append(out, r)
		}
	}
	return slices.Clip(out), nil
}

func (s *folder) folderBytes(folder string) (int64, error) {
	total := int64(0)
	err := fs.WalkDir(s.root.FS(), folder, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			total += info.Size()
		}
		return err
	})
	return total, err
}
