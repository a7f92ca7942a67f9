package membership

import (
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// proof is a queen's last announcement, over a connection authenticated by its certificate.
type proof struct {
	node pki.Node // from its certificate; only the ID if this queen called
	said *queenv1.Announcement
	at   time.Time
}

// alive reports whether the queen recently announced that it is staying.
func (p proof) alive() bool { return time.Since(p.at) < announcedFor && !p.said.GetLeaving() }

func (p proof) member(name string) gossip.Member {
	m := gossip.Member{
		ID: p.node.ID, Name: name, Queen: true, RPCAddress: p.said.GetRpcAddress(), HTTPAddress: p.said.GetHttpAddress(), Version: p.said.GetVersion(),
		FSM: p.said.GetFsm(), BootstrapExpect: p.said.GetBootstrapExpect(), RaftID: p.said.GetRaftId(), HasState: p.said.GetHasState(), Status: gossip.Failed,
	}
	if p.alive() {
		m.Status = gossip.Alive
	}
	return m
}

// Leave announces to the other queens that this one leaves permanently: they remove it from raft
// and do not add it again.
func (m *Members) Leave() { m.leaving.Store(true) }

// announcement returns this queen's announcement.
func (m *Members) announcement() *queenv1.Announcement {
	n := m.registry
	self := m.ownMember()
	return &queenv1.Announcement{
		RaftId: n.ID(), RpcAddress: self.RPCAddress, HttpAddress: self.HTTPAddress, Fsm: fsm.Version, Version: m.opts.Version,
		HasState: n.HasState(), BootstrapExpect: self.BootstrapExpect, Leaving: m.leaving.Load(),
		GossipAddress: self.GossipAddress, Deaf: m.deafNodes(),
	}
}

// ownMember returns this node's gossip entry, the only one that no other node can change.
func (m *Members) ownMember() gossip.Member {
	for _, g := range m.net.Gossip.Members() {
		if g.ID == m.opts.ID {
			return g
		}
	}
	return gossip.Member{}
}

// believe records a queen's announcement. The caller has authenticated it by its certificate.
// Errors: Invalid for an impossible claim, such as the raft id of another node.
func (m *Members) believe(peer pki.Node, said *queenv1.Announcement) error {
	if peer.ID == m.opts.ID {
		return nil
	}
	if id := said.GetRaftId(); len(id) > fsm.MaxIDBytes || id != "" && registry.NodeOf(id) != peer.ID {
		return core.Errorf(core.Invalid, "node %s announces the raft id of another node", peer.ID)
	}
	if err := checkAddress(said.GetRpcAddress()); err != nil {
		return err
	}
	if said.GetFsm() == 0 {
		said.Fsm = legacyFSM
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, known := m.proofs[peer.ID]
	if len(peer.KeyHash) == 0 && known {
		peer = old.node
	}
	m.proofs[peer.ID] = proof{node: peer, said: said, at: time.Now()}
	if !known || !old.alive() || old.said.String() != said.String() || len(old.node.KeyHash) != len(peer.KeyHash) {
		close(m.announced)
		m.announced = make(chan struct{})
	}
	return nil
}

// proven returns the recorded proofs, sorted by node id.
func (m *Members) proven() []proof {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]proof, 0, len(m.proofs))
	for _, p := range m.proofs {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b proof) int { return strings.Compare(a.node.ID, b.node.ID) })
	return out
}

// answers reports whether a queen recently proved that it is alive.
func (m *Members) answers(id string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.proofs[id]
	return ok && p.alive()
}

// Gone returns the gossip status of nodes that gossip does not consider alive and that have not
// recently proved otherwise, by node id.
func (m *Members) Gone() map[string]string {
	gone := map[string]string{}
	for _, g := range m.net.Gossip.Members() {
		if g.Status != gossip.Alive && !m.answers(g.ID) {
			gone[g.ID] = string(g.Status)
		}
	}
	return gone
}

// Gossiped returns the gossip status of a node; empty: this queen is alone.
func (m *Members) Gossiped(id string) string {
	if m.net == nil {
		return ""
	}
	for _, g := range m.net.Gossip.Members() {
		if g.ID == id {
			return string(g.Status)
		}
	}
	return "unknown"
}

// disprove forgets a queen's announcement: it must announce itself again to count.
func (m *Members) disprove(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.proofs, id)
}

// trusted returns the queen with the id if the registry has it and it is not revoked.
func trusted(s *state.Snapshot, id string) (core.Node, bool) {
	n, ok := s.Node(nil, id)
	return n, ok && !n.Revoked && n.Has(core.RoleQueen)
}

// Announced returns the queens that recently proved who they are, including this one, whether or
// not the registry has them. The channel is closed at the next change.
func (m *Members) Announced() ([]gossip.Member, <-chan struct{}) {
	m.mu.Lock()
	changed := m.announced
	m.mu.Unlock()
	self := proof{node: pki.Node{ID: m.opts.ID}, said: m.announcement(), at: time.Now()}
	list := []gossip.Member{self.member(m.ownMember().Name)}
	for _, p := range m.proven() {
		if p.alive() {
			list = append(list, p.member(p.node.Name))
		}
	}
	return list, changed
}

// MinFSM returns the lowest state machine version among the registry's queens that answer; 0: none
// answers.
func (m *Members) MinFSM() uint32 {
	lowest := uint32(0)
	registry := m.registry.View()
	for _, p := range m.proven() {
		if _, ok := trusted(registry, p.node.ID); ok && p.alive() && (lowest == 0 || p.said.GetFsm() < lowest) {
			lowest = p.said.GetFsm()
		}
	}
	return lowest
}

// AddressOf returns the recently announced address of the queen with a raft id; empty: none.
func (m *Members) AddressOf(raftID string) string {
	if m.net == nil {
		return ""
	}
	id := registry.NodeOf(raftID)
	m.mu.Lock()
	p, ok := m.proofs[id]
	m.mu.Unlock()
	if _, queen := trusted(m.registry.View(), id); !ok || !queen || !p.alive() || p.said.GetRaftId() != raftID {
		return ""
	}
	return p.said.GetRpcAddress()
}

// raftMembers is what raft's autopilot knows about the queens: those of the registry, as they
// proved it themselves. Gossip does not influence it.
type raftMembers struct{ m *Members }

// Members returns the queens that raft follows. A revoked queen counts as one that left.
func (m raftMembers) Members() []registry.Member {
	view := m.m.registry.View()
	var out []registry.Member
	for _, p := range m.m.proven() {
		if n, ok := trusted(view, p.node.ID); ok {
			out = append(out, registry.Member{
				NodeID: n.ID, RaftID: p.said.GetRaftId(), Name: n.Name, Address: p.said.GetRpcAddress(), Version: p.said.GetVersion(),
				Alive: p.alive(), Left: p.said.GetLeaving(),
			})
		}
	}
	servers, err := m.m.registry.Queens()
	if err != nil {
		return out // it is shutting down
	}
	for _, s := range servers {
		if view.Revoked(nil, s.ID) {
			out = append(out, registry.Member{NodeID: s.ID, RaftID: s.RaftID, Address: s.Address, Left: true})
		}
	}
	return out
}
