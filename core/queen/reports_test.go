package queen

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/queen/liveness"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// mustFail checks that err has the kind, contains the parts, and has a hint.
func mustFail(t *testing.T, err error, kind core.Kind, parts ...string) {
	t.Helper()
	must.Error(t, err)
	must.Eq(t, kind, core.KindOf(err), must.Sprint(err))
	hint := core.HintOf(err)
	must.NotEq(t, "", hint, must.Sprintf("no hint: %v", err))
	for _, p := range parts {
		must.StrContains(t, err.Error()+" | "+hint, p)
	}
}

func TestSteadyClusterWritesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		var hives []*fakeHive
		for _, id := range []string{"h1", "h2", "h3"} {
			h := c.newHive(id)
			h.addWorker(id+"-a", "m", core.WorkerReady)
			h.addWorker(id+"-b", "m", core.WorkerReady)
			hives = append(hives, h)
			must.Eq(t, liveness.ReportInterval, h.mustBeat().GetNext().AsDuration())
		}
		index := c.node.AppliedIndex()
		for i := range 100 {
			for _, h := range hives {
				// Load, free memory, confinement and the order of lists do not change the registry.
				h.change(func(h *fakeHive) {
					h.hive.Devices[0].FreeBytes, h.hive.Unconfined = int64(i), fmt.Sprint("reason ", i)
					h.hive.Problems, h.hive.Probing = []string{fmt.Sprint("problem ", i)}, i%2 == 1
					h.workers[0].Load = core.Load{Active: i, Queued: 1, TokensPerSecond: 3, TokensTotal: int64(i), KVUsedTokens: i}
					h.workers[0], h.workers[1] = h.workers[1], h.workers[0]
				})
				h.mustBeat()
			}
			time.Sleep(liveness.ReportInterval)
		}
		must.Eq(t, index, c.node.AppliedIndex())

		// Answers contain what the last beat reported.
		h, err := c.q.hives.Named(t.Context(), "h1")
		must.NoError(t, err)
		must.Eq(t, 99, h.Devices[0].FreeBytes)
		must.Eq(t, "reason 99", h.Unconfined)
		must.Eq(t, []string{"problem 99"}, h.Problems)
		must.True(t, h.Probing)
		status, err := c.q.Status(t.Context())
		must.NoError(t, err)
		must.SliceContains(t, status.Problems, "hive "+h.Name+": problem 99")
		must.Eq(t, time.Now().Add(-liveness.ReportInterval), h.LastBeat)
		w, err := c.q.hives.Worker(t.Context(), "h1-b")
		must.NoError(t, err)
		must.Eq(t, 99, w.Load.Active)
		must.False(t, w.Load.At.IsZero())

		// Every real change is one write.
		for _, tc := range []struct {
			name   string
			change func(h *fakeHive)
		}{
			{"worker state", func(h *fakeHive) { h.workers[0].State = core.WorkerFailed }},
			{"worker nonce", func(h *fakeHive) { h.workers[0].Nonce = "another" }},
			{"another model", func(h *fakeHive) { h.workers[0].Model += "x" }},
			{"worker gone", func(h *fakeHive) { h.workers = h.workers[1:] }},
			{"device", func(h *fakeHive) { h.hive.Devices[0].Problem = "too hot\nreally" }},
			{"no devices", func(h *fakeHive) { h.hive.Devices = nil }},
			{"name", func(h *fakeHive) { h.hive.Name = "renamed" }},
			{"incarnation", func(h *fakeHive) { h.hive.Incarnation++ }},
			{"worker type", func(h *fakeHive) { h.hive.WorkerTypes = []string{"cuda", "cpu"} }},
		} {
			index = c.node.AppliedIndex()
			hives[0].change(tc.change)
			for range 3 {
				hives[0].mustBeat()
			}
			must.Eq(t, index+1, c.node.AppliedIndex(), must.Sprint(tc.name))
		}
	})
}

func TestReportIsRefused(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.addWorker("w1", "m", core.WorkerReady)
		h.change(func(h *fakeHive) { h.hive.Incarnation = 7 })
		h.mustBeat()
		index := c.node.AppliedIndex()
		for _, tc := range []struct {
			name   string
			change func(r *queenv1.LinkRequest)
			kind   core.Kind
			says   string
		}{
			{"an older start", func(r *queenv1.LinkRequest) { r.Hive.Incarnation = 6 }, core.Conflict, "start 7 is registered"},
			{"nothing", func(r *queenv1.LinkRequest) { r.Reset() }, core.Invalid, "hive id is empty"},
			{"no id", func(r *queenv1.LinkRequest) { r.Hive.Id = "" }, core.Invalid, "hive id is empty"},
			{"a long id", func(r *queenv1.LinkRequest) { r.Hive.Id = strings.Repeat("x", 200) }, core.Invalid, "hive id"},
			{"an id with a line break", func(r *queenv1.LinkRequest) { r.Hive.Id = "a\nb" }, core.Invalid, "control"},
			{"no worker id", func(r *queenv1.LinkRequest) { r.Workers[0].Id = "" }, core.Invalid, "worker id"},
			{"no nonce", func(r *queenv1.LinkRequest) { r.Workers[0].Nonce = "" }, core.Invalid, "nonce"},
			{"a worker twice", func(r *queenv1.LinkRequest) { r.Workers = append(r.Workers, r.Workers[0]) }, core.Invalid, "nonce"},
			{"an unknown state", func(r *queenv1.LinkRequest) { r.Workers[0].State = "asleep" }, core.Invalid, "asleep"},
			{"negative slots", func(r *queenv1.LinkRequest) { r.Workers[0].Slots = -1 }, core.Invalid, "slots"},
			{"negative load", func(r *queenv1.LinkRequest) { r.Workers[0].Load.Active = -1 }, core.Invalid, "-1"},
		} {
			h.hangUp()
			for _, second := range []bool{false, true} { // as the first report of a link, and as a later one
				l, err := openLine(c.server)
				must.NoError(t, err, must.Sprint(tc.name))
				if second {
					_, err = l.await(t.Context(), l.send(h.reportLocked()))
					must.NoError(t, err, must.Sprint(tc.name))
				}
				r := h.reportLocked()
				tc.change(r)
				_, err = l.await(t.Context(), l.send(r))
				if id := r.GetHive().GetId(); second && id != "" && (id != "h1" || r.GetHive().GetIncarnation() != 7) {
					mustFail(t, err, core.Invalid, "the link of hive h1, start 7, tells of") // and of no other
				} else {
					mustFail(t, err, tc.kind, tc.says)
				}
				l.close()
			}
		}
		must.Eq(t, index, c.node.AppliedIndex())
	})
}

func TestSilentHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h, other := c.newHive("h1"), c.newHive("h2")
		h.addWorker("w1", "m", core.WorkerReady)
		other.addWorker("w2", "other", core.WorkerReady)
		stop := other.keepBeating()
		h.mustBeat()
		time.Sleep(10 * time.Millisecond)
		h.mustBeat()
		status := func() core.HiveStatus {
			got, err := c.q.hives.Named(t.Context(), "h1")
			must.NoError(t, err)
			return got.Status
		}
		// A missed beat plus the grace: suspect, in memory only.
		index := c.node.AppliedIndex()
		time.Sleep(liveness.ReportInterval + liveness.SuspectGrace - time.Millisecond)
		must.Eq(t, core.HiveReady, status())
		time.Sleep(2 * time.Millisecond)
		must.Eq(t, core.HiveSuspect, status())
		must.Eq(t, index, c.node.AppliedIndex())
		ws := c.q.Registry.View().WorkersOfModel(nil, "m")
		must.Len(t, 1, ws)
		why, _ := c.q.liveness.Hive("h1").Avoid(&ws[0])
		must.Eq(t, "its hive is silent", why)

		// A beat restores everything.
		h.mustBeat()
		must.Eq(t, core.HiveReady, status())
		must.Eq(t, index, c.node.AppliedIndex())

		// After the TTL and its grace: down, and the workers removed.
		time.Sleep(liveness.DownAlone - time.Millisecond)
		must.Eq(t, core.HiveSuspect, status())
		must.Len(t, 2, c.q.hives.Workers())
		time.Sleep(2 * time.Millisecond)
		must.Eq(t, core.HiveDown, status())
		must.Len(t, 1, c.q.hives.Workers())
		must.Eq(t, index+1, c.node.AppliedIndex())
		got, err := c.q.hives.Named(t.Context(), "h1")
		must.NoError(t, err)
		must.Eq(t, liveness.DownAlone+time.Millisecond, time.Since(got.LastBeat))

		// It returns completely.
		time.Sleep(10 * time.Millisecond)
		h.mustBeat()
		must.Eq(t, core.HiveReady, status())
		must.Len(t, 2, c.q.hives.Workers())
		must.Eq(t, index+2, c.node.AppliedIndex())

		// A hive that is down for long is forgotten, unless it returned meanwhile.
		stop()
		time.Sleep(liveness.ForgetAfter)
		must.Len(t, 2, c.q.hives.List())
		other.mustBeat()
		time.Sleep(liveness.DownAlone + time.Second)
		_, err = c.q.hives.Named(t.Context(), "h1")
		mustFail(t, err, core.NotFound)
		must.Len(t, 1, c.q.hives.List())
		must.Nil(t, c.q.liveness.Hive("h1").Report)
	})
}

// A leader that has just started has received no reports: every hive gets time to find it.
func TestLinkGrace(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, dir)
		h := c.newHive("h1")
		h.addWorker("w1", "m", core.WorkerReady)
		h.mustBeat()
		h2 := c.newHive("h2")
		h2.mustBeat()
		c.stop()

		c = newCluster(t, dir)
		started := time.Now()
		h2 = c.newHive("h2")
		h2.keepBeating()
		status := func() core.HiveStatus {
			got, err := c.q.hives.Named(t.Context(), "h1")
			must.NoError(t, err)
			return got.Status
		}
		time.Sleep(liveness.LinkGrace - time.Second)
		must.Eq(t, core.HiveReady, status())
		must.Eq(t, []string{"w1"}, c.mustPick("m"))
		time.Sleep(time.Until(started.Add(liveness.LinkGrace + 100*time.Millisecond)))
		must.Eq(t, core.HiveDown, status())
		must.Len(t, 0, c.q.hives.Workers())
	})
}

// Every queen accepts reports; only the leader confirms that the registry has them.
func TestReportNotLeading(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		h.addWorker("w1", "m", core.WorkerReady)
		must.True(t, h.mustBeat().GetRegistered())
		c.q.liveness.StepDown()
		index := c.node.AppliedIndex()
		h.change(func(h *fakeHive) {
			h.workers[0].Load.Active = 3
			h.workers[0].Slots = 8
		})
		must.False(t, h.mustBeat().GetRegistered())
		w, err := c.q.hives.Worker(t.Context(), "w1")
		must.NoError(t, err)
		must.Eq(t, 3, w.Load.Active)
		must.Eq(t, 4, w.Slots)
		must.Eq(t, index, c.node.AppliedIndex())

		// When it leads again, it already has the reports: no hive has to report first.
		c.q.liveness.TakeOver()
		resp, err := h.line.await(t.Context(), h.line.seq)
		must.NoError(t, err)
		must.True(t, resp.GetRegistered())
		must.Eq(t, index+1, c.node.AppliedIndex())
		w, err = c.q.hives.Worker(t.Context(), "w1")
		must.NoError(t, err)
		must.Eq(t, 8, w.Slots)
	})
}

// A hive reports the worker id of another hive while that one is briefly down. Both are served:
// neither's report is refused, and each worker is found by its hive.
func TestHiveTakesWorkerID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		victim, thief := c.newHive("h1"), c.newHive("h2")
		victim.addWorker("w1", "tiny", core.WorkerReady)
		victim.addWorker("w2", "tiny", core.WorkerReady)
		thief.addWorker("w1", "tiny", core.WorkerReady)
		thief.change(func(h *fakeHive) { h.workers[0].Nonce = "copied" })
		victim.mustBeat()
		must.NoError(t, c.q.Registry.Write(t.Context(), "", fsm.SetHiveStatus("h1", core.HiveDown, 0)))
		thief.keepBeating()
		must.Len(t, 1, c.q.Registry.View().Workers(nil))
		victim.keepBeating()
		c.eventually("all workers are there", func() bool { return len(c.q.Registry.View().Workers(nil)) == 3 })
		h, err := c.q.hives.Named(t.Context(), "h1")
		must.NoError(t, err)
		must.Eq(t, core.HiveReady, h.Status)
		must.Len(t, 3, c.q.Registry.View().WorkersOfModel(nil, "tiny")) // what routing uses

		_, err = c.q.hives.Worker(t.Context(), "w1")
		mustFail(t, err, core.Conflict, "2 hives")
		_, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpActiveWorkerRetire, Worker: "w1"}, false)
		mustFail(t, err, core.Conflict, "2 hives")
		_, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpActiveWorkerRetire, Worker: "w1", Hive: "h2"}, false)
		must.NoError(t, err)
		kept, ok := c.q.Registry.View().Worker(nil, "h1", "w1")
		must.True(t, ok)
		must.Eq(t, core.WorkerReady, kept.State)
		w, ok := c.q.Registry.View().Worker(nil, "h2", "w1")
		must.True(t, ok)
		must.Eq(t, core.WorkerRetiring, w.State)
	})
}
