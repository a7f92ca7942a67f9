package liveness

import (
	"cmp"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/wire"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// Report is a hive's report in normal form: lists sorted, texts valid for the registry. It is
// immutable once a link has accepted it.
type Report struct {
	At      time.Time // from Options.Now
	Hive    core.Hive
	Workers []core.Worker // sorted by id
	Unloads bool          // it unloads unused workers

	told      bool       // it reports its store
	inventory *Inventory // nil: the hive must be asked
}

// ReportOf reads a report. Errors: Invalid.
func ReportOf(req *queenv1.LinkRequest, at time.Time) (*Report, error) {
	r := &Report{At: at, Hive: wire.HiveFromProto(req.GetHive()), Unloads: req.GetUnloads(), told: req.Inventory != nil}
	h := &r.Hive
	if h.ID == "" {
		return nil, invalidReport("the hive id is empty")
	}
	var err error
	if r.inventory, err = inventoryOf(req.GetInventory()); err != nil {
		return nil, err
	}
	h.Status = core.HiveReady
	h.Name, h.Unconfined = fit(cmp.Or(h.Name, h.ID)), fit(h.Unconfined)
	h.Problems = h.Problems[:min(len(h.Problems), core.MaxHiveProblems)]
	for i, p := range h.Problems {
		h.Problems[i] = fit(p)
	}
	for i := range h.Devices {
		d := &h.Devices[i]
		d.Name, d.Problem = fit(d.Name), fit(d.Problem)
		d.FreeBytes = max(min(d.FreeBytes, d.TotalBytes), 0)
	}
	slices.SortFunc(h.Devices, func(a, b core.Device) int { return cmp.Compare(a.ID, b.ID) })
	slices.Sort(h.WorkerTypes)
	h.WorkerTypes = slices.Compact(h.WorkerTypes)
	nonces := make(map[string]bool, len(req.GetWorkers()))
	r.Workers = make([]core.Worker, 0, len(req.GetWorkers()))
	for _, p := range req.GetWorkers() {
		w := wire.WorkerFromProto(p, h.ID, at)
		if w.Nonce == "" || nonces[w.Nonce] {
			return nil, invalidReport("worker %q has no nonce of its own", w.ID)
		}
		nonces[w.Nonce] = true
		if w.Load.Active < 0 || w.Load.Queued < 0 {
			return nil, invalidReport("worker %q reports %d active and %d queued requests", w.ID, w.Load.Active, w.Load.Queued)
		}
		bound(&w.Load)
		w.Load.At = at.Add(-time.Duration(w.Load.Silence)) // the time of the worker's last report, not the hive's
		r.Workers = append(r.Workers, w)
	}
	slices.SortFunc(r.Workers, func(a, b core.Worker) int { return cmp.Compare(a.ID, b.ID) })
	return r, nil
}

// bound makes a load valid for display: JSON cannot represent infinities or NaN, so one such load
// would make the whole list of workers fail.
func bound(l *core.Load) {
	if !(l.TokensPerSecond >= 0 && l.TokensPerSecond <= maxRate) {
		l.TokensPerSecond = 0
	}
	l.TokensTotal, l.KVUsedTokens = max(l.TokensTotal, 0), max(l.KVUsedTokens, 0)
	l.DraftTokens = max(l.DraftTokens, 0)
	l.MemoryBytes = min(max(l.MemoryBytes, 0), maxMemory)
	l.AcceptedTokens = min(max(l.AcceptedTokens, 0), l.DraftTokens)
}

// maxMemory exceeds the memory of any device; it is far enough below the int64 range that sums do
// not overflow.
const maxMemory = 1 << 50

// maxRate is more tokens per second than any machine generates.
const maxRate = 1e9

// check applies the same bounds as the log. It is for reports not yet in the registry.
func (r *Report) check() error {
	if err := fsm.Validate(fsm.SyncHive(r.Hive, r.Workers)); err != nil {
		return core.WithHint(core.Prefix(err, "report"), "This is a defect of the hive's agent: please report it.")
	}
	return nil
}

func invalidReport(format string, args ...any) error {
	return core.Errorf(core.Invalid, "report: "+format, args...).Hint("This is a defect of the hive's agent: please report it.")
}

// fit makes a text for people, such as an engine's message, valid for the registry: one line,
// bounded.
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

// registered reports whether the registry matches the report, so that writing it would change
// nothing. The state machine uses the same comparison. old is the hive's registry entry; nil: none.
func (r *Report) registered(s *state.Snapshot) (same bool, old *core.Hive) {
	old = s.PeekHive(nil, r.Hive.ID)
	if old == nil {
		return false, nil
	}
	if !state.SameHive(&r.Hive, old) {
		return false, old
	}
	i, same := 0, true
	s.EachWorkerOfHive(nil, old.ID, func(w *core.Worker) bool {
		same = i < len(r.Workers) && state.SameWorker(r.Workers[i], w)
		i++
		return same
	})
	return same && i == len(r.Workers), old
}

// share makes a registered report use the registry's memory: most of what hives report is repeated.
func (r *Report) share(s *state.Snapshot, old *core.Hive) {
	told := r.Hive
	r.Hive = *old
	r.Hive.Unconfined, r.Hive.Problems, r.Hive.Probing = told.Unconfined, told.Problems, told.Probing
	r.Hive.Devices = slices.Clone(old.Devices)
	for i := range r.Hive.Devices {
		r.Hive.Devices[i].FreeBytes = told.Devices[i].FreeBytes
	}
	i := 0
	s.EachWorkerOfHive(nil, old.ID, func(w *core.Worker) bool {
		load := r.Workers[i].Load
		r.Workers[i] = *w
		r.Workers[i].Load = load
		i++
		return true
	})
}

// Find returns the report's entry for one start of a worker; nil: none.
func (r *Report) Find(id, nonce string) *core.Worker {
	low, high := 0, len(r.Workers)
	for low < high {
		if mid := (low + high) / 2; r.Workers[mid].ID < id {
			low = mid + 1
		} else {
			high = mid
		}
	}
	if low == len(r.Workers) || r.Workers[low].ID != id || r.Workers[low].Nonce != nonce {
		return nil
	}
	return &r.Workers[low]
}
