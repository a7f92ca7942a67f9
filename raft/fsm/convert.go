package fsm

import (
	"math"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

func hiveToProto(h core.Hive) *raftv1.Hive {
	p := &raftv1.Hive{
		Id: h.ID, Name: h.Name, Version: h.Version, Os: h.OS, Arch: h.Arch, Incarnation: h.Incarnation, Status: string(h.Status),
		WorkerTypes: append([]string(nil), h.WorkerTypes...), CreateIndex: h.CreateIndex, ModifyIndex: h.ModifyIndex,
		RpcAddress: h.RPCAddress, Draining: h.Draining,
	}
	for _, d := range h.Devices {
		p.Devices = append(p.Devices, &raftv1.Device{Id: d.ID, Kind: d.Kind, Name: d.Name, TotalBytes: d.TotalBytes, Problem: d.Problem})
	}
	return p
}

func hiveFromProto(p *raftv1.Hive) core.Hive {
	h := core.Hive{
		ID: p.GetId(), Name: p.GetName(), Version: p.GetVersion(), OS: p.GetOs(), Arch: p.GetArch(), Incarnation: p.GetIncarnation(),
		Status: core.HiveStatus(p.GetStatus()), WorkerTypes: append([]string{}, p.GetWorkerTypes()...), Devices: []core.Device{},
		CreateIndex: p.GetCreateIndex(), ModifyIndex: p.GetModifyIndex(),
		RPCAddress: p.GetRpcAddress(), Draining: p.GetDraining(),
	}
	for _, d := range p.GetDevices() {
		h.Devices = append(h.Devices, core.Device{
			ID: d.GetId(), Kind: d.GetKind(), Name: d.GetName(), TotalBytes: d.GetTotalBytes(), Problem: d.GetProblem(),
		})
	}
	return h
}

func workerToProto(w core.Worker) *raftv1.Worker {
	return &raftv1.Worker{
		Id: w.ID, Hive: w.Hive, Type: w.Type, Version: w.Version, Model: w.Model, ModelDigest: w.ModelDigest, Device: w.Device,
		Slots: int32Of(w.Slots), ContextTokens: int32Of(w.ContextTokens), State: string(w.State), Nonce: w.Nonce,
		CreateIndex: w.CreateIndex, ModifyIndex: w.ModifyIndex,
	}
}

func workerFromProto(p *raftv1.Worker) core.Worker {
	return core.Worker{
		ID: p.GetId(), Hive: p.GetHive(), Type: p.GetType(), Version: p.GetVersion(), Model: p.GetModel(), ModelDigest: p.GetModelDigest(),
		Device: p.GetDevice(), Slots: int(p.GetSlots()), ContextTokens: int(p.GetContextTokens()), State: core.WorkerState(p.GetState()),
		Nonce: p.GetNonce(), CreateIndex: p.GetCreateIndex(), ModifyIndex: p.GetModifyIndex(),
	}
}

// int32Of saturates: a number that does not fit is out of every sensible range anyway.
func int32Of(n int) int32 {
	return int32(min(max(n, math.MinInt32), math.MaxInt32)) //nolint:gosec // just bounded
}
