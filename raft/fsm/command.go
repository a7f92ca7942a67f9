package fsm

import (
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// HiveState is the whole state of a hive, for SyncHives.
type HiveState struct {
	Hive    core.Hive
	Workers []core.Worker
	// OwnIDs allows workers with the ids of another hive's workers. Without it, such ids make the
	// whole report a conflict. It needs state machine version 3.
	OwnIDs bool
}

// SyncHive makes the command that registers or renews a hive and sets its workers to exactly those
// given. An empty status means ready. The command omits Load, LastBeat, FreeBytes, Draining and the
// indexes: only SetHiveDraining sets draining.
//
// Result: Conflict for an incarnation older than the registered one, for a removed incarnation or
// an older one, and for another hive's worker; Forbidden for the hive of a revoked node.
func SyncHive(h core.Hive, workers []core.Worker) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_SyncHive{SyncHive: syncHiveOp(h, workers, false)}}
}

// SyncHiveState does what SyncHive does, for a HiveState.
func SyncHiveState(h HiveState) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_SyncHive{SyncHive: syncHiveOp(h.Hive, h.Workers, h.OwnIDs)}}
}

// SyncHives makes the command that does what SyncHive does for several hives at once, at most as
// many as FitSyncHives returns. Result.Errs has SyncHive's result for each; a refused one does not
// affect the others. Validate refuses all of them if one is invalid or a hive is listed twice:
// check each as a SyncHive first.
func SyncHives(hives []HiveState) *raftv1.Command {
	op := &raftv1.SyncHives{}
	for _, h := range hives {
		op.Hives = append(op.Hives, syncHiveOp(h.Hive, h.Workers, h.OwnIDs))
	}
	return &raftv1.Command{Op: &raftv1.Command_SyncHives{SyncHives: op}}
}

// FitSyncHives returns how many of the first hives fit into one SyncHives: at least one, unless
// hives is empty.
func FitSyncHives(hives []HiveState) int {
	left := MaxCommandBytes - commandOverhead
	for i, h := range hives {
		left -= proto.Size(syncHiveOp(h.Hive, h.Workers, h.OwnIDs)) + 8 // its tag and length
		if i == MaxHivesPerCommand || i > 0 && left < 0 {
			return i
		}
	}
	return len(hives)
}

func syncHiveOp(h core.Hive, workers []core.Worker, own bool) *raftv1.SyncHive {
	op := &raftv1.SyncHive{Hive: hiveToProto(h), OwnIds: own}
	op.Hive.CreateIndex, op.Hive.ModifyIndex, op.Hive.Draining = 0, 0, false
	for _, w := range workers {
		p := workerToProto(w)
		p.Hive, p.CreateIndex, p.ModifyIndex = h.ID, 0, 0
		op.Workers = append(op.Workers, p)
	}
	return op
}

// SetHiveStatus makes the command that changes a hive's status if it has this incarnation; 0
// matches any. A hive that is down loses its workers, but not their retire intents. Result:
// NotFound, Conflict.
func SetHiveStatus(hive string, status core.HiveStatus, incarnation uint64) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_SetHiveStatus{SetHiveStatus: &raftv1.SetHiveStatus{
		Hive: hive, Status: string(status), Incarnation: incarnation,
	}}}
}

// SetHiveDraining makes the command that starts or stops draining a hive. Result: NotFound.
func SetHiveDraining(hive string, draining bool) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_SetHiveDraining{SetHiveDraining: &raftv1.SetHiveDraining{Hive: hive, Draining: draining}}}
}

// RetireWorker makes the command that marks a worker of a hive as retiring permanently, even if it
// is registered again after its hive was down. If hive is empty, worker must be the only one with
// the id. Result: NotFound, Conflict.
func RetireWorker(hive, worker string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_RetireWorker{RetireWorker: &raftv1.RetireWorker{Worker: worker, Hive: hive}}}
}

// ClaimStart makes the command that decides where a worker with a model starts, if the last
// decision has the request ID previous, which is empty if there is none. The command omits
// Registered and Index. Result: Conflict if the last decision is another one.
func ClaimStart(s state.Start, previous string) *raftv1.Command {
	s.Registered, s.Index = false, 0
	return &raftv1.Command{Op: &raftv1.Command_ClaimStart{ClaimStart: &raftv1.ClaimStart{Start: startToProto(s), Previous: previous}}}
}

// RemoveHive makes the command that removes a hive and its workers. From then on, only a newer
// start of the hive can register.
func RemoveHive(hive string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_RemoveHive{RemoveHive: &raftv1.RemoveHive{Hive: hive}}}
}

// InitCluster makes the command that assigns the registry to a cluster. token and node may be nil.
// A GossipVersion of 0 becomes 1. Repeating it changes nothing, even if its parts have changed
// since. Result: Conflict if the registry belongs to another cluster.
func InitCluster(c core.Cluster, token *core.Token, node *core.Node) *raftv1.Command {
	c.GossipVersion = max(c.GossipVersion, 1)
	op := &raftv1.InitCluster{Cluster: clusterToProto(c)}
	op.Cluster.CreateIndex, op.Cluster.ModifyIndex = 0, 0
	if token != nil {
		op.Token = newToken(*token)
	}
	if node != nil {
		op.Node = newNode(*node)
	}
	return &raftv1.Command{Op: &raftv1.Command_InitCluster{InitCluster: op}}
}

// PutNode makes the command that admits a node to the cluster or updates it, and uses up the join
// token with the id joinToken, unless it is empty. The command omits Revoked and the indexes.
//
// Result: Conflict for another node's name (except revoked ones), an id with another key, and a
// revoked node; Forbidden for a role that the registered node does not have; Unauthenticated for a
// missing or invalid join token; and CheckJoin's errors.
func PutNode(n core.Node, joinToken string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_PutNode{PutNode: &raftv1.PutNode{Node: newNode(n), JoinToken: joinToken, BindToken: joinToken != "", KeepRoles: true}}}
}

// RevokeNode makes the command that revokes a node's certificates permanently, and removes its hive
// as RemoveHive does. Result: NotFound.
func RevokeNode(node string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_RevokeNode{RevokeNode: &raftv1.RevokeNode{Node: node}}}
}

// RemoveNode makes the command that removes a node that left, the join token that it used, and its
// hive as RemoveHive does. Removing a missing one changes nothing. Result: Conflict for a revoked
// node, which could then join again.
func RemoveNode(node string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_RemoveNode{RemoveNode: &raftv1.RemoveNode{Node: node}}}
}

// PutToken makes the command that adds a token. It rounds a TTL up to seconds; it omits UsedBy and
// the indexes. Result: Conflict for an existing id, unless the token is the same.
func PutToken(t core.Token) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_PutToken{PutToken: &raftv1.PutToken{Token: newToken(t)}}}
}

// RevokeToken makes the command that deletes a token and records its revocation, so that no
// snapshot restores it. Revoking a missing one changes nothing.
func RevokeToken(id string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_DeleteToken{DeleteToken: &raftv1.DeleteToken{Token: id, Revoked: true}}}
}

// DeleteToken makes the command that deletes an expired token. Deleting a missing one changes
// nothing.
func DeleteToken(id string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_DeleteToken{DeleteToken: &raftv1.DeleteToken{Token: id}}}
}

// SetKeyring makes the command that replaces the sealed gossip keys if they are at the expected
// version, and increments the version. Repeating the same change is not a conflict. Result:
// Conflict; NotFound if the registry belongs to no cluster.
func SetKeyring(sealed []byte, expected uint64) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_SetKeyring{SetKeyring: &raftv1.SetKeyring{SealedKeys: sealed, ExpectedVersion: expected}}}
}

// PutSetting makes the command that sets a setting of the cluster. Result: TooLarge if too many are
// set.
func PutSetting(name, value string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_PutSetting{PutSetting: &raftv1.PutSetting{Name: name, Value: value}}}
}

// ResetSetting makes the command that returns a setting of the cluster to its default.
func ResetSetting(name string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_PutSetting{PutSetting: &raftv1.PutSetting{Name: name, Unset: true}}}
}

func newNode(n core.Node) *raftv1.Node {
	p := nodeToProto(n)
	p.Revoked, p.CreateIndex, p.ModifyIndex = false, 0, 0
	return p
}

func newToken(t core.Token) *raftv1.Token {
	p := tokenToProto(t)
	p.UsedBy, p.UsedKeyHash, p.UsedUnix, p.CreateIndex, p.ModifyIndex = "", nil, 0, 0, 0
	p.RotatedUnix, p.PreviousSecretHash, p.OverlapSeconds, p.LastUsedUnix = 0, nil, 0, 0
	return p
}

// Revokes reports whether a command revokes access; commands that replace keys count as well. No
// queen may delay such a command by reporting an old version.
func Revokes(c *raftv1.Command) bool {
	switch c.GetOp().(type) {
	case *raftv1.Command_RevokeNode, *raftv1.Command_DeleteToken, *raftv1.Command_SetKeyring:
		return true
	}
	return false
}

const (
	second     = int64(time.Second)
	maxSeconds = 253402300799 // largest time: the end of the year 9999

	maxTTLSeconds = 100 * 366 * 24 * 60 * 60
)
