package node

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"

	"github.com/rbee-project/rbee/core"
)

const (
	// wellWithin is the longest that raft may not have heard from a healthy queen.
	wellWithin = time.Second
	// maxTrailing is the number of entries that a healthy queen may lag behind.
	maxTrailing = 256
	// heardWithin is how long raft's contact with a queen outweighs gossip's report of its death.
	heardWithin = 5 * time.Second
)

// Member is a queen as gossip knows it.
type Member struct {
	NodeID  string
	RaftID  string // empty: unknown, then Autopilot leaves it alone
	Name    string // for the log
	Address string // as the transport dials it
	Version string // for the log
	Alive   bool
	Left    bool // it left on purpose; otherwise a queen that is not alive has failed
}

// Membership tells Autopilot about the queens from outside raft.
type Membership interface {
	// Members returns the queens, this node included. It does not block.
	Members() []Member
}

// Autopilot adapts the raft cluster to the membership until ctx ends; call it while leading, within
// lead. It adds queens as nonvoters and gives them a vote once they have been healthy for
// Options.Stabilization. It removes queens that have been dead for Options.DeadAfter, as long as
// Options.MinVoters stay. It removes an identity that its machine has lost at once, and it follows
// changed addresses. It returns nil.
func (n *Node) Autopilot(ctx context.Context, m Membership) error {
	p := &pilot{n: n, membership: m, dead: map[raft.ServerID]time.Time{}}
	tick := min(2*time.Second, max(n.opts.Stabilization/5, 50*time.Millisecond))
	a := autopilot.New(careful{n.raft}, p,
		autopilot.WithLogger(n.quiet), autopilot.WithPromoter(&promoter{p: p}),
		autopilot.WithUpdateInterval(tick), autopilot.WithReconcileInterval(tick))
	a.Start(ctx)
	defer func() { <-a.Stop() }()
	ticks := time.NewTicker(min(tick, time.Second))
	defer ticks.Stop()
	for {
		p.reconcile(ctx)
		select {
		case <-ticks.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// careful is raft as autopilot sees it. Autopilot promotes servers by their state a tick ago, and
// raft adds any server that it is asked to promote: one that was removed in the meantime would
// return as a voter without a machine.
type careful struct{ *raft.Raft }

// AddVoter gives a member a vote. It returns an error if it is no longer a member.
func (c careful) AddVoter(id raft.ServerID, address raft.ServerAddress, prevIndex uint64, timeout time.Duration) raft.IndexFuture {
	now := c.GetConfiguration()
	if err := now.Error(); err != nil {
		return refused{err}
	}
	if !slices.ContainsFunc(now.Configuration().Servers, func(s raft.Server) bool { return s.ID == id }) {
		return refused{fmt.Errorf("queen %s was removed meanwhile", id)}
	}
	return c.Raft.AddVoter(id, address, prevIndex, timeout)
}

// refused is the future of a change that was not attempted.
type refused struct{ err error }

func (r refused) Error() error  { return r.err }
func (r refused) Index() uint64 { return 0 }

// pilot tells autopilot what it needs to know, and does what autopilot does not: it adds servers,
// follows addresses and removes lost identities.
type pilot struct {
	n          *Node
	membership Membership

	mu   sync.Mutex                  // guards below
	dead map[raft.ServerID]time.Time // when a server's silence began
}

var _ autopilot.ApplicationIntegration = (*pilot)(nil)

// reconcile makes the urgent changes, one after another.
func (p *pilot) reconcile(ctx context.Context) {
	members := p.membership.Members()
	live := map[string]Member{}
	for _, m := range members {
		if m.Alive && m.RaftID != "" && m.Address != "" && m.RaftID != p.n.id {
			live[m.RaftID] = m
		}
	}
	servers := p.n.Servers()
	known := map[string]bool{}
	for _, s := range servers {
		known[s.RaftID] = true
		m, ok := live[s.RaftID]
		switch {
		case s.RaftID == p.n.id:
		case !ok && p.replaced(s, live):
			p.n.log.Info("removing a queen's lost identity: its machine runs under another one", "queen", s.RaftID)
			p.did(ctx, "remove", s.RaftID, p.n.RemoveServer(ctx, s.RaftID))
		case ok && m.Address != s.Address:
			// a voter keeps its vote
			p.did(ctx, "move", s.RaftID, p.n.AddNonvoter(ctx, s.RaftID, m.Address))
		}
	}
	for id, m := range live {
		if !known[id] && ctx.Err() == nil {
			p.n.log.Info("adding queen", "queen", id, "name", m.Name, "address", m.Address)
			p.did(ctx, "add", id, p.n.AddNonvoter(ctx, id, m.Address))
		}
	}
}

func (p *pilot) did(ctx context.Context, what, id string, err error) {
	if err != nil && ctx.Err() == nil && core.KindOf(err) != core.Unavailable {
		p.n.log.Warn("failed to adapt the raft cluster to its members", "change", what, "queen", id, "error", err)
	}
}

// replaced reports whether the server's machine, or its address, now belongs to another server.
func (p *pilot) replaced(s Server, live map[string]Member) bool {
	if p.heard(raft.ServerID(s.RaftID), heardWithin) {
		return false // gossip is out of date
	}
	for _, m := range live {
		if m.NodeID == s.NodeID || m.Address == s.Address {
			return true
		}
	}
	return false
}

// heard reports whether raft has heard from the server within the time, which is the only proof
// that it is alive.
func (p *pilot) heard(id raft.ServerID, within time.Duration) bool {
	c, ok := p.n.trans.contact(id, p.n.raft.CurrentTerm())
	return ok && time.Since(c.at) < within
}

// AutopilotConfig implements autopilot.ApplicationIntegration.
func (p *pilot) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{
		CleanupDeadServers: true, LastContactThreshold: wellWithin, MaxTrailingLogs: maxTrailing,
		MinQuorum: uint(p.n.opts.MinVoters), ServerStabilizationTime: p.n.opts.Stabilization, //nolint:gosec // positive
	}
}

// NotifyState implements autopilot.ApplicationIntegration.
func (p *pilot) NotifyState(*autopilot.State) {}

// FetchServerStats implements autopilot.ApplicationIntegration. It queries no servers: heartbeats
// provide everything.
func (p *pilot) FetchServerStats(_ context.Context, servers map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	term := p.n.raft.CurrentTerm()
	lastTerm, err := strconv.ParseUint(p.n.raft.Stats()["last_log_term"], 10, 64)
	if err != nil {
		return nil
	}
	stats := map[raft.ServerID]*autopilot.ServerStats{}
	for id := range servers {
		if string(id) == p.n.id {
			stats[id] = &autopilot.ServerStats{LastTerm: lastTerm, LastIndex: p.n.raft.LastIndex()}
		} else if c, ok := p.n.trans.contact(id, term); ok {
			stats[id] = &autopilot.ServerStats{LastContact: time.Since(c.at), LastTerm: lastTerm, LastIndex: c.lastLog}
		} else {
			stats[id] = &autopilot.ServerStats{LastContact: -1} // never
		}
	}
	return stats
}

// KnownServers implements autopilot.ApplicationIntegration.
func (p *pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	known := map[raft.ServerID]*autopilot.Server{}
	for _, m := range p.membership.Members() {
		if m.RaftID == "" {
			continue
		}
		s := &autopilot.Server{
			ID: raft.ServerID(m.RaftID), Name: m.Name, Address: raft.ServerAddress(m.Address), Version: m.Version,
			NodeStatus: autopilot.NodeFailed, NodeType: autopilot.NodeVoter, RaftVersion: int(raft.ProtocolVersionMax),
		}
		switch {
		case m.Alive:
			s.NodeStatus = autopilot.NodeAlive
		case m.Left:
			s.NodeStatus = autopilot.NodeLeft
		}
		known[s.ID] = s
	}
	self := raft.ServerID(p.n.id)
	known[self] = &autopilot.Server{
		ID: self, Address: p.n.trans.LocalAddr(), NodeStatus: autopilot.NodeAlive, NodeType: autopilot.NodeVoter,
		RaftVersion: int(raft.ProtocolVersionMax), IsLeader: true,
	}
	return known
}

// RemoveFailedServer implements autopilot.ApplicationIntegration.
func (p *pilot) RemoveFailedServer(s *autopilot.Server) {
	if s.ID == raft.ServerID(p.n.id) {
		return
	}
	p.n.log.Info("removing a dead queen", "queen", s.ID, "name", s.Name)
	if err := p.n.raft.RemoveServer(s.ID, 0, changeTimeout).Error(); err != nil {
		p.n.log.Debug("a dead queen was not removed", "queen", s.ID, "error", err)
	}
}

// promoter stops autopilot from removing a queen that raft still hears from, or that gossip does
// not know yet.
type promoter struct {
	autopilot.StablePromoter
	p *pilot
}

// FilterFailedServerRemovals implements autopilot.Promoter.
func (f *promoter) FilterFailedServerRemovals(_ *autopilot.Config, s *autopilot.State, failed *autopilot.FailedServers) *autopilot.FailedServers {
	p := f.p
	p.mu.Lock()
	defer p.mu.Unlock()
	candidates := map[raft.ServerID]bool{} // the value: whether it left on purpose
	for _, ids := range [][]raft.ServerID{failed.StaleVoters, failed.StaleNonVoters} {
		for _, id := range ids {
			candidates[id] = false
		}
	}
	for _, servers := range [][]*autopilot.Server{failed.FailedVoters, failed.FailedNonVoters} {
		for _, s := range servers {
			candidates[s.ID] = s.NodeStatus == autopilot.NodeLeft
		}
	}
	now := time.Now()
	gone := map[raft.ServerID]bool{}
	for id, left := range candidates {
		if p.heard(id, heardWithin) {
			delete(p.dead, id)
			continue
		}
		if p.dead[id].IsZero() {
			p.dead[id] = now
		}
		gone[id] = left || now.Sub(p.dead[id]) >= p.n.opts.DeadAfter
	}
	for id := range p.dead {
		if _, ok := candidates[id]; !ok {
			delete(p.dead, id)
		}
	}
	var out autopilot.FailedServers
	voters := len(s.Voters)
	for _, id := range failed.StaleVoters {
		// autopilot checks this only for the servers that it knows
		if gone[id] && voters > p.n.opts.MinVoters {
			voters--
			out.StaleVoters = append(out.StaleVoters, id)
		}
	}
	for _, id := range failed.StaleNonVoters {
		if gone[id] {
			out.StaleNonVoters = append(out.StaleNonVoters, id)
		}
	}
	for _, s := range failed.FailedVoters {
		if gone[s.ID] {
			out.FailedVoters = append(out.FailedVoters, s)
		}
	}
	for _, s := range failed.FailedNonVoters {
		if gone[s.ID] {
			out.FailedNonVoters = append(out.FailedNonVoters, s)
		}
	}
	return &out
}
