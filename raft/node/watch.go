package node

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
)

const (
	watchEvery = 250 * time.Millisecond
	// slowFor is how long the disk must be slow before the leadership moves.
	slowFor = 2 * time.Second
	// The pause between two moves of the leadership away from this node. It grows, because a move
	// does not help if all disks are slow.
	firstRest = time.Minute
	maxRest   = time.Hour
	// An election takes as long as this many writes, and at most maxElectionTimeout.
	electionWrites     = 8
	maxElectionTimeout = 10 * time.Second
	adaptEvery         = time.Second
	// calmFor is the time without a move after which the pause is reset.
	calmFor = 3 * time.Hour
)

// moves keeps the leadership from going back and forth. It outlives leaderships.
type moves struct {
	mu   sync.Mutex
	last time.Time
	rest time.Duration
}

// allow reports whether the leadership may be moved now, and counts it.
func (m *moves) allow(now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.last.IsZero() || now.Sub(m.last) > calmFor:
		m.rest = firstRest
	case now.Sub(m.last) < m.rest:
		return false
	default:
		m.rest = min(4*m.rest, maxRest)
	}
	m.last = now
	return true
}

// watchDisk moves the leadership to another queen when this one's disk is full or slow, until ctx
// ends.
func (n *Node) watchDisk(ctx context.Context) {
	var slowSince, triedFull time.Time
	retry := time.Second
	ticks := time.NewTicker(watchEvery)
	defer ticks.Stop()
	for {
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return
		}
		now := time.Now()
		if err := n.disk.room(); err == nil {
			retry = time.Second
		} else if now.Sub(triedFull) >= retry {
			triedFull, retry = now, min(2*retry, maxPause)
			n.move(ctx, err)
		}
		took, known := n.disk.median()
		switch {
		case !known || took <= slowWrite:
			slowSince = time.Time{}
		case slowSince.IsZero():
			slowSince = now
		case now.Sub(slowSince) >= slowFor && len(n.voterIDs()) > 1 && n.moves.allow(now):
			slowSince = time.Time{}
			n.move(ctx, core.Errorf(core.Unavailable, "write raft log: half of the writes take %s or more", took.Round(time.Millisecond)))
		}
	}
}

// adapt adapts the duration of elections to this disk: a vote takes two writes on each side. If no
// node can be elected in time, they all try forever. It does not change how soon an election
// starts.
func (n *Node) adapt() {
	took, known := n.disk.median()
	if !known {
		return
	}
	want := min(max(n.opts.ElectionTimeout, (electionWrites*took).Round(50*time.Millisecond)), maxElectionTimeout)
	conf := n.raft.ReloadableConfig()
	if conf.ElectionTimeout == want {
		return
	}
	conf.ElectionTimeout = want
	if err := n.raft.ReloadConfig(conf); err != nil {
		n.log.Warn("failed to adapt the election timeout to the disk", "timeout", want, "error", err)
	}
}

func (n *Node) move(ctx context.Context, why error) {
	if len(n.voterIDs()) > 1 {
		n.log.Warn("giving the leadership to another queen, because of this one's disk", "error", why)
		n.handOver(ctx)
	}
}

// handOver gives the leadership to another voter, and reports whether one took it. Not every voter
// can; the first choice is the one with the longest log.
func (n *Node) handOver(ctx context.Context) bool {
	term := n.raft.CurrentTerm()
	type candidate struct {
		Server
		contact
	}
	var candidates []candidate
	for _, s := range n.Servers() {
		if c, ok := n.trans.contact(raft.ServerID(s.RaftID), term); ok && s.Voter && s.RaftID != n.id && time.Since(c.at) < n.opts.ElectionTimeout {
			candidates = append(candidates, candidate{s, c})
		}
	}
	slices.SortFunc(candidates, func(a, b candidate) int { return cmp.Or(cmp.Compare(b.lastLog, a.lastLog), b.at.Compare(a.at)) })
	for _, c := range candidates {
		if n.LeadershipTransferTo(ctx, c.RaftID, c.Address) == nil {
			return true
		}
		if ctx.Err() != nil || n.raft.State() != raft.Leader {
			return n.raft.State() != raft.Leader
		}
	}
	return false
}

// correctEvery is the interval of checks whether this node's address in the cluster is correct.
const correctEvery = time.Second

// correctAddress keeps this node's address in the cluster up to date, until ctx ends. The leaders
// of other nodes do it for them: see pilot.reconcile.
func (n *Node) correctAddress(ctx context.Context) {
	tick := time.NewTicker(correctEvery)
	defer tick.Stop()
	failed := ""
	for {
		here := string(n.trans.LocalAddr())
		for _, s := range n.Servers() {
			if s.RaftID != n.id || s.Address == here {
				continue
			}
			switch err := n.AddVoter(ctx, n.id, here); {
			case ctx.Err() != nil:
				return
			case err == nil:
				n.log.Info("this queen has another address", "address", here, "before", s.Address)
			case failed != here:
				failed = here
				n.log.Warn("failed to update this queen's address in the cluster", "address", here, "error", err)
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
