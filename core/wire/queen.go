package wire

import (
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// HiveToProto converts a hive for reports. It omits Status, Draining, LastBeat and the raft
// indexes, which the queen sets.
func HiveToProto(h core.Hive) *queenv1.Hive {
	return &queenv1.Hive{
		Id:          h.ID,
		Name:        h.Name,
		Version:     h.Version,
		Os:          h.OS,
		Arch:        h.Arch,
		Incarnation: h.Incarnation,
		Devices:     All(h.Devices, DeviceToProto),
		WorkerTypes: filled(h.WorkerTypes),
		RpcAddress:  h.RPCAddress,
		Unconfined:  h.Unconfined,
		Problems:    h.Problems,
		Probing:     h.Probing,
	}
}

// HiveFromProto reverses HiveToProto.
func HiveFromProto(h *queenv1.Hive) core.Hive {
	return core.Hive{
		ID:          h.GetId(),
		Name:        h.GetName(),
		Version:     h.GetVersion(),
		OS:          h.GetOs(),
		Arch:        h.GetArch(),
		Incarnation: h.GetIncarnation(),
		Devices:     All(h.GetDevices(), DeviceFromProto),
		WorkerTypes: filled(h.GetWorkerTypes()),
		RPCAddress:  h.GetRpcAddress(),
		Unconfined:  h.GetUnconfined(),
		Problems:    h.GetProblems(),
		Probing:     h.GetProbing(),
	}
}

// WorkerToProto converts a worker for reports. It omits Hive, which is the sender, the raft indexes
// and the time of the load report.
func WorkerToProto(w core.Worker) *queenv1.Worker {
	return &queenv1.Worker{
		Id:            w.ID,
		Type:          w.Type,
		Version:       w.Version,
		Model:         w.Model,
		ModelDigest:   w.ModelDigest,
		Device:        w.Device,
		Slots:         int32Of(w.Slots),
		ContextTokens: int32Of(w.ContextTokens),
		State:         string(w.State),
		Nonce:         w.Nonce,
		Load:          LoadToProto(w.Load),
		Capabilities:  w.Capabilities.List(),
		Replica:       w.Replica,
	}
}

// WorkerFromProto reverses WorkerToProto for a worker of the hive with the given ID, whose load was
// reported at the given time.
func WorkerFromProto(w *queenv1.Worker, hive string, at time.Time) core.Worker {
	return core.Worker{
		ID:            w.GetId(),
		Hive:          hive,
		Type:          w.GetType(),
		Version:       w.GetVersion(),
		Model:         w.GetModel(),
		ModelDigest:   w.GetModelDigest(),
		Device:        w.GetDevice(),
		Slots:         int(w.GetSlots()),
		ContextTokens: int(w.GetContextTokens()),
		State:         core.WorkerState(w.GetState()),
		Nonce:         w.GetNonce(),
		Load:          LoadFromProto(w.GetLoad(), at),
		Capabilities:  core.CapabilitiesOf(w.GetCapabilities()),
		Replica:       w.GetReplica(),
	}
}

// LoadToProto converts a load for reports. It omits At: clocks differ, so the receiver sets its
// own.
func LoadToProto(l core.Load) *queenv1.Load {
	return &queenv1.Load{
		Active:              int32Of(l.Active),
		Queued:              int32Of(l.Queued),
		TokensPerSecond:     l.TokensPerSecond,
		TokensTotal:         l.TokensTotal,
		KvUsedTokens:        int64(l.KVUsedTokens),
		DraftTokensTotal:    l.DraftTokens,
		AcceptedTokensTotal: l.AcceptedTokens,
		Silence:             durationOf(l.Silence),
		Stalled:             durationOf(l.Stalled),
		KeepAlive:           keepAliveOf(l),
		Idle:                durationOf(l.Idle),
		Pinned:              l.Pinned,
		MemoryBytes:         l.MemoryBytes,
		LoadTook:            durationOf(l.LoadTook),
	}
}

// keepAliveOf distinguishes 0 from nil: a worker that unloads when it is done from one that stays
// loaded.
func keepAliveOf(l core.Load) *durationpb.Duration {
	if !l.Unloads {
		return nil
	}
	return durationpb.New(time.Duration(l.KeepAlive))
}

// LoadFromProto reverses LoadToProto for a report that arrived at the given time.
func LoadFromProto(l *queenv1.Load, at time.Time) core.Load {
	return core.Load{
		At:              at,
		Active:          int(l.GetActive()),
		Queued:          int(l.GetQueued()),
		TokensPerSecond: l.GetTokensPerSecond(),
		TokensTotal:     l.GetTokensTotal(),
		KVUsedTokens:    int(l.GetKvUsedTokens()),
		DraftTokens:     l.GetDraftTokensTotal(),
		AcceptedTokens:  l.GetAcceptedTokensTotal(),
		Silence:         core.Duration(max(l.GetSilence().AsDuration(), 0)),
		Stalled:         core.Duration(max(l.GetStalled().AsDuration(), 0)),
		Unloads:         l.GetKeepAlive() != nil,
		KeepAlive:       core.Duration(max(l.GetKeepAlive().AsDuration(), 0)),
		Idle:            core.Duration(max(l.GetIdle().AsDuration(), 0)),
		Pinned:          l.GetPinned(),
		MemoryBytes:     l.GetMemoryBytes(),
		LoadTook:        core.Duration(max(l.GetLoadTook().AsDuration(), 0)),
	}
}

// durationOf returns nil for 0, so that the most common value takes no bytes.
func durationOf(d core.Duration) *durationpb.Duration {
	if d == 0 {
		return nil
	}
	return durationpb.New(time.Duration(d))
}
