package inference

import (
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestRecordsBounds(t *testing.T) {
	t.Parallel()
	m := newRecords()
	must.Len(t, 0, m.Latest(10))
	at := time.Unix(1_000_000, 0)
	for i := range 3*MaxRecords + 7 {
		e := m.begin(core.RouteRecord{RequestID: fmt.Sprint(i), At: at})
		m.picked(e, nil, make([]core.RouteRefusal, 1000), 0)
		for n := range 4 {
			m.asked(e, core.Worker{ID: "w", Nonce: fmt.Sprintf("n%d", 4*i+n)}, at, at.Add(time.Duration(i)), core.WorkerLost)
		}
		m.end(e, 200, "", 0, 1, 1, at)
		if i == 2 {
			must.Eq(t, []string{"2", "1", "0"}, ids(m.Latest(10)))
		}
	}
	last := 3*MaxRecords + 6
	must.MapLen(t, MaxRecords, m.byID)
	must.Len(t, MaxRecords, m.ring)
	must.LessEq(t, maxRecordWorkers, len(m.workers))
	must.Eq(t, []string{fmt.Sprint(last), fmt.Sprint(last - 1)}, ids(m.Latest(2)))
	must.Len(t, MaxRecords, m.Latest(2*MaxRecords))
	_, ok := m.Find("0")
	must.False(t, ok)
	v, ok := m.Find(fmt.Sprint(last))
	must.True(t, ok)
	must.Len(t, maxRefusals, v.Refused)
	must.Eq(t, 1, m.Worker(fmt.Sprintf("n%d", 4*last)).Requests)
	must.Eq(t, 0, m.Worker("n0").Requests)

	// A repeated id finds the later record, even after the first is overwritten.
	m = newRecords()
	for i := range 2 {
		m.begin(core.RouteRecord{RequestID: "same", Status: i})
	}
	for i := range MaxRecords - 1 {
		m.begin(core.RouteRecord{RequestID: fmt.Sprint(i)})
	}
	v, ok = m.Find("same")
	must.True(t, ok)
	must.Eq(t, 1, v.Status)
	m.begin(core.RouteRecord{RequestID: "more"})
	_, ok = m.Find("same")
	must.False(t, ok)

	e := m.begin(core.RouteRecord{RequestID: "x"})
	for range 3 * maxFailures {
		m.asked(e, core.Worker{Nonce: "w"}, at, at, core.WorkerLost)
	}
	m.asked(e, core.Worker{Nonce: "w"}, at, at, core.Cancelled)
	got := m.Worker("w")
	must.Len(t, maxFailures, got.Recent)
	must.Eq(t, 3*maxFailures, got.Failures)
	must.Eq(t, 3*maxFailures+1, got.Requests, must.Sprint("a client that leaves is no failure of the worker"))
}

func ids(records []core.RouteRecord) []string {
	var out []string
	for _, r := range records {
		out = append(out, r.RequestID)
	}
	return out
}
