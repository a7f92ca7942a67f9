package queen

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

func TestSubmit(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		download := core.Request{Operation: core.OpModelDownload, Model: "builtin:m"}
		_, err := c.q.Jobs.Submit(t.Context(), download, false)
		mustFail(t, err, core.Unavailable, "no hive has joined")
		_, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpModelDownload, Model: "x", PID: 1}, false)
		mustFail(t, err, core.Invalid, `no field "pid"`)

		h := c.newHive("h1")
		h.run = func(_ context.Context, r core.Request, run *job.Run) (any, error) {
			run.Log("doing %s", r.Operation)
			return map[string]string{"model": r.Model}, nil
		}
		h.mustBeat()
		j, err := c.q.Jobs.Submit(t.Context(), download, false)
		must.NoError(t, err)
		must.Eq(t, "h1", j.Hive)
		must.Eq(t, core.OpModelDownload, j.Operation)

		// Its events, from the start, from the middle, and for a reader that has all of them.
		var kinds []core.EventKind
		emit := func(e core.Event) error { kinds = append(kinds, e.Kind); return nil }
		must.NoError(t, c.q.Jobs.Events(t.Context(), j.ID, 0, emit))
		must.Eq(t, []core.EventKind{core.EventLog, core.EventResult, core.EventEnd}, kinds)
		kinds = nil
		must.NoError(t, c.q.Jobs.Events(t.Context(), j.ID, 1, emit))
		must.Eq(t, []core.EventKind{core.EventResult, core.EventEnd}, kinds)
		kinds = nil
		must.NoError(t, c.q.Jobs.Events(t.Context(), j.ID, 3, emit))
		must.SliceEmpty(t, kinds)
		stop := errors.New("enough")
		must.ErrorIs(t, c.q.Jobs.Events(t.Context(), j.ID, 0, func(core.Event) error { return stop }), stop)

		j, err = c.q.Jobs.Job(t.Context(), j.ID)
		must.NoError(t, err)
		must.Eq(t, core.JobSucceeded, j.State)
		must.Eq(t, `{"model":"builtin:m"}`, string(j.Result))

		// Names of hives.
		for _, name := range []string{"h1", "name-h1", core.LocalHive} {
			r := download
			r.Hive = name
			j, err := c.q.Jobs.Submit(t.Context(), r, false)
			must.NoError(t, err)
			must.Eq(t, "h1", j.Hive)
		}
		r := download
		r.Hive = "name-h2"
		_, err = c.q.Jobs.Submit(t.Context(), r, false)
		mustFail(t, err, core.NotFound, `"name-h1"`)

		// Several hives: ending a process requires a hive, a spawn goes where the model is, and a
		// repeated request stays on its hive.
		h2 := c.newHive("h2")
		h2.addModel("m")
		h2.run = h.run
		h2.mustBeat()
		_, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpModelDelete, Model: "m"}, false)
		mustFail(t, err, core.Invalid, "one of the 2 hives", "name-h1, name-h2")
		spawn := core.Request{Operation: core.OpWorkerSpawn, Model: "m", RequestID: "mine"}
		j, err = c.q.Jobs.Submit(t.Context(), spawn, false)
		must.NoError(t, err)
		must.Eq(t, "h2", j.Hive)
		h.change(func(h *fakeHive) { h.models = h2.models })
		h2.change(func(h *fakeHive) { h.models = nil })
		again, err := c.q.Jobs.Submit(t.Context(), spawn, false)
		must.NoError(t, err)
		must.Eq(t, j.ID, again.ID)
		synctest.Wait() // it runs, and could run twice
		must.Eq(t, 1, h2.ran.Load())

		// All jobs, newest first; a hive that does not answer hides only its own.
		jobs, err := c.q.Jobs.Jobs(t.Context())
		must.NoError(t, err)
		must.Len(t, 5, jobs)
		must.True(t, slices.IsSortedFunc(jobs, func(a, b core.Job) int { return b.CreatedAt.Compare(a.CreatedAt) }))
		h2.change(func(h *fakeHive) { h.mute = errors.New("oops") })
		jobs, err = c.q.Jobs.Jobs(t.Context())
		must.NoError(t, err)
		must.Len(t, 4, jobs)
		h.change(func(h *fakeHive) { h.mute = errors.New("oops") })
		_, err = c.q.Jobs.Jobs(t.Context())
		must.Error(t, err)
	})
}

// A download without a hive goes where the model is, otherwise where a worker with it would be
// started.
func TestDownloadChoosesItsHive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		big, small := c.newHive("h1"), c.newHive("h2")
		for i, h := range []*fakeHive{small, big} {
			h.run = func(context.Context, core.Request, *job.Run) (any, error) { return core.Model{}, nil }
			h.change(func(h *fakeHive) {
				h.hive.Devices = []core.Device{{ID: "cpu", Kind: "cpu", TotalBytes: 1 << 40, FreeBytes: int64(i+1) << 30}}
			})
			h.mustBeat()
		}
		j, err := c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpModelDownload, Model: "hf:org/repo"}, false)
		must.NoError(t, err)
		must.Eq(t, "h1", j.Hive)
		small.addModel("m")
		for _, name := range []string{"m", "file:/models/m.gguf"} {
			j, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpModelDownload, Model: name}, false)
			must.NoError(t, err)
			must.Eq(t, "h2", j.Hive)
		}
	})
}

func TestJobErrors(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		started := make(chan struct{})
		h.run = func(ctx context.Context, _ core.Request, run *job.Run) (any, error) {
			close(started)
			<-ctx.Done()
			return nil, ctx.Err()
		}
		h.mustBeat()
		ulid := strings.ToLower("01ARZ3NDEKTSV4RRFFQ69G5FAV")
		for _, id := range []string{"", "x", ulid, ulid + "-", ulid + "-h9", ulid + "-h1", "../../etc"} {
			_, err := c.q.Jobs.Job(t.Context(), id)
			mustFail(t, err, core.NotFound)
			_, err = c.q.Jobs.Cancel(t.Context(), id)
			mustFail(t, err, core.NotFound)
			mustFail(t, c.q.Jobs.Events(t.Context(), id, 0, func(core.Event) error { return nil }), core.NotFound)
		}
		j, err := c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpWorkerSpawn, Model: "m"}, false)
		must.NoError(t, err)
		<-started
		_, err = c.q.Jobs.Cancel(t.Context(), j.ID)
		must.NoError(t, err)
		var last core.Event
		must.NoError(t, c.q.Jobs.Events(t.Context(), j.ID, 0, func(e core.Event) error { last = e; return nil }))
		must.Eq(t, core.JobCancelled, last.State)

		// A reader that disconnects, and a hive that is lost.
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		h.change(func(h *fakeHive) {
			h.run = func(ctx context.Context, _ core.Request, run *job.Run) (any, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		j, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpWorkerSpawn, Model: "m"}, false)
		must.NoError(t, err)
		err = c.q.Jobs.Events(ctx, j.ID, 0, func(core.Event) error { return nil })
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
		time.Sleep(time.Minute)
		_, err = c.q.Jobs.Job(t.Context(), j.ID)
		mustFail(t, err, core.Unavailable, "name-h1", "is down")
	})
}

func TestRetire(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, "")
		h := c.newHive("h1")
		other := c.newHive("h2")
		other.mustBeat()
		h.addWorker("w-abc", "m", core.WorkerReady)
		h.addWorker("w-abd", "m", core.WorkerReady)
		h.mustBeat()
		var seen core.WorkerState // seen by the hive when the job arrives
		finish := make(chan error, 10)
		h.run = func(ctx context.Context, r core.Request, _ *job.Run) (any, error) {
			w, err := c.q.hives.Worker(ctx, r.Worker)
			if err != nil {
				return nil, err
			}
			seen = w.State
			if err := <-finish; err != nil {
				return nil, err
			}
			h.removeWorker(r.Worker)
			_, err = h.beat(ctx)
			return core.ExitResult{WorkerID: r.Worker}, err
		}
		retire := func(id string) (core.Job, error) {
			return c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpActiveWorkerRetire, Worker: id, Grace: core.Duration(time.Second)}, false)
		}
		_, err := retire("w-ab")
		mustFail(t, err, core.Conflict, "w-abc or w-abd")
		_, err = retire("nobody")
		mustFail(t, err, core.NotFound)
		_, err = c.q.Jobs.Submit(t.Context(), core.Request{Operation: core.OpActiveWorkerRetire, Worker: "w-abc", Hive: "h2"}, false)
		mustFail(t, err, core.Conflict, "is on hive h1")
		must.Eq(t, []string{"w-abc", "w-abd"}, c.mustPick("m"))

		// The intent takes effect before the hive receives the job, and stays, whatever the hive
		// answers.
		j, err := retire("w-abc")
		must.NoError(t, err)
		must.Eq(t, "h1", j.Hive)
		must.Eq(t, []string{"w-abd"}, c.mustPick("m"))
		synctest.Wait()
		must.Eq(t, core.WorkerRetiring, seen)
		r := h.submitted()[0]
		must.Eq(t, "w-abc", r.Worker)
		must.Eq(t, core.Duration(time.Second), r.Grace)
		index := c.node.AppliedIndex()
		for range 3 {
			must.Eq(t, []string{"w-abc"}, h.mustBeat().GetRetire())
		}
		must.Eq(t, index, c.node.AppliedIndex())
		must.Eq(t, []string{"w-abd"}, c.mustPick("m"))

		// Repeating it returns the same job. A failed one is retried.
		again, err := retire("w-abc")
		must.NoError(t, err)
		must.Eq(t, j.ID, again.ID)
		finish <- errors.New("would not die")
		synctest.Wait()
		third, err := retire("w-abc")
		must.NoError(t, err)
		must.NotEq(t, j.ID, third.ID)
		must.Eq(t, core.JobRunning, third.State)
		finish <- nil
		time.Sleep(10 * time.Millisecond)
		_, err = retire("w-abc")
		mustFail(t, err, core.NotFound)

		// The hive cannot be reached: the intent takes effect nevertheless, and is sent with the
		// next beat.
		h.change(func(h *fakeHive) { h.mute = core.Errorf(core.Unavailable, "no answer") })
		_, err = retire("w-abd")
		mustFail(t, err, core.Unavailable, "gets no new request any more")
		must.Eq(t, []string{"w-abd"}, h.mustBeat().GetRetire())
	})
}
