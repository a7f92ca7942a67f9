package node

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/hashicorp/raft"
)

// memory holds a node's state if there is no folder. In tests it outlives the node, as a disk does.
type memory struct {
	logs  *memoryLogs
	snaps *memorySnapshots
	id    string // as the file server-id
}

func newMemory() *memory {
	return &memory{logs: &memoryLogs{InmemStore: raft.NewInmemStore()}, snaps: &memorySnapshots{}}
}

// memoryLogs adds StartAt to raft's own store.
type memoryLogs struct{ *raft.InmemStore }

// StartAt is like logstore.Store.StartAt.
func (m *memoryLogs) StartAt(l *raft.Log) error {
	first, err := m.FirstIndex()
	if err != nil {
		return err
	}
	if first > 0 && first < l.Index {
		if err := m.DeleteRange(first, l.Index-1); err != nil {
			return err
		}
	}
	// The store takes its first index from its first entry.
	last, err := m.LastIndex()
	if err != nil {
		return err
	}
	after := []*raft.Log{l}
	for i := l.Index + 1; i <= last; i++ {
		var e raft.Log
		if err := m.GetLog(i, &e); err == nil {
			after = append(after, &e)
		}
	}
	if err := m.DeleteRange(min(max(first, 1), l.Index), max(last, l.Index)); err != nil {
		return err
	}
	return m.StoreLogs(after)
}

// SetBoth is like logstore.Store.SetBoth.
func (m *memoryLogs) SetBoth(numberKey []byte, n uint64, k, v []byte) error {
	return errors.Join(m.InmemStore.SetUint64(numberKey, n), m.InmemStore.Set(k, v))
}

// memorySnapshots holds the newest complete snapshot: raft's own in-memory store exposes one while
// it is still being written.
type memorySnapshots struct {
	mu     sync.Mutex
	count  int
	latest *memorySnapshot // nil: none
}

type memorySnapshot struct {
	store *memorySnapshots
	meta  raft.SnapshotMeta
	data  bytes.Buffer // immutable once the snapshot is the latest
}

func (m *memorySnapshots) Create(version raft.SnapshotVersion, index, term uint64, c raft.Configuration, cIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count++
	return &memorySnapshot{store: m, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d-%d", term, index, m.count), Index: index, Term: term, Configuration: c, ConfigurationIndex: cIndex,
	}}, nil
}

func (m *memorySnapshots) List() ([]*raft.SnapshotMeta, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.latest == nil {
		return nil, nil
	}
	meta := m.latest.meta
	return []*raft.SnapshotMeta{&meta}, nil
}

func (m *memorySnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.latest == nil || m.latest.meta.ID != id {
		return nil, nil, errors.New("snapshot no longer exists")
	}
	meta := m.latest.meta
	return &meta, io.NopCloser(bytes.NewReader(m.latest.data.Bytes())), nil
}

func (s *memorySnapshot) Write(p []byte) (int, error) { return s.data.Write(p) }
func (s *memorySnapshot) ID() string                  { return s.meta.ID }
func (s *memorySnapshot) Cancel() error               { return nil }

func (s *memorySnapshot) Close() error {
	s.store.mu.Lock()
	defer s.store.mu.Unlock()
	s.meta.Size = int64(s.data.Len())
	s.store.latest = s
	return nil
}
