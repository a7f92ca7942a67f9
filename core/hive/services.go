package hive

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/wire"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
)

// Register serves HiveService on r. The jobs are served by who made them, Jobs. Requests wait until
// Run has taken over the workers of an earlier agent.
func (h *Hive) Register(r grpc.ServiceRegistrar) {
	hivev1.RegisterHiveServiceServer(r, hiveService{h: h})
}

type hiveService struct {
	hivev1.UnimplementedHiveServiceServer
	h *Hive
}

func (s hiveService) ListProcesses(ctx context.Context, _ *hivev1.ListProcessesRequest) (*hivev1.ListProcessesResponse, error) {
	list, err := s.h.processes(ctx)
	if err != nil {
		return nil, err
	}
	resp := &hivev1.ListProcessesResponse{}
	for _, p := range list {
		resp.Processes = append(resp.Processes, wire.ProcessToProto(p))
	}
	return resp, nil
}

func (s hiveService) GetProcess(ctx context.Context, req *hivev1.GetProcessRequest) (*hivev1.GetProcessResponse, error) {
	p, err := s.h.process(ctx, int(req.GetPid()))
	if err != nil {
		return nil, err
	}
	return &hivev1.GetProcessResponse{Process: wire.ProcessToProto(p)}, nil
}

func (s hiveService) ListBinaries(ctx context.Context, _ *hivev1.ListBinariesRequest) (*hivev1.ListBinariesResponse, error) {
	list, err := s.h.Binaries(ctx)
	if err != nil {
		return nil, err
	}
	return &hivev1.ListBinariesResponse{Binaries: wire.All(list, wire.BinaryToProto)}, nil
}

func (s hiveService) GetBinary(ctx context.Context, req *hivev1.GetBinaryRequest) (*hivev1.GetBinaryResponse, error) {
	b, err := s.h.Binary(ctx, req.GetId())
	if err != nil {
		return nil, err
	}
	return &hivev1.GetBinaryResponse{Binary: wire.BinaryToProto(b)}, nil
}

func (s hiveService) ListModels(ctx context.Context, _ *hivev1.ListModelsRequest) (*hivev1.ListModelsResponse, error) {
	if err := s.h.settled(ctx); err != nil {
		return nil, err
	}
	list, err := s.h.store.Models()
	if err != nil {
		return nil, err
	}
	resp := &hivev1.ListModelsResponse{}
	for _, m := range list {
		m.Files = nil
		resp.Models = append(resp.Models, wire.ModelToProto(s.h.withLoaders(m)))
	}
	return resp, nil
}

func (s hiveService) GetModel(ctx context.Context, req *hivev1.GetModelRequest) (*hivev1.GetModelResponse, error) {
	if err := s.h.settled(ctx); err != nil {
		return nil, err
	}
	m, err := s.h.model(req.GetId())
	if err == nil {
		m, err = s.h.detailed(ctx, m)
	}
	if err != nil {
		return nil, err
	}
	return &hivev1.GetModelResponse{Model: wire.ModelToProto(s.h.withLoaders(m))}, nil
}

func (s hiveService) SearchCatalog(ctx context.Context, req *hivev1.SearchCatalogRequest) (*hivev1.SearchCatalogResponse, error) {
	if err := s.h.settled(ctx); err != nil { // until then leftover folders are removed, and a plugin's may not be among them
		return nil, err
	}
	items, err := s.h.catalogs.search(ctx, catalog.Query{Text: req.GetText(), Kind: catalog.ItemKind(req.GetKind()), Limit: int(req.GetLimit())}, req.GetSource())
	if err != nil {
		return nil, err
	}
	resp := &hivev1.SearchCatalogResponse{}
	for _, it := range items {
		resp.Items = append(resp.Items, wire.CatalogItemToProto(it))
	}
	return resp, nil
}

// model finds a model, also a damaged one, which is shown and not refused.
func (h *Hive) model(name string) (core.Model, error) {
	m, _, err := h.store.Model(name)
	if core.KindOf(err) != core.Integrity {
		return m, err
	}
	list, listErr := h.store.Models()
	if listErr != nil {
		return core.Model{}, listErr
	}
	for _, m := range list {
		if m.ID == name || slices.Contains(m.Aliases, name) {
			return m, nil
		}
	}
	return core.Model{}, err
}

func (h *Hive) withUsers(b core.WorkerBinary) core.WorkerBinary {
	b.InUseBy = []string{}
	for _, w := range h.all() {
		if w.handle.Binary == b.ID {
			b.InUseBy = append(b.InUseBy, w.id())
		}
	}
	return b
}

func (h *Hive) withLoaders(m core.Model) core.Model {
	m.LoadedBy = []string{}
	for _, w := range h.all() {
		if w.handle.Model == m.ID {
			m.LoadedBy = append(m.LoadedBy, w.id())
		}
	}
	return m
}

// processes is the hive's process table, from the operating system, ordered by pid.
func (h *Hive) processes(ctx context.Context) ([]core.Process, error) {
	if err := h.settled(ctx); err != nil {
		return nil, err
	}
	out := []core.Process{}
	for _, w := range h.all() {
		u, err := hostinfo.ReadUsage(ctx, w.identity())
		if core.KindOf(err) == core.NotFound {
			continue // it has just ended
		}
		if err != nil {
			return nil, err
		}
		out = append(out, w.process(u))
	}
	slices.SortFunc(out, func(a, b core.Process) int { return a.PID - b.PID })
	return out, nil
}

func (w *worker) process(u hostinfo.Usage) core.Process {
	return core.Process{
		PID: w.pid(), WorkerID: w.id(), Type: w.handle.Attachment.Type, Model: w.handle.Model, Device: w.handle.Device, State: w.stateNow(),
		MemoryBytes: u.MemoryBytes, CPUPercent: u.CPUPercent, StartedAt: u.StartedAt,
	}
}

// process is one worker process with its details. Errors: NotFound for a pid that is no worker of
// this hive.
func (h *Hive) process(ctx context.Context, pid int) (core.Process, error) {
	if err := h.settled(ctx); err != nil {
		return core.Process{}, err
	}
	w, gone, err := h.findProcess(pid)
	if err != nil {
		return core.Process{}, err
	}
	if w == nil {
		return core.Process{}, core.Errorf(core.NotFound, "find worker process: process %d of worker %s has ended: %s", pid, gone.WorkerID, gone.How)
	}
	d, err := hostinfo.ReadDetails(ctx, w.identity())
	if err != nil {
		return core.Process{}, err
	}
	p := w.process(d.Usage)
	p.CommandLine, p.Children, p.Sockets = d.CommandLine, d.Children, d.Sockets
	p.Log, err = tailFile(h.disk.logFile(w.id()), tailLines)
	return p, err
}
