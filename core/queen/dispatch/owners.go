package dispatch

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/wire"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

// recallTimeout bounds the query whether an owner already knows a request id.
const recallTimeout = 2 * time.Second

// owner is an agent that owns jobs: a hive's, or that of a queen without a hive.
type owner struct {
	id, name string
	queen    *core.Node // the queen without a hive; nil: a hive, or this queen
}

// owners lists the agents that can be asked about jobs; problems names the others.
func (d *Dispatcher) owners() (live []owner, problems []string) {
	hives, refused := d.hives.Live()
	for _, r := range refused {
		problems = append(problems, "hive "+r.String())
	}
	known := map[string]bool{}
	for _, h := range d.hives.List() {
		known[h.ID] = true
	}
	for _, h := range hives {
		live = append(live, owner{id: h.ID, name: "hive " + h.Name})
	}
	if !known[d.opts.ID] && d.opts.OwnsJobs {
		live = append(live, owner{id: d.opts.ID, name: "queen " + d.opts.ID})
	}
	if d.registry.Alone() {
		return live, problems
	}
	gone := d.members.Gone()
	for _, n := range d.registry.View().Nodes(nil) {
		name := "queen " + cmp.Or(n.Name, n.ID)
		switch status, isGone := gone[n.ID]; {
		case known[n.ID] || n.ID == d.opts.ID || n.Revoked || !n.Has(core.RoleQueen):
		case isGone: // waiting for a dark machine would delay every caller
			problems = append(problems, name+" has "+status)
		default:
			live = append(live, owner{id: n.ID, name: name, queen: &n})
		}
	}
	return live, problems
}

// ownerOf finds the agent that owns a job. Errors: NotFound; Unavailable when it is down.
func (d *Dispatcher) ownerOf(id string) (owner, error) {
	node, err := job.Owner(id)
	if err != nil {
		return owner{}, core.Errorf(core.NotFound, "there is no job %q", id).Hint("List the jobs to see their ids.")
	}
	if h, ok := d.registry.View().Hive(nil, node); ok && node != d.opts.ID {
		if h.Status == core.HiveDown {
			return owner{}, core.Errorf(core.Unavailable, "hive %s, which owns job %s, is down", h.Name, id).Hint(
				"Start its agent again, which keeps its jobs, and look at `rbee status`.")
		}
		return owner{id: node, name: "hive " + h.Name}, nil
	}
	live, _ := d.owners()
	for _, o := range live {
		if o.id == node {
			return o, nil
		}
	}
	if n, ok := d.registry.View().Node(nil, node); ok && !n.Revoked {
		return owner{}, core.Errorf(core.Unavailable, "queen %s, which owns job %s, is gone", cmp.Or(n.Name, n.ID), id).Hint(
			"Start its agent again, which keeps its jobs, and look at `rbee status`.")
	}
	return owner{}, core.Errorf(core.NotFound, "there is no job %q: its owner is not part of the cluster", id).Hint("List the jobs to see their ids.")
}

// jobs returns the job service of an owner.
func (d *Dispatcher) jobs(o owner) (jobv1.JobServiceClient, error) {
	if o.queen != nil {
		c, err := d.opts.QueenConn(o.id, o.queen.RPCAddress, core.RoleQueen)
		if err != nil {
			return nil, core.Prefix(err, "reach "+o.name)
		}
		return jobv1.NewJobServiceClient(c), nil
	}
	c, err := d.hives.Conn(o.id)
	if err != nil {
		return nil, err
	}
	return jobv1.NewJobServiceClient(c), nil
}

// askOwners asks all owners concurrently, each for at most the timeout. problems names those that
// did not answer; err is non-nil only if none answered, or ctx ended.
func (d *Dispatcher) askOwners(ctx context.Context, timeout time.Duration, req *jobv1.ListRequest) (jobs []core.Job, problems []string, err error) {
	owners, problems := d.owners()
	if len(owners) == 0 {
		_, refused := d.hives.Live()
		return nil, problems, hives.None(refused)
	}
	answers := make([][]core.Job, len(owners))
	errs := make([]error, len(owners))
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, o := range owners {
		wg.Go(func() {
			c, err := d.jobs(o)
			if err != nil {
				errs[i] = err
				return
			}
			resp, err := c.List(limited, req)
			answers[i], errs[i] = wire.All(resp.GetJobs(), wire.JobFromProto), d.hiveErrorOrNil(ctx, o.id, err)
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return nil, problems, core.FromContext(ctx)
	}
	answered := false
	for i, o := range owners {
		if errs[i] != nil {
			err = errs[i]
			problems = append(problems, fmt.Sprintf("%s: %v", o.name, errs[i]))
			continue
		}
		answered = true
		jobs = append(jobs, answers[i]...)
	}
	if answered {
		err = nil
	}
	return jobs, problems, err
}

func (d *Dispatcher) hiveErrorOrNil(ctx context.Context, hive string, err error) error {
	if err == nil {
		return nil
	}
	return d.hives.Error(ctx, hive, err)
}

// recall finds where a request was started, by this queen or another: a repeated request must not
// be started elsewhere. Empty: no owner that answers knows it.
func (d *Dispatcher) recall(ctx context.Context, requestID string, first bool) (node string) {
	if requestID == "" {
		return ""
	}
	d.mu.Lock()
	node, known := d.requests.hives[requestID]
	d.mu.Unlock()
	if known || first {
		return node
	}
	jobs, _, err := d.askOwners(ctx, recallTimeout, &jobv1.ListRequest{RequestId: requestID})
	if err != nil || len(jobs) == 0 {
		return "" // an owner that does not answer cannot start it twice either
	}
	return jobs[0].Hive
}
