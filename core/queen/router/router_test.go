package router_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/memregistry"
	"github.com/rbee-project/rbee/core/coretest/simhive"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/queen/router"
	"github.com/rbee-project/rbee/raft/fsm"
)

// starter starts workers as the test specifies.
type starter struct {
	names   map[string]string // learned: name → the name under which workers serve it
	resolve func(name string) (string, router.Start, error)
	follow  router.Start // the start in progress
}

func (s *starter) Canonical(name string) string {
	if id, ok := s.names[name]; ok {
		return id
	}
	return name
}

func (s *starter) Starting(string) router.Start { return s.follow }

func (s *starter) Resolve(_ context.Context, name string) (string, router.Start, error) {
	if s.resolve == nil {
		return "", nil, core.Errorf(core.NotFound, "there is no model %q", name)
	}
	return s.resolve(name)
}

// rig is a router over the reports of one hive, in a bubble. There is no leader: the test writes
// the registry.
type rig struct {
	*router.Router
	t        testing.TB
	registry *memregistry.Registry
	monitor  *liveness.Monitor
	hive     *simhive.Hive
	starter  *starter
}

// newRig returns a rig whose hive has the given number of workers with model m.
func newRig(t testing.TB, workers int) *rig {
	r := &rig{t: t, registry: memregistry.New(), hive: simhive.New("h1", workers), starter: &starter{names: map[string]string{}}}
	for i := range r.hive.Workers {
		r.hive.Workers[i].Model = "m"
	}
	r.monitor = liveness.New(liveness.Options{Registry: r.registry, ID: "q1"})
	r.Router = router.New(router.Options{Registry: r.registry, Liveness: r.monitor, Starter: r.starter, Rand: func(int) int { return 0 }})
	r.sync()
	return r
}

// sync writes the hive to the registry, then makes it report.
func (r *rig) sync() {
	r.t.Helper()
	_, err := r.registry.Apply(context.Background(), "", fsm.SyncHive(r.hive.Hive, r.hive.Workers))
	must.NoError(r.t, err)
	if t, ok := r.t.(*testing.T); ok {
		r.hive.MustTell(t, r.monitor)
	}
}

func (r *rig) route(q inference.Query) (inference.Lease, error) {
	q.Model = "m"
	return r.Route(context.Background(), q)
}

// A lease counts until it is released; each worker is busy above some number of requests.
func TestRouteCountsLeases(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		var leases []inference.Lease
		for i := range 4 { // to the one with fewer
			l, err := r.route(inference.Query{})
			must.NoError(t, err)
			must.Eq(t, r.hive.Workers[i%2].ID, l.Worker.ID)
			leases = append(leases, l)
		}
		must.Eq(t, 4, r.InFlight())
		for { // until all are at capacity
			l, err := r.route(inference.Query{})
			if busy, ok := errors.AsType[*inference.Busy](err); ok {
				must.Eq(t, "m", busy.Model)
				break
			}
			must.NoError(t, err)
			leases = append(leases, l)
		}
		must.Len(t, 2*(4+2), leases)
		for _, l := range leases {
			l.Release(inference.Outcome{})
		}
		must.Eq(t, 0, r.InFlight())
	})
}

// A conversation continues at its worker, unless that is overloaded.
func TestRouteFollowsConversations(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.hive.Workers[0].ID, r.hive.Workers[1].ID
		turn := func(marks ...uint64) inference.Lease {
			t.Helper()
			l, err := r.route(inference.Query{Terms: inference.Terms{Prefix: marks}})
			must.NoError(t, err)
			return l
		}
		first := turn(1, 2)
		other := turn(7, 8)
		must.Eq(t, []string{a, b}, []string{first.Worker.ID, other.Worker.ID})
		first.Release(inference.Outcome{})
		other.Release(inference.Outcome{})
		for range 3 {
			second := turn(7, 8, 9)
			must.Eq(t, b, second.Worker.ID)
			must.Eq(t, "has read the beginning of the prompt", second.Reason)
			second.Release(inference.Outcome{})
		}
		var crowd []inference.Lease
		for range 6 {
			crowd = append(crowd, turn(7, 8))
		}
		count := map[string]int{}
		for _, l := range crowd {
			count[l.Worker.ID]++
			l.Release(inference.Outcome{})
		}
		must.Between(t, 2, count[a], 3) // the other one helps
		must.Eq(t, 6, count[a]+count[b])
	})
}

// The outcome of a request decides what its worker gets next.
func TestRouteOutcomes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := r.hive.Workers[0].ID, r.hive.Workers[1].ID
		release := func(want string, o inference.Outcome) {
			t.Helper()
			l, err := r.route(inference.Query{})
			must.NoError(t, err)
			must.Eq(t, want, l.Worker.ID)
			l.Release(o)
		}
		release(a, inference.Outcome{Busy: time.Second})
		release(b, inference.Outcome{})
		time.Sleep(time.Second)
		release(a, inference.Outcome{Failed: true})
		release(b, inference.Outcome{})
		r.sync() // its hive confirms it
		release(a, inference.Outcome{})
		must.Eq(t, 0, r.InFlight())
	})
}

// Which workers a query may get.
func TestRouteQuery(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 2)
		a, b := &r.hive.Workers[0], &r.hive.Workers[1]
		a.Capabilities, b.Capabilities, b.ContextTokens = "chat", "chat tools", 4096
		r.sync()
		for name, tt := range map[string]struct {
			query inference.Query
			want  string
		}{
			"any":                {inference.Query{}, a.ID},
			"not tried":          {inference.Query{Tried: []core.Worker{*a}}, b.ID},
			"a longer context":   {inference.Query{ContextOver: 512}, b.ID},
			"a capability":       {inference.Query{Terms: inference.Terms{Needs: []string{"tools"}}}, b.ID},
			"all were tried":     {inference.Query{Tried: []core.Worker{*a, *b}, Other: true}, ""},
			"none is that long":  {inference.Query{ContextOver: 4096, Other: true}, ""},
			"none is so capable": {inference.Query{Terms: inference.Terms{Needs: []string{"vision"}}}, ""},
		} {
			l, err := r.route(tt.query)
			if tt.want == "" {
				must.Error(t, err, must.Sprint(name))
				continue
			}
			must.NoError(t, err, must.Sprint(name))
			must.Eq(t, tt.want, l.Worker.ID, must.Sprint(name))
			l.Release(inference.Outcome{})
		}
		_, err := r.route(inference.Query{Terms: inference.Terms{Needs: []string{"vision"}}})
		unable, ok := errors.AsType[*inference.Unable](err)
		must.True(t, ok)
		must.Eq(t, "vision", unable.Need)
		_, err = r.Route(t.Context(), inference.Query{})
		must.Eq(t, core.Invalid, core.KindOf(err))
	})
}

// A loading worker is waited for: through its start if this queen knows it, otherwise through the
// registry.
func TestRouteWaitsForLoading(t *testing.T) {
	t.Parallel()
	for _, known := range []bool{false, true} {
		t.Run(fmt.Sprintf("its start is known: %t", known), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				r := newRig(t, 1)
				r.hive.Workers[0].State = core.WorkerLoading
				r.sync()
				loaded := func() {
					r.hive.Workers[0].State = core.WorkerReady
					r.sync()
				}
				var phases []string
				if known {
					r.starter.follow = func(_ context.Context, progress func(core.Progress)) (bool, error) {
						progress(core.Progress{Phase: "load m"})
						time.Sleep(time.Second)
						loaded()
						return true, nil
					}
				} else {
					time.AfterFunc(time.Second, loaded)
				}
				began := time.Now()
				l, err := r.route(inference.Query{Progress: func(p core.Progress) { phases = append(phases, p.Phase) }})
				must.NoError(t, err)
				must.Eq(t, time.Second, time.Since(began))
				l.Release(inference.Outcome{})
				want := []string{"", "wait for a worker with m that is loading"}
				if known {
					want[1] = "load m"
				}
				must.Eq(t, want, phases)
			})
		})
	}
}

// When the only worker is avoided, its hive has some time to confirm it before another one is
// started.
func TestRouteWaitsForSuspects(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		l, err := r.route(inference.Query{})
		must.NoError(t, err)
		l.Release(inference.Outcome{Failed: true})
		time.AfterFunc(time.Second, r.sync)
		began := time.Now()
		l, err = r.route(inference.Query{})
		must.NoError(t, err)
		must.Eq(t, time.Second, time.Since(began))
		l.Release(inference.Outcome{Failed: true})

		began = time.Now()
		_, err = r.route(inference.Query{})
		must.Eq(t, core.NotFound, core.KindOf(err)) // the starter's error
		must.Eq(t, router.SuspectPatience, time.Since(began))
		_, err = r.route(inference.Query{Patience: time.Second})
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
	})
}

// A model that no worker serves is found by another name, or started; a worker that ends right
// after its start is not restarted forever.
func TestRouteStarts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		starts := 0
		r.starter.resolve = func(name string) (string, router.Start, error) {
			if name == "alias" {
				return "m", nil, nil
			}
			return name, func(context.Context, func(core.Progress)) (bool, error) {
				starts++
				if name == "new" {
					w := r.hive.Workers[0]
					w.ID, w.Nonce, w.Model = "z", "z", "new"
					r.hive.Workers = append(r.hive.Workers, w)
					r.sync()
				}
				return true, nil
			}, nil
		}
		l, err := r.Route(t.Context(), inference.Query{Model: "alias"})
		must.NoError(t, err)
		must.Eq(t, "m", l.Worker.Model)
		must.Eq(t, 0, starts)
		l, err = r.Route(t.Context(), inference.Query{Model: "new"})
		must.NoError(t, err)
		must.Eq(t, "z", l.Worker.ID)
		must.Eq(t, 1, starts)
		starts = 0
		_, err = r.Route(t.Context(), inference.Query{Model: "dies"})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.Eq(t, router.MaxStarts, starts)

		// A learned name costs no query.
		r.starter.names["learned"], r.starter.resolve = "m", nil
		l, err = r.Route(t.Context(), inference.Query{Model: "learned"})
		must.NoError(t, err)
		must.Eq(t, "m", l.Worker.Model)
	})
}

// A look at a worker does not count as use, waits for no slot and starts nothing.
func TestRouteLooks(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		r.starter.resolve = func(string) (string, router.Start, error) { panic("nothing is to be started") }
		l, err := r.route(inference.Query{Look: true})
		must.NoError(t, err)
		must.Eq(t, r.hive.Workers[0].ID, l.Worker.ID)
		must.Eq(t, 0, r.InFlight())
		l.Release(inference.Outcome{})
		must.SliceEmpty(t, r.Uses("h1"))
		for err == nil {
			_, err = r.route(inference.Query{})
		}
		_, err = r.route(inference.Query{Look: true})
		must.NoError(t, err, must.Sprint("it is busy"))
		_, err = r.Route(t.Context(), inference.Query{Model: "other", Look: true})
		unloaded, ok := errors.AsType[*inference.NotLoaded](err)
		must.True(t, ok, must.Sprint(err))
		must.Eq(t, "other", unloaded.Model)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		r.hive.Workers[0].State = core.WorkerLoading
		r.sync()
		_, err = r.route(inference.Query{Look: true})
		_, ok = errors.AsType[*inference.NotLoaded](err)
		must.True(t, ok, must.Sprint(err))
	})
}

// BenchmarkRoute measures the total cost of a choice among 4 workers of a model in a registry of
// 64.
func BenchmarkRoute(b *testing.B) {
	r := newRig(b, 64)
	for i := range r.hive.Workers {
		r.hive.Workers[i].Model = fmt.Sprintf("m%d", i%16)
	}
	r.sync()
	l, err := r.monitor.Open(b.Context(), r.hive.Hive)
	must.NoError(b, err)
	must.NoError(b, l.Take(1, r.hive.Report(), false))
	b.ReportAllocs()
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			lease, err := r.Route(b.Context(), inference.Query{Model: "m3"})
			if err != nil || len(lease.Ranked) != 4 {
				b.Error(len(lease.Ranked), err)
				return
			}
			lease.Release(inference.Outcome{})
		}
	})
}

// What a hive learns about the use of its workers: requests in flight, and the latest one's
// keep-alive time.
func TestUses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, 1)
		keep := time.Minute
		a, err := r.route(inference.Query{KeepAlive: &keep})
		must.NoError(t, err)
		time.Sleep(time.Second)
		b, err := r.route(inference.Query{})
		must.NoError(t, err)
		w := r.hive.Workers[0]
		must.Eq(t, []liveness.Use{{Worker: w.ID, Nonce: w.Nonce, InFlight: 2, Last: time.Now()}}, r.Uses("h1"))
		must.SliceEmpty(t, r.Uses("h2"))
		time.Sleep(time.Second)
		a.Release(inference.Outcome{})
		b.Release(inference.Outcome{})
		must.Eq(t, 0, r.Uses("h1")[0].InFlight)
		must.Eq(t, time.Now(), r.Uses("h1")[0].Last)
		c, err := r.route(inference.Query{KeepAlive: &keep})
		must.NoError(t, err)
		must.Eq(t, &keep, r.Uses("h1")[0].KeepAlive)
		time.Sleep(time.Hour)
		must.Len(t, 1, r.Uses("h1"), must.Sprint("it is in flight"))
		c.Release(inference.Outcome{})
		time.Sleep(2 * time.Minute)
		must.SliceEmpty(t, r.Uses("h1"), must.Sprint("long ago"))
	})
}
