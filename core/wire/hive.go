package wire

import (
	"github.com/rbee-project/rbee/core"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// FileToProto converts a file of a model or worker binary.
func FileToProto(f core.File) *hivev1.File {
	return &hivev1.File{Path: f.Path, SizeBytes: f.SizeBytes, Digest: f.Digest}
}

// FileFromProto reverses FileToProto.
func FileFromProto(f *hivev1.File) core.File {
	return core.File{Path: f.GetPath(), SizeBytes: f.GetSizeBytes(), Digest: f.GetDigest()}
}

// ProcessToProto converts an entry of a hive's process table.
func ProcessToProto(p core.Process) *hivev1.Process {
	return &hivev1.Process{
		Pid:         int64(p.PID),
		WorkerId:    p.WorkerID,
		Type:        p.Type,
		Model:       p.Model,
		Device:      p.Device,
		State:       string(p.State),
		MemoryBytes: p.MemoryBytes,
		CpuPercent:  p.CPUPercent,
		StartedAt:   timeToProto(p.StartedAt),
		CommandLine: copied(p.CommandLine),
		Children:    optional(p.Children, func(pid int) int64 { return int64(pid) }),
		Sockets:     copied(p.Sockets),
		Log:         copied(p.Log),
	}
}

// ProcessFromProto reverses ProcessToProto.
func ProcessFromProto(p *hivev1.Process) core.Process {
	return core.Process{
		PID:         int(p.GetPid()),
		WorkerID:    p.GetWorkerId(),
		Type:        p.GetType(),
		Model:       p.GetModel(),
		Device:      p.GetDevice(),
		State:       core.WorkerState(p.GetState()),
		MemoryBytes: p.GetMemoryBytes(),
		CPUPercent:  p.GetCpuPercent(),
		StartedAt:   timeFromProto(p.GetStartedAt()),
		CommandLine: copied(p.GetCommandLine()),
		Children:    optional(p.GetChildren(), func(pid int64) int { return int(pid) }),
		Sockets:     copied(p.GetSockets()),
		Log:         copied(p.GetLog()),
	}
}

// BinaryToProto converts an entry of a hive's worker catalog.
func BinaryToProto(b core.WorkerBinary) *hivev1.Binary {
	return &hivev1.Binary{
		Id:            b.ID,
		Type:          b.Type,
		Version:       b.Version,
		EngineName:    b.EngineName,
		EngineVersion: b.EngineVersion,
		Source:        b.Source,
		Digest:        b.Digest,
		SizeBytes:     b.SizeBytes,
		Path:          b.Path,
		InstalledAt:   timeToProto(b.InstalledAt),
		Devices:       All(b.Devices, DeviceToProto),
		Problem:       b.Problem,
		Damaged:       b.Damaged,
		InUseBy:       filled(b.InUseBy),
		ProbedAt:      timeToProto(b.ProbedAt),
		Checks:        optional(b.Checks, checkToProto),
		Warnings:      copied(b.Warnings),
		Files:         optional(b.Files, FileToProto),
		SchemaJson:    b.Schema,
	}
}

func checkToProto(c core.Check) *hivev1.Check {
	return &hivev1.Check{Name: c.Name, Passed: c.Passed, Detail: c.Detail}
}

func checkFromProto(c *hivev1.Check) core.Check {
	return core.Check{Name: c.GetName(), Passed: c.GetPassed(), Detail: c.GetDetail()}
}

// BinaryFromProto reverses BinaryToProto.
func BinaryFromProto(b *hivev1.Binary) core.WorkerBinary {
	return core.WorkerBinary{
		ID:            b.GetId(),
		Type:          b.GetType(),
		Version:       b.GetVersion(),
		EngineName:    b.GetEngineName(),
		EngineVersion: b.GetEngineVersion(),
		Source:        b.GetSource(),
		Digest:        b.GetDigest(),
		SizeBytes:     b.GetSizeBytes(),
		Path:          b.GetPath(),
		InstalledAt:   timeFromProto(b.GetInstalledAt()),
		Devices:       All(b.GetDevices(), DeviceFromProto),
		Problem:       b.GetProblem(),
		Damaged:       b.GetDamaged(),
		InUseBy:       filled(b.GetInUseBy()),
		ProbedAt:      timeFromProto(b.GetProbedAt()),
		Checks:        optional(b.GetChecks(), checkFromProto),
		Warnings:      copied(b.GetWarnings()),
		Files:         optional(b.GetFiles(), FileFromProto),
		Schema:        b.GetSchemaJson(),
	}
}

// ModelToProto converts a model of a hive's store. It omits Hives and Capabilities: one hive does
// not know which others have the model.
func ModelToProto(m core.Model) *hivev1.Model {
	return &hivev1.Model{
		Id:            m.ID,
		Aliases:       filled(m.Aliases),
		Ref:           m.Ref,
		Digest:        m.Digest,
		SizeBytes:     m.SizeBytes,
		License:       m.License,
		Architecture:  m.Architecture,
		Quantization:  m.Quantization,
		Parameters:    m.Parameters,
		ContextTokens: int64(m.ContextTokens),
		CreatedAt:     timeToProto(m.CreatedAt),
		LoadedBy:      filled(m.LoadedBy),
		Files:         optional(m.Files, FileToProto),
		EstimateBytes: m.EstimateBytes,
		Damaged:       m.Damaged,
		Facts:         modelFactsToProto(m.Facts),
		Fits:          optional(m.Fits, ModelFitToProto),
	}
}

// ModelFromProto reverses ModelToProto; Hives and Capabilities are empty.
func ModelFromProto(m *hivev1.Model) core.Model {
	return core.Model{
		ID:            m.GetId(),
		Aliases:       filled(m.GetAliases()),
		Ref:           m.GetRef(),
		Digest:        m.GetDigest(),
		SizeBytes:     m.GetSizeBytes(),
		License:       m.GetLicense(),
		Architecture:  m.GetArchitecture(),
		Quantization:  m.GetQuantization(),
		Parameters:    m.GetParameters(),
		ContextTokens: int(m.GetContextTokens()),
		CreatedAt:     timeFromProto(m.GetCreatedAt()),
		Hives:         []string{},
		LoadedBy:      filled(m.GetLoadedBy()),
		Files:         optional(m.GetFiles(), FileFromProto),
		EstimateBytes: m.GetEstimateBytes(),
		Damaged:       m.GetDamaged(),
		Facts:         modelFactsFromProto(m.GetFacts()),
		Fits:          optional(m.GetFits(), ModelFitFromProto),
	}
}

func modelFactsToProto(f *core.ModelFacts) *hivev1.ModelFacts {
	if f == nil {
		return nil
	}
	return &hivev1.ModelFacts{
		Name:         f.Name,
		Layers:       int64(f.Layers),
		Embedding:    int64(f.Embedding),
		FeedForward:  int64(f.FeedForward),
		Heads:        int64(f.Heads),
		KvHeads:      int64(f.KVHeads),
		Vocabulary:   int64(f.Vocabulary),
		Tensors:      int64(f.Tensors),
		Parts:        int64(f.Parts),
		ChatTemplate: f.ChatTemplate,
	}
}

func modelFactsFromProto(f *hivev1.ModelFacts) *core.ModelFacts {
	if f == nil {
		return nil
	}
	return &core.ModelFacts{
		Name:         f.GetName(),
		Layers:       int(f.GetLayers()),
		Embedding:    int(f.GetEmbedding()),
		FeedForward:  int(f.GetFeedForward()),
		Heads:        int(f.GetHeads()),
		KVHeads:      int(f.GetKvHeads()),
		Vocabulary:   int(f.GetVocabulary()),
		Tensors:      int(f.GetTensors()),
		Parts:        int(f.GetParts()),
		ChatTemplate: f.GetChatTemplate(),
	}
}

// ModelFitToProto converts the fit of a model on a hive's devices.
func ModelFitToProto(f core.ModelFit) *hivev1.ModelFit {
	return &hivev1.ModelFit{
		Hive:          f.Hive,
		Device:        f.Device,
		Kind:          f.Kind,
		Slots:         int64(f.Slots),
		ContextTokens: int64(f.ContextTokens),
		WeightsBytes:  f.WeightsBytes,
		CacheBytes:    f.CacheBytes,
		ComputeBytes:  f.ComputeBytes,
		OverheadBytes: f.OverheadBytes,
		NeedBytes:     f.NeedBytes,
		FreeBytes:     f.FreeBytes,
		MissingBytes:  f.MissingBytes,
		Problem:       f.Problem,
	}
}

// ModelFitFromProto reverses ModelFitToProto.
func ModelFitFromProto(f *hivev1.ModelFit) core.ModelFit {
	return core.ModelFit{
		Hive:          f.GetHive(),
		Device:        f.GetDevice(),
		Kind:          f.GetKind(),
		Slots:         int(f.GetSlots()),
		ContextTokens: int(f.GetContextTokens()),
		WeightsBytes:  f.GetWeightsBytes(),
		CacheBytes:    f.GetCacheBytes(),
		ComputeBytes:  f.GetComputeBytes(),
		OverheadBytes: f.GetOverheadBytes(),
		NeedBytes:     f.GetNeedBytes(),
		FreeBytes:     f.GetFreeBytes(),
		MissingBytes:  f.GetMissingBytes(),
		Problem:       f.GetProblem(),
	}
}

// CatalogItemToProto converts a result of a hive's catalog search.
func CatalogItemToProto(i core.CatalogItem) *hivev1.CatalogItem {
	return &hivev1.CatalogItem{
		Ref: i.Ref, Kind: i.Kind, Name: i.Name, Summary: i.Summary, SizeBytes: i.SizeBytes, License: i.License,
	}
}

// CatalogItemFromProto reverses CatalogItemToProto.
func CatalogItemFromProto(i *hivev1.CatalogItem) core.CatalogItem {
	return core.CatalogItem{
		Ref: i.GetRef(), Kind: i.GetKind(), Name: i.GetName(), Summary: i.GetSummary(), SizeBytes: i.GetSizeBytes(), License: i.GetLicense(),
	}
}
