// Package dispatch hands operations to the agents that own them, and follows the resulting jobs.
package dispatch

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
	"github.com/rbee-project/rbee/core/queen/hives"
	"github.com/rbee-project/rbee/core/queen/membership"
	"github.com/rbee-project/rbee/core/registry"
	"github.com/rbee-project/rbee/core/wire"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// Placer chooses the hive for a request that names none.
type Placer interface {
	// Dealias returns the id of the model that an alias stands for, or the name itself if it is not
	// an alias.
	Dealias(name string) string
	// Spawn chooses the hive for a worker_spawn and returns the model's name there; Download
	// chooses the hive for a model_download. live are the hives that are up.
	Spawn(ctx context.Context, r core.Request, live []core.Hive) (hive, model string, err error)
	Download(ctx context.Context, r core.Request, live []core.Hive) (string, error)
	// ReplicaContext returns the positions per slot of the model's workers; 0: it has no workers.
	ReplicaContext(ctx context.Context, model string) int
}

// Options are the dependencies of a Dispatcher. All fields but QueenConn are required.
type Options struct {
	Registry *registry.Registry
	Hives    *hives.Hives
	Members  *membership.Members
	Placer   Placer
	ID       string // of this queen
	OwnsJobs bool   // this queen runs operations itself
	// QueenConn returns the connection to another queen. nil: this queen is alone.
	QueenConn func(node, address string, role core.Role) (grpc.ClientConnInterface, error)
}

// Dispatcher starts operations at their owners. It is safe for concurrent use.
type Dispatcher struct {
	opts     Options
	registry *registry.Registry
	hives    *hives.Hives
	members  *membership.Members
	placer   Placer

	mu       sync.Mutex    // guards below
	requests requestMemory // request ids → nodes
}

// New returns a dispatcher with no started operations.
func New(o Options) *Dispatcher {
	return &Dispatcher{opts: o, registry: o.Registry, hives: o.Hives, members: o.Members, placer: o.Placer}
}

// Submit checks a request, finds the agent that owns it, a hive's or this queen's, and starts the
// job there. A request id already used, at this queen or another, returns the job that it started:
// the owners are asked for it unless first reports that the request is sent for the first time.
// Errors: Invalid, NotFound, Unavailable, Conflict, TooLarge.
func (d *Dispatcher) Submit(ctx context.Context, r core.Request, first bool) (core.Job, error) {
	if err := operation.Check(r); err != nil {
		return core.Job{}, err
	}
	if r.Operation == core.OpActiveWorkerRetire {
		return d.retire(ctx, r)
	}
	spec, err := operation.Find(r.Operation)
	if err != nil {
		return core.Job{}, err
	}
	var node string
	if spec.Runs.OnQueen() {
		node = cmp.Or(d.recall(ctx, r.RequestID, first), d.opts.ID)
	} else {
		r.Model = d.placer.Dealias(r.Model) // hives do not know the cluster's aliases
		if node, r.Model, err = d.choose(ctx, r, first); err != nil {
			return core.Job{}, err
		}
	}
	if r.Operation == core.OpWorkerSpawn && r.ContextTokens == 0 {
		r.ReplicaContext = d.placer.ReplicaContext(ctx, r.Model)
	}
	if r.RequestID != "" {
		d.mu.Lock()
		d.requests.remember(r.RequestID, node)
		d.mu.Unlock()
	}
	return d.SubmitTo(ctx, node, r)
}

// choose chooses the hive for a request that is not bound to a worker, and returns the name of its
// model there, if it has one.
func (d *Dispatcher) choose(ctx context.Context, r core.Request, first bool) (node, model string, err error) {
	if r.Hive != "" {
		h, err := d.hives.Up(ctx, r.Hive)
		if err == nil && h.Draining && r.Operation == core.OpWorkerSpawn {
			err = core.Errorf(core.Conflict, "hive %s is draining: it gets no new worker", h.Name).Hint("Choose another hive, or end that: `rbee hive drain %s --undo`.", h.Name)
		}
		return h.ID, r.Model, err
	}
	if node := d.recall(ctx, r.RequestID, first); node != "" {
		return node, r.Model, nil
	}
	live, refused := d.hives.Live()
	switch {
	case len(live) == 0:
		return "", "", hives.None(refused)
	case r.Operation == core.OpWorkerSpawn:
		return d.placer.Spawn(ctx, r, live)
	case r.Operation == core.OpModelDownload:
		node, err = d.placer.Download(ctx, r, live)
		return node, r.Model, err
	case len(live) == 1:
		return live[0].ID, r.Model, nil
	}
	var names []string
	for _, h := range live {
		names = append(names, h.Name)
	}
	return "", "", core.Errorf(core.Invalid, "%s must name one of the %d hives", r.Operation, len(live)).Hint(
		`Set "hive" to one of %s.`, strings.Join(names, ", "))
}

// SubmitTo starts a job on a hive, or on this queen's machine.
func (d *Dispatcher) SubmitTo(ctx context.Context, node string, r core.Request) (core.Job, error) {
	if s, err := operation.Find(r.Operation); err == nil && !s.Runs.OnQueen() {
		r.Hive = node // for other operations, Hive is the subject
	}
	if r.KeepAlive == core.KeepAliveDefault && !d.hives.Unload(node) {
		r.KeepAlive = "" // an older hive refuses the field, and keeps its workers
	}
	text, err := json.Marshal(r)
	if err != nil {
		return core.Job{}, core.Wrap(err, core.Internal, "encode request")
	}
	o := owner{id: node}
	if live, _ := d.owners(); slices.ContainsFunc(live, func(x owner) bool { return x.id == node }) {
		o = live[slices.IndexFunc(live, func(x owner) bool { return x.id == node })]
	}
	c, err := d.jobs(o)
	if err != nil {
		return core.Job{}, err
	}
	resp, err := c.Submit(ctx, &jobv1.SubmitRequest{Operation: string(r.Operation), RequestJson: text})
	if err != nil {
		return core.Job{}, d.hives.Error(ctx, node, err)
	}
	return wire.JobFromProto(resp.GetJob()), nil
}

// retire first writes the intent through raft: from then on no queen sends the worker a request,
// whatever happens to the job, and every beat reminds its hive. Then the worker's hive stops it as
// a job. Repeating the request returns the same job while it runs or after it succeeded.
func (d *Dispatcher) retire(ctx context.Context, r core.Request) (core.Job, error) {
	hive := ""
	if r.Hive != "" {
		h, err := d.hives.Named(ctx, r.Hive)
		if err != nil {
			return core.Job{}, err
		}
		hive = h.ID
	}
	w, err := registry.LookUp(ctx, d.registry, func() (core.Worker, error) { return d.hives.KnownWorker(hive, r.Worker) })
	if err != nil {
		return core.Job{}, err
	}
	if hive != "" && hive != w.Hive {
		return core.Job{}, core.Errorf(core.Conflict, "worker %s is on hive %s, not on %s", w.ID, w.Hive, hive).Hint(`Leave "hive" out.`)
	}
	ofHive := "" // older queens identify workers without their hive
	if len(d.registry.View().WorkersWithID(nil, w.ID)) > 1 {
		ofHive = w.Hive
	}
	if err := d.registry.Write(ctx, "retire "+w.ID, fsm.RetireWorker(ofHive, w.ID)); err != nil {
		return core.Job{}, err
	}
	own := r.RequestID == ""
	r.Worker = w.ID
	if own {
		// The nonce identifies this start of the worker, so that every queen asks for the same job.
		r.RequestID = "retire-" + w.Nonce
		if len(r.RequestID) > core.MaxRequestIDBytes {
			r.RequestID = "retire-" + rand.Text()
		}
	}
	j, err := d.SubmitTo(ctx, w.Hive, r)
	if err == nil && own && (j.State == core.JobFailed || j.State == core.JobCancelled) {
		r.RequestID = "retire-" + rand.Text()
		j, err = d.SubmitTo(ctx, w.Hive, r)
	}
	if err != nil && core.KindOf(err) == core.Unavailable {
		return core.Job{}, core.WithHint(err, "Worker %s gets no new request any more, and its hive stops it as soon as it beats again.", w.ID)
	}
	return j, err
}

// Job returns one job, as reported by its hive.
func (d *Dispatcher) Job(ctx context.Context, id string) (core.Job, error) {
	hive, c, err := d.jobService(ctx, id)
	if err != nil {
		return core.Job{}, err
	}
	limited, cancel := context.WithTimeout(ctx, hives.AskTimeout)
	defer cancel()
	resp, err := c.Get(limited, &jobv1.GetRequest{Id: id})
	if err != nil {
		return core.Job{}, d.hives.Error(ctx, hive, err)
	}
	return wire.JobFromProto(resp.GetJob()), nil
}

// Cancel asks the job's hive to cancel it, and returns the job's state at that time.
func (d *Dispatcher) Cancel(ctx context.Context, id string) (core.Job, error) {
	hive, c, err := d.jobService(ctx, id)
	if err != nil {
		return core.Job{}, err
	}
	limited, cancel := context.WithTimeout(ctx, hives.AskTimeout)
	defer cancel()
	resp, err := c.Cancel(limited, &jobv1.CancelRequest{Id: id})
	if err != nil {
		return core.Job{}, d.hives.Error(ctx, hive, err)
	}
	return wire.JobFromProto(resp.GetJob()), nil
}

// Jobs lists the jobs of all agents that answer, newest first, without those of hives that are
// down. Errors: Unavailable when none answers.
func (d *Dispatcher) Jobs(ctx context.Context) ([]core.Job, error) {
	jobs, _, err := d.Listed(ctx)
	return jobs, err
}

// Listed also returns which agents did not answer.
func (d *Dispatcher) Listed(ctx context.Context) ([]core.Job, []string, error) {
	jobs, problems, err := d.askOwners(ctx, hives.AskTimeout, &jobv1.ListRequest{})
	if err != nil {
		return nil, problems, err
	}
	if jobs == nil {
		jobs = []core.Job{}
	}
	slices.SortFunc(jobs, func(a, b core.Job) int { return cmp.Or(b.CreatedAt.Compare(a.CreatedAt), cmp.Compare(b.ID, a.ID)) })
	return jobs, problems, nil
}

// Events calls emit for every event of the job numbered above after, then for new ones as they
// happen, and returns nil after the end event, or the error of emit or ctx. Errors: NotFound;
// Unavailable when the hive is lost before the end: call again with the last number.
func (d *Dispatcher) Events(ctx context.Context, id string, after int64, emit func(core.Event) error) error {
	hive, c, err := d.jobService(ctx, id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx) // ends the stream when emit fails
	defer cancel()
	stream, err := c.Events(ctx, &jobv1.EventsRequest{Id: id, AfterSeq: after})
	if err != nil {
		return d.hives.Error(ctx, hive, err)
	}
	ended := false
	for {
		resp, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF) && ended:
			return nil
		case errors.Is(err, io.EOF):
			// This also answers a reader who already has the end event.
			j, err := d.Job(ctx, id)
			if err == nil && j.State == core.JobRunning {
				err = core.Errorf(core.Unavailable, "hive %s stopped reporting job %s", hive, id)
				err = core.WithHint(err, "Ask again for the events after the last one.")
			}
			return err
		case err != nil:
			return d.hives.Error(ctx, hive, err)
		}
		e := wire.EventFromProto(resp.GetEvent())
		ended = ended || e.Kind == core.EventEnd
		if err := emit(e); err != nil {
			return err
		}
	}
}

// jobService returns the service of the agent that owns a job.
func (d *Dispatcher) jobService(ctx context.Context, id string) (node string, c jobv1.JobServiceClient, err error) {
	o, err := registry.LookUp(ctx, d.registry, func() (owner, error) { return d.ownerOf(id) })
	if err != nil {
		return "", nil, err
	}
	c, err = d.jobs(o)
	return o.id, c, err
}

// requestMemory remembers the node on which each of the latest request ids was started.
type requestMemory struct {
	hives map[string]string
	order []string
}

// maxRequests is the number of request ids remembered.
const maxRequests = 1024

func (m *requestMemory) remember(id, hive string) {
	if m.hives == nil {
		m.hives = map[string]string{}
	}
	if _, ok := m.hives[id]; !ok {
		if len(m.order) == maxRequests {
			delete(m.hives, m.order[0])
			m.order = m.order[1:]
		}
		m.order = append(m.order, id)
	}
	m.hives[id] = hive
}
