package liveness

import (
	"fmt"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
)

// NoLink is the reason for not using a hive that other queens may use.
const NoLink = "has no link to this queen"

// View is what this queen knew about one hive at one moment. It is immutable.
type View struct {
	// Linked reports whether the hive has a link to this queen.
	Linked bool
	// Heard is the time of its last report, by the monotonic clock; zero: none since this queen
	// started.
	Heard time.Time
	// Suspect is why its workers are avoided; empty: they are not.
	Suspect string
	// Report is its latest report; nil: none yet.
	Report *Report
	// Inventory is the last reported contents of its store; nil: the hive must be asked.
	Inventory *Inventory

	since  time.Time         // when this queen started
	failed map[string]string // nonce of a worker → why it is avoided
}

// Hive returns the View of a hive. It takes no lock, and never returns nil.
func (m *Monitor) Hive(id string) *View {
	if v, ok := m.views.Load(id); ok {
		if view, ok := v.(*View); ok {
			return view
		}
	}
	return m.unheard
}

// publishLocked replaces the View of a hive by its current state.
func (m *Monitor) publishLocked(id string) {
	v := &View{since: m.unheard.since, failed: m.failures.of(id)}
	p, ok := m.peers[id]
	if !ok && v.failed == nil {
		m.views.Delete(id)
		return
	}
	if ok {
		v.Linked, v.Heard, v.Suspect, v.Report, v.Inventory = p.link != nil, p.heard, p.suspect, p.report, m.stock.of[id]
	}
	m.views.Store(id, v)
}

// LinkedSoon reports whether the hive reports to this queen, or may soon.
func (v *View) LinkedSoon() bool { return v.Report != nil || time.Since(v.since) <= LinkGrace }

// Hears reports whether the hive has a link to this queen and reports on it.
func (v *View) Hears() bool { return v.Linked && v.Suspect == "" }

// Avoid returns why this queen gives a worker of the hive no requests; empty: no reason. load is
// the hive's last report of the worker's load.
func (v *View) Avoid(w *core.Worker) (why string, load core.Load) {
	why = v.failed[w.Nonce]
	switch {
	case why != "":
	case v.Suspect != "":
		why = v.Suspect
	case !v.LinkedSoon():
		why = "its hive " + NoLink
	}
	if v.Report == nil {
		return why, core.Load{}
	}
	told := v.Report.Find(w.ID, w.Nonce)
	switch {
	case told == nil && why == "":
		return "its hive says no longer, or not yet, that it is there", core.Load{} // the registry follows
	case told == nil:
		return why, core.Load{}
	}
	if silence := time.Duration(told.Load.Silence); silence >= SilentWorker && why == "" {
		why = fmt.Sprintf("it has not told its state for %s", silence.Round(time.Second))
	}
	return why, told.Load
}

// AddTo adds this queen's knowledge of a hive to its registry entry.
func (v *View) AddTo(h *core.Hive) {
	if v.Suspect != "" && h.Status == core.HiveReady {
		h.Status = core.HiveSuspect
	}
	if v.Report == nil {
		return
	}
	h.LastBeat = v.Report.At
	h.Unconfined, h.Problems, h.Probing = v.Report.Hive.Unconfined, v.Report.Hive.Problems, v.Report.Hive.Probing
	for i := range h.Devices {
		d := &h.Devices[i]
		if at := slices.IndexFunc(v.Report.Hive.Devices, func(told core.Device) bool { return told.ID == d.ID }); at >= 0 {
			d.FreeBytes = v.Report.Hive.Devices[at].FreeBytes
		}
	}
}
