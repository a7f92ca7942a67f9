// Package deploy decides where the replicas of deployments run: pure functions of what somebody
// wants, what was decided before, and what the cluster is like. The same arguments, in whatever
// order their lists are, give the same decision.
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
	Workers []core.Worker    // with their loads
	Models  map[string]Model // by DeploymentSpec.Model
	// Lost are the labels of replicas whose worker has ended, or did not start.
	Lost map[string]bool
	// Rests are the hives that did not start a deployment's worker lately, and why: another hive is
	// chosen, or, where there is none, it waits.
	Rests map[string]map[string]string
}

// Hive is a hive of the registry, with what it told of its devices.
type Hive struct {
	core.Hive
	Suspect bool
}

func (h Hive) up() bool { return h.Status != core.HiveDown }

// ended reports whether a worker is no more, or is on its way out: a replica needs another one.
func ended(w core.Worker) bool {
	return w.State == core.WorkerFailed || w.State == core.WorkerRetiring
}

// Model is what is known of a deployment's model.
type Model struct {
	Problem       string // why no worker can have it; empty: one can
	MinBytes      int64  // of device memory without which it does not work; 0: unknown
	EstimateBytes int64  // with the model's own context; 0: unknown
	FileBytes     int64  // to download; 0: unknown
	Stored        map[string]bool
	Offered       map[string]bool // ids of the hives that can fetch it; nil: any
}

// Placing is where the replicas of a deployment are to run from now on. It is in force once the
// registry has it.
type Placing struct {
	Deployment core.Deployment
	Placed     []core.Replica // those with the index 0 are new
	News       []News         // what differs, for people
}

// News is a replica that is new, or is given up.
type News struct {
	core.Replica
	Stop   bool
	Reason string
	Fit    sched.Fit // of a new one
}

// Reconcile returns the deployments whose replicas are to run elsewhere than decided before, and
// why others find no place. It moves nothing that can stay: a replica is given up when its hive is
// down or its worker has ended; it leaves, once another one serves in its place, when its hive
// drains or it was started for an earlier version; and it goes when there are too many. A new one
// goes where it has room beside everything that is there or on its way.
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

// reconciler keeps account of the memory while one deployment after the other is placed.
type reconciler struct {
	view     View
	all      []core.Deployment
	hives    map[string]Hive
	workers  map[string]core.Worker // by label
	rooms    []sched.Room           // of the hives, in the order of their ids; devices with what is free now
	pending  map[[2]string]bool     // devices, by hive and id, on which a worker is to be that is not there yet
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
			continue // it makes no room
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
			// A worker that loads does not hold all that it will.
			d := &r.rooms[i].Hive.Devices[j]
			d.FreeBytes = max(0, min(d.FreeBytes, d.TotalBytes-held[[2]string{r.rooms[i].Hive.ID, d.ID}]))
		}
	}
	for _, d := range r.inOrder() { // what is left for one depends on the others
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

// take notes that a worker is to have memory of a device: as much as it wants of what is free, and
// at least what it needs, if workers must unload for it.
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

// gone reports whether a replica is no more: it is not waited for.
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
	// The most useful ones stay.
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

// leaves reports whether a replica stays only until another one serves in its place.
func leaves(d core.Deployment, p core.Replica, h Hive) bool {
	return p.Version < d.StartVersion || h.Draining || !allows(d.DeploymentSpec, h.Hive, core.Device{ID: p.Device, Kind: kindOf(h, p.Device)})
}

// useful reports whether a replica that leaves answers requests yet.
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

// fill adds the replicas that lack. Where one finds no room, a replica that leaves gives up its
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

// unused returns the lowest ordinal that no replica has.
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

// choose returns the device for a further replica: one with room, on the hive that has the fewest
// of the deployment's.
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
	// A worker that takes whatever is free would take the memory of those that are on their way.
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
		if x.MissingBytes == 0 { // the others are among what the devices lack
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

// mib is a size in MiB, rounded up: what is missing is never 0.
func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

// makesRoom returns the leaving replica whose end makes room for its successor; -1: none does.
func (r *reconciler) makesRoom(d core.Deployment, leave, has []core.Replica) int {
	for label := range r.workers {
		if core.DeploymentOf(label) == d.Name && !slices.ContainsFunc(d.Placed, func(p core.Replica) bool { return p.Label(d.Name) == label }) {
			return -1 // one is on its way out
		}
	}
	for i, p := range slices.Backward(leave) {
		at := r.room(p.Hive)
		w, there := r.workers[p.Label(d.Name)]
		if at < 0 || !there || r.hives[p.Hive].Draining {
			continue // elsewhere it is of no use
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

// allows reports whether a deployment may use a device of a hive. A device without an id is one
// that the hive has not told of.
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
