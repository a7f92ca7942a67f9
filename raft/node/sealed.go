package node

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
)

// Raft's snapshots have a checksum of their data, in a JSON file that has no checksum: raft trusts
// its index, term and members. So sealedSnapshots keeps that file's checksum next to it.
const (
	snapshotsFolder = "snapshots"
	snapshotMeta    = "meta.json"
	snapshotSum     = "meta.sum"
)

// sealedSnapshots holds the snapshots below a folder whose metadata is unchanged. A snapshot
// without a checksum is from an older version.
type sealedSnapshots struct {
	raft.SnapshotStore
	dir string
	log hclog.Logger
}

// openSnapshots opens the snapshots of a raft folder.
func openSnapshots(dir string, log hclog.Logger) (*sealedSnapshots, error) {
	snaps, err := raft.NewFileSnapshotStoreWithLogger(dir, retainedSnapshots, log.Named("raft"))
	if err != nil {
		return nil, core.Wrap(err, core.Unavailable, "open raft snapshots")
	}
	return &sealedSnapshots{snaps, dir, log}, nil
}

func (s *sealedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, cIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	sink, err := s.SnapshotStore.Create(version, index, term, c, cIndex, trans)
	if err != nil {
		return nil, err
	}
	return &sealedSink{SnapshotSink: sink, store: s}, nil
}

// List omits snapshots whose metadata was changed.
func (s *sealedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	all, err := s.SnapshotStore.List()
	var whole []*raft.SnapshotMeta
	for _, meta := range all {
		if err := s.check(meta.ID); err != nil {
			s.log.Warn("raft snapshot is damaged", "snapshot", meta.ID, "error", err)
			continue
		}
		whole = append(whole, meta)
	}
	return whole, err
}

func (s *sealedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	if err := s.check(id); err != nil {
		return nil, nil, err
	}
	return s.SnapshotStore.Open(id)
}

func (s *sealedSnapshots) check(id string) error {
	root, err := os.OpenRoot(filepath.Join(s.dir, snapshotsFolder, id))
	if err != nil {
		return core.Wrap(err, core.Unavailable, "check raft snapshot")
	}
	defer root.Close()
	want, err := root.ReadFile(snapshotSum)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	have, metaErr := sumOf(root)
	if err := errors.Join(err, metaErr); err != nil {
		return core.Wrap(err, core.Unavailable, "check raft snapshot")
	}
	if string(want) != have {
		return core.Errorf(core.Integrity, "check raft snapshot: its description is not what was written")
	}
	return nil
}

func sumOf(root *os.Root) (string, error) {
	b, err := root.ReadFile(snapshotMeta)
	h := sha256.Sum256(b)
	return hex.EncodeToString(h[:]) + "\n", err
}

type sealedSink struct {
	raft.SnapshotSink
	store *sealedSnapshots
	done  bool
}

func (s *sealedSink) Cancel() error {
	s.done = true
	return s.SnapshotSink.Cancel()
}

func (s *sealedSink) Close() error {
	err := s.SnapshotSink.Close()
	if err != nil || s.done {
		return err
	}
	s.done = true
	root, err := os.OpenRoot(filepath.Join(s.store.dir, snapshotsFolder, s.ID()))
	if err != nil {
		return core.Wrap(err, core.Unavailable, "seal raft snapshot")
	}
	defer root.Close()
	sum, err := sumOf(root)
	return core.Wrap(errors.Join(err, writeFile(root, snapshotSum, sum), syncRoot(root)), core.Unavailable, "seal raft snapshot")
}
