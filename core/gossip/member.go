package gossip

import (
	"errors"
	"fmt"
	"net"
	"time"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	gossipv1 "github.com/rbee-project/rbee/proto/gossip/v1"
)

// Status is the pool's belief about a member.
type Status string

// The statuses.
const (
	Alive  Status = "alive"
	Failed Status = "failed" // it went silent
	Left   Status = "left"   // it announced its leave
)

// Member is a node of the pool, by its own account.
type Member struct {
	ID          string // node ID
	Name        string // display name; at most 64 bytes
	Queen, Hive bool
	RPCAddress  string // host:port
	HTTPAddress string // host:port; empty: the node serves no HTTP
	// GossipAddress is IP:port, set by the pool; ignored in Options.Self and Update.
	GossipAddress   string
	Version         string // version of rbee
	FSM             uint32 // newest state machine version that a queen can apply
	BootstrapExpect uint32 // set by a queen that waits to form a cluster; 0: it does not wait
	RaftID          string // raft server ID of a queen
	HasState        bool   // the queen has raft state: a cluster exists
	Incarnation     uint64 // grows with every start of the node
	Status          Status
}

// maxMetaBytes is the largest metadata that memberlist carries (memberlist.MetaMaxSize).
const (
	maxMetaBytes = 512
	maxIDBytes   = 64
	maxNameBytes = 64
)

// maxAhead bounds how far a node's clock may be ahead. A count of starts never exceeds the time in
// nanoseconds, so that no node can occupy the highest number forever.
const maxAhead = 24 * time.Hour

// encode returns the metadata to gossip.
func (m Member) encode() ([]byte, error) {
	if err := m.check(); err != nil {
		return nil, err
	}
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(&gossipv1.Meta{
		Id: m.ID, Name: m.Name, Queen: m.Queen, Hive: m.Hive, RpcAddress: m.RPCAddress, HttpAddress: m.HTTPAddress, Version: m.Version,
		Fsm: m.FSM, BootstrapExpect: m.BootstrapExpect, RaftId: m.RaftID, HasState: m.HasState, Incarnation: m.Incarnation,
	})
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "encode gossip metadata")
	}
	if len(b) > maxMetaBytes {
		return nil, core.Errorf(core.TooLarge, "encode gossip metadata: this node's name and addresses take %d bytes, %d at most", len(b), maxMetaBytes).Hint(
			"Use a shorter name, or addresses instead of long host names.")
	}
	return b, nil
}

func (m Member) check() error {
	switch {
	case m.ID == "" || len(m.ID) > maxIDBytes:
		return core.Errorf(core.Invalid, "a node id of %d bytes", len(m.ID)).Hint("A node id has 1 to %d bytes.", maxIDBytes)
	case len(m.Name) > maxNameBytes || !utf8.ValidString(m.Name):
		return core.Errorf(core.Invalid, "a node name of %d bytes", len(m.Name)).Hint("A name is text of at most %d bytes.", maxNameBytes)
	case !m.Queen && !m.Hive:
		return core.Errorf(core.Invalid, "a node without a role").Hint("A node is a queen, a hive or both.")
	}
	return nil
}

// decodeMember decodes the metadata of the node that memberlist calls name. It trusts nothing: any
// holder of the key can send anything.
func decodeMember(name string, meta []byte) (Member, error) {
	if len(meta) > maxMetaBytes {
		return Member{}, fmt.Errorf("its metadata has %d bytes", len(meta))
	}
	var p gossipv1.Meta
	if err := proto.Unmarshal(meta, &p); err != nil {
		return Member{}, fmt.Errorf("its metadata cannot be read: %w", err)
	}
	m := Member{
		ID: p.GetId(), Name: p.GetName(), Queen: p.GetQueen(), Hive: p.GetHive(), RPCAddress: p.GetRpcAddress(), HTTPAddress: p.GetHttpAddress(),
		Version: p.GetVersion(), FSM: p.GetFsm(), BootstrapExpect: p.GetBootstrapExpect(), RaftID: p.GetRaftId(), HasState: p.GetHasState(),
		Incarnation: p.GetIncarnation(),
	}
	if m.Incarnation > uint64(time.Now().Add(maxAhead).UnixNano()) { //nolint:gosec // after 1970
		return Member{}, errors.New("invalid incarnation")
	}
	if m.ID != name {
		return Member{}, fmt.Errorf("it calls itself %q in its metadata", m.ID)
	}
	return m, m.check()
}

func joinIP(ip net.IP, port uint16) string { return net.JoinHostPort(ip.String(), fmt.Sprint(port)) }
