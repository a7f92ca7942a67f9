package queen

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/rpc"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

const (
	snapshotChunk  = 256 << 10
	gossipKeyBytes = 32 // AES-256
	sightTimeout   = 2 * time.Second
	reachTimeout   = 2 * time.Second
)

// clusterService answers other queens, and this one by way of Membership.Self.
type clusterService struct {
	queenv1.UnimplementedClusterServiceServer
	q *Queen
}

func (s *clusterService) Apply(ctx context.Context, req *queenv1.ApplyRequest) (*queenv1.ApplyResponse, error) {
	if !s.q.registry.Leads() {
		return nil, s.q.registry.NotLeader()
	}
	var c raftv1.Command
	if err := proto.Unmarshal(req.GetCommand(), &c); err != nil {
		return nil, core.Errorf(core.Invalid, "read a command: %w", err).Hint("Install the same version of rbee on all queens.")
	}
	r, err := s.q.registry.Apply(ctx, "", &c)
	if err != nil {
		return nil, err
	}
	return &queenv1.ApplyResponse{Index: r.Index}, nil
}

func (s *clusterService) ReadIndex(ctx context.Context, req *queenv1.ReadIndexRequest) (*queenv1.ReadIndexResponse, error) {
	if !s.q.registry.Leads() {
		return nil, s.q.registry.NotLeader()
	}
	index, err := s.q.registry.ReadIndex(ctx, req.GetVerify())
	if err != nil {
		return nil, err
	}
	return &queenv1.ReadIndexResponse{Index: index, Leader: s.q.opts.ID}, nil
}

func (s *clusterService) TransferLeadership(ctx context.Context, req *queenv1.TransferLeadershipRequest) (*queenv1.TransferLeadershipResponse, error) {
	q := s.q
	if !q.registry.Leads() {
		return nil, q.registry.NotLeader()
	}
	if req.GetTo() == "" {
		return &queenv1.TransferLeadershipResponse{}, q.registry.LeadershipTransfer(ctx)
	}
	to, err := q.queenNamed(ctx, req.GetTo())
	switch {
	case err != nil:
		return nil, err
	case to.Leader:
		return &queenv1.TransferLeadershipResponse{}, nil
	case !to.Voter:
		return nil, core.Errorf(core.Conflict, "queen %s does not vote yet", to.Name).Hint("Wait until it does: `rbee queen list`.")
	}
	return &queenv1.TransferLeadershipResponse{}, q.registry.LeadershipTransferTo(ctx, to.RaftID, to.Address)
}

func (s *clusterService) RemoveQueen(ctx context.Context, req *queenv1.RemoveQueenRequest) (*queenv1.RemoveQueenResponse, error) {
	q := s.q
	if !q.registry.Leads() {
		return nil, q.registry.NotLeader()
	}
	queen, err := q.queenNamed(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	queens, err := q.registry.Queens()
	if err != nil {
		return nil, err
	}
	voters := 0
	for _, other := range queens {
		if other.Voter {
			voters++
		}
	}
	switch {
	case queen.Voter && voters == 1:
		return nil, core.Errorf(core.Conflict, "%s is the only voting queen", queen.Name).Hint("Have another queen join first.")
	case queen.ID == q.opts.ID:
		// It leads: another one removes it.
		if err := q.registry.LeadershipTransfer(ctx); err != nil {
			return nil, err
		}
		return nil, core.Errorf(core.Unavailable, "the leadership was handed over").Hint("Try again: the new leader does it.")
	}
	q.disprove(queen.ID) // what it said before must not bring it back
	if err := q.registry.RemoveServer(ctx, queen.RaftID); err != nil {
		return nil, err
	}
	q.log.Info("queen taken out of raft", "node", queen.ID, "name", queen.Name)
	return &queenv1.RemoveQueenResponse{}, nil
}

func (s *clusterService) LeaveNode(ctx context.Context, req *queenv1.LeaveNodeRequest) (*queenv1.LeaveNodeResponse, error) {
	n, err := nodeNamed(s.q.registry.View(), req.GetNode())
	switch {
	case err != nil:
		return nil, err
	case n.ID == s.q.opts.ID:
		return nil, core.Errorf(core.Conflict, "a queen cannot take itself out")
	}
	if err := s.q.checkLast(n, "taken out"); err != nil {
		return nil, err
	}
	return &queenv1.LeaveNodeResponse{}, s.q.takeOut(ctx, n)
}

func (s *clusterService) Sight(_ context.Context, req *queenv1.SightRequest) (*queenv1.SightResponse, error) {
	resp := &queenv1.SightResponse{Queen: s.q.opts.ID}
	for _, h := range s.q.registry.View().Hives(nil) {
		if req.GetHive() == "" || req.GetHive() == h.ID {
			resp.Hives = append(resp.Hives, sightToProto(h.ID, s.q.sight(h.ID)))
		}
	}
	return resp, nil
}

// sight is how this queen sees a hive, gossip included.
func (q *Queen) sight(hive string) core.HiveSight {
	s := core.HiveSight{Queen: q.opts.ID}
	seen := q.liveness.Hive(hive)
	s.Linked = seen.Linked
	if !seen.Heard.IsZero() {
		s.Heard, s.Silence = true, core.Duration(max(time.Since(seen.Heard), 0))
	}
	if m := q.opts.Membership; m != nil {
		s.Gossip = "unknown"
		for _, other := range m.Gossip.Members() {
			if other.ID == hive {
				s.Gossip = string(other.Status)
			}
		}
	}
	return s
}

func (s *clusterService) SaveSnapshot(_ *queenv1.SaveSnapshotRequest, stream queenv1.ClusterService_SaveSnapshotServer) error {
	if !s.q.registry.Leads() {
		return s.q.registry.NotLeader()
	}
	return s.q.registry.SaveSnapshot(stream.Context(), chunkWriter(func(p []byte) error {
		return stream.Send(&queenv1.SaveSnapshotResponse{Data: p})
	}))
}

// chunkWriter cuts what is written into messages.
type chunkWriter func(p []byte) error

func (w chunkWriter) Write(p []byte) (int, error) {
	n := 0
	for chunk := range slices.Chunk(p, snapshotChunk) {
		if err := w(bytes.Clone(chunk)); err != nil {
			return n, err
		}
		n += len(chunk)
	}
	return n, nil
}

func (s *clusterService) RestoreSnapshot(stream queenv1.ClusterService_RestoreSnapshotServer) error {
	q := s.q
	if !q.registry.Leads() {
		return q.registry.NotLeader()
	}
	var data bytes.Buffer
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if data.Len()+len(part.GetData()) > registry.MaxSnapshotBytes {
			return registry.ErrSnapshotSize()
		}
		data.Write(part.GetData())
	}
	if err := q.registry.RestoreSnapshot(stream.Context(), bytes.NewReader(data.Bytes())); err != nil {
		return err
	}
	q.log.Warn("the registry was replaced by a snapshot", "bytes", data.Len())
	return stream.SendAndClose(&queenv1.RestoreSnapshotResponse{Index: q.registry.AppliedIndex()})
}

// self is the client of the leader's services, wherever the leader is.
func (q *Queen) self() (queenv1.ClusterServiceClient, error) {
	if q.opts.Membership == nil {
		return nil, errAlone()
	}
	return queenv1.NewClusterServiceClient(q.opts.Membership.Self), nil
}

const (
	// handOverTries is how often a call is repeated whose leader hands over to the one that can do
	// it.
	handOverTries = 5
	// handOverPatience is how long a call may have waited for a leader to be repeated.
	handOverPatience = 3 * time.Second
)

// RemoveQueen takes a queen out of raft, named by node id, name or raft id. Errors: NotFound;
// Conflict for the last one; Unavailable; Unsupported.
func (q *Queen) RemoveQueen(ctx context.Context, id string) error {
	c, err := q.self()
	if err != nil {
		return err
	}
	for range handOverTries {
		began := time.Now()
		if _, err = c.RemoveQueen(ctx, &queenv1.RemoveQueenRequest{Id: id}); err == nil {
			return nil
		}
		if err = rpc.FromStatus(err); core.KindOf(err) != core.Unavailable || ctx.Err() != nil || time.Since(began) > handOverPatience {
			return err // there is no leader at all
		}
		select {
		case <-ctx.Done():
		case <-time.After(seedRetry):
		}
	}
	return err
}

// TransferLeadership gives the leadership to a queen named by node id or name; empty: to whoever is
// most up to date. Errors: NotFound, Conflict, Unavailable.
func (q *Queen) TransferLeadership(ctx context.Context, to string) error {
	c, err := q.self()
	if err != nil {
		return err
	}
	_, err = c.TransferLeadership(ctx, &queenv1.TransferLeadershipRequest{To: to})
	return rpc.FromStatus(err)
}

// SaveSnapshot writes the leader's registry to w. Errors: Unavailable, Unsupported, and w's.
func (q *Queen) SaveSnapshot(ctx context.Context, w io.Writer) error {
	s := registry.NewSealing(w)
	if err := q.saveSnapshot(ctx, s); err != nil {
		return err
	}
	return s.Seal()
}

func (q *Queen) saveSnapshot(ctx context.Context, w io.Writer) error {
	if q.opts.Membership == nil {
		return q.registry.SaveSnapshot(ctx, w)
	}
	c, err := q.self()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.SaveSnapshot(ctx, &queenv1.SaveSnapshotRequest{})
	if err != nil {
		return rpc.FromStatus(err)
	}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return rpc.FromStatus(err)
		}
		if _, err := w.Write(part.GetData()); err != nil {
			return err
		}
	}
}

// RestoreSnapshot replaces the registry by a snapshot. It is read and checked whole before anything
// changes. Errors: Integrity for what is no snapshot; Conflict for one of another cluster;
// TooLarge; Unavailable.
func (q *Queen) RestoreSnapshot(ctx context.Context, r io.Reader) (core.SnapshotInfo, error) {
	data, info, err := registry.ReadSealed(r)
	if err != nil {
		return info, err
	}
	if own, ok := q.registry.View().Cluster(nil); ok && info.Cluster != own.ID {
		return info, core.Errorf(core.Conflict, "the snapshot is of cluster %q, this is cluster %q", info.Cluster, own.ID).Hint(
			"A snapshot goes back only into the cluster that it was taken of: its keys and certificates are that cluster's.")
	}
	if q.opts.Membership == nil {
		return info, q.registry.RestoreSnapshot(ctx, bytes.NewReader(data))
	}
	c, err := q.self()
	if err != nil {
		return info, err
	}
	stream, err := c.RestoreSnapshot(ctx)
	if err != nil {
		return info, rpc.FromStatus(err)
	}
	for chunk := range slices.Chunk(data, snapshotChunk) {
		if err := stream.Send(&queenv1.RestoreSnapshotRequest{Data: chunk}); err != nil {
			break // CloseAndRecv says why
		}
	}
	resp, err := stream.CloseAndRecv()
	if err != nil {
		return info, rpc.FromStatus(err)
	}
	return info, q.registry.WaitApplied(ctx, resp.GetIndex())
}

// DrainHive sets or ends the draining of a hive: one that drains gets no new worker, and its
// workers no new request. Errors: NotFound, Unavailable.
func (q *Queen) DrainHive(ctx context.Context, hive string, drain bool) (core.Hive, error) {
	if err := q.registry.CatchUp(ctx); err != nil {
		return core.Hive{}, err
	}
	h, err := q.hiveNamed(ctx, hive)
	if err != nil {
		return h, err
	}
	if h.Draining != drain {
		if err := q.registry.Write(ctx, fmt.Sprintf("drain %s %t", h.ID, drain), fsm.SetHiveDraining(h.ID, drain)); err != nil {
			return h, err
		}
		q.log.Info("draining of a hive changed", "hive", h.ID, "draining", drain)
	}
	return q.hiveNamed(ctx, h.ID)
}

// hiveHealth is a hive as this queen and the others see it. Errors: NotFound, Conflict.
func (q *Queen) hiveHealth(ctx context.Context, r core.Request) (core.HiveHealth, error) {
	h, err := q.hiveNamed(ctx, r.Hive)
	if err != nil {
		return core.HiveHealth{}, err
	}
	health := core.HiveHealth{Hive: h, Queens: []core.HiveSight{q.sight(h.ID)}}
	var wg sync.WaitGroup
	wg.Go(func() {
		health.Reachable, health.Problem = q.reaches(ctx, h)
	})
	var mu sync.Mutex // guards health.Queens
	if m := q.opts.Membership; m != nil {
		for _, n := range q.registry.View().Nodes(nil) {
			if n.ID == q.opts.ID || n.Revoked || !n.Has(core.RoleQueen) {
				continue
			}
			wg.Go(func() {
				s := q.sightFrom(ctx, n, h.ID)
				mu.Lock()
				defer mu.Unlock()
				health.Queens = append(health.Queens, s)
			})
		}
	}
	wg.Wait()
	slices.SortFunc(health.Queens, func(a, b core.HiveSight) int { return strings.Compare(a.Queen, b.Queen) })
	return health, nil
}

func (q *Queen) sightFrom(ctx context.Context, n core.Node, hive string) core.HiveSight {
	ctx, cancel := context.WithTimeout(ctx, sightTimeout)
	defer cancel()
	conn, err := q.opts.Membership.Conn(n.ID, n.RPCAddress, core.RoleQueen)
	if err != nil {
		return core.HiveSight{Queen: n.ID, Problem: err.Error()}
	}
	resp, err := queenv1.NewClusterServiceClient(conn).Sight(ctx, &queenv1.SightRequest{Hive: hive})
	if err != nil {
		return core.HiveSight{Queen: n.ID, Problem: fmt.Sprintf("queen %s does not answer: %v", n.Name, rpc.FromStatus(err))}
	}
	for _, s := range resp.GetHives() {
		return sightFromProto(n.ID, s)
	}
	return core.HiveSight{Queen: n.ID, Problem: fmt.Sprintf("queen %s does not know the hive", n.Name)}
}

func sightToProto(hive string, s core.HiveSight) *queenv1.HiveSight {
	p := &queenv1.HiveSight{Hive: hive, Linked: s.Linked, Gossip: s.Gossip, Problem: s.Problem}
	if s.Heard {
		p.Silence = durationpb.New(max(time.Duration(s.Silence), 0))
	}
	return p
}

func sightFromProto(queen string, p *queenv1.HiveSight) core.HiveSight {
	return core.HiveSight{
		Queen: queen, Linked: p.GetLinked(), Heard: p.GetSilence() != nil, Silence: core.Duration(p.GetSilence().AsDuration()), Gossip: p.GetGossip(), Problem: p.GetProblem(),
	}
}

// reaches says whether the hive answers a call now.
func (q *Queen) reaches(ctx context.Context, h core.Hive) (bool, string) {
	ctx, cancel := context.WithTimeout(ctx, reachTimeout)
	defer cancel()
	c, err := q.conn(h.ID)
	if err == nil {
		_, err = ask(ctx, c, operation.WorkerProcessList.Spec, core.Request{})
		err = rpc.FromStatus(err)
	}
	if err == nil {
		return true, ""
	}
	if h.RPCAddress != "" {
		var d net.Dialer
		conn, dialErr := d.DialContext(ctx, "tcp", h.RPCAddress)
		if dialErr != nil {
			return false, fmt.Sprintf("its RPC port %s cannot be reached: %v", h.RPCAddress, dialErr)
		}
		conn.Close()
	}
	return false, err.Error()
}

// Keyring shows the gossip keys by their fingerprints. Errors: Unsupported, Unavailable, Integrity.
func (q *Queen) Keyring(context.Context) (core.Keyring, error) {
	if q.opts.Membership == nil {
		return core.Keyring{}, errAlone()
	}
	c, err := clusterOf(q.registry.View())
	if err != nil {
		return core.Keyring{}, err
	}
	keys, err := q.gossipKeys(c)
	return keyringOf(keys), err
}

func keyringOf(keys pki.Secrets) core.Keyring {
	k := core.Keyring{Keys: []string{}}
	for _, key := range keys {
		k.Keys = append(k.Keys, pki.KeyFingerprint(key))
	}
	if len(k.Keys) > 0 {
		k.Primary = k.Keys[0]
	}
	return k
}

// ChangeKeyring does one step of a rotation: install a new key everywhere, use it for what is sent,
// remove the old one. Errors: Invalid; NotFound for an unknown fingerprint; Conflict when somebody
// else changed the keys meanwhile, or the primary would be removed; Unavailable; Unsupported.
func (q *Queen) ChangeKeyring(ctx context.Context, change core.KeyringChange) (core.Keyring, error) {
	if q.opts.Membership == nil {
		return core.Keyring{}, errAlone()
	}
	if err := q.registry.CatchUp(ctx); err != nil {
		return core.Keyring{}, err
	}
	c, err := clusterOf(q.registry.View())
	if err != nil {
		return core.Keyring{}, err
	}
	if keyringDue(c, q.registry.View(), nil) {
		return core.Keyring{}, core.Errorf(core.Unavailable, "the gossip keys are being replaced, because a node was revoked or left").Hint("Try again in a moment.")
	}
	keys, err := q.gossipKeys(c)
	if err != nil {
		return core.Keyring{}, err
	}
	if keys, err = changeKeys(keys, change); err != nil {
		return core.Keyring{}, err
	}
	sealed, err := q.opts.Membership.Identity.SealGossipKeys(keys)
	if err != nil {
		return core.Keyring{}, err
	}
	if err := q.registry.Write(ctx, "keyring "+change.Action, fsm.SetKeyring(sealed, c.GossipVersion)); err != nil {
		return core.Keyring{}, err
	}
	q.log.Info("gossip keys changed", "action", change.Action, "keys", len(keys))
	return keyringOf(keys), nil
}

func changeKeys(keys pki.Secrets, change core.KeyringChange) (pki.Secrets, error) {
	at := slices.IndexFunc(keys, func(k []byte) bool { return pki.KeyFingerprint(k) == change.Fingerprint })
	if change.Action != "install" && at < 0 {
		return nil, core.Errorf(core.NotFound, "there is no gossip key %q", clipped(change.Fingerprint)).Hint("See all with `rbee operator keyring list`.")
	}
	switch change.Action {
	case "install":
		key := []byte(pki.NewGossipKey())
		if change.Key != "" {
			var err error
			if key, err = base64.StdEncoding.DecodeString(change.Key); err != nil || len(key) != gossipKeyBytes {
				return nil, core.Errorf(core.Invalid, "the key is not base64 of %d bytes", gossipKeyBytes).Hint("Leave it out to have one made.")
			}
		}
		if slices.ContainsFunc(keys, func(k []byte) bool { return bytes.Equal(k, key) }) {
			return keys, nil
		}
		if len(keys) >= registry.MaxGossipKeys {
			return nil, core.Errorf(core.TooLarge, "there are %d gossip keys already", len(keys)).Hint("Remove those that are not used any more.")
		}
		return append(keys, key), nil
	case "use":
		key := keys[at]
		return slices.Insert(slices.Delete(keys, at, at+1), 0, key), nil
	case "remove":
		if at == 0 {
			return nil, core.Errorf(core.Conflict, "the primary gossip key is in use").Hint("Use another one first: `rbee operator keyring use`.")
		}
		return slices.Delete(keys, at, at+1), nil
	}
	return nil, core.Errorf(core.Invalid, "there is no change %q of the keyring", clipped(change.Action)).Hint("It is install, use or remove.")
}
