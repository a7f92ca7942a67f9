package liveness

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// The first alarm is always the earliest one set, however deadlines move.
func TestAlarms(t *testing.T) {
	t.Parallel()
	rnd := rand.New(rand.NewPCG(1, 2))
	begin := time.Unix(1000, 0)
	var a alarms
	peers := make([]*peer, 20)
	for i := range peers {
		peers[i] = &peer{id: fmt.Sprint(i), place: -1}
	}
	for range 2000 {
		p := peers[rnd.IntN(len(peers))]
		switch rnd.IntN(4) {
		case 0:
			a.remove(p)
		case 1:
			p.suspectAt, p.downAt, p.forgetAt = time.Time{}, time.Time{}, time.Time{}
			if p.place >= 0 {
				a.reset(p)
			}
			must.Negative(t, p.place)
		default:
			at := begin.Add(time.Duration(rnd.IntN(1000)) * time.Second)
			*[]*time.Time{&p.suspectAt, &p.downAt, &p.forgetAt}[rnd.IntN(3)] = at
			first := a.set(p)
			must.NonNegative(t, p.place)
			must.False(t, p.wakeAt.After(p.due()), must.Sprint("looked at too late"))
			if first {
				must.Eq(t, p.id, a[0].id)
			}
		}
		for _, p := range a {
			must.Eq(t, p.id, a[p.place].id)
			must.False(t, p.wakeAt.Before(a[0].wakeAt))
		}
	}
}

func TestFailures(t *testing.T) {
	t.Parallel()
	f := failures{}
	must.MapEmpty(t, f.of("h1"))
	f[instance{"h1", "a"}], f[instance{"h1", "b"}], f[instance{"h2", "a"}] = "one", "two", "three"
	must.Eq(t, map[string]string{"a": "one", "b": "two"}, f.of("h1"))
	r := &Report{Workers: []core.Worker{{Nonce: "a"}}}
	must.True(t, f.confirm("h1", r, false))
	must.False(t, f.confirm("h1", r, false))
	must.Eq(t, map[string]string{"b": "two"}, f.of("h1"))
	must.True(t, f.confirm("h1", r, true))
	must.MapLen(t, 1, f)
}

// An inventory that does not fit is dropped; what another hive releases makes room.
func TestStock(t *testing.T) {
	t.Parallel()
	s := stock{of: map[string]*Inventory{}}
	half := &Inventory{bytes: maxInventories / 2}
	s.put("a", half)
	s.put("b", half)
	s.put("c", &Inventory{bytes: 1})
	must.MapNotContainsKey(t, s.of, "c")
	s.put("a", &Inventory{bytes: 2})
	s.put("c", &Inventory{bytes: 1})
	must.MapContainsKey(t, s.of, "c")
	s.put("b", nil)
	s.put("nobody", nil)
	must.Eq(t, 3, s.bytes)
}

func TestBacklog(t *testing.T) {
	t.Parallel()
	b := backlog{wake: make(chan struct{}, 1)}
	p, q := &peer{id: "p"}, &peer{id: "q"}
	b.report(p)
	b.report(p)
	b.report(q)
	must.Eq(t, []*peer{p, q}, b.reports)
	b.giveUp(p, false)
	b.giveUp(p, true)
	must.Len(t, 1, b.gone)
	must.True(t, p.forget)
	<-b.wake
	b.clear()
	must.SliceEmpty(t, b.reports)
	must.SliceEmpty(t, b.gone)
}
