package queen

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/raft/fsm"
)

// specsOf reads the deployments of a request. Errors: Invalid.
func specsOf(r core.Request) ([]core.DeploymentSpec, error) {
	const what = "read deployments"
	dec := json.NewDecoder(bytes.NewReader([]byte(r.Specs)))
	dec.DisallowUnknownFields()
	var specs []core.DeploymentSpec
	if err := dec.Decode(&specs); err != nil {
		return nil, core.Wrap(err, core.Invalid, what)
	}
	if dec.More() {
		return nil, core.Errorf(core.Invalid, "%s: unexpected data after the list", what)
	}
	if len(specs) == 0 || len(specs) > core.MaxDeployments {
		return nil, core.Errorf(core.Invalid, "%s: there are %d of them", what, len(specs)).Hint("Send 1 to %d.", core.MaxDeployments)
	}
	seen := map[string]bool{}
	for _, s := range specs {
		if err := s.Check(); err != nil {
			return nil, err
		}
		if seen[s.Name] {
			return nil, core.Errorf(core.Invalid, "duplicate deployment %s", s.Name).Hint("Merge the two into one.")
		}
		seen[s.Name] = true
	}
	return specs, nil
}

// deploymentPlan returns what deployments would do; it changes nothing. Errors: Invalid.
func (q *Queen) deploymentPlan(ctx context.Context, r core.Request, _ *job.Run) (core.DeploymentPlan, error) {
	specs, err := specsOf(r)
	if err != nil {
		return core.DeploymentPlan{}, err
	}
	if err := q.Registry.CatchUp(ctx); err != nil {
		return core.DeploymentPlan{}, err
	}
	return q.deploys.Plan(ctx, specs)
}

// deploymentApply applies deployments and returns the plan that now applies. The leader carries it
// out. Errors: Invalid; Conflict for a stale plan; Unsupported while an older queen runs.
func (q *Queen) deploymentApply(ctx context.Context, r core.Request, _ *job.Run) (core.DeploymentPlan, error) {
	plan, err := q.deploymentPlan(ctx, r, nil)
	if err != nil {
		return plan, err
	}
	specs, err := specsOf(r)
	if err != nil {
		return plan, err
	}
	index := uint64(r.Index) //nolint:gosec // checked: it is not negative
	if err := q.Registry.Write(ctx, cmp.Or(r.RequestID, "apply"), fsm.PutDeployments(specs, index)); err != nil {
		return plan, err
	}
	for _, c := range plan.Changes {
		q.log.Info("deployment changed", "deployment", c.Deployment, "action", c.Action)
	}
	plan.Index = core.DeploymentsIndex(q.Registry.View().Deployments(nil))
	return plan, nil
}

func (q *Queen) deploymentList(ctx context.Context, _ core.Request) ([]core.DeploymentStatus, error) {
	return q.deploys.Status(ctx, "")
}

// deploymentGet returns a deployment. Errors: NotFound with the nearest names.
func (q *Queen) deploymentGet(ctx context.Context, r core.Request) (core.DeploymentStatus, error) {
	found, err := q.deploys.Status(ctx, r.Deployment)
	if err != nil || len(found) == 0 {
		return core.DeploymentStatus{}, cmp.Or(err, q.noDeployment(r.Deployment))
	}
	return found[0], nil
}

func (q *Queen) noDeployment(name string) error {
	var names []string
	for _, d := range q.Registry.View().Deployments(nil) {
		names = append(names, d.Name)
	}
	return core.Errorf(core.NotFound, "there is no deployment %q", name).Hint("%sSee all with `rbee deployment list`.", core.NearestHint(name, names))
}

// deploymentStop stops a deployment. Errors: NotFound.
func (q *Queen) deploymentStop(ctx context.Context, r core.Request, _ *job.Run) (core.DeploymentStatus, error) {
	if _, err := q.deploymentNamed(ctx, r.Deployment); err != nil {
		return core.DeploymentStatus{}, err
	}
	if err := q.Registry.Write(ctx, cmp.Or(r.RequestID, "stop "+r.Deployment), fsm.StopDeployment(r.Deployment)); err != nil {
		return core.DeploymentStatus{}, err
	}
	q.log.Info("deployment stopped", "deployment", r.Deployment)
	return q.deploymentGet(ctx, r)
}

// deploymentRevert restores an earlier version of a deployment. Errors: NotFound, also for a
// version no longer kept; Conflict if a deployment changed meanwhile.
func (q *Queen) deploymentRevert(ctx context.Context, r core.Request, _ *job.Run) (core.DeploymentStatus, error) {
	d, err := q.deploymentNamed(ctx, r.Deployment)
	if err != nil {
		return core.DeploymentStatus{}, err
	}
	i := len(d.History) - 1
	if r.Revision > 0 {
		i = slices.IndexFunc(d.History, func(v core.DeploymentVersion) bool { return v.Version == uint64(r.Revision) }) //nolint:gosec // checked
	}
	if i < 0 {
		return core.DeploymentStatus{}, core.Errorf(core.NotFound, "deployment %s has no such earlier version", d.Name).Hint("See `rbee deployment history %s`.", d.Name)
	}
	was := d.History[i]
	c := fsm.PutDeployments([]core.DeploymentSpec{was.Spec}, core.DeploymentsIndex(q.Registry.View().Deployments(nil)))
	if was.Stopped {
		c = fsm.StopDeployment(d.Name)
	}
	if err := q.Registry.Write(ctx, cmp.Or(r.RequestID, "revert "+d.Name), c); err != nil {
		return core.DeploymentStatus{}, err
	}
	q.log.Info("deployment reverted", "deployment", d.Name, "version", was.Version)
	return q.deploymentGet(ctx, r)
}

func (q *Queen) deploymentNamed(ctx context.Context, name string) (core.Deployment, error) {
	if err := q.Registry.CatchUp(ctx); err != nil {
		return core.Deployment{}, err
	}
	d, ok := q.Registry.View().Deployment(nil, name)
	if !ok {
		return d, q.noDeployment(name)
	}
	return d, nil
}
