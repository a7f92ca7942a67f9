package queen

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/hives"
)

// statusJobs is the number of ended jobs in Status.
const statusJobs = 10

// Ready returns nil once requests can be served: the registry is loaded, and a hive is ready, which
// on the leader means that it has reported. One of several queens that has lost the leader
// continues with what it knows.
func (q *Queen) Ready(context.Context) error {
	n := q.Registry
	leading := q.Registry.Leads()
	switch {
	case n.Leader() == "" && n.DiskProblem() != nil:
		return n.DiskProblem()
	case n.Leader() == "" && q.Registry.Alone():
		return core.Errorf(core.Unavailable, "the cluster has no leader").Hint("Wait for the election, or look at `rbee status` if it lasts.")
	case n.IsLeader() && !leading:
		return core.Errorf(core.Unavailable, "the registry is still loading").Hint("Try again in a moment.")
	}
	live, refused := q.hives.Live()
	if len(live) == 0 {
		return hives.None(refused)
	}
	if leading && !slices.ContainsFunc(live, func(h core.Hive) bool { return q.liveness.Hive(h.ID).Report != nil }) {
		return core.Errorf(core.Unavailable, "no hive has reported yet").Hint("Wait a moment, or look at the log of the hives.")
	}
	return nil
}

// Status returns an overview of the cluster. It contains what is available; the rest is listed in
// Problems.
func (q *Queen) Status(ctx context.Context) (core.Status, error) {
	s := core.Status{
		Version: q.opts.Version, Node: q.opts.ID, StartedAt: q.started, Leader: q.Registry.Leader(), Index: q.Registry.AppliedIndex(),
		Queens: []core.Queen{}, Hives: q.hives.List(), Workers: q.hives.Workers(), Models: []core.Model{}, Jobs: []core.Job{}, Problems: []string{},
		Settings: q.Registry.SettingsSet(),
	}
	if c, ok := q.Registry.View().Cluster(nil); ok {
		s.Cluster = &c
	}
	var problems []string
	if err := q.Registry.DiskProblem(); err != nil {
		problems = append(problems, fmt.Sprintf("the disk of queen %s takes no entries: %v", q.ownName(), err))
	}
	if s.Leader == "" {
		problems = append(problems, "the cluster has no leader: nothing in the registry can change")
	}
	if p := q.Tokens.Problem(); p != "" {
		problems = append(problems, p)
	}
	if queens, err := q.Members.Queens(ctx); err == nil {
		s.Queens = queens
		if !q.Registry.Alone() {
			registry := q.Registry.View()
			problems = append(problems, q.Members.Problems(registry, queens)...)
			first, ending := q.Members.Certificates(registry)
			s.CertificatesEnd = first
			problems = append(problems, ending...)
		}
	} else {
		problems = append(problems, fmt.Sprintf("the queens are not known: %v", err))
	}
	for _, h := range s.Hives {
		if h.Status != core.HiveReady {
			problems = append(problems, fmt.Sprintf("hive %s is %s", h.Name, h.Status))
		}
		for _, p := range h.Problems {
			problems = append(problems, fmt.Sprintf("hive %s: %s", h.Name, p))
		}
		for _, d := range h.Devices {
			if d.Problem != "" {
				problems = append(problems, fmt.Sprintf("hive %s cannot use %s: %s", h.Name, d.ID, d.Problem))
			}
		}
	}
	for _, w := range s.Workers {
		if why, _ := q.liveness.Hive(w.Hive).Avoid(&w); why != "" {
			problems = append(problems, fmt.Sprintf("worker %s is avoided: %s", w.ID, why))
		}
		if w.State == core.WorkerFailed {
			problems = append(problems, fmt.Sprintf("worker %s could not load %s", w.ID, w.Model))
		}
	}
	if len(s.Hives) == 0 {
		problems = append(problems, "no hive has joined the cluster yet")
	} else {
		var silent, alsoSilent []string
		var wg sync.WaitGroup
		wg.Go(func() {
			var models []core.Model
			var err error
			if models, silent, err = q.placer.Models(ctx); err == nil {
				s.Models = models
			}
		})
		wg.Go(func() {
			var jobs []core.Job
			var err error
			if jobs, alsoSilent, err = q.Jobs.Listed(ctx); err == nil {
				s.Jobs = latest(jobs)
			}
		})
		wg.Wait()
		if ctx.Err() != nil {
			return core.Status{}, core.FromContext(ctx)
		}
		for _, p := range append(silent, alsoSilent...) {
			if !strings.HasSuffix(p, " is down") && !strings.HasSuffix(p, " is silent") { // already listed above
				problems = append(problems, p)
			}
		}
	}
	for _, m := range s.Models {
		if m.Damaged != "" {
			problems = append(problems, fmt.Sprintf("model %s is damaged: %s (Download it again with `rbee pull`, and check the disk.)", m.ID, m.Damaged))
		}
	}
	for _, p := range problems {
		if !slices.Contains(s.Problems, p) {
			s.Problems = append(s.Problems, p)
		}
	}
	return s, nil
}

// latest keeps the running jobs and the newest ended ones of a list sorted newest first.
func latest(jobs []core.Job) []core.Job {
	ended := 0
	return slices.DeleteFunc(jobs, func(j core.Job) bool {
		if j.State != core.JobRunning {
			ended++
		}
		return j.State != core.JobRunning && ended > statusJobs
	})
}

// ownName returns the display name of this queen.
func (q *Queen) ownName() string {
	if n := q.opts.Network; n != nil {
		return cmp.Or(n.Identity.Node().Name, q.opts.ID)
	}
	return q.opts.ID
}
