package deploy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/sched"
)

// Plan returns what would happen if the specs were added to the existing deployments. It changes
// nothing; each step is what Reconcile would decide now.
func Plan(all []core.Deployment, specs []core.DeploymentSpec, v View) core.DeploymentPlan {
	p := core.DeploymentPlan{Index: core.DeploymentsIndex(all), Changes: []core.DeploymentChange{}, Steps: []core.DeploymentStep{}, Problems: []core.DeploymentProblem{}}
	after := slices.Clone(all)
	wanted := map[string]bool{}
	for _, s := range specs {
		wanted[s.Name] = true
		i := slices.IndexFunc(after, func(d core.Deployment) bool { return d.Name == s.Name })
		if i < 0 {
			after = append(after, core.Deployment{})
			i = len(after) - 1
		}
		next, news := after[i].Change(s, false, time.Time{})
		if news {
			p.Changes = append(p.Changes, change(after[i], next))
		}
		after[i] = next
	}
	placings, problems := Reconcile(after, v)
	for _, x := range placings {
		if !wanted[x.Deployment.Name] {
			continue
		}
		for _, n := range x.News {
			p.Steps = append(p.Steps, step(x.Deployment, n, v))
		}
	}
	for _, x := range problems {
		if wanted[x.Deployment] {
			p.Problems = append(p.Problems, x)
		}
	}
	slices.SortFunc(p.Changes, func(a, b core.DeploymentChange) int { return strings.Compare(a.Deployment, b.Deployment) })
	slices.SortStableFunc(p.Steps, func(a, b core.DeploymentStep) int {
		return cmp.Or(strings.Compare(a.Deployment, b.Deployment), strings.Compare(a.Action, b.Action), strings.Compare(a.Hive, b.Hive), strings.Compare(a.Device, b.Device))
	})
	slices.SortFunc(p.Problems, func(a, b core.DeploymentProblem) int { return strings.Compare(a.Deployment, b.Deployment) })
	return p
}

// change returns the difference between a deployment and its next version.
func change(old, next core.Deployment) core.DeploymentChange {
	c := core.DeploymentChange{Deployment: next.Name, Action: "update", Fields: []string{}}
	switch {
	case old.Version == 0:
		c.Action = "create"
	case old.Stopped:
		c.Action = "start"
	}
	was, is := old.DeploymentSpec, next.DeploymentSpec
	for _, f := range []struct{ name, was, is string }{
		{"model", was.Model, is.Model},
		{"replicas", fmt.Sprint(was.Replicas), fmt.Sprint(is.Replicas)},
		{"type", was.Type, is.Type},
		{"devices", strings.Join(was.Devices, ", "), strings.Join(is.Devices, ", ")},
		{"hives", strings.Join(was.Hives, ", "), strings.Join(is.Hives, ", ")},
		{"slots", fmt.Sprint(was.Slots), fmt.Sprint(is.Slots)},
		{"context_tokens", fmt.Sprint(was.ContextTokens), fmt.Sprint(is.ContextTokens)},
		{"priority", fmt.Sprint(was.Priority), fmt.Sprint(is.Priority)},
	} {
		switch {
		case f.was == f.is:
		case c.Action == "create":
			c.Fields = append(c.Fields, fmt.Sprintf("%s: %s", f.name, f.is))
		default:
			c.Fields = append(c.Fields, fmt.Sprintf("%s: %s → %s", f.name, cmp.Or(f.was, "any"), cmp.Or(f.is, "any")))
		}
	}
	return c
}

// step describes a replica that a plan starts or stops, with the device memory that it takes.
func step(d core.Deployment, n News, v View) core.DeploymentStep {
	s := core.DeploymentStep{Deployment: d.Name, Action: "start", Hive: n.Hive, Device: n.Device, Reason: n.Reason}
	if i := slices.IndexFunc(v.Hives, func(h Hive) bool { return h.ID == n.Hive }); i >= 0 {
		s.Hive = cmp.Or(v.Hives[i].Name, n.Hive)
	}
	if n.Stop {
		s.Action = "stop"
		return s
	}
	m := v.Models[d.Model]
	s.NeedBytes, s.FreeBytes = n.Fit.TakesBytes, n.Fit.FreeBytes
	if s.Reason = "has room"; m.Stored[n.Hive] {
		s.Reason = "has room, and the model"
	} else {
		s.Download, s.DownloadBytes = true, m.FileBytes
	}
	if n.Fit.Unloads() {
		s.Reason = "has room once workers have unloaded"
		s.EvictBytes = max(0, n.Fit.TakesBytes-n.Fit.FreeBytes)
		s.Evicts = evicts(s.EvictBytes, n.Replica, v)
	}
	return s
}

// evicts returns the workers that the hive is likely to unload. The hive itself decides when the
// worker starts, by what they do at that time.
func evicts(missing int64, p core.Replica, v View) []string {
	var residents []sched.Resident
	for _, w := range v.Workers {
		if w.Hive == p.Hive && w.Device == p.Device && !ended(w) {
			residents = append(residents, sched.Resident{
				Worker: w.ID, Model: w.Model, Bytes: w.Load.MemoryBytes, Fixed: w.Load.Pinned || !w.Load.Unloads,
				Busy: w.State != core.WorkerReady || w.Load.Active+w.Load.Queued > 0, Idle: time.Duration(w.Load.Idle), LoadTook: time.Duration(w.Load.LoadTook),
			})
		}
	}
	gone, _ := sched.Evict(missing, residents, func(sched.Resident) bool { return true })
	var ids []string
	for _, r := range gone {
		ids = append(ids, r.Worker)
	}
	return ids
}
