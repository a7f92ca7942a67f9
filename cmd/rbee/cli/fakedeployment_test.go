package cli

import (
	"encoding/json"
	"time"

	"github.com/rbee-project/rbee/core"
)

// fakePlan plans deployments on two hives. Only the index 7 is not stale.
func fakePlan(r core.Request) (any, error) {
	var specs []core.DeploymentSpec
	if err := json.Unmarshal([]byte(r.Specs), &specs); err != nil {
		return nil, core.Wrap(err, core.Invalid, "read deployments")
	}
	if r.Operation == core.OpDeploymentApply && r.Index != 7 {
		return nil, core.Errorf(core.Conflict, "the plan is stale: it was made at index %d, but the deployments were changed at index 7", r.Index).Hint("Look at `rbee plan` again.")
	}
	p := core.DeploymentPlan{Index: 7, Changes: []core.DeploymentChange{}, Steps: []core.DeploymentStep{}, Problems: []core.DeploymentProblem{}}
	for _, s := range specs {
		if s.Replicas == 0 {
			continue
		}
		p.Changes = append(p.Changes, core.DeploymentChange{Deployment: s.Name, Action: "update", Fields: []string{"replicas: 1 → 2"}})
		p.Steps = append(p.Steps,
			core.DeploymentStep{Deployment: s.Name, Action: "start", Hive: "desk", Device: "cuda:0", Reason: "has room once workers have unloaded", NeedBytes: 2 << 30, FreeBytes: 1 << 30, EvictBytes: 1 << 30, Evicts: []string{"w7"}, Download: true, DownloadBytes: 1 << 30},
			core.DeploymentStep{Deployment: s.Name, Action: "stop", Hive: "attic", Device: "cpu", Reason: "there are more than wanted"})
		p.Problems = append(p.Problems, core.DeploymentProblem{Deployment: s.Name, Missing: 1, Reason: "cpu of attic lacks 512 MiB", Lacks: []core.DeviceLack{
			{Hive: "attic", Device: "cpu", NeedBytes: 1 << 30, FreeBytes: 1 << 29, MissingBytes: 1 << 29},
		}})
	}
	return p, nil
}

// fakeDeployment returns the deployment chat.
func fakeDeployment(name string, stopped bool) (core.DeploymentStatus, error) {
	if name != "chat" {
		return core.DeploymentStatus{}, core.Errorf(core.NotFound, "there is no deployment %q", name).Hint("Did you mean chat?")
	}
	d := core.DeploymentStatus{
		Deployment: core.Deployment{
			DeploymentSpec: core.DeploymentSpec{Name: "chat", Model: "rbee-tiny", Replicas: 2}, Version: 2, StartVersion: 1, Stopped: stopped, ChangedAt: time.Unix(1_800_000_000, 0).UTC(),
			Placed:  []core.Replica{{Ordinal: 0, Version: 1, Hive: "h1", Device: "cpu", Index: 5}},
			History: []core.DeploymentVersion{{Version: 1, Spec: core.DeploymentSpec{Name: "chat", Model: "rbee-tiny", Replicas: 1}}},
		},
		Workers: []core.ReplicaStatus{}, Problems: []core.DeploymentProblem{},
	}
	if !stopped {
		d.Ready = 1
		d.Workers = []core.ReplicaStatus{{Replica: d.Placed[0], HiveName: "desk", Worker: "w1", State: "ready"}}
		d.Problems = []core.DeploymentProblem{{Deployment: "chat", Missing: 1, Reason: "cpu of attic lacks 512 MiB", Lacks: []core.DeviceLack{}}}
	}
	return d, nil
}
