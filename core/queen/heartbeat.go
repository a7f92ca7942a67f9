package queen

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"
	"unicode"

	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/wire"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// registryService answers hives. Its errors are classified; the gRPC server of core/rpc carries them.
type registryService struct {
	queenv1.UnimplementedRegistryServiceServer
	q *Queen
}

// Heartbeat takes the whole state of a hive. Raft is written only when that differs from the registry. Errors: Invalid; Unavailable when this
// queen does not lead; Conflict when a newer start of the hive is registered.
//
// A hive sends one beat at a time: of two that overlap, nobody can say which is newer.
func (s *registryService) Heartbeat(ctx context.Context, req *queenv1.HeartbeatRequest) (*queenv1.HeartbeatResponse, error) {
	q := s.q
	b, err := beatOf(req, q.opts.Now())
	if err != nil {
		return nil, err
	}
	if !q.leads() {
		return nil, q.notLeader()
	}
	unlock, err := q.lock(ctx, "hive/"+b.hive.ID)
	if err != nil {
		return nil, err
	}
	defer unlock()

	registry := q.registry()
	old, known := registry.Hive(nil, b.hive.ID)
	if known && b.hive.Incarnation < old.Incarnation {
		return nil, core.WithHint(
			core.Errorf("heartbeat", core.Conflict, "hive %s (%s) has started again since: this is start %d, start %d is registered",
				b.hive.ID, b.hive.Name, b.hive.Incarnation, old.Incarnation),
			"Two agents use one hive identity. Stop one of them, or give it a data_dir of its own.")
	}
	if !known || differs(old, registry.WorkersOfHive(nil, b.hive.ID), b) {
		if err := q.apply(ctx, "beat "+b.hive.ID, fsm.SyncHive(b.hive, b.workers)); err != nil {
			return nil, err
		}
		registry = q.registry()
	}
	next, err := q.beaten(b, registry)
	if err != nil {
		return nil, err
	}
	resp := &queenv1.HeartbeatResponse{Next: durationpb.New(next)}
	for _, w := range registry.WorkersOfHive(nil, b.hive.ID) {
		if w.State == core.WorkerRetiring {
			resp.Retire = append(resp.Retire, w.ID)
		}
	}
	return resp, nil
}

// beat is a heartbeat in a normal form: lists sorted, texts fit for the registry.
type beat struct {
	at      time.Time
	hive    core.Hive
	workers []core.Worker
}

func beatOf(req *queenv1.HeartbeatRequest, at time.Time) (beat, error) {
	b := beat{at: at, hive: wire.HiveFromProto(req.GetHive())}
	h := &b.hive
	h.Status = core.HiveReady
	h.Name = fit(cmp.Or(h.Name, h.ID))
	for i := range h.Devices {
		d := &h.Devices[i]
		d.Name, d.Problem = fit(d.Name), fit(d.Problem)
		d.FreeBytes = max(d.FreeBytes, 0)
	}
	slices.SortFunc(h.Devices, func(a, b core.Device) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(h.WorkerTypes)
	h.WorkerTypes = slices.Compact(h.WorkerTypes)
	nonces := map[string]bool{}
	for _, p := range req.GetWorkers() {
		w := wire.WorkerFromProto(p, h.ID, at)
		if w.Nonce == "" || nonces[w.Nonce] {
			return beat{}, invalidBeat("worker %q has no nonce of its own", w.ID)
		}
		nonces[w.Nonce] = true
		if w.Load.Active < 0 || w.Load.Queued < 0 {
			return beat{}, invalidBeat("worker %q reports %d active and %d queued requests", w.ID, w.Load.Active, w.Load.Queued)
		}
		b.workers = append(b.workers, w)
	}
	slices.SortFunc(b.workers, func(a, b core.Worker) int { return cmp.Compare(a.ID, b.ID) })
	// The same bounds as the log's, before anything is kept of the beat: a steady hive never reaches the log again.
	if err := fsm.Validate(fsm.SyncHive(b.hive, b.workers)); err != nil {
		return beat{}, core.WithHint(core.E("heartbeat", core.KindOf(err), err), "This is a defect of the hive's agent: please report it.")
	}
	return b, nil
}

func invalidBeat(format string, args ...any) error {
	return core.WithHint(core.Errorf("heartbeat", core.Invalid, format, args...), "This is a defect of the hive's agent: please report it.")
}

// fit makes a text for people, such as an engine's message, fit for the registry: one line, bounded.
func fit(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) > fsm.MaxTextBytes {
		s = strings.ToValidUTF8(s[:fsm.MaxTextBytes-len("…")], "") + "…"
	}
	return s
}

// differs tells whether syncing the beat would change the registry. It mirrors the state machine's rules.
func differs(old core.Hive, workers []core.Worker, b beat) bool {
	h := b.hive
	if h.Name != old.Name || h.Version != old.Version || h.OS != old.OS || h.Arch != old.Arch || h.Incarnation != old.Incarnation || h.Status != old.Status {
		return true
	}
	sameDevice := func(a, b core.Device) bool {
		a.FreeBytes, b.FreeBytes = 0, 0 // load
		return a == b
	}
	if !slices.EqualFunc(h.Devices, old.Devices, sameDevice) || !slices.Equal(h.WorkerTypes, old.WorkerTypes) {
		return true
	}
	return !slices.EqualFunc(b.workers, workers, func(beaten, registered core.Worker) bool {
		if registered.State == core.WorkerRetiring && beaten.Nonce == registered.Nonce {
			beaten.State = core.WorkerRetiring // for ever, whatever its hive says
		}
		beaten.Load, registered.Load = core.Load{}, core.Load{}
		beaten.CreateIndex, beaten.ModifyIndex = registered.CreateIndex, registered.ModifyIndex
		return beaten == registered
	})
}

// registry is the replicated registry as this queen has it now.
func (q *Queen) registry() *state.Snapshot { return q.opts.Node.State().Snapshot() }

// apply writes a command to raft and returns when it is in force, or refused.
func (q *Queen) apply(ctx context.Context, requestID string, c *raftv1.Command) error {
	if len(requestID) <= fsm.MaxIDBytes { // it only helps people who read logs
		c.RequestId = requestID
	}
	_, err := q.opts.Node.Apply(ctx, c)
	return err
}

func (q *Queen) notLeader() error {
	err := core.Errorf("", core.Unavailable, "this queen does not lead the cluster")
	if leader := q.opts.Node.Leader(); leader != "" && leader != q.opts.ID {
		return core.WithHint(err, "Ask the leader, queen %s.", leader)
	}
	return core.WithHint(err, "Try again in a moment: a leader is being elected.")
}
