package node

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/logstore"
	"github.com/rbee-project/rbee/raft/state"
)

// foundGap is how far the index of a founded registry exceeds every earlier known index. Indexes of
// lost writes after the snapshot must not be used again: hives rely on the highest index that they
// have seen, and raft relies on index and term.
const foundGap = 1 << 20

// Salvaged is what could be read from a raft folder.
type Salvaged struct {
	State    *state.Snapshot // never nil; empty if nothing could be read
	Index    uint64          // the highest in the folder
	Term     uint64          // the highest in the folder
	Problems []string        // what could not be read, for people
}

// Salvage reads a raft folder that no process has open: the newest readable snapshot, and the log
// after it as far as it is readable, acknowledged or not. The result may be incomplete. A missing
// folder counts as empty. Errors: InUse.
func Salvage(dir string, log hclog.Logger) (Salvaged, error) {
	m := fsm.New()
	found := Salvaged{State: m.State().Snapshot()}
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
		return found, nil
	}
	problem := func(err error) { found.Problems = append(found.Problems, err.Error()) }
	if snaps, err := openSnapshots(dir, log); err != nil {
		problem(err)
	} else if list, err := snaps.List(); err != nil {
		problem(err)
	} else {
		for _, meta := range list {
			found.Index, found.Term = max(found.Index, meta.Index), max(found.Term, meta.Term)
		}
		for _, meta := range list {
			_, r, err := snaps.Open(meta.ID)
			if err == nil {
				err = m.Restore(r)
			}
			if err == nil {
				break
			}
			problem(err)
		}
	}
	path := filepath.Join(dir, "log.db")
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		found.State = m.State().Snapshot()
		return found, nil
	}
	logs, err := logstore.Open(path, logstore.Options{})
	switch {
	case core.KindOf(err) == core.InUse:
		return Salvaged{}, err
	case err != nil:
		problem(err)
	default:
		if err := errors.Join(found.replay(m, logs), logs.Close()); err != nil {
			problem(err)
		}
	}
	found.State = m.State().Snapshot()
	return found, nil
}

func (s *Salvaged) replay(m *fsm.FSM, logs *logstore.Store) error {
	term, err := logs.GetUint64([]byte("CurrentTerm"))
	if err != nil {
		return err
	}
	s.Term = max(s.Term, term)
	last, err := logs.LastIndex()
	if err != nil {
		return err
	}
	s.Index = max(s.Index, last)
	for i := m.State().AppliedIndex() + 1; i <= last; i++ {
		var l raft.Log
		if err := logs.GetLog(i, &l); errors.Is(err, raft.ErrLogNotFound) {
			continue
		} else if err != nil {
			return err
		}
		s.Term = max(s.Term, l.Term)
		if l.Type != raft.LogCommand {
			continue
		}
		if err := m.Check(&l); err != nil {
			return err
		}
		m.Apply(&l)
	}
	return nil
}

// Found writes a new raft folder at dir, which must not exist: that of a cluster whose only queen
// is this node, with the registry in store, which it changes. The write is atomic. Index and term
// exceed all earlier ones, known or not, so that no queen of the lost cluster mistakes its own log
// for this one's. Errors: Conflict, Unavailable.
func Found(dir, nodeID, address string, store *state.Store, before Salvaged, now time.Time, log hclog.Logger) error {
	const op = "write the raft folder"
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		return core.Errorf(core.Conflict, "%s: %s is there already", op, dir)
	}
	// beyond an earlier founded registry that was lost again: neither grows by 1000 per second
	clock := uint64(max(now.UnixMilli(), 0))
	index := max(store.AppliedIndex(), before.Index, clock) + foundGap
	term := max(before.Term, clock) + 1
	if err := store.Update(index, func(*state.Txn) error { return nil }); err != nil {
		return err
	}
	making := dir + ".new"
	if err := os.RemoveAll(making); err != nil {
		return core.Wrap(err, core.Unavailable, op)
	}
	if err := os.Mkdir(making, 0o700); err != nil {
		return core.Wrap(err, core.Unavailable, op)
	}
	n := &Node{opts: Options{ID: nodeID, Dir: making}, id: newRaftID(nodeID)}
	err := errors.Join(n.saveID(), found(making, n.id, address, store.Snapshot(), index, term, log))
	if err == nil {
		err = os.Rename(making, dir)
	}
	if err == nil {
		err = syncFolder(filepath.Dir(dir))
	}
	if err != nil {
		return core.WithHint(core.Wrap(errors.Join(err, os.RemoveAll(making)), core.Unavailable, op), "Check the disk of data_dir, and try again.")
	}
	return nil
}

func found(dir, raftID, address string, s *state.Snapshot, index, term uint64, log hclog.Logger) error {
	snaps, err := openSnapshots(dir, log)
	if err != nil {
		return err
	}
	alone := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(raftID), Address: raft.ServerAddress(address)}}}
	_, nowhere := raft.NewInmemTransport(raft.ServerAddress(address))
	sink, err := snaps.Create(raft.SnapshotVersionMax, index, term, alone, index, nowhere)
	if err != nil {
		return err
	}
	if err := fsm.WriteSnapshot(sink, s); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	if err := sink.Close(); err != nil {
		return err
	}
	logs, err := logstore.Open(filepath.Join(dir, "log.db"), logstore.Options{})
	if err != nil {
		return err
	}
	return errors.Join(logs.SetUint64([]byte("CurrentTerm"), term), logs.StartAt(standIn(index, term)), logs.Close())
}

func syncFolder(path string) error {
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	return errors.Join(syncRoot(root), root.Close())
}
