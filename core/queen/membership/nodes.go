package membership

import (
	"context"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// leaveTimeout bounds how long a leaving node may take to retire its workers and leave gossip.
const leaveTimeout = 30 * time.Second

// LeaveGrace is how long a leaving node may still talk to the others.
const LeaveGrace = 5 * time.Second

// RevokeNode permanently revokes a node's certificates; it also removes its hive and its queen.
// Errors: NotFound, Conflict, Unavailable.
func (m *Members) RevokeNode(ctx context.Context, id string) (core.Node, error) {
	if m.net == nil {
		return core.Node{}, registry.ErrAlone()
	}
	if err := m.registry.CatchUp(ctx); err != nil {
		return core.Node{}, err
	}
	n, err := nodeNamed(m.registry.View(), id)
	if err != nil {
		return core.Node{}, err
	}
	if err := m.checkLast(n, "revoked"); err != nil {
		return core.Node{}, err
	}
	if err := m.registry.Write(ctx, "revoke node "+n.ID, fsm.RevokeNode(n.ID)); err != nil {
		return core.Node{}, err
	}
	m.log.Warn("node revoked: its certificates are refused from now on", "node", n.ID, "name", n.Name)
	if n.Has(core.RoleQueen) {
		if err := m.RemoveQueen(ctx, n.ID); err != nil && core.KindOf(err) != core.NotFound {
			return core.Node{}, core.WithHint(core.Prefix(err, "take the revoked queen out of raft"), "Try again: `rbee operator raft remove %s`.", n.ID)
		}
	}
	n.Revoked = true
	return n, nil
}

// LeaveNode makes a node leave permanently: its agent retires its workers, deletes its certificate
// and exits; then the cluster forgets it. A node that does not answer is removed all the same.
// Errors: NotFound, Conflict, Unavailable.
func (m *Members) LeaveNode(ctx context.Context, id string) (core.Node, error) {
	if m.net == nil {
		return core.Node{}, registry.ErrAlone()
	}
	if id == "" || id == core.LocalHive {
		id = m.opts.ID
	}
	if err := m.registry.CatchUp(ctx); err != nil {
		return core.Node{}, err
	}
	n, err := nodeNamed(m.registry.View(), id)
	if err != nil {
		return core.Node{}, err
	}
	if n.Revoked {
		return core.Node{}, core.Errorf(core.Conflict, "node %s (%s) has already left the cluster", n.ID, n.Name).Hint("See all with `rbee tls list`.")
	}
	if err := m.checkLast(n, "taken out"); err != nil {
		return core.Node{}, err
	}
	if n.ID != m.opts.ID {
		return n, m.takeOut(ctx, n)
	}
	// This queen loses its connection to the others half-way, so one of them does it.
	err = core.Errorf(core.Unavailable, "no other queen answers").Hint("Look at `rbee status`.")
	for _, s := range m.registry.View().Nodes(nil) {
		if s.ID == n.ID || s.Revoked || !s.Has(core.RoleQueen) {
			continue
		}
		conn, connErr := m.net.Conn(s.ID, s.RPCAddress, core.RoleQueen)
		if connErr != nil {
			err = connErr
			continue
		}
		if _, err = queenv1.NewClusterServiceClient(conn).LeaveNode(ctx, &queenv1.LeaveNodeRequest{Node: n.ID}); err == nil {
			return n, nil
		}
		if err = rpc.FromStatus(err); core.KindOf(err) != core.Unavailable {
			break
		}
	}
	return core.Node{}, err
}

// takeOut makes another node leave. Its certificate is revoked a little later, once its agent has
// exited and no answer is pending through it.
func (m *Members) takeOut(ctx context.Context, n core.Node) error {
	m.departs(n.ID)
	role := core.RoleHive
	if n.Has(core.RoleQueen) {
		role = core.RoleQueen
	}
	conn, err := m.net.Conn(n.ID, n.RPCAddress, role)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, leaveTimeout)
		_, err = hivev1.NewAgentServiceClient(conn).Leave(limited, &hivev1.LeaveRequest{})
		cancel()
	}
	if err != nil {
		m.log.Warn("leaving node does not answer, removing it anyway", "node", n.ID, "name", n.Name, "error", err)
	}
	if n.Has(core.RoleQueen) {
		if err := m.RemoveQueen(ctx, n.ID); err != nil && core.KindOf(err) != core.NotFound {
			return err
		}
	}
	if n.Has(core.RoleHive) {
		if err := m.registry.Write(ctx, "leave hive "+n.ID, fsm.RemoveHive(n.ID)); err != nil && core.KindOf(err) != core.NotFound {
			return err
		}
	}
	m.log.Info("node left", "node", n.ID, "name", n.Name)
	revoke := func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-time.After(LeaveGrace):
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), LeaveGrace)
		defer cancel()
		if err := m.registry.Write(ctx, "leave "+n.ID, fsm.RevokeNode(n.ID)); err != nil {
			m.log.Error("failed to revoke the certificate of a node that left", "node", n.ID, "error", err)
		}
	}
	select {
	case m.later <- revoke:
		return nil
	case <-ctx.Done():
		return core.FromContext(ctx)
	}
}

// checkLast refuses to remove the only queen: none would be left to answer.
func (m *Members) checkLast(n core.Node, what string) error {
	if !n.Has(core.RoleQueen) {
		return nil
	}
	queens, err := m.registry.Queens()
	if err != nil {
		return err
	}
	voters, is := 0, false
	for _, s := range queens {
		if s.Voter {
			voters++
			is = is || s.ID == n.ID
		}
	}
	if is && voters == 1 {
		return core.Errorf(core.Conflict, "%s is the only voting queen and cannot be %s", n.Name, what).Hint("Add another queen first, or stop the agent to end the whole cluster.")
	}
	return nil
}

// nodeNamed finds a node by id, name or unique prefix of the id. A name is the one that a node
// joined with, or the one that its hive reports, such as after its machine was renamed. Errors:
// NotFound; Conflict if several match, with their ids.
func nodeNamed(s *state.Snapshot, name string) (core.Node, error) {
	if n, ok := s.Node(nil, name); ok && name != "" {
		return n, nil
	}
	var found []core.Node
	var names, ids []string
	for _, n := range s.Nodes(nil) {
		h, _ := s.Hive(nil, n.ID)
		if name != "" && !n.Revoked && (strings.EqualFold(n.Name, name) || strings.EqualFold(h.Name, name)) {
			found, ids = append(found, n), append(ids, n.ID)
		}
	}
	switch len(found) {
	case 0:
	case 1:
		return found[0], nil
	default:
		return core.Node{}, core.Errorf(core.Conflict, "%d nodes have the name %q: %s", len(found), name, strings.Join(ids, ", ")).Hint(
			"Name the node by its id; `rbee status` shows which of them are up.")
	}
	if n, ok := s.NodeNamed(nil, name); ok && name != "" {
		return n, nil // a revoked one
	}
	for _, n := range s.Nodes(nil) {
		names = append(names, n.ID, n.Name)
		if name != "" && strings.HasPrefix(n.ID, name) {
			found = append(found, n)
		}
	}
	switch len(found) {
	case 1:
		return found[0], nil
	case 0:
		return core.Node{}, core.Errorf(core.NotFound, "there is no node %q", name).Hint("%sSee all with `rbee tls list`.", core.NearestHint(name, names))
	}
	return core.Node{}, core.Errorf(core.Conflict, "%d nodes have an id that begins with %q", len(found), name).Hint("Write more of the id.")
}

// Nodes lists the nodes of the cluster, revoked ones included.
func (m *Members) Nodes(context.Context) ([]core.Node, error) {
	if m.net == nil {
		return nil, registry.ErrAlone()
	}
	return m.registry.View().Nodes(nil), nil
}
