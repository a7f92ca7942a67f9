package queen

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

// sealing passes on what is written to it, and seals it at the end.
type sealing struct {
	w   io.Writer
	sum hash.Hash
}

func newSealing(w io.Writer) *sealing { return &sealing{w, sha256.New()} }

func (s *sealing) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.sum.Write(p[:n])
	return n, err
}

func (s *sealing) seal() error {
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

// readSnapshot reads a sealed snapshot whole and says what it holds. Errors: Integrity, TooLarge,
// Unsupported, r's as Invalid.
func readSnapshot(r io.Reader) ([]byte, core.SnapshotInfo, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxSnapshotBytes+1))
	switch {
	case err != nil:
		return nil, core.SnapshotInfo{}, core.Wrap(err, core.Invalid, "read the snapshot")
	case len(data) > maxSnapshotBytes:
		return nil, core.SnapshotInfo{}, errSnapshotSize()
	}
	if data, err = unsealed(data); err != nil {
		return nil, core.SnapshotInfo{}, err
	}
	info, err := fsm.Inspect(bytes.NewReader(data))
	return data, info, err
}

// InspectSnapshot says what a snapshot holds. Errors: Integrity, Unsupported, TooLarge.
func InspectSnapshot(r io.Reader) (core.SnapshotInfo, error) {
	_, info, err := readSnapshot(r)
	return info, err
}
