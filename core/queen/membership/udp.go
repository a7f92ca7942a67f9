package membership

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	// maxDeaf bounds the nodes that one queen reports as unreachable over UDP.
	maxDeaf = 32
	// seekEvery is the interval between searches for queens that gossip has not found.
	seekEvery = 5 * time.Second
)

// deafNodes returns the nodes that this queen's gossip reaches over TCP but not over UDP.
func (m *Members) deafNodes() []string {
	if m.net.Deaf == nil {
		return nil
	}
	var ids []string
	for _, other := range m.net.Deaf() {
		ids = append(ids, other.ID)
	}
	return ids[:min(len(ids), maxDeaf)]
}

// udpProblems names each pair of nodes of the registry between which UDP is blocked, as found by
// the queens; pairs of hives appear only in the hives' logs.
func (m *Members) udpProblems(s *state.Snapshot) []string {
	found := map[string][]string{m.opts.ID: m.deafNodes()} // by the reporting queen
	for _, p := range m.proven() {
		if _, ok := trusted(s, p.node.ID); ok && p.alive() {
			found[p.node.ID] = p.said.GetDeaf()[:min(len(p.said.GetDeaf()), maxDeaf)]
		}
	}
	ports := map[string]string{}
	for _, g := range m.net.Gossip.Members() {
		_, ports[g.ID], _ = net.SplitHostPort(g.GossipAddress)
	}
	pairs := map[[2]string]bool{}
	for queen, others := range found {
		for _, other := range others {
			a, ok := s.Node(nil, queen)
			b, also := s.Node(nil, other)
			if ok && also && !b.Revoked && a.ID != b.ID {
				pairs[[2]string{min(a.ID, b.ID), max(a.ID, b.ID)}] = true
			}
		}
	}
	var problems []string
	for pair := range pairs {
		a, _ := s.Node(nil, pair[0])
		b, _ := s.Node(nil, pair[1])
		if a.Name > b.Name {
			a, b = b, a
		}
		open := "port " + cmp.Or(ports[a.ID], "7835")
		if other := cmp.Or(ports[b.ID], "7835"); other != cmp.Or(ports[a.ID], "7835") {
			open = fmt.Sprintf("ports %s (%s) and %s (%s)", cmp.Or(ports[a.ID], "7835"), a.Name, other, b.Name)
		}
		problems = append(problems, fmt.Sprintf("UDP between %s and %s is blocked, so that gossip is slow: open %s for UDP in both directions", a.Name, b.Name, open))
	}
	slices.Sort(problems)
	return problems
}

// gossipOf returns the announced gossip address of a queen; empty: unknown.
func (m *Members) gossipOf(id string) string {
	if id == m.opts.ID {
		return m.ownMember().GossipAddress
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.proofs[id].said.GetGossipAddress()
}

// seekGossip makes gossip look for the queens that it has not found at the addresses that they
// announced, until ctx ends: gossip ports may differ.
func (m *Members) seekGossip(ctx context.Context) {
	tick := time.NewTicker(seekEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		alive := map[string]bool{}
		for _, other := range m.net.Gossip.Members() {
			alive[other.ID] = other.Status == gossip.Alive
		}
		view := m.registry.View()
		for _, p := range m.proven() {
			if _, ok := trusted(view, p.node.ID); ok && p.alive() && !alive[p.node.ID] && p.said.GetGossipAddress() != "" {
				m.net.SeekGossip(p.said.GetGossipAddress())
			}
		}
	}
}
