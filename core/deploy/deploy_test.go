package deploy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/deploy"
)

const mb = int64(1) << 20

// world is a simulated cluster: hives that load and stop workers, and a registry that accepts
// decisions.
type world struct {
	t       *testing.T
	rnd     *rand.Rand
	index   uint64
	all     []core.Deployment
	hives   []deploy.Hive // with the total sizes of their devices
	workers []core.Worker
	loads   map[string]int // ticks until a worker is ready, by id
	models  map[string]deploy.Model
	lost    map[string]bool
	starts  map[string]int // by label
	strict  bool           // every start must find its promised memory
}

func newWorld(t *testing.T, seed uint64) *world {
	w := &world{
		t: t, rnd: rand.New(rand.NewPCG(seed, 17)), loads: map[string]int{}, lost: map[string]bool{}, starts: map[string]int{}, models: map[string]deploy.Model{},
	}
	for i := range 1 + w.rnd.IntN(6) {
		h := deploy.Hive{Hive: core.Hive{ID: fmt.Sprint("h", i), Name: fmt.Sprint("name", i), Status: core.HiveReady, WorkerTypes: []string{"cpu"}}}
		for j := range 1 + w.rnd.IntN(3) {
			h.Devices = append(h.Devices, core.Device{ID: fmt.Sprint("cpu:", j), Kind: "cpu", TotalBytes: mb * int64(50+w.rnd.IntN(200))})
		}
		w.hives = append(w.hives, h)
	}
	for i := range 3 {
		m := deploy.Model{MinBytes: mb * int64(10+w.rnd.IntN(60)), Stored: map[string]bool{}}
		m.EstimateBytes = m.MinBytes + mb*int64(w.rnd.IntN(20))
		for _, h := range w.hives {
			m.Stored[h.ID] = w.rnd.IntN(2) == 0
		}
		w.models[fmt.Sprint("m", i)] = m
	}
	return w
}

// held returns the memory of a device that workers hold.
func (w *world) held(hive, device string) (all int64) {
	for _, x := range w.workers {
		if x.Hive == hive && x.Device == device {
			all += x.Load.MemoryBytes
		}
	}
	return all
}

// view returns the cluster as reported, in random order.
func (w *world) view() deploy.View {
	v := deploy.View{Models: w.models, Lost: w.lost, Workers: slices.Clone(w.workers)}
	for _, h := range w.hives {
		h.Devices = slices.Clone(h.Devices)
		for i := range h.Devices {
			d := &h.Devices[i]
			d.FreeBytes = d.TotalBytes
			for _, x := range w.workers {
				if x.Hive == h.ID && x.Device == d.ID {
					if d.FreeBytes -= x.Load.MemoryBytes; w.loads[x.ID] > 0 {
						d.FreeBytes += x.Load.MemoryBytes / 2 // it has not allocated everything yet
					}
				}
			}
		}
		v.Hives = append(v.Hives, h)
	}
	w.rnd.Shuffle(len(v.Hives), func(i, j int) { v.Hives[i], v.Hives[j] = v.Hives[j], v.Hives[i] })
	w.rnd.Shuffle(len(v.Workers), func(i, j int) { v.Workers[i], v.Workers[j] = v.Workers[j], v.Workers[i] })
	return v
}

func (w *world) shuffled() []core.Deployment {
	all := slices.Clone(w.all)
	w.rnd.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	return all
}

// step decides, applies what is due, and advances time. It reports whether there was anything to
// do.
func (w *world) step() bool {
	v := w.view()
	placings, problems := deploy.Reconcile(w.shuffled(), v)
	again, moreProblems := deploy.Reconcile(w.shuffled(), w.view()) // as another queen would decide
	must.Eq(w.t, problems, moreProblems)
	must.Eq(w.t, placings, again)
	for _, p := range placings {
		w.index++
		i := slices.IndexFunc(w.all, func(d core.Deployment) bool { return d.Name == p.Deployment.Name })
		for j := range p.Placed {
			if p.Placed[j].Index == 0 {
				p.Placed[j].Index = w.index
			}
		}
		w.all[i].Placed = p.Placed
		must.LessEq(w.t, 2*core.MaxReplicas, len(p.Placed))
	}
	starts, stops := deploy.Due(w.all, w.view())
	for _, s := range starts {
		if w.rnd.IntN(3) > 0 { // the others are still downloading
			w.start(s)
		}
	}
	for _, x := range stops {
		w.workers = slices.DeleteFunc(w.workers, func(y core.Worker) bool { return y.ID == x.ID })
	}
	for i := range w.workers {
		if id := w.workers[i].ID; w.loads[id] > 0 {
			if w.loads[id]--; w.loads[id] == 0 {
				w.workers[i].State = core.WorkerReady
			}
		}
	}
	return len(placings)+len(starts)+len(stops) > 0
}

// start loads a worker and unloads others for it, as a hive does. Some starts fail.
func (w *world) start(s deploy.Start) {
	label := s.Label()
	w.starts[label]++
	must.EqOp(w.t, 1, w.starts[label], must.Sprint("started twice: "+label))
	if !w.strict && w.rnd.IntN(8) == 0 {
		w.lost[label] = true
		return
	}
	h := w.hives[slices.IndexFunc(w.hives, func(h deploy.Hive) bool { return h.ID == s.Hive })]
	total := h.Devices[slices.IndexFunc(h.Devices, func(d core.Device) bool { return d.ID == s.Device })].TotalBytes
	m := w.models[s.Deployment.Model]
	for total-w.held(s.Hive, s.Device) < m.MinBytes {
		i := slices.IndexFunc(w.workers, func(x core.Worker) bool {
			return x.Hive == s.Hive && x.Device == s.Device && x.Load.Unloads
		})
		must.GreaterEq(w.t, 0, i, must.Sprintf("over-committed: %s on %s %s", label, s.Hive, s.Device))
		w.workers = slices.Delete(w.workers, i, i+1)
	}
	x := core.Worker{ID: "w-" + label, Hive: s.Hive, Device: s.Device, State: core.WorkerLoading, Replica: label, Model: s.Deployment.Model}
	x.Load.Pinned, x.Load.MemoryBytes = true, min(m.EstimateBytes, total-w.held(s.Hive, s.Device))
	w.loads[x.ID] = 1 + w.rnd.IntN(3)
	w.workers = append(w.workers, x)
}

// settle steps until nothing is left to do.
func (w *world) settle() {
	w.t.Helper()
	quiet := 0
	for range 400 {
		if quiet++; w.step() {
			quiet = 0
		}
		if quiet > 5 { // loading takes fewer steps than this
			return
		}
	}
	w.t.Fatal("it does not converge")
}

// fail takes a hive down. Its workers end, and any further start there fails.
func (w *world) fail(h *deploy.Hive) {
	h.Status = core.HiveDown
	w.workers = slices.DeleteFunc(w.workers, func(x core.Worker) bool {
		if x.Hive == h.ID && x.Replica != "" {
			w.lost[x.Replica] = true
		}
		return x.Hive == h.ID
	})
}

// happen changes the cluster or a deployment at random.
func (w *world) happen() {
	h := &w.hives[w.rnd.IntN(len(w.hives))]
	switch w.rnd.IntN(7) {
	case 0:
		w.fail(h)
	case 1:
		h.Status, h.Draining, h.Suspect = core.HiveReady, false, false
	case 2:
		h.Draining = !h.Draining
	case 3:
		h.Suspect = !h.Suspect
	case 4: // an on-demand worker, which can be unloaded
		d := h.Devices[w.rnd.IntN(len(h.Devices))]
		x := core.Worker{ID: fmt.Sprint("r", w.rnd.Uint64()), Hive: h.ID, Device: d.ID, State: core.WorkerReady}
		x.Load.Unloads, x.Load.MemoryBytes = true, mb*int64(1+w.rnd.IntN(80))
		if h.Status == core.HiveReady && d.TotalBytes-w.held(h.ID, d.ID)-w.promised(h.ID, d.ID) >= x.Load.MemoryBytes {
			w.workers = append(w.workers, x)
		}
	default:
		s := core.DeploymentSpec{Name: fmt.Sprint("d", w.rnd.IntN(4)), Model: fmt.Sprint("m", w.rnd.IntN(3)), Replicas: w.rnd.IntN(5), Priority: w.rnd.IntN(3)}
		if w.rnd.IntN(4) == 0 {
			s.Devices = []string{"cpu:0"}
		}
		if w.rnd.IntN(4) == 0 {
			s.Hives = []string{"h0", "name1", "h2"}
		}
		w.want(s, w.rnd.IntN(6) == 0)
	}
}

// promised returns the memory of a device that starting replicas may take.
func (w *world) promised(hive, device string) (all int64) {
	for _, d := range w.all {
		for _, p := range d.Placed {
			if p.Hive == hive && p.Device == device {
				all += w.models[d.Model].EstimateBytes
			}
		}
	}
	return all
}

func (w *world) want(s core.DeploymentSpec, stopped bool) {
	i := slices.IndexFunc(w.all, func(d core.Deployment) bool { return d.Name == s.Name })
	if i < 0 {
		w.all = append(w.all, core.Deployment{Placed: []core.Replica{}})
		i = len(w.all) - 1
	}
	w.index++
	w.all[i], _ = w.all[i].Change(s, stopped, w.all[i].ChangedAt)
}

// labels returns the labels of the serving replicas, by hive.
func (w *world) labels() map[string]string {
	out := map[string]string{}
	for _, d := range w.all {
		for _, p := range d.Placed {
			out[p.Label(d.Name)] = p.Hive
		}
	}
	return out
}

// For any history of a random cluster, no device is over-committed, no replica is started twice,
// and all queens decide the same. Once it settles, every deployment has the wanted number of
// workers or a problem that explains why not.
func TestReconcileProperties(t *testing.T) {
	t.Parallel()
	missing, full := 0, 0
	for seed := range uint64(60) {
		w := newWorld(t, seed)
		for range 40 {
			w.happen()
			for range w.rnd.IntN(4) {
				w.step()
			}
		}
		w.strict = true // starts no longer fail
		w.settle()
		must.False(t, w.step(), must.Sprint("it is at rest"))
		_, problems := deploy.Reconcile(w.all, w.view())
		for _, d := range w.all {
			s := deploy.Status(d, w.view(), problems)
			left := 0
			for _, p := range s.Problems {
				left += p.Missing
				must.NotEq(t, "", p.Reason)
			}
			stay := 0
			for _, r := range s.Workers {
				if !r.Leaving {
					stay++
				}
			}
			must.EqOp(t, d.Wanted(), stay+left, must.Sprintf("seed %d: %+v", seed, s))
			if missing += left; left == 0 {
				full++
				must.EqOp(t, d.Wanted(), s.Ready, must.Sprintf("seed %d: %+v", seed, s))
				must.Len(t, d.Wanted(), s.Workers, must.Sprint("those that leave are gone"))
			}
		}
		for _, h := range w.hives {
			for _, d := range h.Devices {
				must.LessEq(t, d.TotalBytes, w.held(h.ID, d.ID), must.Sprint("seed", seed))
			}
		}
	}
	must.Between(t, 20, missing, 1000) // both outcomes occur
	must.Greater(t, 60, full)
}

// Losing a hive moves only what ran there; its return moves nothing.
func TestReconcileMovesLittle(t *testing.T) {
	t.Parallel()
	moved := 0
	for seed := range uint64(50) {
		w := newWorld(t, seed)
		w.strict = true
		for i := range 3 {
			w.want(core.DeploymentSpec{Name: fmt.Sprint("d", i), Model: fmt.Sprint("m", i), Replicas: 1 + w.rnd.IntN(3)}, false)
		}
		w.settle()
		before := w.labels()
		h := &w.hives[w.rnd.IntN(len(w.hives))]
		w.fail(h)
		w.settle()
		after := w.labels()
		for label, hive := range before {
			_, still := after[label]
			must.EqOp(t, hive != h.ID, still, must.Sprintf("seed %d: %s on %s", seed, label, hive))
		}
		for label, hive := range after {
			if _, old := before[label]; !old {
				moved++
				must.NotEq(t, h.ID, hive)
			}
		}
		h.Status = core.HiveReady
		w.settle()
		for label := range after {
			must.MapContainsKey(t, w.labels(), label)
		}
	}
	must.Greater(t, 10, moved)
}
