// Package node owns hashicorp/raft: it opens and bootstraps a queen's copy of the registry, applies commands and runs the leader's duties.
package node

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/logstore"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	retainedSnapshots = 2
	// snapshotThreshold is how many entries make a new snapshot worth while. A restart applies at most about as many; they are what it
	// waits for. Raft's default is 8192.
	snapshotThreshold = 1024
)

// Voter is a member of a cluster that is bootstrapped.
type Voter struct {
	ID      string
	Address string // as the transport dials it
}

// Options say what node to open.
type Options struct {
	ID     string // unique in the cluster and kept for ever; it is no address
	Dir    string // folder of log, votes and snapshots, created 0700; empty: everything in memory
	Logger hclog.Logger
	// Transport carries raft between queens; the node closes it. nil: within the process, for a single queen.
	Transport raft.Transport
	// Stream carries raft between queens where Transport is nil; the node closes it. Its Addr is what other nodes dial.
	Stream raft.StreamLayer
	// Voters form a new cluster; every one of them opens with the same list. It is ignored where state exists. Empty: this node alone.
	Voters []Voter
	Now    func() time.Time // stamps commands; nil: time.Now

	// Bootstrap says what the node does where there is no state; the zero value is Alone.
	Bootstrap Bootstrap
	// ElectionTimeout is after how long without a sign of the leader a node stands for election, and the leader's lease; 0: 250 ms.
	ElectionTimeout time.Duration
	// MinFSM is the lowest state machine version among the queens that live, 0: not known. A command that needs a higher one is refused. nil: not known.
	MinFSM func() uint32
	// Stabilization is how long a new queen must be well before it gets a vote; 0: 10 s.
	Stabilization time.Duration
	// MinVoters is the number of voters below which no dead one is removed; 0: 3.
	MinVoters int
}

// Node is one member of the raft cluster. Methods may be called concurrently.
type Node struct {
	opts   Options
	log    hclog.Logger
	fsm    *fsm.FSM
	raft   *raft.Raft
	store  *logstore.Store // nil: in memory
	trans  raft.Transport
	closed chan struct{} // closed when Shutdown begins

	shutdown sync.Once
	err      error // of Shutdown
}

// NetworkTransport is raft over a stream layer, with the settings that all queens must share.
func NetworkTransport(stream raft.StreamLayer, log hclog.Logger) raft.Transport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: stream, MaxPool: 3, Timeout: 10 * time.Second, Logger: log.Named("raft"), MsgpackUseNewTimeFormat: true,
	})
}

// Open opens or creates the node's state, bootstraps the cluster where there is none, and starts to take part in it. A node that is its
// cluster's only voter is its leader a few milliseconds later. State is restored, up to what is known to be committed, when Open returns.
// The caller ends it with Shutdown. Errors: InUse when another process has Dir open, Conflict when Dir is another node's,
// Integrity, Unavailable, Invalid.
func Open(opts Options) (*Node, error) {
	if opts.ID == "" {
		return nil, core.Errorf("open raft node", core.Invalid, "the node has no id")
	}
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	n := &Node{opts: opts, log: opts.Logger, fsm: fsm.New(), trans: opts.Transport, closed: make(chan struct{})}
	alone := false
	if n.trans == nil {
		addr, t := raft.NewInmemTransport(raft.ServerAddress("in-process/" + opts.ID))
		t.Connect(addr, t)
		n.trans, alone = t, true
	}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.Shutdown())
	}
	if alone {
		n.standNow()
	}
	return n, nil
}

func (n *Node) open() error {
	logs, stable, snaps, err := n.stores()
	if err != nil {
		return err
	}
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(n.opts.ID)
	conf.Logger = n.log.Named("raft")
	conf.NoLegacyTelemetry = true
	conf.SnapshotThreshold = snapshotThreshold

	exists, err := raft.HasExistingState(logs, stable, snaps)
	if err != nil {
		return core.E("open raft node", core.Unavailable, err)
	}
	if !exists {
		if err := raft.BootstrapCluster(conf, logs, stable, snaps, n.trans, n.bootstrap()); err != nil {
			return core.E("bootstrap raft cluster", core.Unavailable, err)
		}
	} else if err := n.replay(logs, snaps); err != nil {
		return err
	}
	conf.NoSnapshotRestoreOnStart = exists // replay has restored it
	tracked := &commitTracker{LogStore: logs, stage: func(uint64) {}}
	if n.store != nil {
		tracked.stage = func(index uint64) { _ = n.store.StageCommitIndex(index) } // only remembers it
	}
	n.raft, err = raft.NewRaft(conf, n.fsm, tracked, stable, snaps, n.trans)
	if err != nil {
		return core.E("start raft", core.KindOf(err), err)
	}
	tracked.raft.Store(n.raft)
	return n.checkMembership()
}

// stores opens the stores, in memory or below Dir.
func (n *Node) stores() (raft.LogStore, raft.StableStore, raft.SnapshotStore, error) {
	if n.opts.Dir == "" {
		mem := raft.NewInmemStore()
		return mem, mem, raft.NewDiscardSnapshotStore(), nil
	}
	if err := os.MkdirAll(n.opts.Dir, 0o700); err != nil {
		return nil, nil, nil, core.WithHint(core.E("open raft node", core.Unavailable, err), "Choose a data_dir that this user may write to.")
	}
	store, err := logstore.Open(filepath.Join(n.opts.Dir, "log.db"), logstore.Options{})
	if err != nil {
		return nil, nil, nil, err
	}
	n.store = store
	snaps, err := raft.NewFileSnapshotStoreWithLogger(n.opts.Dir, retainedSnapshots, n.log.Named("raft"))
	if err != nil {
		return nil, nil, nil, core.E("open raft snapshots", core.Unavailable, err)
	}
	return store, store, snaps, nil
}

func (n *Node) bootstrap() raft.Configuration {
	voters := n.opts.Voters
	if len(voters) == 0 {
		voters = []Voter{{ID: n.opts.ID, Address: string(n.trans.LocalAddr())}}
	}
	var c raft.Configuration
	for _, v := range voters {
		c.Servers = append(c.Servers, raft.Server{Suffrage: raft.Voter, ID: raft.ServerID(v.ID), Address: raft.ServerAddress(v.Address)})
	}
	return c
}

// checkMembership refuses to wait for ever for the leader of a cluster that this node alone could be, and is not in.
func (n *Node) checkMembership() error {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return core.E("read raft configuration", core.Unavailable, err)
	}
	if servers := f.Configuration().Servers; len(servers) == 1 && string(servers[0].ID) != n.opts.ID {
		return core.WithHint(core.Errorf("open raft node", core.Conflict, "the raft folder %s belongs to queen %s, this is %s", n.opts.Dir, servers[0].ID, n.opts.ID),
			"Use the data_dir that belongs to this queen, or move the raft folder away to start with an empty registry.")
	}
	return nil
}

// standNow makes the only voter stand for election at once instead of after the timeouts, which exist to hear from a leader that cannot be.
// When it fails, the timeouts do it.
func (n *Node) standNow() {
	self := raft.Server{ID: raft.ServerID(n.opts.ID), Address: n.trans.LocalAddr()}
	header := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(self.ID), Addr: n.trans.EncodePeer(self.ID, self.Address)}
	if err := n.trans.TimeoutNow(self.ID, self.Address, &raft.TimeoutNowRequest{RPCHeader: header}, &raft.TimeoutNowResponse{}); err != nil {
		n.log.Debug("no early election", "error", err)
	}
}

// State is the registry as this node has it now: the leader's has every command that Apply returned. After a restore from a snapshot it
// is another one; see state.Store.Abandoned.
func (n *Node) State() *state.Store { return n.fsm.State() }

// AppliedIndex is the raft index of the newest command in State; 0: none yet.
func (n *Node) AppliedIndex() uint64 { return n.State().AppliedIndex() }

// Leader is the id of the leader that this node knows; empty: none.
func (n *Node) Leader() string {
	_, id := n.raft.LeaderWithID()
	return string(id)
}

// IsLeader says whether this node believes to be the leader. Only Apply and Barrier are sure of it.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader }

// Queens are the members of the cluster, in the order of its configuration.
func (n *Node) Queens() ([]core.Queen, error) {
	f := n.raft.GetConfiguration()
	if err := f.Error(); err != nil {
		return nil, n.classify("read raft configuration", err)
	}
	leader := n.Leader()
	queens := []core.Queen{}
	for _, s := range f.Configuration().Servers {
		queens = append(queens, core.Queen{
			ID: string(s.ID), Address: string(s.Address), Leader: string(s.ID) == leader, Voter: s.Suffrage == raft.Voter,
		})
	}
	return queens, nil
}

// Snapshot saves the state and shortens the log, which also happens by itself. Nothing new to save is no error.
func (n *Node) Snapshot(ctx context.Context) error {
	return n.wait(ctx, "save raft snapshot", func() error {
		if err := n.raft.Snapshot().Error(); !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			return err
		}
		return nil
	})
}

// Shutdown leaves the cluster without a word, as a crash does, and closes the stores. It ends Run, and may be repeated.
func (n *Node) Shutdown() error {
	n.shutdown.Do(func() {
		close(n.closed)
		if n.raft != nil {
			n.err = n.raft.Shutdown().Error()
		}
		if c, ok := n.trans.(raft.WithClose); ok {
			n.err = errors.Join(n.err, c.Close())
		}
		if n.store != nil {
			n.err = errors.Join(n.err, n.store.Close())
		}
		n.err = core.E("shut down raft", core.Unavailable, n.err)
	})
	return n.err
}
