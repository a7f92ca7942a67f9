// Package node owns hashicorp/raft: it opens and bootstraps a queen's copy of the registry, applies
// commands and runs the leader's duties.
package node

import (
	"cmp"
	"context"
	"errors"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
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
	// snapshotThreshold is the number of entries that make a new snapshot worthwhile. A restart
	// applies at most about as many before it is ready. Raft's default is 8192.
	snapshotThreshold = 1024
	// rpcTimeout is how long raft waits for an answer. A follower writes to its disk before it
	// answers, and a dead connection is dropped after this time.
	rpcTimeout = 3 * time.Second

	// drainOpen is how long Shutdown waits for pending work before it cuts the connections.
	drainOpen = 50 * time.Millisecond

	minElectionTimeout = 50 * time.Millisecond
)

// Voter is a member of a cluster to bootstrap.
type Voter struct {
	ID      string // as returned by Node.ID
	Address string // as the transport dials it
}

// Options configure the node to open.
type Options struct {
	ID     string // the machine's id, unique in the cluster and permanent; it is not an address
	Dir    string // folder of log, votes and snapshots, created 0700; empty: everything in memory
	Logger hclog.Logger
	// Transport carries raft between queens; the node closes it. nil: use Stream.
	Transport raft.Transport
	// Stream carries raft between queens if Transport is nil; the node closes it. Its Addr is what
	// other nodes dial. nil: a single queen, within the process.
	Stream raft.StreamLayer
	Now    func() time.Time // stamps commands; nil: time.Now

	// Bootstrap selects what the node does without state; the zero value is Alone.
	Bootstrap Bootstrap
	// ElectionTimeout is the silence of the leader after which a node stands for election, and the
	// leader's lease; 0: 250 ms, or 1 s for a single queen within the process; at least 50 ms.
	ElectionTimeout time.Duration
	// Probe connects to an address and disconnects: see Lost. Its error has syscall.ECONNREFUSED in
	// its chain if the address refuses connections. nil: through Stream; without either, Lost does
	// nothing.
	Probe func(ctx context.Context, address string) error
	// MinFSM returns the lowest state machine version among the live queens, or 0 if it is unknown.
	// Commands that need a higher one are refused. nil: unknown.
	MinFSM func() uint32
	// AddressOf returns the address at which the server with a raft id was last seen; empty: use
	// the raft configuration's. It lets the members of a cluster find each other after all
	// addresses have changed at once. nil: unknown. It must not block.
	AddressOf func(raftID string) string
	// Stabilization is how long a new queen must be healthy before it gets a vote; 0: 10 s.
	Stabilization time.Duration
	// DeadAfter is how long gossip and raft must not hear from a queen before it is removed; 0: 1
	// min.
	DeadAfter time.Duration
	// MinVoters is the number of voters at or below which dead ones are not removed; 0: 3.
	MinVoters int
	// FreeBytes returns the free space on the disk of Dir; nil: asks the file system.
	FreeBytes func() (uint64, error)

	memory     *memory // in tests: kept across restarts
	delay      func(op string) error
	trailing   uint64 // raft's TrailingLogs
	noAlign    bool
	noIdentity bool
	table      *fsm.Table // features that this build knows; nil: the real ones
}

// Node is one member of the raft cluster. Methods may be called concurrently.
type Node struct {
	opts    Options
	id      string // raft id
	log     hclog.Logger
	quiet   raftLog // for raft and autopilot
	fsm     *fsm.FSM
	raft    *raft.Raft
	store   *logstore.Store // nil: in memory
	memory  *memory         // nil: on disk
	disk    *disk
	trans   *transport
	opened  time.Time
	existed bool          // there was state when it was opened
	closed  chan struct{} // closed when Shutdown begins

	applied    signal
	empty      atomic.Uint64 // an index up to which every command of the log is in the state
	confirmed  atomic.Uint64 // the term in which an entry of this leader was committed
	confirming chan struct{} // held during that confirmation
	probing    atomic.Bool
	moves      moves

	mu      sync.Mutex // guards below
	ending  bool       // nothing may be added to wg or pending any more
	wg      sync.WaitGroup
	pending int // futures of raft without an answer yet

	shutdown sync.Once
	err      error // result of Shutdown
}

// NetworkTransport returns raft's transport over a stream layer, with the settings that all queens
// must share.
func NetworkTransport(stream raft.StreamLayer, log hclog.Logger) raft.Transport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream: stream, MaxPool: keptConns, Timeout: rpcTimeout, Logger: log, MsgpackUseNewTimeFormat: true,
	})
}

// Open opens or creates the node's state, bootstraps the cluster if configured to, and starts to
// participate in it. A node that is its cluster's only voter becomes its leader a few milliseconds
// later. When Open returns, the state is restored up to what is known to be committed. The caller
// ends it with Shutdown. Errors: InUse if another process has Dir open, Conflict if Dir is another
// node's, Integrity, Unavailable, Invalid.
//
// A file peers.json in Dir reduces the cluster to the queens that it lists, with this node's state:
// for use after a majority is lost.
func Open(opts Options) (*Node, error) {
	if opts.ID == "" {
		return nil, core.Errorf(core.Invalid, "open raft node: the node has no id")
	}
	if opts.ElectionTimeout != 0 && opts.ElectionTimeout < minElectionTimeout {
		return nil, core.Errorf(core.Invalid, "open raft node: an election timeout of %s is too short, it is %s or more", opts.ElectionTimeout, minElectionTimeout)
	}
	usual := 250 * time.Millisecond
	if opts.Stream == nil && opts.Transport == nil {
		// there are no others to wait for, and a node with a failed disk should end before it
		// stands again, which raft does not survive
		usual = time.Second
	}
	opts.ElectionTimeout = cmp.Or(opts.ElectionTimeout, usual)
	opts.Stabilization = cmp.Or(opts.Stabilization, 10*time.Second)
	opts.DeadAfter = cmp.Or(opts.DeadAfter, time.Minute)
	opts.MinVoters = cmp.Or(opts.MinVoters, 3)
	if opts.Logger == nil {
		opts.Logger = hclog.NewNullLogger()
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	n := &Node{
		opts: opts, log: opts.Logger, fsm: fsm.New(), opened: time.Now(), closed: make(chan struct{}), confirming: make(chan struct{}, 1),
	}
	n.quiet = newRaftLog(n.log.Named("raft"), n.serverName, n.servers)
	if opts.table != nil {
		n.fsm = fsm.NewOf(opts.table)
	}
	if err := n.open(); err != nil {
		return nil, errors.Join(err, n.Shutdown())
	}
	if v := n.voterIDs(); len(v) == 1 && v[0] == raft.ServerID(n.id) {
		n.standNow()
	}
	return n, nil
}

func (n *Node) open() error {
	snaps, err := n.stores()
	if err = errors.Join(err, n.connect(err == nil)); err != nil {
		return err
	}
	exists, err := n.identify(n.disk, n.disk, snaps)
	if err != nil {
		return err
	}
	n.existed = exists
	conf := n.config()
	if err := n.recoverPeers(conf, exists, n.disk, snaps); err != nil {
		return err
	}
	if exists {
		err = n.resume(snaps)
	} else if n.opts.Bootstrap == Alone {
		alone := raft.Configuration{Servers: []raft.Server{{ID: raft.ServerID(n.id), Address: n.trans.LocalAddr()}}}
		err = core.Wrap(raft.BootstrapCluster(conf, n.disk, n.disk, snaps, n.trans, alone), core.Unavailable, "bootstrap raft cluster")
	}
	if err != nil {
		return err
	}
	conf.NoSnapshotRestoreOnStart = exists // resume has restored it
	m := machine{FSM: n.fsm, applied: &n.applied, restored: func() { n.disk.restoring.Store(false) }}
	n.raft, err = raft.NewRaft(conf, m, n.disk, n.disk, snaps, n.trans)
	if err != nil {
		return core.Prefix(err, "start raft")
	}
	n.disk.raft.Store(n.raft)
	n.raft.RegisterObserver(raft.NewObserver(nil, false, n.quiet.observe))
	return n.checkMembership()
}

// connect creates the transport if the stores are ready; otherwise it closes what the transport
// would have been made of.
func (n *Node) connect(ready bool) error {
	inner := n.opts.Transport
	if !ready {
		if c, ok := inner.(raft.WithClose); ok {
			return c.Close()
		}
		if n.opts.Stream != nil {
			return n.opts.Stream.Close()
		}
		return nil
	}
	switch {
	case inner != nil:
	case n.opts.Stream != nil:
		if n.opts.Probe == nil {
			n.opts.Probe = dial(n.opts.Stream)
		}
		inner = NetworkTransport(watchedStream{StreamLayer: n.opts.Stream, broken: func() { n.Lost("") }}, n.quiet)
	default:
		_, inner = raft.NewInmemTransport(raft.ServerAddress("in-process/" + n.opts.ID))
	}
	mute := func() error { return n.disk.stalled() }
	abstain := func() error { return cmp.Or(n.disk.stalled(), n.disk.room()) }
	var err error
	full := func() error {
		if n.disk.owed.Load() {
			return nil
		}
		return n.disk.room()
	}
	n.trans, err = newTransport(inner, mute, abstain, full, n.log)
	if n.trans != nil {
		n.trans.addressOf = n.opts.AddressOf
		n.trans.anybody, n.trans.noAlign, n.trans.leads = n.opts.noIdentity, n.opts.noAlign, n.leads
	}
	return err
}

// leads reports whether this node leads in the term, with the server as a follower. The transport
// calls it while raft runs.
func (n *Node) leads(id raft.ServerID, term uint64) bool {
	r := n.disk.raft.Load()
	return r != nil && r.State() == raft.Leader && r.CurrentTerm() == term &&
		slices.ContainsFunc(r.GetConfiguration().Configuration().Servers, func(s raft.Server) bool { return s.ID == id })
}

// serverName returns a queen's name, or its id if the registry does not know it.
func (n *Node) serverName(id raft.ServerID) string {
	node := OfRaftID(string(id))
	if known, ok := n.fsm.State().Node(nil, node); ok && known.Name != "" {
		return known.Name
	}
	return node
}

// servers lists raft's servers, or none before raft runs.
func (n *Node) servers() []raft.Server {
	if n.disk == nil {
		return nil
	}
	r := n.disk.raft.Load()
	if r == nil {
		return nil
	}
	return r.GetConfiguration().Configuration().Servers
}

func (n *Node) config() *raft.Config {
	conf := raft.DefaultConfig()
	conf.LocalID = raft.ServerID(n.id)
	conf.Logger = n.quiet
	conf.NoLegacyTelemetry = true
	conf.SnapshotThreshold = snapshotThreshold
	conf.HeartbeatTimeout, conf.ElectionTimeout, conf.LeaderLeaseTimeout = n.opts.ElectionTimeout, n.opts.ElectionTimeout, n.opts.ElectionTimeout
	conf.ShutdownOnRemove = false // it may be added again
	if n.opts.trailing > 0 {
		conf.TrailingLogs = n.opts.trailing
	}
	return conf
}

// stores opens the stores, in memory or below Dir.
func (n *Node) stores() (*snapshots, error) {
	free := n.opts.FreeBytes
	if n.opts.Dir == "" {
		n.memory = cmp.Or(n.opts.memory, newMemory())
		if free == nil {
			free = func() (uint64, error) { return math.MaxUint64, nil }
		}
		n.disk = newDisk(n.memory.logs, free, func(uint64) {})
		n.disk.delay = n.opts.delay
		return &snapshots{SnapshotStore: n.memory.snaps, disk: n.disk, off: n.opts.noAlign}, nil
	}
	_, missing := os.Stat(n.opts.Dir)
	if err := os.MkdirAll(n.opts.Dir, 0o700); err != nil {
		return nil, core.WithHint(core.Wrap(err, core.Unavailable, "open raft node"), "Choose a data_dir that this user may write to.")
	}
	// if a folder's entry is lost, so are all votes and acknowledgements in it
	if err := syncFolder(filepath.Dir(n.opts.Dir)); err != nil && missing != nil {
		return nil, core.Wrap(err, core.Unavailable, "open raft node")
	}
	store, err := logstore.Open(filepath.Join(n.opts.Dir, "log.db"), logstore.Options{})
	if err != nil {
		return nil, err
	}
	n.store = store
	snaps, err := openSnapshots(n.opts.Dir, n.log)
	if err != nil {
		return nil, err
	}
	if free == nil {
		free = func() (uint64, error) { return freeBytes(n.opts.Dir) }
	}
	// it only remembers the index
	n.disk = newDisk(store, free, func(index uint64) { _ = store.StageCommitIndex(index) })
	n.disk.delay, n.disk.lost = n.opts.delay, store.Err
	return &snapshots{SnapshotStore: snaps, disk: n.disk, off: n.opts.noAlign}, nil
}

// resume builds the state from the disk.
func (n *Node) resume(snaps *snapshots) error {
	if err := n.replay(n.disk, snaps); err != nil {
		return err
	}
	list, err := snaps.List()
	if err != nil || len(list) == 0 {
		return core.Wrap(err, core.Unavailable, "list raft snapshots")
	}
	return snaps.align(list[0].Index, list[0].Term, false)
}

// checkMembership returns an error if this node would wait forever for the leader of a cluster in
// which only it could lead, but of which it is not a member.
func (n *Node) checkMembership() error {
	servers := n.Servers()
	if len(servers) == 0 {
		return nil
	}
	for _, s := range servers {
		if s.RaftID == n.id {
			return nil
		}
	}
	if len(servers) == 1 {
		return n.notMine(servers[0].RaftID)
	}
	n.log.Warn("this queen is not a member of its raft cluster, as far as it knows, until its leader adds it", "queen", n.id)
	return nil
}

// State returns this node's current registry: the leader's has every command for which Apply has
// returned. A restore from a snapshot replaces it; see state.Store.Abandoned.
func (n *Node) State() *state.Store { return n.fsm.State() }

// AppliedIndex returns the raft index of the newest command in State, or 0 if there is none yet.
func (n *Node) AppliedIndex() uint64 { return n.State().AppliedIndex() }

// ID returns the node's raft id: Options.ID and, except in older state, eight random hex digits of
// its own state.
func (n *Node) ID() string { return n.id }

// NodeID returns Options.ID.
func (n *Node) NodeID() string { return n.opts.ID }

// HasState reports whether the node is, or once was, part of a cluster.
func (n *Node) HasState() bool { return n.existed || len(n.Servers()) > 0 }

// Leader returns the node id of the leader, as far as this node knows, or an empty string.
func (n *Node) Leader() string {
	s, _ := n.LeaderServer()
	return s.NodeID
}

// LeaderServer returns the leader that this node knows.
func (n *Node) LeaderServer() (Server, bool) {
	address, id := n.raft.LeaderWithID()
	if id == "" || string(id) == n.id && n.disk.stalled() != nil {
		return Server{}, false
	}
	return Server{NodeID: OfRaftID(string(id)), RaftID: string(id), Address: string(address), Voter: true, Leader: true}, true
}

// IsLeader reports whether this node believes that it leads. Only Apply, Barrier and ReadIndex are
// sure of it.
func (n *Node) IsLeader() bool { return n.raft.State() == raft.Leader && n.disk.stalled() == nil }

// Servers returns the members of the raft cluster, in the order of its configuration, or none
// without state.
func (n *Node) Servers() []Server {
	leader, _ := n.LeaderServer()
	var servers []Server
	// raft returns its own copy, so it does not fail
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		servers = append(servers, Server{
			NodeID: OfRaftID(string(s.ID)), RaftID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter, Leader: string(s.ID) == leader.RaftID,
		})
	}
	return servers
}

// Queens returns the members of the cluster, in the order of its configuration.
func (n *Node) Queens() ([]core.Queen, error) {
	queens := []core.Queen{}
	for _, s := range n.Servers() {
		queens = append(queens, core.Queen{ID: s.NodeID, RaftID: s.RaftID, Address: s.Address, Leader: s.Leader, Voter: s.Voter})
	}
	return queens, nil
}

// Snapshot saves the state and shortens the log, which also happens by itself. It is not an error
// if there is nothing new to save.
func (n *Node) Snapshot(ctx context.Context) error {
	return n.wait(ctx, "save raft snapshot", func() error {
		if err := n.raft.Snapshot().Error(); !errors.Is(err, raft.ErrNothingNewToSnapshot) {
			return err
		}
		return nil
	})
}

// Shutdown leaves the cluster without notice, as a crash does, and closes the stores. It ends Run,
// and may be called again.
func (n *Node) Shutdown() error {
	n.shutdown.Do(func() {
		n.mu.Lock()
		n.ending = true
		n.mu.Unlock()
		close(n.closed)
		var raftDone func() error
		if n.raft != nil {
			// Raft drops futures that are being applied when it shuts down. Those that can be
			// answered are answered first, the others once it no longer leads.
			n.drain(drainOpen)
			if n.trans.Close() == nil {
				n.drain(3 * n.opts.ElectionTimeout)
			}
			// raft finishes its work once the transport is closed
			raftDone = n.raft.Shutdown().Error
			close(n.disk.ended)
		}
		if n.trans != nil {
			n.err = n.trans.Close()
		}
		if raftDone != nil {
			n.err = errors.Join(n.err, raftDone())
			n.trans.pipes.Wait()
		}
		n.wg.Wait()
		if n.store != nil {
			n.err = errors.Join(n.err, n.store.Close())
		}
		n.err = core.Wrap(n.err, core.Unavailable, "shut down raft")
	})
	return n.err
}
