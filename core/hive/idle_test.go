package hive

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// A worker unloads after its idle time, and not before; workers that stay or are pinned do not.
func TestIdleWorkersUnload(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	spawn := core.Request{Operation: core.OpWorkerSpawn, Model: "tiny", Slots: 1, ContextTokens: 64}
	stays := result1[core.SpawnResult](r, spawn)
	spawn.KeepAlive, spawn.Pin = "1ms", true
	pinned := result1[core.SpawnResult](r, spawn)
	spawn.KeepAlive, spawn.Pin = "2s", false
	goes := result1[core.SpawnResult](r, spawn)
	ready := time.Now()
	r.told(patience, func(list []core.Worker) error {
		for _, w := range list {
			if w.ID == goes.Worker.ID && (!w.Load.Unloads || w.Load.KeepAlive != core.Duration(2*time.Second)) {
				return fmt.Errorf("it does not say that it unloads: %+v", w.Load)
			}
			if w.ID == stays.Worker.ID && w.Load.Unloads || w.ID == pinned.Worker.ID && !w.Load.Pinned {
				return fmt.Errorf("it does not say that it stays: %+v", w.Load)
			}
		}
		return nil
	})
	r.told(patience, count(2))
	must.GreaterEq(t, 2*time.Second, time.Since(ready))
	for _, w := range r.queen.workers() {
		must.NotEq(t, goes.Worker.ID, w.ID)
	}
	spawn.KeepAlive = "soon"
	must.Eq(t, core.Invalid, r.failure(spawn).Kind)
}

// A worker with a request in flight stays whatever its idle time, and unloads as soon as that ends.
func TestBusyWorkersStay(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    token_delay = "200ms"
    tokens      = 10
  }
}`})
	w := result1[core.SpawnResult](r, core.Request{
		Operation: core.OpWorkerSpawn, Type: "slow", Model: "tiny", Slots: 1, ContextTokens: 64, KeepAlive: "1s",
	}).Worker
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for range 2 { // each takes longer than the worker's idle time
		_, err := r.ask(ctx, w.ID, "hello")
		must.NoError(t, err)
	}
	r.told(patience, count(0))
}

// Queens' reports of their requests count: the latest request decides, and a queen whose line broke
// counts nothing.
func TestTenancy(t *testing.T) {
	t.Parallel()
	now := time.Now()
	use := func(inFlight int32, since time.Duration, keep ...time.Duration) *queenv1.Use {
		u := &queenv1.Use{InFlight: inFlight, Since: durationpb.New(since)}
		if len(keep) > 0 {
			u.KeepAlive = durationpb.New(keep[0])
		}
		return u
	}
	tn := tenancy{used: now.Add(-time.Hour)}
	must.Eq(t, core.KeepForever, tn.keep("", time.Minute))
	must.Eq(t, time.Minute, tn.keep(core.KeepAliveDefault, time.Minute))
	must.Eq(t, 30*time.Second, tn.keep("30", time.Minute))

	must.True(t, tn.tell("q1", use(1, 0, 0), now))
	must.True(t, tn.inFlight())
	must.Eq(t, now, tn.used)
	must.Eq(t, 0, tn.keep("", time.Minute))
	must.True(t, tn.tell("q2", use(2, time.Second, time.Hour), now)) // its last request began earlier
	must.Eq(t, 0, tn.keep("", time.Minute))
	must.True(t, tn.tell("q1", use(0, 0, 0), now.Add(time.Second)))
	must.True(t, tn.inFlight(), must.Sprint("of q2"))
	tn.forget("q2")
	must.False(t, tn.inFlight())
	must.True(t, tn.tell("q2", use(0, 0, -1), now.Add(2*time.Second)))
	must.Eq(t, -1, tn.keep("5m", time.Minute))
	must.True(t, tn.tell("q2", use(0, 0), now.Add(3*time.Second)), must.Sprint("a request that does not say"))
	must.Eq(t, 5*time.Minute, tn.keep("5m", time.Minute))
	must.False(t, tn.tell("q1", use(0, time.Hour, 0), now.Add(4*time.Second)), must.Sprint("long ago"))
	must.Eq(t, now.Add(3*time.Second), tn.used)
}

// A queen's report that its last request wants the worker unloaded takes effect at once.
func TestUnloadWhenDone(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	w := r.spawn("").Worker
	use := &queenv1.Use{Worker: w.ID, Nonce: w.Nonce, InFlight: 1, Since: durationpb.New(0), KeepAlive: durationpb.New(0)}
	tell := func(u *queenv1.Use) { r.hive.workers.told("q", &queenv1.LinkResponse{Uses: []*queenv1.Use{u}}) }
	tell(&queenv1.Use{Worker: w.ID, Nonce: "of an earlier start", KeepAlive: durationpb.New(0)})
	tell(use)
	own, _ := r.hive.roster.worker(w.ID)
	_, due := own.overstays(0, time.Now().Add(time.Hour))
	must.False(t, due, must.Sprint("it has a request"))
	use.InFlight, use.Since = 0, durationpb.New(0)
	tell(use)
	coretest.Eventually(t, patience, func() error { return count(0)(r.queen.workers()) })
}
