// Package simhive simulates hives that report to queens without gRPC in between: thousands fit into
// a test.
package simhive

import (
	"cmp"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/liveness"
)

// Hive is a simulated hive. The test changes what it reports.
type Hive struct {
	Hive    core.Hive
	Workers []core.Worker
	Now     func() time.Time // stamps reports

	links map[*liveness.Monitor]*link
}

type link struct {
	*liveness.Link
	seq uint64
}

// New returns a hive with ready workers, of the models m0, m1 and so on.
func New(id string, workers int) *Hive {
	h := &Hive{links: map[*liveness.Monitor]*link{}, Now: time.Now, Hive: core.Hive{
		ID: id, Name: "name-" + id, Version: "1", OS: "linux", Arch: "amd64", Incarnation: 1, Status: core.HiveReady, WorkerTypes: []string{"cpu"},
		Devices: []core.Device{{ID: "cpu", Kind: "cpu", TotalBytes: 1 << 30, FreeBytes: 1 << 29}},
	}}
	for i := range workers {
		h.Workers = append(h.Workers, core.Worker{
			ID: fmt.Sprintf("w-%s-%d", id, i), Hive: id, Type: "cpu", Version: "1", Model: fmt.Sprintf("m%d", i), ModelDigest: "sha256:00", Device: "cpu",
			Slots: 4, ContextTokens: 512, State: core.WorkerReady, Nonce: fmt.Sprintf("nonce-%s-%d", id, i),
		})
	}
	return h
}

// Report returns the hive's current report.
func (h *Hive) Report() *liveness.Report {
	at := h.Now()
	r := &liveness.Report{At: at, Hive: h.Hive, Workers: slices.Clone(h.Workers)}
	slices.SortFunc(r.Workers, func(a, b core.Worker) int { return cmp.Compare(a.ID, b.ID) }) // as ReportOf does
	r.Hive.Devices = slices.Clone(h.Hive.Devices)
	for i := range r.Workers {
		r.Workers[i].Load.At = at
	}
	return r
}

// Tell reports to a queen, over a new link if the hive has none, and returns when the queen wants
// the next report.
func (h *Hive) Tell(t *testing.T, m *liveness.Monitor) (next time.Duration, err error) {
	t.Helper()
	l, ok := h.links[m]
	if !ok {
		opened, err := m.Open(t.Context(), h.Hive)
		if err != nil {
			return 0, err
		}
		l = &link{Link: opened}
		h.links[m] = l
	}
	l.seq++
	if err := l.Take(l.seq, h.Report(), false); err != nil {
		h.HangUp(m)
		return 0, err
	}
	resp, err := l.Answer()
	if err != nil {
		h.HangUp(m)
		return 0, err
	}
	return resp.GetNext().AsDuration(), nil
}

// MustTell is Tell for a report that the queen accepts.
func (h *Hive) MustTell(t *testing.T, m *liveness.Monitor) time.Duration {
	t.Helper()
	next, err := h.Tell(t, m)
	must.NoError(t, err)
	return next
}

// End reports, over the existing link, that the hive's agent is shutting down.
func (h *Hive) End(t *testing.T, m *liveness.Monitor) {
	t.Helper()
	l := h.links[m]
	l.seq++
	must.NoError(t, l.Take(l.seq, h.Report(), true))
	h.HangUp(m)
}

// Link returns the hive's link to a queen; nil: it has none.
func (h *Hive) Link(m *liveness.Monitor) *liveness.Link {
	if l, ok := h.links[m]; ok {
		return l.Link
	}
	return nil
}

// HangUp breaks the link to a queen.
func (h *Hive) HangUp(m *liveness.Monitor) {
	if l, ok := h.links[m]; ok {
		delete(h.links, m)
		l.Close()
	}
}
