package node

import (
	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/raft/fsm"
)

// Types and options for tests.
type (
	Memory = memory
	Moves  = moves
)

var NewMemory = newMemory

const (
	MinFree = minFree
)

func (o Options) WithMemory(m *Memory) Options           { o.memory = m; return o }
func (o Options) WithDelay(d func(string) error) Options { o.delay = d; return o }
func (o Options) WithTrailing(n uint64) Options          { o.trailing = n; return o }
func (o Options) WithoutAlign(off bool) Options          { o.noAlign = off; return o }
func (o Options) WithoutIdentity(off bool) Options       { o.noIdentity = off; return o }
func (o Options) WithTable(t *fsm.Table) Options         { o.table = t; return o }
func (n *Node) Raft() *raft.Raft                         { return n.raft }
func (m *Memory) Logs() raft.LogStore                    { return m.logs }
func (m *Memory) Stable() raft.StableStore               { return m.logs }
func (n *Node) Inject(command any) (any, error)          { return n.trans.inject(command, nil) }

// TakeSnapshot copies another node's newest snapshot to this one.
func (m *Memory) TakeSnapshot(from *Memory) { m.snaps.latest = from.snaps.latest }

// Disk is the disk as raft sees it.
type Disk = disk

// NewDisk returns an in-memory disk with the given free space.
func NewDisk(m *Memory, free func() (uint64, error)) *Disk {
	return newDisk(m.logs, free, func(uint64) {})
}

// Anew asks through the transport as an election does.
func (n *Node) Anew(ask func() error) error { return n.trans.anew(ask) }
