package node

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
)

// The pauses before lead runs again on a node that could not hand over its leadership.
const (
	firstPause = 100 * time.Millisecond
	maxPause   = 10 * time.Second
)

// Run calls lead whenever this node becomes the leader, once State has everything that was
// committed before, and cancels its context when the leadership is lost. There is never more than
// one lead at a time: the next one waits for the previous one, even if the leadership was lost and
// regained at once. If lead returns an error, the node hands the leadership to another node; if
// there is none, lead runs again after a pause. If it returns nil, it is done until the next
// leadership.
//
// Run returns nil when ctx ends or the node shuts down, and an error if the node's disk failed: the
// caller should then end the process, for the node can no longer vote. Call it only once.
func (n *Node) Run(ctx context.Context, lead func(ctx context.Context) error) error {
	var failed <-chan struct{}
	if n.store != nil {
		failed = n.store.Failed()
	}
	var current leadership
	defer current.end()
	adapt := time.NewTicker(adaptEvery)
	defer adapt.Stop()
	for {
		select {
		case <-adapt.C:
			n.adapt()
		case leader := <-n.raft.LeaderCh():
			current.end()
			if leader {
				current = n.startLead(ctx, lead)
			}
		case <-ctx.Done():
			return nil
		case <-n.closed:
			return nil
		case <-failed:
			return core.Wrap(n.store.Err(), core.Unavailable, "keep the registry")
		}
	}
}

// leadership is a running lead.
type leadership struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (l *leadership) end() {
	if l.cancel != nil {
		l.cancel()
		<-l.done
	}
	*l = leadership{}
}

func (n *Node) startLead(ctx context.Context, lead func(context.Context) error) leadership {
	ctx, cancel := context.WithCancel(ctx)
	l := leadership{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(l.done)
		var wg sync.WaitGroup
		defer wg.Wait()
		defer cancel()
		wg.Go(func() { n.watchDisk(ctx) })
		wg.Go(func() { n.correctAddress(ctx) })
		n.leadUntil(ctx, lead)
		if ctx.Err() == nil && n.raft.State() == raft.Leader {
			<-ctx.Done() // lead is done, but the disk is watched as long as the leadership lasts
		}
	}()
	return l
}

// leadUntil runs lead until ctx ends, lead is done, or another node leads.
func (n *Node) leadUntil(ctx context.Context, lead func(context.Context) error) {
	for pause := firstPause; ; pause = min(2*pause, maxPause) {
		err := n.Barrier(ctx)
		if err == nil {
			n.log.Debug("leading", "index", n.AppliedIndex())
			err = lead(ctx)
		}
		if err == nil || ctx.Err() != nil || !n.IsLeader() {
			return
		}
		n.log.Error("leader duties ended, giving up the leadership", "error", err)
		if n.handOver(ctx) {
			return
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return
		}
	}
}

// LeadershipTransfer asks the most up-to-date voter to take over the leadership, and waits until it
// stands for election. Errors: Unavailable if none did, or this node is not the leader; ctx's.
func (n *Node) LeadershipTransfer(ctx context.Context) error {
	return n.transfer(ctx, func() raft.Future { return n.raft.LeadershipTransfer() })
}

// LeadershipTransferTo asks a voter to take over the leadership, and waits until it stands for
// election. Errors: as for LeadershipTransfer.
func (n *Node) LeadershipTransferTo(ctx context.Context, raftID, address string) error {
	if raftID == n.id {
		return core.Errorf(core.Conflict, "hand over the leadership: queen %s is the leader, or wants to be", raftID)
	}
	return n.transfer(ctx, func() raft.Future {
		return n.raft.LeadershipTransferToServer(raft.ServerID(raftID), raft.ServerAddress(address))
	})
}

func (n *Node) transfer(ctx context.Context, begin func() raft.Future) error {
	err := n.wait(ctx, "hand over the leadership", func() error { return begin().Error() })
	if core.KindOf(err) == core.Internal {
		return core.WithKind(err, core.Unavailable) // raft's own error if no voter takes it
	}
	return err
}
