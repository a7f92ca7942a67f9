package membership

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

const (
	// announceEvery is the interval between exchanges with each queen, announceRest the least pause
	// after a gossip change.
	announceEvery = time.Second
	announceRest  = 200 * time.Millisecond
	// announceTimeout bounds one exchange at one address.
	announceTimeout = 2 * time.Second
	// announcedFor is how long an announcement counts as a sign of life.
	announcedFor = 10 * time.Second
	// maxStrangers bounds the queens known only from gossip that are asked in one round.
	maxStrangers = 16
	// legacyFSM is the state machine version of queens without Announce.
	legacyFSM = 2
)

// announce exchanges announcements with the other queens until ctx ends.
func (m *Members) announce(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	var mu sync.Mutex // guards busy
	busy := map[string]bool{}
	for ctx.Err() == nil {
		changed := m.net.Gossip.Changed()
		for id, addresses := range m.queensToAsk() {
			mu.Lock()
			skip := busy[id]
			busy[id] = true
			mu.Unlock()
			if skip {
				continue
			}
			wg.Go(func() {
				m.exchange(ctx, id, addresses)
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

// queensToAsk returns the queens that this one exchanges announcements with, and the addresses to
// try: the last proven one first, gossip's hint last. Queens known only from gossip are asked when
// the registry cannot know them: before a registry exists, and in a cluster whose certificates are
// issued elsewhere.
func (m *Members) queensToAsk() map[string][]string {
	ask := map[string][]string{}
	add := func(id, address string) {
		if id != m.opts.ID && address != "" && !slices.Contains(ask[id], address) {
			ask[id] = append(ask[id], address)
		}
	}
	registry := m.registry.View()
	for _, p := range m.proven() {
		if !registry.Revoked(nil, p.node.ID) {
			add(p.node.ID, p.said.GetRpcAddress())
		}
	}
	if servers, err := m.registry.Queens(); err == nil {
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
	members := m.net.Gossip.Members()
	first := 0
	if len(members) > 0 { // a random one: forged members cannot permanently keep a real one out
		first = m.opts.Rand(len(members))
	}
	for _, g := range slices.Concat(members[first:], members[:first]) {
		if !g.Queen || g.ID == m.opts.ID || checkAddress(g.RPCAddress) != nil || registry.Revoked(nil, g.ID) {
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

// exchange sends a queen this queen's announcement and asks for its own, at each address until it
// answers. The connection proves that this queen answers.
func (m *Members) exchange(ctx context.Context, id string, addresses []string) {
	for _, address := range addresses {
		if ctx.Err() != nil {
			return
		}
		conn, err := m.net.Probe(id, address)
		if err != nil {
			m.log.Debug("cannot exchange announcements", "queen", id, "address", address, "error", err)
			continue
		}
		limited, cancel := context.WithTimeout(ctx, announceTimeout)
		resp, err := queenv1.NewClusterServiceClient(conn).Announce(limited, &queenv1.AnnounceRequest{Self: m.announcement()})
		cancel()
		err = rpc.FromStatus(err)
		switch {
		case err == nil:
			err = m.believe(pki.Node{ID: id}, resp.GetSelf())
		case core.KindOf(err) == core.Unsupported: // an older version, but the right queen
			err = m.believe(pki.Node{ID: id}, &queenv1.Announcement{RaftId: m.raftIDOf(id), RpcAddress: address, Fsm: legacyFSM, HasState: true})
		}
		if err == nil {
			return
		}
		m.log.Trace("queen does not answer", "queen", id, "address", address, "error", err)
	}
}

// raftIDOf returns the id of a node in the raft configuration; empty: none.
func (m *Members) raftIDOf(id string) string {
	servers, err := m.registry.Queens()
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

// admit adds queens to the registry that hold certificates issued elsewhere and proved it, while
// this queen leads. If the cluster signs certificates itself, their owners are in the registry
// already.
func (m *Members) admit(ctx context.Context) error {
	refused := map[string]string{}
	for ctx.Err() == nil {
		m.mu.Lock()
		changed := m.announced
		m.mu.Unlock()
		s := m.registry.View()
		if c, ok := s.Cluster(nil); ok && len(c.SealedCAKey) == 0 {
			for _, p := range m.proven() {
				if _, known := s.Node(nil, p.node.ID); known || len(p.node.KeyHash) == 0 || !p.alive() {
					continue
				}
				err := m.registry.Write(ctx, "admit "+p.node.ID, fsm.PutNode(core.Node{
					ID: p.node.ID, Name: p.node.Name, Roles: p.node.Roles, RPCAddress: p.said.GetRpcAddress(), KeyHash: p.node.KeyHash,
					CertificateExpiresAt: p.node.NotAfter.UTC().Truncate(time.Second),
				}, ""))
				switch {
				case err == nil:
					m.log.Info("queen with a certificate of this cluster admitted", "queen", p.node.ID, "name", p.node.Name)
				case refused[p.node.ID] != err.Error() && core.KindOf(err) != core.Unavailable:
					refused[p.node.ID] = err.Error()
					m.log.Warn("cannot admit queen", "queen", p.node.ID, "name", p.node.Name, "error", err)
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
