package queen

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/simhive"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/queen/liveness"
)

// fleet is three queens with hives that load and stop workers, in a bubble.
type fleet struct {
	*swarmOfQueens

	mu      sync.Mutex     // guards below
	started map[string]int // by label
	fail    map[string]bool
}

func newFleet(t *testing.T, hives int) *fleet {
	f := &fleet{swarmOfQueens: newSwarmOfQueens(t), started: map[string]int{}, fail: map[string]bool{}}
	for i := range hives {
		id := fmt.Sprint("h", i)
		f.add(id, "m", f.members...).run = f.runs(id)
	}
	f.beat()
	time.Sleep(liveness.ReportInterval)
	return f
}

// runs returns what a hive does for a job. A start takes three and a half seconds.
func (f *fleet) runs(id string) func(context.Context, core.Request, *job.Run) (any, error) {
	return func(_ context.Context, r core.Request, _ *job.Run) (any, error) {
		if r.Operation == core.OpActiveWorkerRetire {
			f.tell(id, func(sim *simhive.Hive) {
				sim.Workers = slices.DeleteFunc(sim.Workers, func(w core.Worker) bool { return w.ID == r.Worker })
			})
			return core.ExitResult{WorkerID: r.Worker}, nil
		}
		f.mu.Lock()
		f.started[r.Replica]++
		failing := f.fail[id]
		f.mu.Unlock()
		if failing {
			return nil, core.Errorf(core.Internal, "the engine is broken")
		}
		time.Sleep(1500 * time.Millisecond) // it fetches the model: no worker is visible yet
		w := core.Worker{ID: "w-" + strings.ReplaceAll(r.Replica, "/", "-"), Hive: id, Type: "cpu", Model: r.Model, Device: r.Device, Slots: 4, State: core.WorkerLoading, Nonce: r.Replica, Replica: r.Replica}
		w.Load.Pinned, w.Load.MemoryBytes = r.Pin, 2000
		f.tell(id, func(sim *simhive.Hive) { sim.Workers = append(sim.Workers, w) })
		time.Sleep(2 * time.Second)
		f.tell(id, func(sim *simhive.Hive) {
			if i := slices.IndexFunc(sim.Workers, func(x core.Worker) bool { return x.ID == w.ID }); i >= 0 {
				sim.Workers[i].State = core.WorkerReady
			}
		})
		return core.SpawnResult{Worker: w}, nil
	}
}

// lose silences a hive from now on.
func (f *fleet) lose(id string) {
	f.swarmOfQueens.mu.Lock()
	defer f.swarmOfQueens.mu.Unlock()
	delete(f.hives, id)
	delete(f.lines, id)
}

// killLeader kills the leading queen.
func (f *fleet) killLeader() {
	leader := leaderOf(f.t, f.members)
	f.swarmOfQueens.mu.Lock()
	f.members = slices.DeleteFunc(slices.Clone(f.members), func(m *member) bool { return m == leader })
	for id := range f.lines {
		f.lines[id] = f.members
	}
	f.swarmOfQueens.mu.Unlock()
	leader.kill()
}

func (f *fleet) queen() *Queen { return leaderOf(f.t, f.members).q }

// apply plans and applies a deployment, as a user does.
func (f *fleet) apply(spec core.DeploymentSpec) error {
	text, err := json.Marshal([]core.DeploymentSpec{spec})
	must.NoError(f.t, err)
	plan, err := f.queen().deploymentPlan(f.t.Context(), core.Request{Specs: string(text)}, nil)
	if err == nil {
		_, err = f.queen().deploymentApply(f.t.Context(), core.Request{Specs: string(text), Index: int(plan.Index)}, nil) //nolint:gosec // small
	}
	return err
}

// serving returns the workers that serve and are not given up, by hive.
func (f *fleet) serving() map[string][]string {
	out := map[string][]string{}
	for _, w := range f.queen().Registry.View().Workers(nil) {
		if w.Replica != "" && w.State == core.WorkerReady {
			out[w.Hive] = append(out[w.Hive], w.Replica)
		}
	}
	return out
}

// within waits until check succeeds and returns how long that took.
func (f *fleet) within(limit time.Duration, check func() error) time.Duration {
	f.t.Helper()
	began := time.Now()
	for {
		err := check()
		if err == nil {
			return time.Since(began)
		}
		if time.Since(began) > limit {
			f.t.Fatalf("not within %s: %s", limit, err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// rests waits until a deployment has the wanted number of workers, and no others.
func (f *fleet) rests(want int) time.Duration {
	f.t.Helper()
	return f.within(time.Minute, func() error {
		q := f.queen()
		s, err := q.deploymentGet(f.t.Context(), core.Request{Deployment: "chat"})
		if err != nil {
			return err
		}
		labelled := 0
		for _, w := range q.Registry.View().Workers(nil) {
			if w.Replica != "" {
				labelled++
			}
		}
		if s.Ready != want || len(s.Workers) != want || labelled != want {
			return fmt.Errorf("%d ready and %d workers of %d: %+v", s.Ready, labelled, want, s)
		}
		return nil
	})
}

// startedOnce checks that no replica was started twice, and returns the number started.
func (f *fleet) startedOnce() int {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	for label, n := range f.started {
		must.EqOp(f.t, 1, n, must.Sprint(label))
	}
	return len(f.started)
}

// Two replicas run on two of three hives. The replica of a lost hive is replaced, that of a
// draining hive is moved, and nothing else moves. Scaling up and down starts and stops replicas.
func TestDeployments(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 3)
		spec := core.DeploymentSpec{Name: "chat", Model: "m", Replicas: 2, Slots: 4, ContextTokens: 512}
		must.NoError(t, f.apply(spec))
		f.rests(2)
		must.MapLen(t, 2, f.serving(), must.Sprint("on a hive each"))
		must.EqOp(t, 2, f.startedOnce())
		index := f.queen().Registry.AppliedIndex()
		time.Sleep(time.Minute)
		must.EqOp(t, index, f.queen().Registry.AppliedIndex(), must.Sprint("at rest nothing is written"))

		t.Log("A plan that somebody else was faster than is stale.")
		text, err := json.Marshal([]core.DeploymentSpec{{Name: "chat", Model: "m", Replicas: 9}})
		must.NoError(t, err)
		_, err = f.queen().deploymentApply(t.Context(), core.Request{Specs: string(text), Index: 1}, nil)
		must.EqOp(t, core.Conflict, core.KindOf(err))

		t.Log("A hive is lost.")
		before := f.serving()
		lost := ""
		for id := range before {
			lost = max(lost, id)
		}
		f.lose(lost)
		f.within(30*time.Second, func() error {
			if h, _ := f.queen().Registry.View().Hive(nil, lost); h.Status != core.HiveDown {
				return errors.New("it is not down")
			}
			return nil
		})
		took := f.rests(2)
		must.Less(t, 10*time.Second, took)
		for id, labels := range f.serving() {
			if old, ok := before[id]; ok {
				must.Eq(t, old, labels, must.Sprint("the other one stays"))
			}
		}

		t.Log("A hive drains: there is no moment with fewer than what it leaves behind.")
		var drained string
		for id := range f.serving() {
			drained = max(drained, id)
		}
		_, err = f.queen().DrainHive(t.Context(), drained, true)
		must.NoError(t, err)
		f.within(30*time.Second, func() error {
			if len(f.serving()[drained]) > 0 {
				must.GreaterEq(t, 1, len(f.serving()))
				return errors.New("it is still there")
			}
			return nil
		})
		f.rests(2)
		_, err = f.queen().DrainHive(t.Context(), drained, false)
		must.NoError(t, err)

		t.Log("More, fewer, another context, none.")
		spec.Replicas = 4
		must.NoError(t, f.apply(spec))
		f.rests(4)
		spec.Replicas = 1
		must.NoError(t, f.apply(spec))
		f.rests(1)
		old := f.startedOnce()
		spec.ContextTokens = 256
		must.NoError(t, f.apply(spec))
		f.within(30*time.Second, func() error {
			must.Positive(t, len(f.serving()), must.Sprint("its successor serves first"))
			if f.startedOnce() == old {
				return errors.New("its successor has not started")
			}
			return nil
		})
		f.rests(1)
		_, err = f.queen().deploymentRevert(t.Context(), core.Request{Deployment: "chat"}, nil)
		must.NoError(t, err)
		f.rests(1)
		d, err := f.queen().deploymentGet(t.Context(), core.Request{Deployment: "chat"})
		must.NoError(t, err)
		must.EqOp(t, 512, d.ContextTokens)
		_, err = f.queen().deploymentStop(t.Context(), core.Request{Deployment: "chat"}, nil)
		must.NoError(t, err)
		f.rests(0)
		f.startedOnce()
	})
}

// The leader dies in the middle of every step of a deployment: the next one continues, and nothing
// is done twice.
func TestDeploymentsOutlastLeaders(t *testing.T) {
	t.Parallel()
	spec := core.DeploymentSpec{Name: "chat", Model: "m", Replicas: 2, ContextTokens: 512}
	for name, do := range map[string]struct {
		change func(f *fleet)
		want   int
		starts int
	}{
		"apply": {func(f *fleet) {
			other := spec
			other.Replicas = 3
			must.NoError(f.t, f.apply(other))
		}, 3, 3},
		"move": {func(f *fleet) {
			must.NoError(f.t, f.apply(spec))
			f.rests(2)
			for id := range f.serving() {
				_, err := f.queen().DrainHive(f.t.Context(), id, true)
				must.NoError(f.t, err)
				break
			}
		}, 2, 3},
		"scale": {func(f *fleet) {
			must.NoError(f.t, f.apply(spec))
			f.rests(2)
			more := spec
			more.Replicas = 4
			must.NoError(f.t, f.apply(more))
		}, 4, 4},
	} {
		for _, after := range []time.Duration{0, 120 * time.Millisecond, 400 * time.Millisecond, 2500 * time.Millisecond} {
			t.Run(fmt.Sprint(name, after), func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					f := newFleet(t, 4)
					do.change(f)
					time.Sleep(after)
					f.killLeader()
					f.rests(do.want)
					time.Sleep(30 * time.Second)
					f.rests(do.want)
					must.EqOp(t, do.starts, f.startedOnce())
				})
			})
		}
	}
}

// A hive that fails to start a replica is left alone for a while; a hive that ends its worker gets
// another one; and a replica without a place reports what is missing.
func TestDeploymentTroubles(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newFleet(t, 2)
		f.mu.Lock()
		f.fail["h0"], f.fail["h1"] = true, true
		f.mu.Unlock()
		must.NoError(t, f.apply(core.DeploymentSpec{Name: "chat", Model: "m", Replicas: 1}))
		time.Sleep(10 * time.Second)
		s, err := f.queen().deploymentGet(t.Context(), core.Request{Deployment: "chat"})
		must.NoError(t, err)
		must.EqOp(t, 2, f.startedOnce(), must.Sprint("each was tried once"))
		must.Len(t, 1, s.Problems)
		must.StrContains(t, s.Problems[0].Reason, "did not start it lately: the engine is broken")
		f.mu.Lock()
		clear(f.fail)
		f.mu.Unlock()
		f.rests(1)

		t.Log("Its worker ends by itself.")
		for id := range f.serving() {
			f.tell(id, func(sim *simhive.Hive) { sim.Workers = nil })
		}
		time.Sleep(time.Second)
		must.MapEmpty(t, f.serving())
		f.rests(1)
		must.EqOp(t, 4, f.startedOnce())

		t.Log("A model that is too large, one that nobody has, and hives that are not there.")
		for _, h := range f.jobs.hives {
			h.change(func(h *fakeHive) {
				h.models = append(h.models, core.Model{ID: "large", Ref: "file:/large", Digest: "sha256:large", SizeBytes: 3 << 29, EstimateBytes: 3 << 29})
			})
		}
		text, err := json.Marshal([]core.DeploymentSpec{
			{Name: "big", Model: "large", Replicas: 1}, {Name: "none", Model: "nobody-has-it", Replicas: 1}, {Name: "far", Model: "m", Replicas: 1, Hives: []string{"moon"}},
		})
		must.NoError(t, err)
		plan, err := f.queen().deploymentPlan(t.Context(), core.Request{Specs: string(text)}, nil)
		must.NoError(t, err)
		must.Len(t, 3, plan.Problems)
		must.StrContains(t, plan.Problems[0].Reason, "cpu of name-h0 lacks 1024 MiB; cpu of name-h1 lacks 1024 MiB")
		must.Eq(t, core.DeviceLack{Hive: "name-h0", Device: "cpu", NeedBytes: 3 << 29, FreeBytes: 1 << 29, MissingBytes: 1 << 30}, plan.Problems[0].Lacks[0])
		must.StrContains(t, plan.Problems[1].Reason, "is not among the hives of the deployment")
		must.StrContains(t, plan.Problems[2].Reason, "there is no model")
	})
}
