package worker

import (
	workerv1 "github.com/rbee-project/rbee/proto/worker/v1"
)

func fingerprintToProto(f Fingerprint) *workerv1.FingerprintResponse {
	p := &workerv1.FingerprintResponse{Problem: f.Problem, Warnings: f.Warnings, ByName: f.ByName, Models: f.Models, Beside: filesToProto(f.Beside), BesideBytes: f.BesideBytes, Formats: f.Formats, Architectures: f.Architectures}
	for _, d := range f.Devices {
		p.Devices = append(p.Devices, &workerv1.Device{
			Id: d.ID, Kind: d.Kind, Name: d.Name, TotalBytes: d.TotalBytes, FreeBytes: d.FreeBytes, Problem: d.Problem,
		})
	}
	for _, c := range f.Checks {
		p.Checks = append(p.Checks, &workerv1.Check{Name: c.Name, Passed: c.Passed, Detail: c.Detail})
	}
	return p
}

func fingerprintFromProto(p *workerv1.FingerprintResponse) Fingerprint {
	f := Fingerprint{Problem: p.GetProblem(), Warnings: p.GetWarnings(), ByName: p.GetByName(), Models: p.GetModels(), Beside: filesFromProto(p.GetBeside()), BesideBytes: p.GetBesideBytes(), Formats: p.GetFormats(), Architectures: p.GetArchitectures()}
	for _, d := range p.GetDevices() {
		f.Devices = append(f.Devices, Device{
			ID: d.GetId(), Kind: d.GetKind(), Name: d.GetName(), TotalBytes: d.GetTotalBytes(), FreeBytes: d.GetFreeBytes(), Problem: d.GetProblem(),
		})
	}
	for _, c := range p.GetChecks() {
		f.Checks = append(f.Checks, Check{Name: c.GetName(), Passed: c.GetPassed(), Detail: c.GetDetail()})
	}
	return f.bounded()
}

func startSpecToProto(s StartSpec) *workerv1.StartRequest {
	return &workerv1.StartRequest{
		WorkerId: s.WorkerID, Nonce: s.Nonce, ModelPath: s.ModelPath, ModelId: s.ModelID, Device: s.Device,
		Slots: int32(s.Slots), ContextTokens: int32(s.ContextTokens), Threads: int32(s.Threads), EngineDir: s.EngineDir, DataOpening: s.DataOpening,
		Files: filesToProto(s.Files), ModelDigest: s.ModelDigest, StateFile: s.StateFile, PrefixKey: s.PrefixKey, CpuWorkers: int32(s.CPUWorkers),
	}
}

func startSpecFromProto(p *workerv1.StartRequest) StartSpec {
	return StartSpec{
		WorkerID: p.GetWorkerId(), Nonce: p.GetNonce(), ModelPath: p.GetModelPath(), ModelID: p.GetModelId(), Device: p.GetDevice(),
		Slots: int(p.GetSlots()), ContextTokens: int(p.GetContextTokens()), Threads: int(p.GetThreads()), EngineDir: p.GetEngineDir(), DataOpening: p.GetDataOpening(),
		Files: filesFromProto(p.GetFiles()), ModelDigest: p.GetModelDigest(), StateFile: p.GetStateFile(), PrefixKey: p.GetPrefixKey(), CPUWorkers: max(int(p.GetCpuWorkers()), 0),
	}
}

func filesToProto(list []ModelFile) []*workerv1.ModelFile {
	var out []*workerv1.ModelFile
	for _, f := range list {
		out = append(out, &workerv1.ModelFile{Path: f.Path, Role: f.Role})
	}
	return out
}

func filesFromProto(list []*workerv1.ModelFile) []ModelFile {
	var out []ModelFile
	for _, f := range list {
		out = append(out, ModelFile{Path: f.GetPath(), Role: f.GetRole()})
	}
	return out
}

func progressToProto(p Progress) *workerv1.StartResponse {
	return &workerv1.StartResponse{Phase: p.Phase, Done: p.Done, Total: p.Total, Unit: p.Unit, Message: p.Message}
}

func progressFromProto(p *workerv1.StartResponse) Progress {
	return Progress{Phase: p.GetPhase(), Done: p.GetDone(), Total: p.GetTotal(), Unit: p.GetUnit(), Message: p.GetMessage()}
}

func statusToProto(s Status) *workerv1.StatusResponse {
	return &workerv1.StatusResponse{
		WorkerId: s.WorkerID, Nonce: s.Nonce, ModelId: s.ModelID, State: string(s.State), Problem: s.Problem,
		Slots: int32(s.Slots), ContextTokens: int32(s.ContextTokens), Active: int32(s.Active), Queued: int32(s.Queued),
		TokensPerSecond: s.TokensPerSecond, TokensTotal: s.TokensTotal, KvUsedTokens: int64(s.KVUsedTokens), MemoryBytes: s.MemoryBytes,
		Capabilities: s.Capabilities, DataGuarded: s.DataGuarded, PromptTokensTotal: s.PromptTokensTotal, CachedTokensTotal: s.CachedTokensTotal,
		DraftTokensTotal: s.DraftTokensTotal, AcceptedTokensTotal: s.AcceptedTokensTotal,
		PrefixBlocks: s.PrefixBlocks, PrefixBlockTokens: int32(s.PrefixBlockTokens),
	}
}

func statusFromProto(p *workerv1.StatusResponse) Status {
	return Status{
		WorkerID: p.GetWorkerId(), Nonce: p.GetNonce(), ModelID: p.GetModelId(), State: State(p.GetState()), Problem: p.GetProblem(),
		Slots: int(p.GetSlots()), ContextTokens: int(p.GetContextTokens()), Active: int(p.GetActive()), Queued: int(p.GetQueued()),
		TokensPerSecond: p.GetTokensPerSecond(), TokensTotal: p.GetTokensTotal(), KVUsedTokens: int(p.GetKvUsedTokens()), MemoryBytes: p.GetMemoryBytes(),
		Capabilities: p.GetCapabilities(), DataGuarded: p.GetDataGuarded(), PromptTokensTotal: p.GetPromptTokensTotal(), CachedTokensTotal: p.GetCachedTokensTotal(),
		DraftTokensTotal: p.GetDraftTokensTotal(), AcceptedTokensTotal: p.GetAcceptedTokensTotal(),
		PrefixBlocks: p.GetPrefixBlocks()[:min(len(p.GetPrefixBlocks()), MaxPrefixBlocks)], PrefixBlockTokens: max(int(p.GetPrefixBlockTokens()), 0),
	}
}
