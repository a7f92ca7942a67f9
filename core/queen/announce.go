package queen

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	// announceEvery is between two exchanges with each queen, announceRest the least pause after a
	// change of gossip.
	announceEvery = time.Second
	announceRest  = 200 * time.Millisecond
	// announceTimeout bounds one exchange at one address.
	announceTimeout = 2 * time.Second
	// announcedFor is how long an announcement counts as a sign of life.
	announcedFor = 10 * time.Second
	// maxStrangers bounds the queens that only gossip knows and that are asked in one round.
	maxStrangers = 16
	// legacyFSM is the state machine version of queens that do not know Announce.
	legacyFSM = 2
)

// proof is what a queen last said of itself over a connection that its certificate proved to be its
// own.
type proof struct {
	node pki.Node // from its certificate; only the ID when this queen called
	said *queenv1.Announcement
	at   time.Time
}

// alive reports whether the queen said lately that it is there to stay.
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

// Leave has this queen tell the others that it leaves for good: they take it out of raft and do not
// add it again.
func (q *Queen) Leave() { q.leaving.Store(true) }

// announcement is what this queen says of itself.
func (q *Queen) announcement() *queenv1.Announcement {
	n := q.registry
	self := q.ownMember()
	return &queenv1.Announcement{
		RaftId: n.ID(), RpcAddress: self.RPCAddress, HttpAddress: self.HTTPAddress, Fsm: fsm.Version, Version: q.opts.Version,
		HasState: n.HasState(), BootstrapExpect: self.BootstrapExpect, Leaving: q.leaving.Load(),
		GossipAddress: self.GossipAddress, Deaf: q.deafNodes(),
	}
}

// ownMember is this node's entry in gossip, the only one that nobody else has a say in.
func (q *Queen) ownMember() gossip.Member {
	for _, g := range q.opts.Membership.Gossip.Members() {
		if g.ID == q.opts.ID {
			return g
		}
	}
	return gossip.Member{}
}

// Announce takes what another queen says of itself and answers with the same of this one.
func (s *clusterService) Announce(ctx context.Context, req *queenv1.AnnounceRequest) (*queenv1.AnnounceResponse, error) {
	if s.q.opts.Membership == nil {
		return nil, errAlone()
	}
	peer, ok := rpc.Peer(ctx)
	if !ok {
		return nil, core.Errorf(core.Unauthenticated, "an announcement needs a certificate")
	}
	if err := s.q.believe(peer, req.GetSelf()); err != nil {
		return nil, err
	}
	return &queenv1.AnnounceResponse{Self: s.q.announcement()}, nil
}

// believe keeps what a queen said of itself. The caller has its certificate. Errors: Invalid when
// it says what cannot be, such as the raft id of another node.
func (q *Queen) believe(peer pki.Node, said *queenv1.Announcement) error {
	if peer.ID == q.opts.ID {
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
	q.mu.Lock()
	defer q.mu.Unlock()
	old, known := q.proofs[peer.ID]
	if len(peer.KeyHash) == 0 && known {
		peer = old.node
	}
	q.proofs[peer.ID] = proof{node: peer, said: said, at: time.Now()}
	if !known || !old.alive() || old.said.String() != said.String() || len(old.node.KeyHash) != len(peer.KeyHash) {
		close(q.announced)
		q.announced = make(chan struct{})
	}
	return nil
}

// proven returns what queens proved of themselves, sorted by node id.
func (q *Queen) proven() []proof {
	q.mu.Lock()
	defer q.mu.Unlock()
	out := make([]proof, 0, len(q.proofs))
	for _, p := range q.proofs {
		out = append(out, p)
	}
	slices.SortFunc(out, func(a, b proof) int { return strings.Compare(a.node.ID, b.node.ID) })
	return out
}

// answers reports whether a queen proved lately that it is there.
func (q *Queen) answers(id string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	p, ok := q.proofs[id]
	return ok && p.alive()
}

// disprove forgets what a queen said of itself: it has to say it again to count.
func (q *Queen) disprove(id string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.proofs, id)
}

// trusted returns the queen with the id if the registry has it and it is not revoked.
func trusted(s *state.Snapshot, id string) (core.Node, bool) {
	n, ok := s.Node(nil, id)
	return n, ok && !n.Revoked && n.Has(core.RoleQueen)
}

// Announced are the queens that proved lately who they are, this one included, whether or not the
// registry has them. The channel is closed at the next change.
func (q *Queen) Announced() ([]gossip.Member, <-chan struct{}) {
	q.mu.Lock()
	changed := q.announced
	q.mu.Unlock()
	self := proof{node: pki.Node{ID: q.opts.ID}, said: q.announcement(), at: time.Now()}
	list := []gossip.Member{self.member(q.ownMember().Name)}
	for _, p := range q.proven() {
		if p.alive() {
			list = append(list, p.member(p.node.Name))
		}
	}
	return list, changed
}

// MinFSM is the lowest state machine version among the queens of the registry that answer; 0: none
// does.
func (q *Queen) MinFSM() uint32 {
	lowest := uint32(0)
	registry := q.registry.View()
	for _, p := range q.proven() {
		if _, ok := trusted(registry, p.node.ID); ok && p.alive() && (lowest == 0 || p.said.GetFsm() < lowest) {
			lowest = p.said.GetFsm()
		}
	}
	return lowest
}

// AddressOf is where the queen with a raft id said lately that it is; empty: it did not say so.
func (q *Queen) AddressOf(raftID string) string {
	if q.opts.Membership == nil {
		return ""
	}
	id := registry.NodeOf(raftID)
	q.mu.Lock()
	p, ok := q.proofs[id]
	q.mu.Unlock()
	if _, queen := trusted(q.registry.View(), id); !ok || !queen || !p.alive() || p.said.GetRaftId() != raftID {
		return ""
	}
	return p.said.GetRpcAddress()
}

// announce exchanges announcements with the other queens until ctx ends.
func (q *Queen) announce(ctx context.Context) {
	m := q.opts.Membership
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex // guards busy
	busy := map[string]bool{}
	for ctx.Err() == nil {
		changed := m.Gossip.Changed()
		for id, addresses := range q.queensToAsk() {
			mu.Lock()
			skip := busy[id]
			busy[id] = true
			mu.Unlock()
			if skip {
				continue
			}
			wg.Go(func() {
				q.exchange(ctx, id, addresses)
				mu.Lock()
				delete(busy, id)
				mu.Unlock()
			})
		}
		rest := time.NewTimer(announceRest)
		select {
		case <-ctx.Done():
		case <-rest.C:
		}
		rest.Stop()
		timer := time.NewTimer(announceEvery - announceRest)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
}

// queensToAsk are the queens that this one exchanges announcements with, and where each may be:
// what it proved last comes first, gossip's hint last. Queens that only gossip knows are asked
// where the registry cannot know them: before there is one, and in a cluster whose certificates are
// made elsewhere.
func (q *Queen) queensToAsk() map[string][]string {
	ask := map[string][]string{}
	add := func(id, address string) {
		if id != q.opts.ID && address != "" && !slices.Contains(ask[id], address) {
			ask[id] = append(ask[id], address)
		}
	}
	registry := q.registry.View()
	for _, p := range q.proven() {
		if !registry.Revoked(nil, p.node.ID) {
			add(p.node.ID, p.said.GetRpcAddress())
		}
	}
	if servers, err := q.registry.Queens(); err == nil {
		for _, s := range servers {
			if !registry.Revoked(nil, s.ID) {
				add(s.ID, s.Address)
			}
		}
	}
	for _, n := range registry.Nodes(nil) {
		if !n.Revoked && n.Has(core.RoleQueen) {
			add(n.ID, n.RPCAddress)
		}
	}
	c, ok := registry.Cluster(nil)
	strangers := 0
	if !ok || len(c.SealedCAKey) == 0 {
		strangers = maxStrangers
	}
	members := q.opts.Membership.Gossip.Members()
	first := 0
	if len(members) > 0 { // a random one: forged members cannot keep a real one out for ever
		first = q.opts.Rand(len(members))
	}
	for _, g := range slices.Concat(members[first:], members[:first]) {
		if !g.Queen || g.ID == q.opts.ID || checkAddress(g.RPCAddress) != nil || registry.Revoked(nil, g.ID) {
			continue
		}
		if _, known := ask[g.ID]; !known {
			if strangers == 0 || g.Status != gossip.Alive {
				continue
			}
			strangers--
		}
		add(g.ID, g.RPCAddress)
	}
	return ask
}

// exchange tells a queen about this one and asks the same of it, at each address until it answers.
// The connection proves that it is this queen who answers.
func (q *Queen) exchange(ctx context.Context, id string, addresses []string) {
	for _, address := range addresses {
		if ctx.Err() != nil {
			return
		}
		conn, err := q.opts.Membership.Probe(id, address)
		if err != nil {
			q.log.Debug("cannot exchange announcements", "queen", id, "address", address, "error", err)
			continue
		}
		limited, cancel := context.WithTimeout(ctx, announceTimeout)
		resp, err := queenv1.NewClusterServiceClient(conn).Announce(limited, &queenv1.AnnounceRequest{Self: q.announcement()})
		cancel()
		err = rpc.FromStatus(err)
		switch {
		case err == nil:
			err = q.believe(pki.Node{ID: id}, resp.GetSelf())
		case core.KindOf(err) == core.Unsupported: // an older version, but the very queen
			err = q.believe(pki.Node{ID: id}, &queenv1.Announcement{RaftId: q.raftIDOf(id), RpcAddress: address, Fsm: legacyFSM, HasState: true})
		}
		if err == nil {
			return
		}
		q.log.Trace("queen does not answer", "queen", id, "address", address, "error", err)
	}
}

// raftIDOf is the raft id that the raft configuration has for a node; empty: none.
func (q *Queen) raftIDOf(id string) string {
	servers, err := q.registry.Queens()
	if err != nil {
		return ""
	}
	for _, s := range servers {
		if s.ID == id {
			return s.RaftID
		}
	}
	return ""
}

// admit writes queens to the registry whose certificates were made elsewhere and that proved to
// have them, while this queen leads. Where the cluster signs certificates itself, it has written
// their owners to the registry before.
func (q *Queen) admit(ctx context.Context) error {
	refused := map[string]string{}
	for ctx.Err() == nil {
		q.mu.Lock()
		changed := q.announced
		q.mu.Unlock()
		s := q.registry.View()
		if c, ok := s.Cluster(nil); ok && len(c.SealedCAKey) == 0 {
			for _, p := range q.proven() {
				if _, known := s.Node(nil, p.node.ID); known || len(p.node.KeyHash) == 0 || !p.alive() {
					continue
				}
				err := q.registry.Write(ctx, "admit "+p.node.ID, fsm.PutNode(core.Node{
					ID: p.node.ID, Name: p.node.Name, Roles: p.node.Roles, RPCAddress: p.said.GetRpcAddress(), KeyHash: p.node.KeyHash,
					CertificateExpiresAt: p.node.NotAfter.UTC().Truncate(time.Second),
				}, ""))
				switch {
				case err == nil:
					q.log.Info("queen with a certificate of this cluster admitted", "queen", p.node.ID, "name", p.node.Name)
				case refused[p.node.ID] != err.Error() && core.KindOf(err) != core.Unavailable:
					refused[p.node.ID] = err.Error()
					q.log.Warn("cannot admit queen", "queen", p.node.ID, "name", p.node.Name, "error", err)
				}
			}
		}
		timer := time.NewTimer(announceEvery)
		select {
		case <-ctx.Done():
		case <-changed:
		case <-timer.C:
		}
		timer.Stop()
	}
	return nil
}

// raftMembers is what raft's autopilot knows of the queens: those of the registry, as they proved
// it themselves. Gossip has no say in it.
type raftMembers struct{ q *Queen }

// Members are the queens that raft follows. A revoked queen counts as one that left.
func (m raftMembers) Members() []registry.Member {
	view := m.q.registry.View()
	var out []registry.Member
	for _, p := range m.q.proven() {
		if n, ok := trusted(view, p.node.ID); ok {
			out = append(out, registry.Member{
				NodeID: n.ID, RaftID: p.said.GetRaftId(), Name: n.Name, Address: p.said.GetRpcAddress(), Version: p.said.GetVersion(),
				Alive: p.alive(), Left: p.said.GetLeaving(),
			})
		}
	}
	servers, err := m.q.registry.Queens()
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
