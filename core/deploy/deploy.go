// Package deploy decides where the replicas of deployments run. Its functions are pure: their
// arguments are the deployments wanted, the earlier decisions, and the state of the cluster. The
// same arguments, with their lists in any order, give the same decision.
package deploy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/sched"
)

// View is the cluster as one queen sees it.
type View struct {
	Hives   []Hive
	Workers []core.Worker    // including their loads
	Models  map[string]Model // by DeploymentSpec.Model
	// Lost holds the labels of replicas whose worker has ended or failed to start.
	Lost map[string]bool
	// Rests holds, by deployment, the hives that lately failed to start its worker, and why:
	// another hive is chosen, or the replica waits if there is no other.
	Rests map[string]map[string]string
}

// Hive is a hive of the registry, with the devices that it reported.
type Hive struct {
	core.Hive
	Suspect bool
}

func (h Hive) up() bool { return h.Status != core.HiveDown }

// ended reports whether a worker has ended or is stopping, so that its replica needs another one.
func ended(w core.Worker) bool {
	return w.State == core.WorkerFailed || w.State == core.WorkerRetiring
}

// Model is what is known about a deployment's model.
type Model struct {
	Problem       string // why no worker can serve it; empty: one can
	MinBytes      int64  // least device memory that it works with; 0: unknown
	EstimateBytes int64  // device memory with the model's own context; 0: unknown
	FileBytes     int64  // download size; 0: unknown
	Stored        map[string]bool
	Offered       map[string]bool // ids of the hives that can fetch it; nil: any
}

// Placing is where the replicas of a deployment are to run from now on. It takes effect once the
// registry has it.
type Placing struct {
	Deployment core.Deployment
	Placed     []core.Replica // replicas with index 0 are new
	News       []News         // changes, for display
}

// News is a replica that is added or given up.
type News struct {
	core.Replica
	Stop   bool
	Reason string
	Fit    sched.Fit // for a new replica
}

// Reconcile returns the deployments whose placement changes, and why replicas of others cannot be
// placed. It moves nothing that can stay. A replica is given up when its hive is down or its worker
// has ended. It is replaced, and leaves once its successor serves, when its hive drains or it was
// started for an earlier version. It is dropped when there are too many. A new replica goes where
// it has room beside everything that runs or is starting.
func Reconcile(all []core.Deployment, v View) ([]Placing, []core.DeploymentProblem) {
	r := newReconciler(all, v)
	var out []Placing
	for _, d := range r.inOrder() {
		if p := r.place(d); len(p.News) > 0 || !slices.Equal(p.Placed, d.Placed) {
			out = append(out, p)
		}
	}
	return out, r.problems
}

// reconciler tracks device memory while it places one deployment after the other.
type reconciler struct {
	view     View
	all      []core.Deployment
	hives    map[string]Hive
	workers  map[string]core.Worker // by label
	rooms    []sched.Room           // hives sorted by id; devices with their current free memory
	pending  map[[2]string]bool     // devices, by hive and id, whose worker has yet to start
	problems []core.DeploymentProblem
}

func newReconciler(all []core.Deployment, v View) *reconciler {
	r := &reconciler{view: v, all: slices.Clone(all), hives: map[string]Hive{}, workers: map[string]core.Worker{}, pending: map[[2]string]bool{}}
	v.Hives = slices.SortedFunc(slices.Values(v.Hives), func(a, b Hive) int { return strings.Compare(a.ID, b.ID) })
	for _, h := range v.Hives {
		r.hives[h.ID] = h
		h.Devices = slices.Clone(h.Devices)
		r.rooms = append(r.rooms, sched.Room{Hive: h.Hive, Suspect: h.Suspect, Idle: map[string]int64{}, Busy: map[string]int64{}})
	}
	held := map[[2]string]int64{}
	for _, w := range v.Workers {
		if w.Replica != "" {
			r.workers[w.Replica] = w
		}
		if w.State == core.WorkerFailed {
			continue
		}
		held[[2]string{w.Hive, w.Device}] += w.Load.MemoryBytes
		i := r.room(w.Hive)
		if i < 0 || w.Load.Pinned || !w.Load.Unloads {
			continue // it frees no memory for others
		}
		into := r.rooms[i].Idle
		if w.State != core.WorkerReady || w.Load.Active+w.Load.Queued > 0 {
			into = r.rooms[i].Busy
		}
		into[w.Device] += w.Load.MemoryBytes
		r.rooms[i].Workers++
	}
	for i := range r.rooms {
		for j := range r.rooms[i].Hive.Devices {
			// A loading worker does not hold all of its memory yet.
			d := &r.rooms[i].Hive.Devices[j]
			d.FreeBytes = max(0, min(d.FreeBytes, d.TotalBytes-held[[2]string{r.rooms[i].Hive.ID, d.ID}]))
		}
	}
	for _, d := range r.inOrder() { // each deployment's room depends on the others
		for _, p := range d.Placed {
			if _, there := r.workers[p.Label(d.Name)]; !there && !r.gone(d, p) {
				m := v.Models[d.Model]
				r.take(p.Hive, p.Device, max(m.MinBytes, m.EstimateBytes), m.MinBytes)
			}
		}
	}
	return r
}

// inOrder returns the deployments in the order in which they are placed.
func (r *reconciler) inOrder() []core.Deployment {
	return slices.SortedFunc(slices.Values(r.all), func(a, b core.Deployment) int {
		return cmp.Or(cmp.Compare(b.Priority, a.Priority), strings.Compare(a.Name, b.Name))
	})
}

func (r *reconciler) room(hive string) int {
	return slices.IndexFunc(r.rooms, func(x sched.Room) bool { return x.Hive.ID == hive })
}

// take reserves memory of a device for a worker: what it wants of the free memory, and at least
// what it needs, even if other workers must unload for it.
func (r *reconciler) take(hive, device string, wants, needs int64) {
	i := r.room(hive)
	if i < 0 {
		return
	}
	r.pending[[2]string{hive, device}] = true
	for j := range r.rooms[i].Hive.Devices {
		d := &r.rooms[i].Hive.Devices[j]
		if d.ID != device {
			continue
		}
		free := min(d.FreeBytes, wants)
		d.FreeBytes -= free
		needs -= free
		for _, from := range []map[string]int64{r.rooms[i].Idle, r.rooms[i].Busy} {
			if part := min(needs, from[device]); part > 0 {
				from[device] -= part
				needs -= part
			}
		}
	}
}

// gone reports whether a replica's worker has ended for good, so that no start is pending.
func (r *reconciler) gone(d core.Deployment, p core.Replica) bool {
	h, known := r.hives[p.Hive]
	return !known || !h.up() || r.view.Lost[p.Label(d.Name)] || ended(r.workers[p.Label(d.Name)])
}

// there reports whether the worker of a replica is in the registry.
func (r *reconciler) there(d core.Deployment, p core.Replica) bool {
	_, ok := r.workers[p.Label(d.Name)]
	return ok
}

func (r *reconciler) ready(d core.Deployment, p core.Replica) bool {
	return r.workers[p.Label(d.Name)].State == core.WorkerReady
}

// place decides where the replicas of one deployment run.
func (r *reconciler) place(d core.Deployment) Placing {
	out := Placing{Deployment: d}
	stop := func(p core.Replica, reason string) {
		out.News = append(out.News, News{Replica: p, Stop: true, Reason: reason})
	}
	var stay, leave []core.Replica
	for _, p := range d.Placed {
		switch h := r.hives[p.Hive]; {
		case r.gone(d, p):
			stop(p, r.whyGone(d, p))
		case leaves(d, p, h) && !r.there(d, p):
			stop(p, "it has not started yet, and is to be another one")
		case leaves(d, p, h):
			leave = append(leave, p)
		default:
			stay = append(stay, p)
		}
	}
	// Keep the most useful replicas.
	slices.SortFunc(stay, func(a, b core.Replica) int {
		return cmp.Or(rank(!r.ready(d, a))-rank(!r.ready(d, b)), cmp.Compare(a.Ordinal, b.Ordinal))
	})
	want := d.Wanted()
	for len(stay) > want {
		last := stay[len(stay)-1]
		stop(last, "there are more than wanted")
		stay = stay[:len(stay)-1]
	}
	serving := 0
	for _, p := range stay {
		if r.ready(d, p) {
			serving++
		}
	}
	slices.SortFunc(leave, func(a, b core.Replica) int {
		return cmp.Or(rank(!r.useful(d, a))-rank(!r.useful(d, b)), cmp.Compare(a.Ordinal, b.Ordinal))
	})
	for keep := max(0, want-serving); len(leave) > keep; {
		last := leave[len(leave)-1]
		stop(last, "another one serves in its place")
		leave = leave[:len(leave)-1]
	}
	stay, leave = r.fill(d, want, stay, leave, &out)
	out.Placed = slices.Concat(stay, leave)
	slices.SortFunc(out.Placed, func(a, b core.Replica) int { return cmp.Compare(a.Ordinal, b.Ordinal) })
	return out
}

// leaves reports whether a replica stays only until its successor serves.
func leaves(d core.Deployment, p core.Replica, h Hive) bool {
	return p.Version < d.StartVersion || h.Draining || !allows(d.DeploymentSpec, h.Hive, core.Device{ID: p.Device, Kind: kindOf(h, p.Device)})
}

// useful reports whether a leaving replica still answers requests.
func (r *reconciler) useful(d core.Deployment, p core.Replica) bool {
	return r.ready(d, p) && !r.hives[p.Hive].Draining
}

func (r *reconciler) whyGone(d core.Deployment, p core.Replica) string {
	switch h, known := r.hives[p.Hive]; {
	case !known:
		return "its hive is no longer in the cluster"
	case !h.up():
		return "its hive is down"
	}
	return "its worker has ended, or did not start"
}

// fill adds the missing replicas. Where a new one finds no room, a leaving replica gives up its
// own.
func (r *reconciler) fill(d core.Deployment, want int, stay, leave []core.Replica, out *Placing) (stays, leaves []core.Replica) {
	for len(stay) < want {
		fit, problem := r.choose(d, append(slices.Clone(stay), leave...))
		if problem != nil {
			problem.Missing = want - len(stay)
			if i := r.makesRoom(d, leave, append(slices.Clone(stay), leave...)); i >= 0 {
				out.News = append(out.News, News{Replica: leave[i], Stop: true, Reason: "its successor needs its room"})
				leave = slices.Delete(leave, i, i+1)
			}
			r.problems = append(r.problems, *problem)
			break
		}
		p := core.Replica{Ordinal: unused(stay, leave, d.Placed), Version: d.Version, Hive: fit.Hive.ID, Device: fit.Device}
		m := r.view.Models[d.Model]
		r.take(p.Hive, p.Device, fit.TakesBytes, m.MinBytes)
		stay = append(stay, p)
		out.News = append(out.News, News{Replica: p, Fit: fit})
	}
	return stay, leave
}

// unused returns the lowest free ordinal.
func unused(lists ...[]core.Replica) int {
	taken := map[int]bool{}
	for _, p := range slices.Concat(lists...) {
		taken[p.Ordinal] = true
	}
	n := 0
	for taken[n] {
		n++
	}
	return n
}

// choose returns the device for another replica: one with room, on the hive that has the fewest
// replicas of the deployment.
func (r *reconciler) choose(d core.Deployment, has []core.Replica) (sched.Fit, *core.DeploymentProblem) {
	m := r.view.Models[d.Model]
	if m.Problem != "" {
		return sched.Fit{}, &core.DeploymentProblem{Deployment: d.Name, Reason: m.Problem, Lacks: []core.DeviceLack{}}
	}
	var rooms []sched.Room
	var refused []sched.Refusal
	for _, room := range r.rooms {
		name := cmp.Or(room.Hive.Name, room.Hive.ID)
		room.HasModel = m.Stored[room.Hive.ID]
		switch why := r.view.Rests[d.Name][room.Hive.ID]; {
		case !room.HasModel && m.Offered != nil && !m.Offered[room.Hive.ID]:
			refused = append(refused, sched.Refusal{Name: name, Reason: "does not have the model and cannot fetch it"})
		case !allowsHive(d.DeploymentSpec, room.Hive):
			refused = append(refused, sched.Refusal{Name: name, Reason: "is not among the hives of the deployment"})
		case why != "":
			refused = append(refused, sched.Refusal{Name: name, Reason: "did not start it lately: " + why})
		default:
			rooms = append(rooms, room)
		}
	}
	demand := sched.Demand{Model: d.Model, Type: d.Type, MinBytes: m.MinBytes, EstimateBytes: m.EstimateBytes}
	fits, more, lacks := sched.Fits(demand, rooms, func(h core.Hive, dev core.Device) bool { return allows(d.DeploymentSpec, h, dev) })
	// A worker that takes all free memory would take that of workers that are starting.
	greedy := func(f sched.Fit) bool { return !f.Whole() && r.pending[[2]string{f.Hive.ID, f.Device}] }
	for _, f := range fits {
		if greedy(f) {
			more = append(more, sched.Refusal{Name: cmp.Or(f.Hive.Name, f.Hive.ID), Reason: "has room on " + f.Device + " when other workers have loaded there"})
		}
	}
	if fits = slices.DeleteFunc(fits, greedy); len(fits) == 0 {
		return sched.Fit{}, problemOf(d, append(refused, more...), lacks)
	}
	count := map[string]int{}
	for _, p := range has {
		count[p.Hive]++
	}
	return slices.MinFunc(fits, func(a, b sched.Fit) int {
		return cmp.Or(rank(a.Unloads())-rank(b.Unloads()), cmp.Compare(count[a.Hive.ID], count[b.Hive.ID]), a.Compare(b))
	}), nil
}

func problemOf(d core.Deployment, refused []sched.Refusal, lacks []sched.Lack) *core.DeploymentProblem {
	slices.SortFunc(refused, func(a, b sched.Refusal) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Reason, b.Reason))
	})
	p := &core.DeploymentProblem{Deployment: d.Name, Lacks: []core.DeviceLack{}}
	var reasons []string
	for _, x := range refused {
		if x.MissingBytes == 0 { // the other devices are included in what is missing
			reasons = append(reasons, x.Name+" "+x.Reason)
		}
	}
	for _, l := range lacks {
		p.Lacks = append(p.Lacks, core.DeviceLack{Hive: l.Hive, Device: l.Device, NeedBytes: l.NeedBytes, FreeBytes: l.RoomBytes, MissingBytes: l.MissingBytes})
		reasons = append(reasons, fmt.Sprintf("%s of %s lacks %s", l.Device, l.Hive, mib(l.MissingBytes)))
	}
	if p.Reason = strings.Join(reasons, "; "); p.Reason == "" {
		p.Reason = "there is no hive"
	}
	return p
}

// mib formats a size in MiB, rounded up so that a missing amount is never 0.
func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

// makesRoom returns the index of the leaving replica whose end makes room for its successor; -1:
// none.
func (r *reconciler) makesRoom(d core.Deployment, leave, has []core.Replica) int {
	for label := range r.workers {
		if core.DeploymentOf(label) == d.Name && !slices.ContainsFunc(d.Placed, func(p core.Replica) bool { return p.Label(d.Name) == label }) {
			return -1 // one is already stopping
		}
	}
	for i, p := range slices.Backward(leave) {
		at := r.room(p.Hive)
		w, there := r.workers[p.Label(d.Name)]
		if at < 0 || !there || r.hives[p.Hive].Draining {
			continue // its memory elsewhere does not help
		}
		try := *r
		try.rooms = slices.Clone(r.rooms)
		devices := slices.Clone(try.rooms[at].Hive.Devices)
		for j := range devices {
			if devices[j].ID == w.Device {
				devices[j].FreeBytes = min(devices[j].FreeBytes+w.Load.MemoryBytes, max(devices[j].TotalBytes, devices[j].FreeBytes))
			}
		}
		try.rooms[at].Hive.Devices = devices
		if _, problem := try.choose(d, has); problem == nil {
			return i
		}
	}
	return -1
}

// allows reports whether a deployment may use a device of a hive. A device without an id stands for
// one that the hive has not reported.
func allows(s core.DeploymentSpec, h core.Hive, dev core.Device) bool {
	return allowsHive(s, h) && (len(s.Devices) == 0 || dev.ID != "" && (slices.Contains(s.Devices, dev.ID) || slices.Contains(s.Devices, dev.Kind)))
}

func allowsHive(s core.DeploymentSpec, h core.Hive) bool {
	return len(s.Hives) == 0 || slices.Contains(s.Hives, h.ID) || slices.Contains(s.Hives, h.Name)
}

func kindOf(h Hive, device string) string {
	for _, d := range h.Devices {
		if d.ID == device {
			return d.Kind
		}
	}
	return ""
}

func rank(bad bool) int {
	if bad {
		return 1
	}
	return 0
}
