package registry

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"io"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
)

// An exported snapshot is the state machine's snapshot followed by a seal: these bytes and the
// SHA-256 of everything before them. Raft has its own checksums for what it stores; a file that was
// truncated or altered in transit must not become the registry.
const snapshotSeal = "\nrbee snapshot sha256\n"

// Sealing passes through the snapshot written to it and seals it at the end.
type Sealing struct {
	w   io.Writer
	sum hash.Hash
}

// NewSealing returns a writer that passes a snapshot to w and can seal it.
func NewSealing(w io.Writer) *Sealing { return &Sealing{w, sha256.New()} }

func (s *Sealing) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	return n, err
}

// Seal writes the seal over everything written.
func (s *Sealing) Seal() error {
	_, err := s.w.Write(s.sum.Sum([]byte(snapshotSeal)))
	return err
}

// unsealed returns a snapshot without its seal. Errors: Integrity.
func unsealed(data []byte) ([]byte, error) {
	end := len(data) - len(snapshotSeal) - sha256.Size
	const hint = "It is not what \"rbee operator snapshot save\" wrote, or not all of it. Use another one."
	if end < 0 || !bytes.HasPrefix(data[end:], []byte(snapshotSeal)) {
		return nil, core.Errorf(core.Integrity, "read the snapshot: its end is missing").Hint(hint)
	}
	if sum := sha256.Sum256(data[:end]); !bytes.Equal(sum[:], data[end+len(snapshotSeal):]) {
		return nil, core.Errorf(core.Integrity, "read the snapshot: it was changed").Hint(hint)
	}
	return data[:end], nil
}

// ReadSealed reads a whole sealed snapshot and returns it without its seal, and a summary of its
// contents. Errors: Integrity, TooLarge, Unsupported, and r's as Invalid.
func ReadSealed(r io.Reader) ([]byte, core.SnapshotInfo, error) {
	data, err := io.ReadAll(io.LimitReader(r, MaxSnapshotBytes+1))
	switch {
	case err != nil:
		return nil, core.SnapshotInfo{}, core.Wrap(err, core.Invalid, "read the snapshot")
	case len(data) > MaxSnapshotBytes:
		return nil, core.SnapshotInfo{}, ErrSnapshotSize()
	}
	if data, err = unsealed(data); err != nil {
		return nil, core.SnapshotInfo{}, err
	}
	info, err := fsm.Inspect(bytes.NewReader(data))
	return data, info, err
}

// InspectSnapshot summarizes the contents of a snapshot. Errors: Integrity, Unsupported, TooLarge.
func InspectSnapshot(r io.Reader) (core.SnapshotInfo, error) {
	_, info, err := ReadSealed(r)
	return info, err
}

// MaxSnapshotBytes bounds a snapshot: ten times the registry of 10,000 hives with 4 workers each.
const MaxSnapshotBytes = 512 << 20

// ErrSnapshotSize returns the error for a snapshot longer than MaxSnapshotBytes.
func ErrSnapshotSize() error {
	return core.Errorf(core.TooLarge, "the snapshot is longer than %d bytes", MaxSnapshotBytes).Hint("Check that the file is a snapshot of rbee: `rbee operator snapshot inspect`.")
}
