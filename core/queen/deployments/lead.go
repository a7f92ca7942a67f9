package deployments

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/deploy"
	"github.com/rbee-project/rbee/core/queen/placement"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/raft/fsm"
)

const (
	// lookEvery is the interval between looks while the registry does not change: it contains
	// neither free memory nor the progress of starts.
	lookEvery = time.Second
	// pause is the least time between looks: one report of many workers causes many changes.
	pause = 100 * time.Millisecond
	// answerTimeout bounds how long one look waits for a hive.
	answerTimeout = 5 * time.Second
)

// Lead runs the deployments' workers until ctx ends. Each decision is in the registry before it is
// carried out, and every action bears the name of its decision, so that the next leader can
// continue: a start is one job, whichever queen requests it, and its worker reports which replica
// it is.
func (c *Controller) Lead(ctx context.Context) error {
	c.mu.Lock()
	c.term = newTerm()
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.term = nil
	}()
	said := map[string]string{} // the last logged problem of each deployment
	for ctx.Err() == nil {
		ws := registry.WatchSet{}
		view := c.o.Registry.View()
		if all := view.Deployments(ws); len(all) > 0 {
			view.Hives(ws)
			view.Workers(ws)
			if !c.look(ctx, all, said) {
				_ = registry.WaitUntil(ctx, ws, time.Now().Add(lookEvery))
			}
		} else {
			_ = registry.Wait(ctx, ws)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
	return nil
}

// look decides and acts once. It reports whether a decision was written, so that there may be more
// to do.
func (c *Controller) look(ctx context.Context, all []core.Deployment, said map[string]string) bool {
	v, models, err := c.view(ctx, names(all))
	if err != nil {
		return false
	}
	c.mu.Lock()
	c.term.look(all, v, c.reports, time.Now())
	v.Lost, v.Rests = c.term.known(time.Now())
	c.mu.Unlock()
	placings, problems := deploy.Reconcile(all, v)
	c.tell(all, problems, said)
	wrote := false
	for _, p := range placings {
		err := c.o.Registry.Write(ctx, "place "+p.Deployment.Name, fsm.PlaceReplicas(p.Deployment.Name, p.Deployment.ModifyIndex, p.Placed))
		if err != nil {
			if ctx.Err() == nil && core.KindOf(err) != core.Conflict { // the deployment changed meanwhile: look again
				c.log.Warn("failed to place a deployment", "deployment", p.Deployment.Name, "error", err)
			}
			continue
		}
		wrote = true
		for _, n := range p.News {
			if n.Stop {
				c.log.Info("replica given up", "replica", n.Label(p.Deployment.Name), "hive", n.Hive, "reason", n.Reason)
			} else {
				c.log.Info("replica placed", "deployment", p.Deployment.Name, "ordinal", n.Ordinal, "hive", n.Hive, "device", n.Device)
			}
		}
	}
	if wrote {
		return true // the registry now has the actions to take
	}
	starts, stops := deploy.Due(all, v)
	c.do(ctx, starts, stops, models)
	return false
}

// reports reports whether a hive reports its workers to this queen.
func (c *Controller) reports(hive string) bool {
	v := c.o.Liveness.Hive(hive)
	return v.Hears() && v.Report != nil
}

// tell logs new problems.
func (c *Controller) tell(all []core.Deployment, problems []core.DeploymentProblem, said map[string]string) {
	for _, d := range all {
		reason := ""
		if i := slices.IndexFunc(problems, func(p core.DeploymentProblem) bool { return p.Deployment == d.Name }); i >= 0 {
			reason = problems[i].Reason
		}
		switch was := said[d.Name]; {
		case was == reason:
		case reason == "":
			c.log.Info("all replicas of a deployment placed", "deployment", d.Name)
		case was == "":
			c.log.Warn("cannot place replicas of a deployment", "deployment", d.Name, "reason", reason)
		}
		said[d.Name] = reason
	}
}

// do asks hives to start and stop workers, all concurrently: a hive that does not answer delays no
// other.
func (c *Controller) do(ctx context.Context, starts []deploy.Start, stops []core.Worker, models map[string]placement.Deployable) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for _, s := range starts {
		m, ok := models[s.Deployment.Model]
		if !ok {
			continue // its model cannot be resolved now
		}
		wg.Go(func() {
			j, err := c.o.Jobs.SubmitTo(ctx, s.Hive, c.request(ctx, s, m))
			c.mu.Lock()
			defer c.mu.Unlock()
			c.term.started(s, j, err, time.Now())
		})
	}
	for _, w := range stops {
		wg.Go(func() {
			r := core.Request{Operation: core.OpActiveWorkerRetire, Hive: w.Hive, Worker: w.ID}
			if _, err := c.o.Jobs.Submit(ctx, r, false); err != nil && ctx.Err() == nil && core.KindOf(err) != core.NotFound {
				c.log.Warn("failed to retire a replica", "replica", w.Replica, "worker", w.ID, "error", err)
			}
		})
	}
	wg.Wait()
}

// request returns the worker_spawn of a replica, which is the same at every leader.
func (c *Controller) request(ctx context.Context, s deploy.Start, m placement.Deployable) core.Request {
	d := s.Deployment
	r := core.Request{
		Operation: core.OpWorkerSpawn, RequestID: "deploy/" + s.Label(), Replica: s.Label(), Model: m.Argument(s.Hive), Type: d.Type, Device: s.Device,
		Slots: d.Slots, ContextTokens: d.ContextTokens, Pin: true,
	}
	if r.ContextTokens == 0 {
		r.ReplicaContext = c.o.Placer.ReplicaContext(ctx, d.Model)
	}
	return r
}
