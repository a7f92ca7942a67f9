package wire

import (
	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

// DeviceToRaft is for the registry. FreeBytes is not carried: it is load.
func DeviceToRaft(d core.Device) *raftv1.Device {
	return &raftv1.Device{Id: d.ID, Kind: d.Kind, Name: d.Name, TotalBytes: d.TotalBytes, Problem: d.Problem}
}

// DeviceFromRaft undoes DeviceToRaft.
func DeviceFromRaft(d *raftv1.Device) core.Device {
	return core.Device{ID: d.GetId(), Kind: d.GetKind(), Name: d.GetName(), TotalBytes: d.GetTotalBytes(), Problem: d.GetProblem()}
}

// HiveToRaft is for the registry. LastBeat is not carried: beats never go through raft.
func HiveToRaft(h core.Hive) *raftv1.Hive {
	return &raftv1.Hive{
		Id:          h.ID,
		Name:        h.Name,
		Version:     h.Version,
		Os:          h.OS,
		Arch:        h.Arch,
		Incarnation: h.Incarnation,
		Status:      string(h.Status),
		Devices:     All(h.Devices, DeviceToRaft),
		WorkerTypes: filled(h.WorkerTypes),
		CreateIndex: h.CreateIndex,
		ModifyIndex: h.ModifyIndex,
	}
}

// HiveFromRaft undoes HiveToRaft.
func HiveFromRaft(h *raftv1.Hive) core.Hive {
	return core.Hive{
		ID:          h.GetId(),
		Name:        h.GetName(),
		Version:     h.GetVersion(),
		OS:          h.GetOs(),
		Arch:        h.GetArch(),
		Incarnation: h.GetIncarnation(),
		Status:      core.HiveStatus(h.GetStatus()),
		Devices:     All(h.GetDevices(), DeviceFromRaft),
		WorkerTypes: filled(h.GetWorkerTypes()),
		CreateIndex: h.GetCreateIndex(),
		ModifyIndex: h.GetModifyIndex(),
	}
}

// WorkerToRaft is for the registry. Load is not carried.
func WorkerToRaft(w core.Worker) *raftv1.Worker {
	return &raftv1.Worker{
		Id:            w.ID,
		Hive:          w.Hive,
		Type:          w.Type,
		Version:       w.Version,
		Model:         w.Model,
		ModelDigest:   w.ModelDigest,
		Device:        w.Device,
		Slots:         int32Of(w.Slots),
		ContextTokens: int32Of(w.ContextTokens),
		State:         string(w.State),
		Nonce:         w.Nonce,
		CreateIndex:   w.CreateIndex,
		ModifyIndex:   w.ModifyIndex,
	}
}

// WorkerFromRaft undoes WorkerToRaft.
func WorkerFromRaft(w *raftv1.Worker) core.Worker {
	return core.Worker{
		ID:            w.GetId(),
		Hive:          w.GetHive(),
		Type:          w.GetType(),
		Version:       w.GetVersion(),
		Model:         w.GetModel(),
		ModelDigest:   w.GetModelDigest(),
		Device:        w.GetDevice(),
		Slots:         int(w.GetSlots()),
		ContextTokens: int(w.GetContextTokens()),
		State:         core.WorkerState(w.GetState()),
		Nonce:         w.GetNonce(),
		CreateIndex:   w.GetCreateIndex(),
		ModifyIndex:   w.GetModifyIndex(),
	}
}
