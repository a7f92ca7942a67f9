package registry

import (
	"bytes"
	"crypto/sha256"
	"hash"
	"io"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
)

// A snapshot that a person keeps is the state machine's, and behind it a seal: these bytes and the
// SHA-256 of all before them. Raft has checksums of its own for what it keeps; a file that was cut
// off or changed on its way must not become the registry.
const snapshotSeal = "\nrbee snapshot sha256\n"

// Sealing passes on a snapshot that is written to it, and seals it at the end.
type Sealing struct {
	w   io.Writer
	sum hash.Hash
}

// NewSealing returns a writer of a sealed snapshot to w.
func NewSealing(w io.Writer) *Sealing { return &Sealing{w, sha256.New()} }

func (s *Sealing) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	return n, err
}

// Seal writes the seal of all that was written.
func (s *Sealing) Seal() error {
	_, err := s.w.Write(s.sum.Sum([]byte(snapshotSeal)))
	return err
}

// unsealed is a snapshot without its seal. Errors: Integrity.
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

// ReadSealed reads a sealed snapshot whole, and returns it without its seal and with what it holds.
// Errors: Integrity, TooLarge, Unsupported, r's as Invalid.
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

// InspectSnapshot returns what a snapshot holds. Errors: Integrity, Unsupported, TooLarge.
func InspectSnapshot(r io.Reader) (core.SnapshotInfo, error) {
	_, info, err := ReadSealed(r)
	return info, err
}

// MaxSnapshotBytes bounds a snapshot: ten times the registry of 10,000 hives with 4 workers each.
const MaxSnapshotBytes = 512 << 20

// ErrSnapshotSize returns the error of a snapshot that is longer than MaxSnapshotBytes.
func ErrSnapshotSize() error {
	return core.Errorf(core.TooLarge, "the snapshot is longer than %d bytes", MaxSnapshotBytes).Hint("Check that the file is a snapshot of rbee: `rbee operator snapshot inspect`.")
}
