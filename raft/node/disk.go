package node

import (
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
)

const (
	// minFree is reserved on the disk for votes: with less, the disk refuses entries of the log. It
	// is also enough for one append that must not be refused.
	minFree = 16 << 20
	// stallAfter is how long a write may take before this node stops sending to the others, so that
	// they continue without it.
	stallAfter = 2 * time.Second
	// A disk is slow if the median of its last writes exceeds slowWrite: of slowLast writes, or of
	// those within slowWindow, and at least slowCount.
	slowWrite  = 100 * time.Millisecond
	slowWindow = 10 * time.Second
	slowLast   = 15
	slowCount  = 3
)

// errFull is in the chain of the error for an entry that is refused for lack of space.
var errFull = errors.New("the disk is almost full")

// logs is what disk needs from a log store.
type logs interface {
	raft.LogStore
	raft.StableStore
	// StartAt makes l the oldest entry: it replaces the entry at its index, deletes those before
	// it, and keeps those after it.
	StartAt(l *raft.Log) error
	// SetBoth stores the first value with SetUint64 and the second with Set, atomically.
	SetBoth(numberKey []byte, n uint64, k, v []byte) error
}

// Raft's own keys for its vote.
const (
	keyVoteTerm      = "LastVoteTerm"
	keyVoteCandidate = "LastVoteCand"
)

// disk passes the log and the votes to the store. It records how long writes take, persists the
// commit index together with the entries (see replay.go), and refuses entries while space is low,
// since such a refusal is temporary, unlike a failed write.
type disk struct {
	logs
	free  func() (uint64, error)    // bytes that may still be written
	stage func(index uint64)        // keeps raft's commit index for the next append
	delay func(op string) error     // in tests: makes a write wait or fail
	lost  func() error              // returns why nothing can be written any more
	ended chan struct{}             // closed when nothing can be sent any more
	raft  atomic.Pointer[raft.Raft] // nil until it runs

	// owed reports that the end of the log was deleted for the entries that follow. They must not
	// be refused: raft assumes that the deleted entries still exist, and would never recover.
	owed atomic.Bool
	// keep is the end of the newest snapshot. Its entry stays when the log is truncated: raft
	// checks the entries that follow against it.
	keep atomic.Uint64
	// awaits reports that this node waits for room before it stands for election.
	awaits atomic.Bool
	// restoring reports that the log was restarted for a snapshot that is not in the state yet.
	restoring atomic.Bool

	mu       sync.Mutex // guards below
	voteTerm uint64     // term of the vote being written; 0: none
	voted    uint64     // term of the newest vote since the start; 0: none
	writes   int
	inFlight map[int]time.Time // start times
	took     []sample          // the last writes, oldest first
}

type sample struct {
	at   time.Time
	took time.Duration
}

func newDisk(l logs, free func() (uint64, error), stage func(uint64)) *disk {
	return &disk{
		logs: l, free: free, stage: stage, lost: func() error { return nil }, ended: make(chan struct{}), inFlight: map[int]time.Time{},
	}
}

func (d *disk) StoreLog(l *raft.Log) error { return d.StoreLogs([]*raft.Log{l}) }

func (d *disk) StoreLogs(l []*raft.Log) error {
	if r := d.raft.Load(); r != nil {
		d.stage(r.CommitIndex())
	}
	return d.write("append", func() error {
		if !d.owed.Load() {
			if err := d.room(); err != nil {
				return err
			}
		}
		if err := d.logs.StoreLogs(l); err != nil {
			return err
		}
		d.owed.Store(false)
		return nil
	})
}

func (d *disk) DeleteRange(minIndex, maxIndex uint64) error {
	last, err := d.LastIndex()
	if err != nil {
		return err
	}
	end := maxIndex >= last
	if end && !d.owed.Load() {
		if err := d.room(); err != nil {
			return err // neither this deletion nor the entries that would follow
		}
	}
	if keep := d.keep.Load(); !end && keep > 0 && minIndex <= keep && keep <= maxIndex {
		if maxIndex = keep - 1; maxIndex < minIndex {
			return nil
		}
	}
	if err := d.write("delete", func() error { return d.logs.DeleteRange(minIndex, maxIndex) }); err != nil {
		return err
	}
	if end {
		d.owed.Store(true)
	}
	return nil
}

// Set stores one of raft's values. Raft writes a vote's term, then its candidate, then gives the
// vote: disk writes the two together, which saves a write on each side of an election.
func (d *disk) Set(k, v []byte) error {
	if string(k) != keyVoteCandidate {
		return d.write("vote", func() error { return d.logs.Set(k, v) })
	}
	d.awaitRoom()
	d.mu.Lock()
	term := d.voteTerm
	d.voteTerm = 0
	d.voted = max(d.voted, term)
	d.mu.Unlock()
	return d.write("vote", func() error {
		if term == 0 {
			return d.logs.Set(k, v)
		}
		return d.SetBoth([]byte(keyVoteTerm), term, k, v)
	})
}

// awaitRoom keeps the only voter, which votes only for itself, from elections while its disk is
// full: each would make it the leader of a cluster whose log accepts nothing, which ends its
// leadership at once. Raft's loop waits in the meantime; no other node needs it.
func (d *disk) awaitRoom() {
	if !d.alone() || d.room() == nil {
		return
	}
	d.awaits.Store(true)
	defer d.awaits.Store(false)
	tick := time.NewTicker(fullPoll)
	defer tick.Stop()
	for d.room() != nil {
		select {
		case <-tick.C:
		case <-d.ended:
			return
		}
	}
}

// alone reports whether there is only one voter. Only a node that votes calls it.
func (d *disk) alone() bool {
	r := d.raft.Load()
	if r == nil {
		return false
	}
	voters := 0
	for _, s := range r.GetConfiguration().Configuration().Servers {
		if s.Suffrage == raft.Voter {
			voters++
		}
	}
	return voters == 1
}

func (d *disk) SetUint64(k []byte, v uint64) error {
	if string(k) == keyVoteTerm {
		d.mu.Lock()
		d.voteTerm = v
		d.mu.Unlock()
		return nil
	}
	return d.write("vote", func() error { return d.logs.SetUint64(k, v) })
}

// votedAfter reports whether this node has voted in a term newer than the given one.
func (d *disk) votedAfter(term uint64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.voted > term
}

func (d *disk) write(op string, fn func() error) error {
	start := time.Now()
	d.mu.Lock()
	d.writes++
	id := d.writes
	d.inFlight[id] = start
	d.mu.Unlock()
	var err error
	if d.delay != nil {
		err = d.delay(op)
	}
	if err == nil {
		err = fn()
	}
	if err != nil && op == "vote" && d.raft.Load() != nil && d.lost() != nil {
		// Raft would end the process here. Wait until nothing can leave this node any more; then it
		// is harmless.
		<-d.ended
		err = nil
	}
	now := time.Now()
	d.mu.Lock()
	delete(d.inFlight, id)
	if op != "delete" { // many entries at once may take long
		d.took = append(d.took, sample{now, now.Sub(start)})
		d.forget(now)
	}
	d.mu.Unlock()
	return err
}

// forget drops the samples that are too old or exceed the number to keep. The caller holds mu.
func (d *disk) forget(now time.Time) {
	old := slices.IndexFunc(d.took, func(s sample) bool { return now.Sub(s.at) < slowWindow })
	if old < 0 {
		old = len(d.took)
	}
	d.took = append(d.took[:0], d.took[old:]...)
	if more := len(d.took) - slowLast; more > 0 {
		d.took = append(d.took[:0], d.took[more:]...)
	}
}

// room returns why there is no room for entries, or nil if there is.
func (d *disk) room() error {
	free, err := d.free()
	if err != nil || free >= minFree {
		return nil //nolint:nilerr // what is not known is found out by writing
	}
	return core.Errorf(core.Unavailable, "write raft log: %w: %d MiB are free, and %d MiB are kept for elections", errFull, free>>20, minFree>>20).Hint(
		"Free space on the disk of data_dir; nothing needs a restart.")
}

// stalled returns an error that names the hanging write, or reports that writes have stopped; nil
// if all is well.
func (d *disk) stalled() error {
	if err := d.lost(); err != nil {
		return err
	}
	if d.awaits.Load() {
		if err := d.room(); err != nil {
			return err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	for _, since := range d.inFlight {
		if took := now.Sub(since); took > stallAfter {
			return core.Errorf(core.Unavailable, "write raft log: the disk of this queen has not answered for %s", took.Round(time.Millisecond)).Hint(
				"Other queens take over meanwhile: check the disk of data_dir.")
		}
	}
	return nil
}

// DiskProblem returns why this node cannot write to its log: its disk is full, failed, or hangs. It
// returns nil if there is no problem. While there is one, the node cannot lead.
func (n *Node) DiskProblem() error {
	if err := n.disk.stalled(); err != nil {
		return err
	}
	return n.disk.room()
}

// median returns the median duration of a write, or false if there are too few samples.
func (d *disk) median() (time.Duration, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	now := time.Now()
	d.forget(now)
	all := make([]time.Duration, 0, len(d.took)+1)
	for _, s := range d.took {
		all = append(all, s.took)
	}
	for _, since := range d.inFlight {
		if took := now.Sub(since); took > slowWrite {
			all = append(all, took)
		}
	}
	if len(all) < slowCount {
		return 0, false
	}
	slices.Sort(all)
	return all[len(all)/2], true
}
