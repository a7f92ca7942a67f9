package queen

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// leaveTimeout is how long a node may take to retire its workers and say goodbye.
const leaveTimeout = 30 * time.Second

// leaveGrace is how long a node that leaves may still speak to the others.
const leaveGrace = 5 * time.Second

// RevokeNode has a node's certificates refused for ever; its hive and its seat among the queens go
// with it. Errors: NotFound, Conflict, Unavailable.
func (q *Queen) RevokeNode(ctx context.Context, id string) (core.Node, error) {
	if q.opts.Membership == nil {
		return core.Node{}, errAlone()
	}
	if err := q.registry.CatchUp(ctx); err != nil {
		return core.Node{}, err
	}
	n, err := nodeNamed(q.registry.View(), id)
	if err != nil {
		return core.Node{}, err
	}
	if err := q.checkLast(n, "revoked"); err != nil {
		return core.Node{}, err
	}
	if err := q.registry.Write(ctx, "revoke node "+n.ID, fsm.RevokeNode(n.ID)); err != nil {
		return core.Node{}, err
	}
	q.log.Warn("node revoked: its certificates are refused from now on", "node", n.ID, "name", n.Name)
	if n.Has(core.RoleQueen) {
		if err := q.RemoveQueen(ctx, n.ID); err != nil && core.KindOf(err) != core.NotFound {
			return core.Node{}, core.WithHint(core.Prefix(err, "take the revoked queen out of raft"), "Try again: `rbee operator raft remove %s`.", n.ID)
		}
	}
	n.Revoked = true
	return n, nil
}

// LeaveNode has a node leave for good: its agent retires its workers, forgets its certificate and
// ends; then the cluster forgets it. A node that does not answer is removed all the same. Errors:
// NotFound, Conflict, Unavailable.
func (q *Queen) LeaveNode(ctx context.Context, id string) (core.Node, error) {
	m := q.opts.Membership
	if m == nil {
		return core.Node{}, errAlone()
	}
	if id == "" || id == core.LocalHive {
		id = q.opts.ID
	}
	if err := q.registry.CatchUp(ctx); err != nil {
		return core.Node{}, err
	}
	n, err := nodeNamed(q.registry.View(), id)
	if err != nil {
		return core.Node{}, err
	}
	if n.Revoked {
		return core.Node{}, core.Errorf(core.Conflict, "node %s (%s) is out of the cluster already", n.ID, n.Name).Hint("See all with `rbee tls list`.")
	}
	if err := q.checkLast(n, "taken out"); err != nil {
		return core.Node{}, err
	}
	if n.ID != q.opts.ID {
		return n, q.takeOut(ctx, n)
	}
	// This queen's way to the others ends half-way through, so one of them does it.
	err = core.Errorf(core.Unavailable, "no other queen answers").Hint("Look at `rbee status`.")
	for _, s := range q.registry.View().Nodes(nil) {
		if s.ID == n.ID || s.Revoked || !s.Has(core.RoleQueen) {
			continue
		}
		conn, connErr := m.Conn(s.ID, s.RPCAddress, core.RoleQueen)
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

// takeOut has another node leave. Its certificate is refused a little later, when its agent has
// ended and nobody waits for an answer through it.
func (q *Queen) takeOut(ctx context.Context, n core.Node) error {
	q.departs(n.ID)
	role := core.RoleHive
	if n.Has(core.RoleQueen) {
		role = core.RoleQueen
	}
	conn, err := q.opts.Membership.Conn(n.ID, n.RPCAddress, role)
	if err == nil {
		limited, cancel := context.WithTimeout(ctx, leaveTimeout)
		_, err = hivev1.NewAgentServiceClient(conn).Leave(limited, &hivev1.LeaveRequest{})
		cancel()
	}
	if err != nil {
		q.log.Warn("the node that shall leave does not answer, it is removed all the same", "node", n.ID, "name", n.Name, "error", err)
	}
	if n.Has(core.RoleQueen) {
		if err := q.RemoveQueen(ctx, n.ID); err != nil && core.KindOf(err) != core.NotFound {
			return err
		}
	}
	if n.Has(core.RoleHive) {
		if err := q.registry.Write(ctx, "leave hive "+n.ID, fsm.RemoveHive(n.ID)); err != nil && core.KindOf(err) != core.NotFound {
			return err
		}
	}
	q.log.Info("node left", "node", n.ID, "name", n.Name)
	revoke := func(ctx context.Context) {
		select {
		case <-ctx.Done():
		case <-time.After(leaveGrace):
		}
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), leaveGrace)
		defer cancel()
		if err := q.registry.Write(ctx, "leave "+n.ID, fsm.RevokeNode(n.ID)); err != nil {
			q.log.Error("cannot have the certificate of a node that left refused", "node", n.ID, "error", err)
		}
	}
	select {
	case q.later <- revoke:
		return nil
	case <-ctx.Done():
		return core.FromContext(ctx)
	}
}

// checkLast refuses to take out the only queen: nobody could be asked any more.
func (q *Queen) checkLast(n core.Node, what string) error {
	if !n.Has(core.RoleQueen) {
		return nil
	}
	queens, err := q.registry.Queens()
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
		return core.Errorf(core.Conflict, "%s is the only voting queen and cannot be %s", n.Name, what).Hint("Have another queen join first, or stop the agent if the whole cluster shall end.")
	}
	return nil
}
