package liveness_test

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/coretest/memregistry"
	"github.com/rbee-project/rbee/core/queen/liveness"
)

// rig is the monitor of a leading queen, in a bubble, until its end.
type rig struct {
	*liveness.Monitor
	t        *testing.T
	registry *memregistry.Registry
}

func newRig(t *testing.T, change ...func(*liveness.Options)) *rig {
	t.Helper()
	r := &rig{t: t, registry: memregistry.New()}
	o := liveness.Options{Registry: r.registry, ID: "q1", Logger: coretest.Logger(t)}
	for _, f := range change {
		f(&o)
	}
	r.Monitor = liveness.New(o)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	wg.Go(func() { must.NoError(t, r.Lead(ctx)) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		r.Close()
	})
	r.eventually("it leads", r.Leads)
	return r
}

// eventually waits, in the bubble's time.
func (r *rig) eventually(what string, ok func() bool) {
	r.t.Helper()
	for range 20_000 {
		if ok() {
			return
		}
		time.Sleep(time.Millisecond)
	}
	r.t.Fatalf("not within 20 s: %s", what)
}

// registered waits until the registry has the given number of workers.
func (r *rig) registered(workers int) {
	r.t.Helper()
	r.eventually("all are registered", func() bool { return len(r.workers()) == workers })
}

func (r *rig) workers() []core.Worker { return r.registry.View().Workers(nil) }

// hives returns the hives of the registry, with what was reported about them.
func (r *rig) hives() []core.Hive {
	hives := r.registry.View().Hives(nil)
	for i := range hives {
		r.Hive(hives[i].ID).AddTo(&hives[i])
	}
	return hives
}

func (r *rig) status(hive string) core.HiveStatus {
	r.t.Helper()
	hives := r.hives()
	i := slices.IndexFunc(hives, func(h core.Hive) bool { return h.ID == hive })
	must.NotEq(r.t, -1, i)
	return hives[i].Status
}

// usable counts the workers of a model that may get requests.
func (r *rig) usable(model string) int {
	n := 0
	r.registry.View().EachRoute(nil, model, func(w *core.Worker, h *core.Hive) bool {
		if why, _ := r.Hive(w.Hive).Avoid(w); why == "" && h != nil && h.Status != core.HiveDown {
			n++
		}
		return true
	})
	return n
}

// pinger answers as the test specifies.
type pinger func(ctx context.Context, hive string) error

func (f pinger) Ping(ctx context.Context, hive string) error { return f(ctx, hive) }

func noSign(ctx context.Context, _ string) error {
	<-ctx.Done()
	return ctx.Err()
}

func withPinger(p pinger) func(*liveness.Options) {
	return func(o *liveness.Options) { o.Pinger = p }
}

// mustFail checks that err has the kind, contains the parts, and has a hint.
func mustFail(t *testing.T, err error, kind core.Kind, parts ...string) {
	t.Helper()
	must.Error(t, err)
	must.Eq(t, kind, core.KindOf(err), must.Sprint(err))
	must.NotEq(t, "", core.HintOf(err), must.Sprintf("no hint: %v", err))
	for _, p := range parts {
		must.StrContains(t, err.Error()+" | "+core.HintOf(err), p)
	}
}
