package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Verify reads all files of models and worker binaries and compares their digests. It quarantines
// or marks damaged ones, as VerifyModel and VerifyBinary do, and names them in the result, not in
// an error. It calls progress in the caller's goroutine.
func (s *Store) Verify(ctx context.Context, progress func(core.Progress)) (core.StoreVerifyResult, error) {
	out := core.StoreVerifyResult{Damaged: []core.StoreItem{}}
	blobs, err := s.blobsOnDisk()
	if err != nil {
		return out, fmt.Errorf("verify the store: %w", err)
	}
	binaries, err := s.current()
	if err != nil {
		return out, fmt.Errorf("verify the store: %w", err)
	}
	total := int64(0)
	for _, b := range blobs {
		total += b.size
	}
	for _, r := range binaries {
		total += r.manifest.Binary.SizeBytes
	}
	read := func(n int64) {
		out.CheckedBytes += n
		progress(core.Progress{Phase: "verify the store", Done: min(out.CheckedBytes, total), Total: total, Unit: "bytes"})
	}
	bad := map[digest]bool{}
	for _, b := range blobs {
		damaged, err := s.verifyBlob(ctx, b.digest, read)
		if err != nil {
			return out, fmt.Errorf("verify the store: %w", err)
		}
		bad[b.digest] = damaged
	}
	records, err := s.modelRecords()
	if err != nil {
		return out, fmt.Errorf("verify the store: %w", err)
	}
	needed, err := s.neededBy(records)
	if err != nil {
		return out, fmt.Errorf("verify the store: %w", err)
	}
	for _, r := range records {
		out.Models++
		if m := r.Model; m.Damaged != "" {
			out.Damaged = append(out.Damaged, core.StoreItem{Kind: core.StoreModel, Name: m.ID, SizeBytes: m.SizeBytes, Reason: m.Damaged})
		}
	}
	for _, b := range blobs {
		if bad[b.digest] && !needed[b.digest] {
			out.Damaged = append(out.Damaged, core.StoreItem{Kind: core.StoreFile, Name: b.digest.String(), SizeBytes: b.size, Reason: "its content does not match its digest; no model needs it"})
		}
	}
	for _, r := range binaries {
		out.Binaries++
		err := s.verifyBinary(ctx, r, false, read)
		if core.KindOf(err) == core.Integrity {
			now, err := s.binary(r.id())
			if err != nil {
				return out, fmt.Errorf("verify the store: %w", err)
			}
			out.Damaged = append(out.Damaged, core.StoreItem{Kind: core.StoreBinary, Name: r.id(), SizeBytes: r.manifest.Binary.SizeBytes, Reason: now.damaged})
		} else if err != nil {
			return out, fmt.Errorf("verify the store: %w", err)
		}
	}
	progress(core.Progress{Phase: "verify the store", Done: total, Total: total, Unit: "bytes"})
	return out, nil
}

// blobsOnDisk lists the files in blobs/, excluding quarantined ones.
func (s *Store) blobsOnDisk() ([]blob, error) {
	entries, err := fs.ReadDir(s.root.FS(), blobsDir)
	if err != nil {
		return nil, err
	}
	var out []blob
	for _, e := range entries {
		d, err := parseDigest(strings.Replace(e.Name(), "-", ":", 1))
		if err != nil || d.algorithm != "sha256" || !e.Type().IsRegular() {
			continue
		}
		info, err := e.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		out = append(out, blob{digest: d, size: info.Size()})
	}
	return out, nil
}

// verifyBlob reads a blob and quarantines it if it is damaged. A blob that was removed in the
// meantime does not count.
func (s *Store) verifyBlob(ctx context.Context, want digest, read func(int64)) (damaged bool, err error) {
	var got digest
	st, same, err := s.stamped(blobName(want), func() (err error) {
		got, err = s.sha256File(ctx, blobName(want), read)
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return false, nil
	case err != nil:
		return false, err
	case got == want:
		if same {
			s.noteBlob(want, st)
		}
		return false, nil
	}
	if err := s.publish(blobName(want), damagedName(want)); err != nil {
		return true, fmt.Errorf("set a damaged file aside: %w", err)
	}
	s.log.Error("a file of the store is damaged", "file", want.String())
	return true, nil
}

// sha256File hashes a file of the store. It calls read for each piece.
func (s *folder) sha256File(ctx context.Context, name string, read func(int64)) (digest, error) {
	f, err := s.root.Open(name)
	if err != nil {
		return digest{}, err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, copyBuffer)
	for {
		if err := ctx.Err(); err != nil {
			return digest{}, err
		}
		n, err := f.Read(buf)
		_, _ = h.Write(buf[:n]) // hashes do not fail
		read(int64(n))
		if errors.Is(err, io.EOF) {
			return sha256Digest(h.Sum(nil)), nil
		}
		if err != nil {
			return digest{}, err
		}
	}
}
