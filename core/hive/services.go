package hive

import (
	"context"
	"slices"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/operation"
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

// Ask answers an operation. The request of one that is not known here is not read: it may have
// fields that are not known either.
func (s hiveService) Ask(ctx context.Context, req *hivev1.AskRequest) (*hivev1.AskResponse, error) {
	op := core.Operation(req.GetOperation())
	if _, ok := s.h.reads[op]; !ok {
		return nil, operation.Unsupported(s.h.opts.ID, s.h.opts.Version, op)
	}
	r, err := operation.Decode(req.GetRequestJson())
	if err != nil {
		return nil, err
	}
	if r.Operation != op {
		return nil, core.Errorf(core.Invalid, "the request is for %q, not for %q", r.Operation, op)
	}
	v, err := s.h.Answer(ctx, r)
	if err != nil {
		return nil, err
	}
	text, err := operation.Encode(v)
	if err != nil {
		return nil, err
	}
	return &hivev1.AskResponse{ResultJson: text}, nil
}

func (h *Hive) modelList(context.Context, core.Request) ([]core.Model, error) {
	list, err := h.store.Models()
	if err != nil {
		return nil, err
	}
	list = h.withNamed(list)
	for i, m := range list {
		m.Files = nil
		list[i] = h.withLoaders(m)
	}
	return list, nil
}

func (h *Hive) modelGet(ctx context.Context, r core.Request) (core.Model, error) {
	m, err := h.model(r.Model)
	if err == nil {
		m, err = h.detailed(ctx, m)
	}
	return h.withLoaders(m), err
}

func (h *Hive) catalogSearch(ctx context.Context, r core.Request) ([]core.CatalogItem, error) {
	return h.catalogs.search(ctx, catalog.Query{Text: r.Text, Kind: catalog.ItemKind(r.Kind), Limit: r.Limit}, r.Source)
}

// binaryList lists the worker binaries, damaged ones included, without their files.
func (h *Hive) binaryList(context.Context, core.Request) ([]core.WorkerBinary, error) {
	list, err := h.store.Binaries()
	if err != nil {
		return nil, err
	}
	for i, b := range list {
		b.Files = nil
		list[i] = h.withUsers(b)
	}
	return list, nil
}

// binaryGet is one worker binary by "<type>@<version>", or "<type>" for its newest. Errors:
// NotFound.
func (h *Hive) binaryGet(_ context.Context, r core.Request) (core.WorkerBinary, error) {
	b, err := h.store.Binary(r.Binary)
	if err != nil {
		return core.WorkerBinary{}, err
	}
	return h.withUsers(b), nil
}

// model finds a model, also a damaged one, which is shown and not refused.
func (h *Hive) model(name string) (core.Model, error) {
	m, _, err := h.store.Model(name)
	if core.KindOf(err) == core.NotFound {
		if i := slices.IndexFunc(h.namedModels(), func(m core.Model) bool { return m.ID == name }); i >= 0 {
			return h.namedModels()[i], nil
		}
	}
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

// processList is the hive's process table, from the operating system, ordered by pid.
func (h *Hive) processList(ctx context.Context, _ core.Request) ([]core.Process, error) {
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

// processGet returns one worker process with its details. Errors: NotFound if this hive has no
// worker process with that pid.
func (h *Hive) processGet(ctx context.Context, r core.Request) (core.Process, error) {
	w, gone, err := h.findProcess(r.PID)
	if err != nil {
		return core.Process{}, err
	}
	if w == nil {
		return core.Process{}, core.Errorf(core.NotFound, "find worker process: process %d of worker %s has ended: %s", r.PID, gone.WorkerID, gone.How)
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
