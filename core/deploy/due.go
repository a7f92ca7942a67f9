package deploy

import (
	"cmp"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Start is a replica whose worker has yet to start.
type Start struct {
	Deployment core.Deployment
	core.Replica
}

// Label returns the Worker.Replica of the worker to start.
func (s Start) Label() string { return s.Replica.Label(s.Deployment.Name) }

// Due returns the actions that bring the workers in line with the decisions: the replicas to start,
// on hives that are up, and the workers to stop because their replicas were given up.
func Due(all []core.Deployment, v View) (starts []Start, stops []core.Worker) {
	up, there, placed := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, h := range v.Hives {
		up[h.ID] = h.up()
	}
	for _, w := range v.Workers {
		there[w.Replica] = true
	}
	for _, d := range all {
		for _, p := range d.Placed {
			label := p.Label(d.Name)
			placed[label] = true
			if up[p.Hive] && !there[label] && !v.Lost[label] {
				starts = append(starts, Start{d, p})
			}
		}
	}
	for _, w := range v.Workers {
		if w.Replica != "" && !placed[w.Replica] && !ended(w) && up[w.Hive] {
			stops = append(stops, w)
		}
	}
	slices.SortFunc(starts, func(a, b Start) int { return strings.Compare(a.Label(), b.Label()) })
	slices.SortFunc(stops, func(a, b core.Worker) int {
		return cmp.Or(strings.Compare(a.Hive, b.Hive), strings.Compare(a.ID, b.ID))
	})
	return starts, stops
}

// Status returns the status of a deployment; problems holds the problems of all deployments.
func Status(d core.Deployment, v View, problems []core.DeploymentProblem) core.DeploymentStatus {
	s := core.DeploymentStatus{Deployment: d, Workers: []core.ReplicaStatus{}, Problems: []core.DeploymentProblem{}}
	for _, p := range d.Placed {
		r := core.ReplicaStatus{Replica: p, State: "starting"}
		if i := slices.IndexFunc(v.Hives, func(h Hive) bool { return h.ID == p.Hive }); i >= 0 {
			r.HiveName, r.Leaving = v.Hives[i].Name, leaves(d, p, v.Hives[i])
		}
		for _, w := range v.Workers {
			if w.Replica != p.Label(d.Name) {
				continue
			}
			r.Worker, r.State = w.ID, string(w.State)
			if w.State == core.WorkerReady && !r.Leaving {
				s.Ready++
			}
		}
		s.Workers = append(s.Workers, r)
	}
	for _, p := range problems {
		if p.Deployment == d.Name {
			s.Problems = append(s.Problems, p)
		}
	}
	return s
}
