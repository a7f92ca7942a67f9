package node_test

import (
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

// builds are the builds of a cluster during an upgrade: this version, and the next one, which knows
// draining and an optional address of hives.
type builds struct {
	older, newer *fsm.Table
	lowest       atomic.Uint32
}

func newBuilds() *builds {
	list := append(fsm.Features(),
		fsm.Feature{Name: "draining", Since: fsm.Version + 1, Fields: []string{"Command.set_hive_draining", "Hive.draining"}},
		fsm.Feature{Name: "addresses", Since: fsm.Version + 1, Fields: []string{"Hive.rpc_address"}, Optional: true},
	)
	b := &builds{older: fsm.NewTable(fsm.Version, list), newer: fsm.NewTable(fsm.Version+1, list)}
	b.lowest.Store(fsm.Version)
	return b
}

func (b *builds) options(t *fsm.Table) func(node.Options) node.Options {
	return func(o node.Options) node.Options {
		o.MinFSM = b.lowest.Load
		return o.WithTable(t).WithTrailing(1)
	}
}

// roll restarts the nodes with another build, one after the other, the leader last. While each is
// down the others truncate their logs, so that it gets a snapshot that they made.
func (b *builds) roll(s *sim, to *fsm.Table) {
	s.t.Helper()
	leader := s.leader()
	for _, n := range append(s.others(leader), leader) {
		s.kill(n)
		rest := s.others(n)
		for i := range uint64(20) {
			must.NoError(s.t, write1(s.t.Context(), s.leader(rest...).Node, "rolled", uint64(time.Now().UnixNano())+i))
		}
		s.converged(time.Second, rest...)
		for _, other := range rest {
			must.NoError(s.t, other.Snapshot(s.t.Context()))
		}
		before := s.net.sent(n.name)
		n.opts = b.options(to)
		s.start(n)
		s.converged(10*time.Second, s.nodes...)
		must.Greater(s.t, before, s.net.sent(n.name))
	}
}

// C-18: three queens are upgraded to the next version and downgraded again, with snapshots in
// between. The mixed cluster works all the time: features of the next version wait until all have
// it, or are omitted. A downgrade is possible only until a new feature is used.
func TestRollWithSnapshots(t *testing.T) {
	t.Parallel()
	b := newBuilds()
	simulate(t, 3, b.options(b.older), func(t *testing.T, s *sim) {
		must.NoError(t, write1(t.Context(), s.leader().Node, "h", 1))
		b.roll(s, b.newer)

		// All are new, but gossip has not reported it yet.
		_, err := s.leader().Apply(t.Context(), fsm.SetHiveDraining("h", true))
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.ErrorContains(t, err, "draining")
		addressed := hive("h", 2)
		addressed.RPCAddress = "h:1"
		_, err = s.leader().Apply(t.Context(), fsm.SyncHive(addressed, nil))
		must.NoError(t, err)
		h, _ := s.leader().State().Hive(nil, "h")
		must.Eq(t, "", h.RPCAddress)

		b.roll(s, b.older)
		b.roll(s, b.newer)
		b.lowest.Store(fsm.Version + 1)
		_, err = s.leader().Apply(t.Context(), fsm.SetHiveDraining("h", true))
		must.NoError(t, err)
		s.converged(time.Second, s.nodes...)
		for _, n := range s.nodes {
			must.NoError(t, n.Snapshot(t.Context()))
		}

		// An older build reports what it lacks, and does not touch its state.
		back := s.others(s.leader())[0]
		s.kill(back)
		trans := s.net.attach(back.name)
		_, err = node.Open(b.options(b.older)(node.Options{ID: back.name, Logger: simLogger(t), Transport: trans, Bootstrap: node.Later}.WithMemory(back.mem)))
		must.Eq(t, core.Unsupported, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "Install the version")
		s.start(back)
		s.converged(10*time.Second, s.nodes...)
	})
}
