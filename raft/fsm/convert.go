package fsm

import (
	"bytes"
	"math"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
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
		CreateIndex: w.CreateIndex, ModifyIndex: w.ModifyIndex, Capabilities: w.Capabilities.List(), Replica: w.Replica,
	}
}

func workerFromProto(p *raftv1.Worker) core.Worker {
	return core.Worker{
		ID: p.GetId(), Hive: p.GetHive(), Type: p.GetType(), Version: p.GetVersion(), Model: p.GetModel(), ModelDigest: p.GetModelDigest(),
		Device: p.GetDevice(), Slots: int(p.GetSlots()), ContextTokens: int(p.GetContextTokens()), State: core.WorkerState(p.GetState()),
		Nonce: p.GetNonce(), CreateIndex: p.GetCreateIndex(), ModifyIndex: p.GetModifyIndex(),
		Capabilities: core.CapabilitiesOf(p.GetCapabilities()), Replica: p.GetReplica(),
	}
}

// int32Of saturates: a number that does not fit is out of every sensible range anyway.
func int32Of(n int) int32 {
	return int32(min(max(n, math.MinInt32), math.MaxInt32)) //nolint:gosec // just bounded
}

func clusterToProto(c core.Cluster) *raftv1.Cluster {
	return &raftv1.Cluster{
		Id: c.ID, Name: c.Name, CaCertificates: c.CACertificates, SealedCaKey: c.SealedCAKey, SealedGossipKeys: c.SealedGossipKeys,
		GossipVersion: c.GossipVersion, CreateIndex: c.CreateIndex, ModifyIndex: c.ModifyIndex,
	}
}

func clusterFromProto(p *raftv1.Cluster) core.Cluster {
	return core.Cluster{
		ID: p.GetId(), Name: p.GetName(), CACertificates: bytes.Clone(p.GetCaCertificates()), SealedCAKey: bytes.Clone(p.GetSealedCaKey()),
		SealedGossipKeys: bytes.Clone(p.GetSealedGossipKeys()), GossipVersion: p.GetGossipVersion(),
		CreateIndex: p.GetCreateIndex(), ModifyIndex: p.GetModifyIndex(),
	}
}

func nodeToProto(n core.Node) *raftv1.Node {
	return &raftv1.Node{
		Id: n.ID, Name: n.Name, Roles: texts[string](n.Roles), RpcAddress: n.RPCAddress, KeyHash: n.KeyHash,
		CertificateExpiresUnix: unixOf(n.CertificateExpiresAt), Revoked: n.Revoked, CreateIndex: n.CreateIndex, ModifyIndex: n.ModifyIndex,
	}
}

func nodeFromProto(p *raftv1.Node) core.Node {
	return core.Node{
		ID: p.GetId(), Name: p.GetName(), Roles: texts[core.Role](p.GetRoles()), RPCAddress: p.GetRpcAddress(), KeyHash: bytes.Clone(p.GetKeyHash()),
		CertificateExpiresAt: timeOf(p.GetCertificateExpiresUnix()), Revoked: p.GetRevoked(), CreateIndex: p.GetCreateIndex(), ModifyIndex: p.GetModifyIndex(),
	}
}

func tokenToProto(t core.Token) *raftv1.Token {
	ttl := int64(t.TTL) / second
	if int64(t.TTL)%second > 0 {
		ttl++ // rounding down could make a short life unlimited
	}
	return &raftv1.Token{
		Id: t.ID, Name: t.Name, Kind: string(t.Kind), SecretHash: t.SecretHash, Scopes: texts[string](t.Scopes), Roles: texts[string](t.Roles),
		CreatedUnix: unixOf(t.CreatedAt), TtlSeconds: ttl, UsedBy: t.UsedBy, UsedKeyHash: t.UsedKeyHash, UsedUnix: unixOf(t.UsedAt),
		Models: slices.Clone(t.Models), Limits: limitsToProto(t.Limits), Priority: string(t.Priority),
		RotatedUnix: unixOf(t.RotatedAt), PreviousSecretHash: t.PreviousSecretHash, OverlapSeconds: int64(t.Overlap) / second,
		LastUsedUnix: unixOf(t.LastUsedAt), CreateIndex: t.CreateIndex, ModifyIndex: t.ModifyIndex,
	}
}

func limitsToProto(limits []core.Limit) []*raftv1.Limit {
	var out []*raftv1.Limit
	for _, l := range limits {
		out = append(out, &raftv1.Limit{Of: string(l.Of), Count: l.Count, PerSeconds: int64(l.Per) / second})
	}
	return out
}

func limitsFromProto(limits []*raftv1.Limit) []core.Limit {
	var out []core.Limit
	for _, l := range limits {
		out = append(out, core.Limit{Of: core.LimitOf(l.GetOf()), Count: l.GetCount(), Per: time.Duration(max(0, min(l.GetPerSeconds(), maxTTLSeconds)) * second)})
	}
	return out
}

func tokenFromProto(p *raftv1.Token) core.Token {
	return core.Token{
		ID: p.GetId(), Name: p.GetName(), Kind: core.TokenKind(p.GetKind()), SecretHash: bytes.Clone(p.GetSecretHash()),
		Scopes: texts[core.Scope](p.GetScopes()), Roles: texts[core.Role](p.GetRoles()),
		CreatedAt: timeOf(p.GetCreatedUnix()), TTL: core.Duration(max(0, min(p.GetTtlSeconds(), maxTTLSeconds)) * second),
		UsedBy: p.GetUsedBy(), UsedKeyHash: bytes.Clone(p.GetUsedKeyHash()), UsedAt: timeOf(p.GetUsedUnix()),
		Models: slices.Clone(p.GetModels()), Limits: limitsFromProto(p.GetLimits()), Priority: core.Priority(p.GetPriority()),
		RotatedAt: timeOf(p.GetRotatedUnix()), PreviousSecretHash: bytes.Clone(p.GetPreviousSecretHash()),
		Overlap:    core.Duration(max(0, min(p.GetOverlapSeconds(), maxTTLSeconds)) * second),
		LastUsedAt: timeOf(p.GetLastUsedUnix()), CreateIndex: p.GetCreateIndex(), ModifyIndex: p.GetModifyIndex(),
	}
}

func startToProto(s state.Start) *raftv1.Start {
	return &raftv1.Start{Model: s.Model, Hive: s.Hive, Served: s.Served, Request: s.Request, Registered: s.Registered, Index: s.Index}
}

func startFromProto(p *raftv1.Start) state.Start {
	return state.Start{
		Model: p.GetModel(), Hive: p.GetHive(), Served: p.GetServed(), Request: p.GetRequest(), Registered: p.GetRegistered(), Index: p.GetIndex(),
	}
}

func aliasToProto(a core.Alias) *raftv1.Alias {
	return &raftv1.Alias{Name: a.Name, Model: a.Model, CreateIndex: a.CreateIndex, ModifyIndex: a.ModifyIndex}
}

func aliasFromProto(p *raftv1.Alias) core.Alias {
	return core.Alias{Name: p.GetName(), Model: p.GetModel(), CreateIndex: p.GetCreateIndex(), ModifyIndex: p.GetModifyIndex()}
}

func texts[To, From ~string](list []From) []To {
	var out []To
	for _, s := range list {
		out = append(out, To(s))
	}
	return out
}

// unixOf returns a time in seconds; 0 for the zero time.
func unixOf(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

func timeOf(unix int64) time.Time {
	if unix == 0 {
		return time.Time{}
	}
	return time.Unix(max(0, min(unix, maxSeconds)), 0).UTC()
}
