package queen

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/gossipstub"
	"github.com/rbee-project/rbee/core/coretest/simhive"
	"github.com/rbee-project/rbee/core/inference"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/queen/membership"
)

// swarmOfQueens is three queens with hives that report to some of them, in a bubble.
type swarmOfQueens struct {
	t       *testing.T
	members []*member
	jobs    *cluster // holds the hives' gRPC services

	mu    sync.Mutex // guards below
	hives map[string]*simhive.Hive
	lines map[string][]*member // the queens that a hive reports to
}

func newSwarmOfQueens(t *testing.T) *swarmOfQueens {
	s := &swarmOfQueens{t: t, jobs: &cluster{t: t, hives: map[string]*fakeHive{}}, hives: map[string]*simhive.Hive{}, lines: map[string][]*member{}}
	s.members = newQueens(t, 3, func(o *Options) {
		o.HiveConn = func(hive string) (grpc.ClientConnInterface, error) {
			s.jobs.mu.Lock()
			defer s.jobs.mu.Unlock()
			return s.jobs.hives[hive].conn, nil
		}
		o.Network = &membership.Network{
			Gossip: &gossipstub.Pool{}, NodesChanged: func() {},
			Self: leaderConn{leader: func() *Queen { return leaderOf(t, s.members).q }},
		}
	})
	leaderOf(t, s.members)
	return s
}

// add adds a hive with the model that reports to these queens. Its worker_spawn takes a second.
func (s *swarmOfQueens) add(id, model string, queens ...*member) *fakeHive {
	h := s.jobs.newHive(id)
	h.addModel(model)
	s.t.Cleanup(h.close)
	s.mu.Lock()
	s.hives[id], s.lines[id] = simhive.New(id, 0), queens
	s.mu.Unlock()
	h.run = func(_ context.Context, r core.Request, _ *job.Run) (any, error) {
		w := core.Worker{ID: fmt.Sprintf("w%d", h.ran.Load()), Hive: id, Type: "cpu", Model: r.Model, Slots: 4, State: core.WorkerLoading, Nonce: fmt.Sprint(id, h.ran.Load())}
		s.tell(id, func(sim *simhive.Hive) { sim.Workers = append(sim.Workers, w) })
		time.Sleep(time.Second)
		w.State = core.WorkerReady
		s.tell(id, func(sim *simhive.Hive) {
			sim.Workers[slices.IndexFunc(sim.Workers, func(x core.Worker) bool { return x.ID == w.ID })] = w
		})
		return core.SpawnResult{Worker: w}, nil
	}
	s.tell(id, func(*simhive.Hive) {})
	return h
}

// tell changes a hive and makes it report.
func (s *swarmOfQueens) tell(id string, change func(*simhive.Hive)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change(s.hives[id])
	for _, m := range s.lines[id] {
		_, _ = s.hives[id].Tell(s.t, m.q.liveness) // a killed queen receives nothing
	}
}

// beat makes all hives report until the end of the test.
func (s *swarmOfQueens) beat() {
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			time.Sleep(liveness.ReportInterval)
			s.mu.Lock()
			ids := slices.Sorted(maps.Keys(s.hives))
			s.mu.Unlock()
			for _, id := range ids {
				s.tell(id, func(*simhive.Hive) {})
			}
		}
	})
	s.t.Cleanup(func() { cancel(); wg.Wait() })
}

// routeAll asks each queen for each name at the same time.
func (s *swarmOfQueens) routeAll(members []*member, names ...string) {
	s.t.Helper()
	var wg sync.WaitGroup
	for _, m := range members {
		for _, name := range names {
			wg.Go(func() {
				_, err := pick(s.t.Context(), m.q, inference.Query{Model: name})
				must.NoError(s.t, err, must.Sprint(m.q.opts.ID, name))
			})
		}
	}
	wg.Wait()
}

func ran(hives ...*fakeHive) (n int) {
	for _, h := range hives {
		n += int(h.ran.Load())
	}
	return n
}

// Requests at three queens, by two names of a model and by the name of a copy on another hive,
// start one worker, and another one after it has ended.
func TestStartOnceAtThreeQueens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSwarmOfQueens(t)
		h0, h1 := s.add("h0", "m", s.members...), s.add("h1", "copy", s.members...)
		for _, h := range []*fakeHive{h0, h1} {
			h.change(func(h *fakeHive) {
				h.models[0].Digest, h.models[0].Aliases = "sha256:01", []string{"alias-" + h.models[0].ID}
			})
		}
		s.beat()
		time.Sleep(liveness.ReportInterval)
		s.routeAll(s.members, "m", "alias-m", "copy", "alias-copy")
		must.Eq(t, 1, ran(h0, h1))
		s.routeAll(s.members, "copy", "m")
		must.Eq(t, 1, ran(h0, h1))

		for _, id := range []string{"h0", "h1"} {
			s.tell(id, func(sim *simhive.Hive) { sim.Workers = nil })
		}
		time.Sleep(liveness.ReportInterval)
		s.routeAll(s.members, "copy", "alias-m")
		must.Eq(t, 2, ran(h0, h1))
	})
}

// The queen that decided where a model starts dies before any other knows the job: the others
// follow its decision.
func TestStartSurvivesItsQueen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSwarmOfQueens(t)
		h0, h1 := s.add("h0", "m", s.members...), s.add("h1", "m", s.members...)
		s.beat()
		time.Sleep(liveness.ReportInterval)
		leader := leaderOf(t, s.members)
		others := slices.DeleteFunc(slices.Clone(s.members), func(m *member) bool { return m == leader })
		deciding := make(chan struct{})
		spawn := h0.run
		slow := func(ctx context.Context, r core.Request, run *job.Run) (any, error) {
			close(deciding) // before the registry has any entry of a worker
			time.Sleep(5 * time.Second)
			return spawn(ctx, r, run)
		}
		h0.run, h1.run = slow, slow
		var wg sync.WaitGroup
		wg.Go(func() { _, _ = pick(t.Context(), leader.q, inference.Query{Model: "m"}) })
		<-deciding
		s.mu.Lock()
		for id, members := range s.lines {
			s.lines[id] = slices.DeleteFunc(slices.Clone(members), func(m *member) bool { return m == leader })
		}
		s.members = others
		s.mu.Unlock()
		leader.kill()
		leaderOf(t, others)
		s.routeAll(others, "m")
		wg.Wait()
		must.Eq(t, 1, ran(h0, h1))
	})
}

// A hive that only one queen reaches gets its worker there; the others start one where they can
// reach it, once, and not again and again.
func TestStartOnReachableHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSwarmOfQueens(t)
		near := leaderOf(t, s.members)
		far := s.members[slices.IndexFunc(s.members, func(m *member) bool { return m != near })]
		h0 := s.add("h0", "m", near)
		s.beat()
		time.Sleep(liveness.LinkGrace + liveness.ReportInterval)
		for range 3 {
			_, err := pick(t.Context(), far.q, inference.Query{Model: "m"})
			must.StrContains(t, fmt.Sprint(err), liveness.NoLink)
		}
		must.Eq(t, 0, ran(h0))
		s.routeAll([]*member{near}, "m")
		must.Eq(t, 1, ran(h0))

		h1 := s.add("h1", "m", s.members...)
		time.Sleep(liveness.ReportInterval)
		for range 2 {
			s.routeAll(s.members, "m")
		}
		must.Eq(t, 1, ran(h0))
		must.Eq(t, 1, ran(h1))
	})
}

// A chosen hive that fails to start a model, whatever it reports, does not keep the model from
// starting on another one.
func TestStartPastBadHive(t *testing.T) {
	t.Parallel()
	for name, bad := range map[string]func(*fakeHive){
		"refuses for ever": func(h *fakeHive) { h.refuse = core.Errorf(core.Unavailable, "no") },
		"fails for ever": func(h *fakeHive) {
			h.run = func(context.Context, core.Request, *job.Run) (any, error) {
				return nil, core.Errorf(core.Internal, "no")
			}
		},
		"has started it just now, for ever": func(h *fakeHive) {
			h.run = func(context.Context, core.Request, *job.Run) (any, error) {
				return core.SpawnResult{Worker: core.Worker{ID: "none", Hive: "h0"}}, nil
			}
			h.tell = func(j *core.Job) {
				if j.State == core.JobSucceeded {
					j.EndedAt = time.Now()
				}
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s := newSwarmOfQueens(t)
				h0, h1 := s.add("h0", "m", s.members...), s.add("h1", "m", s.members...)
				h0.change(bad)
				s.beat()
				time.Sleep(liveness.ReportInterval)
				var err error
				for range 4 {
					if _, err = pick(t.Context(), s.members[0].q, inference.Query{Model: "m"}); err == nil {
						break
					}
				}
				must.NoError(t, err)
				must.Positive(t, int(h0.submits.Load()))
				must.Eq(t, 1, ran(h1))
				s.routeAll(s.members, "m")
				must.Eq(t, 1, ran(h1))
			})
		})
	}
}
