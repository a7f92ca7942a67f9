// Package deployments runs the workers of deployments where core/deploy decides, whenever this
// queen leads, and reports their status.
package deployments

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/deploy"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/queen/liveness"
	"github.com/rbee-project/rbee/core/queen/placement"
	"github.com/rbee-project/rbee/core/registry"
)

// Jobs starts jobs on hives.
type Jobs interface {
	// SubmitTo starts a job on a hive, or returns the job that already has the request id.
	SubmitTo(ctx context.Context, hive string, r core.Request) (core.Job, error)
	// Submit starts a job at its owner.
	Submit(ctx context.Context, r core.Request, first bool) (core.Job, error)
}

// Options are the dependencies of a Controller. All fields but Logger are required.
type Options struct {
	Registry *registry.Registry
	Hives    *hives.Hives
	Placer   *placement.Placer
	Jobs     Jobs
	Liveness interface {
		Hive(id string) *liveness.View
	}
	Logger hclog.Logger // nil: no log
}

// Controller manages the deployments of the cluster as one queen sees it. It is safe for concurrent
// use.
type Controller struct {
	o   Options
	log hclog.Logger

	mu   sync.Mutex // guards below
	term *term      // state of this leadership; nil: this queen does not lead
}

// New returns a controller. It starts nothing.
func New(o Options) *Controller {
	if o.Logger == nil {
		o.Logger = hclog.NewNullLogger()
	}
	return &Controller{o: o, log: o.Logger}
}

// Plan returns what would happen if the specs were added to the existing deployments. Errors:
// Unavailable if no hive answers.
func (c *Controller) Plan(ctx context.Context, specs []core.DeploymentSpec) (core.DeploymentPlan, error) {
	all := c.o.Registry.View().Deployments(nil)
	models := names(all)
	for _, s := range specs {
		models[s.Model] = true
	}
	v, _, err := c.view(ctx, models)
	if err != nil {
		return core.DeploymentPlan{}, err
	}
	return deploy.Plan(all, specs, v), nil
}

// Status returns the status of the deployment with the name, or of all deployments if the name is
// empty.
func (c *Controller) Status(ctx context.Context, name string) ([]core.DeploymentStatus, error) {
	all := c.o.Registry.View().Deployments(nil)
	out := []core.DeploymentStatus{}
	if len(all) == 0 {
		return out, nil
	}
	v, _, err := c.view(ctx, names(all))
	if err != nil {
		return nil, err
	}
	_, problems := deploy.Reconcile(all, v)
	for _, d := range all {
		if name == "" || d.Name == name {
			out = append(out, deploy.Status(d, v, problems))
		}
	}
	return out, nil
}

// names returns the models of running deployments.
func names(all []core.Deployment) map[string]bool {
	models := map[string]bool{}
	for _, d := range all {
		if d.Wanted() > 0 || len(d.Placed) > 0 {
			models[d.Model] = true
		}
	}
	return models
}

// view returns the cluster as this queen sees it now, and fills models by the names that
// deployments use.
func (c *Controller) view(ctx context.Context, models map[string]bool) (deploy.View, map[string]placement.Deployable, error) {
	v := deploy.View{Models: map[string]deploy.Model{}, Workers: c.o.Hives.Workers()}
	for _, h := range c.o.Hives.List() {
		v.Hives = append(v.Hives, deploy.Hive{Hive: h, Suspect: h.Status == core.HiveSuspect})
	}
	found := map[string]placement.Deployable{}
	for name := range models {
		m, err := c.o.Placer.Deployable(ctx, name)
		switch {
		case ctx.Err() != nil:
			return deploy.View{}, nil, core.FromContext(ctx)
		case err != nil:
			v.Models[name] = deploy.Model{Problem: err.Error()}
			continue
		}
		least, estimate := m.Sizes()
		found[name] = m
		v.Models[name] = deploy.Model{MinBytes: least, EstimateBytes: estimate, FileBytes: least, Stored: m.Stored(), Offered: m.Offered()}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.term != nil {
		v.Lost, v.Rests = c.term.known(time.Now())
	}
	return v, found, nil
}
