package memregistry

import (
	"context"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	replicaLag  = 50 * time.Millisecond // delay of a replica behind the leader
	replicaTrip = 10 * time.Millisecond // round trip to the leader
)

// Replica is the registry of a following queen: it receives the leader's changes while it is
// connected. Its clock is the bubble's.
type Replica struct {
	*Registry

	mu        sync.Mutex // guards below
	seen      *state.Snapshot
	connected bool
	since     time.Time
	asked     int
}

// Follow returns a connected replica.
func (r *Registry) Follow() *Replica {
	return &Replica{Registry: r, seen: r.View(), connected: true, since: time.Now().Add(-replicaLag)}
}

// Connect connects the replica to the leader, or disconnects it.
func (r *Replica) Connect(on bool) {
	r.View() // keeps its state so far
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected, r.since = on, time.Now()
}

// Asked returns how often the leader was asked how fresh the registry is.
func (r *Replica) Asked() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.asked
}

// View returns the replica's current view of the registry.
func (r *Replica) View() *state.Snapshot {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.connected && time.Since(r.since) >= replicaLag {
		r.seen = r.Registry.View()
	}
	return r.seen
}

// Cluster returns the replica's cluster. Errors: Unavailable if it has none.
func (r *Replica) Cluster() (core.Cluster, error) {
	c, ok := r.View().Cluster(nil)
	if !ok {
		return c, core.Errorf(core.Unavailable, "the replica has no cluster yet")
	}
	return c, nil
}

// CatchUp waits until the replica is as fresh as the leader. Errors: ctx's if it is disconnected.
func (r *Replica) CatchUp(ctx context.Context) error {
	r.mu.Lock()
	r.asked++
	connected := r.connected
	r.mu.Unlock()
	if !connected {
		<-ctx.Done()
		return ctx.Err()
	}
	time.Sleep(replicaTrip)
	now := r.Registry.View()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.seen = now
	return nil
}

// Silence returns how long the replica has been disconnected.
func (r *Replica) Silence() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.connected {
		return 0
	}
	return time.Since(r.since)
}
