package node

import (
	"errors"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
)

// A snapshot of index S and term T that a leader installs stands for all entries up to S. Raft
// leaves the log as it is, and trusts it: if the log has another entry at S, or none there but
// later ones, the leader's next entries never match, so it sends the snapshot again and again
// (hashicorp/raft issue 697). If the log has only older ones, they may differ from those that the
// snapshot stands for, and this node would send them to others when it leads.
//
// So once a snapshot is complete, the log is changed to start at S, with an empty entry that stands
// for the snapshot; entries after S stay, and raft itself checks whether they match. Because raft
// has the last entry's term in memory, it gets that entry once more after it has installed a
// snapshot (see transport.install).

// roomEvery is the number of bytes of a snapshot between two checks for free space.
const roomEvery = 1 << 20

// inSnapshot marks the entry that stands for a snapshot.
const inSnapshot = "rbee: this entry is in the snapshot"

// standIn returns the entry that stands for the end of a snapshot. It is never sent to another
// node: no entry precedes it, so raft sends the snapshot.
func standIn(index, term uint64) *raft.Log {
	return &raft.Log{Index: index, Term: term, Type: raft.LogNoop, Extensions: []byte(inSnapshot)}
}

func isStandIn(l *raft.Log) bool { return l.Type == raft.LogNoop && string(l.Extensions) == inSnapshot }

// snapshots keeps the log consistent with the snapshots that are taken, installed or restored.
type snapshots struct {
	raft.SnapshotStore
	disk *disk
	off  bool // tests: leave the log as raft does
}

func (s *snapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, cIndex uint64, trans raft.Transport) (raft.SnapshotSink, error) {
	if err := s.disk.room(); err != nil {
		return nil, err
	}
	sink, err := s.SnapshotStore.Create(version, index, term, c, cIndex, trans)
	if err != nil {
		return nil, err
	}
	return &snapshotSink{SnapshotSink: sink, store: s, index: index, term: term}, nil
}

type snapshotSink struct {
	raft.SnapshotSink
	store       *snapshots
	index, term uint64
	unchecked   int
	done        bool
}

func (s *snapshotSink) Write(p []byte) (int, error) {
	if s.unchecked += len(p); s.unchecked >= roomEvery {
		s.unchecked = 0
		if err := s.store.disk.room(); err != nil {
			return 0, err
		}
	}
	return s.SnapshotSink.Write(p)
}

func (s *snapshotSink) Cancel() error {
	s.done = true
	return s.SnapshotSink.Cancel()
}

func (s *snapshotSink) Close() error {
	err := s.SnapshotSink.Close()
	if err != nil || s.done {
		return err
	}
	s.done = true
	return s.store.align(s.index, s.term, true)
}

// align changes the log so that it can follow a snapshot with this end. running reports that raft
// runs and has the end of the log in memory.
func (s *snapshots) align(index, term uint64, running bool) error {
	if s.off {
		return nil
	}
	list, err := s.List()
	if err != nil {
		return core.Wrap(err, core.Unavailable, "list raft snapshots")
	}
	for _, meta := range list {
		if meta.Index > index && running {
			return nil // a newer snapshot exists, and the log matches it
		}
	}
	s.disk.keep.Store(index)
	var l raft.Log
	switch err := s.disk.GetLog(index, &l); {
	case err == nil && l.Term == term:
		return nil // then everything before it matches as well
	case err != nil && !errors.Is(err, raft.ErrLogNotFound):
		return err
	}
	last, err := s.disk.LastIndex()
	if err != nil {
		return err
	}
	s.disk.restoring.Store(running)
	if running && last == index {
		// Raft has this entry's term in memory. It replaces the entry itself when it receives it.
		first, err := s.disk.FirstIndex()
		if err != nil || first >= index {
			return err
		}
		return s.disk.write("delete", func() error { return s.disk.logs.DeleteRange(first, index-1) })
	}
	return s.disk.write("align", func() error { return s.disk.StartAt(standIn(index, term)) })
}
