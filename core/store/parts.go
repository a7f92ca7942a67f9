package store

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gguf"
)

// An engine finds the other files of a split model by their names, next to the first. Since blobs
// are named by digest, such a model has a folder parts/<digest of its first file>/ that holds
// properly named links to them. The folder can be rebuilt at any time.

func isGGUF(name string) bool { return strings.EqualFold(path.Ext(name), ".gguf") }

// checkParts checks, once the first file has arrived, whether the source names the others.
func checkParts(first *gguf.File, files int) error {
	if first.SplitNo == 0 && first.Splits <= max(files, 1) {
		return nil
	}
	err := core.Errorf(core.Unsupported, "the model is split into %d GGUF files, and this is number %d of them, with %d beside it", first.Splits, first.SplitNo+1, files-1)
	return core.WithHint(err, "Choose a reference that stands for all of them, or a file that holds the whole model, or join the pieces with llama-gguf-split --merge.")
}

// join combines the headers of a model's files, nil for those that are not GGUF, into the facts of
// the whole. parts is the number of files that the model is split into; 0: it is not split.
func join(headers []*gguf.File) (whole *gguf.File, parts int, err error) {
	n := headers[0].Splits
	if n <= 1 {
		return headers[0], 0, nil
	}
	for i, h := range headers[:n] {
		if h == nil {
			return nil, 0, core.Errorf(core.Integrity, "file %d of the %d that the model is split into is not called .gguf", i+1, n)
		}
	}
	whole, err = gguf.Join(headers[:n]...)
	return whole, n, err
}

// modelFile returns the path of the file to pass to an engine, relative to the store's folder.
func (s *Store) modelFile(r modelRecord) (string, error) {
	digests := make([]digest, max(r.Parts, 1))
	for i := range digests {
		var err error
		if digests[i], err = parseDigest(r.Model.Files[i].Digest); err != nil {
			return "", err
		}
	}
	if r.Parts <= 1 {
		return blobName(digests[0]), nil
	}
	folder := partsFolder(digests[0])
	if err := s.root.MkdirAll(folder, 0o700); err != nil {
		return "", fmt.Errorf("link the parts of model %s: %w", r.Model.ID, err)
	}
	for i, d := range digests {
		if err := s.link(path.Join(folder, partName(i, len(digests))), "../../"+blobName(d)); err != nil {
			return "", fmt.Errorf("link the parts of model %s: %w", r.Model.ID, err)
		}
	}
	return path.Join(folder, partName(0, len(digests))), nil
}

func partsFolder(first digest) string { return path.Join(partsDir, first.fileName()) }

// partName returns the name that engines look for, following llama.cpp's pattern.
func partName(i, n int) string { return fmt.Sprintf("model-%05d-of-%05d.gguf", i+1, n) }

// link makes name a link to target, replacing whatever was there.
func (s *folder) link(name, target string) error {
	for {
		if have, err := s.root.Readlink(name); err == nil && have == target {
			return nil
		}
		if err := s.root.RemoveAll(name); err != nil {
			return err
		}
		if err := s.root.Symlink(target, name); !errors.Is(err, fs.ErrExist) {
			return err // may be nil; another caller may be making the same link
		}
	}
}
