package queen

import (
	"cmp"
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gossip"
	"github.com/rbee-project/rbee/core/job"
	"github.com/rbee-project/rbee/core/wire"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

// recallTimeout bounds the question whether an owner knows a request id already.
const recallTimeout = 2 * time.Second

// owner is an agent that owns jobs: a hive's, or that of a queen without a hive.
type owner struct {
	id, name string
	queen    *core.Node // the queen without a hive; nil: a hive, or this queen
}

// owners lists the agents whose jobs can be asked for, and says which others there are.
func (q *Queen) owners() (live []owner, problems []string) {
	hives, refused := q.liveHives()
	for _, r := range refused {
		problems = append(problems, "hive "+r.String())
	}
	known := map[string]bool{}
	for _, h := range q.hives() {
		known[h.ID] = true
	}
	for _, h := range hives {
		live = append(live, owner{id: h.ID, name: "hive " + h.Name})
	}
	if !known[q.opts.ID] && q.opts.Jobs != nil {
		live = append(live, owner{id: q.opts.ID, name: "queen " + q.opts.ID})
	}
	if q.opts.Membership == nil {
		return live, problems
	}
	gone := map[string]gossip.Status{}
	for _, m := range q.opts.Membership.Gossip.Members() {
		if m.Status != gossip.Alive {
			gone[m.ID] = m.Status
		}
	}
	for _, n := range q.registry.View().Nodes(nil) {
		name := "queen " + cmp.Or(n.Name, n.ID)
		switch status, isGone := gone[n.ID]; {
		case known[n.ID] || n.ID == q.opts.ID || n.Revoked || !n.Has(core.RoleQueen):
		case isGone && !q.answers(n.ID): // a dark machine would have everybody wait for nothing
			problems = append(problems, name+" has "+string(status))
		default:
			live = append(live, owner{id: n.ID, name: name, queen: &n})
		}
	}
	return live, problems
}

// ownerOf finds the agent that owns a job. Errors: NotFound; Unavailable when it is down.
func (q *Queen) ownerOf(id string) (owner, error) {
	node, err := job.Owner(id)
	if err != nil {
		return owner{}, core.Errorf(core.NotFound, "there is no job %q", id).Hint("List the jobs to see their ids.")
	}
	if h, ok := q.registry.View().Hive(nil, node); ok && node != q.opts.ID {
		if h.Status == core.HiveDown {
			return owner{}, core.Errorf(core.Unavailable, "hive %s, which owns job %s, is down", h.Name, id).Hint(
				"Start its agent again, which keeps its jobs, and look at `rbee status`.")
		}
		return owner{id: node, name: "hive " + h.Name}, nil
	}
	live, _ := q.owners()
	for _, o := range live {
		if o.id == node {
			return o, nil
		}
	}
	if n, ok := q.registry.View().Node(nil, node); ok && !n.Revoked {
		return owner{}, core.Errorf(core.Unavailable, "queen %s, which owns job %s, is gone", cmp.Or(n.Name, n.ID), id).Hint(
			"Start its agent again, which keeps its jobs, and look at `rbee status`.")
	}
	return owner{}, core.Errorf(core.NotFound, "there is no job %q: its owner is not part of the cluster", id).Hint("List the jobs to see their ids.")
}

// jobs is the service of an owner.
func (q *Queen) jobs(o owner) (jobv1.JobServiceClient, error) {
	if o.queen != nil {
		c, err := q.opts.Membership.Conn(o.id, o.queen.RPCAddress, core.RoleQueen)
		if err != nil {
			return nil, core.Prefix(err, "reach "+o.name)
		}
		return jobv1.NewJobServiceClient(c), nil
	}
	c, err := q.conn(o.id)
	if err != nil {
		return nil, err
	}
	return jobv1.NewJobServiceClient(c), nil
}

// askOwners asks all owners at once, each for at most the timeout. The problems name those that did
// not answer; err is not nil only when nobody did, or ctx ended.
func (q *Queen) askOwners(ctx context.Context, timeout time.Duration, req *jobv1.ListRequest) (jobs []core.Job, problems []string, err error) {
	owners, problems := q.owners()
	if len(owners) == 0 {
		_, refused := q.liveHives()
		return nil, problems, noHive(refused)
	}
	answers := make([][]core.Job, len(owners))
	errs := make([]error, len(owners))
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, o := range owners {
		wg.Go(func() {
			c, err := q.jobs(o)
			if err != nil {
				errs[i] = err
				return
			}
			resp, err := c.List(limited, req)
			answers[i], errs[i] = wire.All(resp.GetJobs(), wire.JobFromProto), q.hiveErrorOrNil(ctx, o.id, err)
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

func (q *Queen) hiveErrorOrNil(ctx context.Context, hive string, err error) error {
	if err == nil {
		return nil
	}
	return q.hiveError(ctx, hive, err)
}

// recall finds where a request id was started, by this queen or another: the same request again
// must not be started elsewhere. Empty: nowhere that answers.
func (q *Queen) recall(ctx context.Context, requestID string) (node string) {
	if requestID == "" {
		return ""
	}
	q.mu.Lock()
	node, known := q.requests.hives[requestID]
	q.mu.Unlock()
	if known {
		return node
	}
	jobs, _, err := q.askOwners(ctx, recallTimeout, &jobv1.ListRequest{RequestId: requestID})
	if err != nil || len(jobs) == 0 {
		return "" // an owner that does not answer cannot start it twice either
	}
	return jobs[0].Hive
}
