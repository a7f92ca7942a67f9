package job_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/job"
)

type result struct {
	Answer int `json:"answer"`
}

// follow returns the events after a number, up to the end.
func follow(t testing.TB, m *job.Manager, id string, after int64) []core.Event {
	t.Helper()
	events := []core.Event{}
	must.NoError(t, m.Events(t.Context(), id, after, func(e core.Event) error {
		events = append(events, e)
		return nil
	}))
	return events
}

// brief formats an event for comparison.
func brief(e core.Event) string {
	switch e.Kind {
	case core.EventProgress:
		return fmt.Sprintf("%d %s %d/%d", e.Seq, e.Progress.Phase, e.Progress.Done, e.Progress.Total)
	case core.EventLog:
		return fmt.Sprintf("%d %q", e.Seq, e.Message)
	case core.EventResult:
		return fmt.Sprintf("%d result %s", e.Seq, e.Result)
	}
	if e.Error != nil {
		return fmt.Sprintf("%d %s %s", e.Seq, e.State, e.Error.Kind)
	}
	return fmt.Sprintf("%d %s", e.Seq, e.State)
}

func briefs(events []core.Event) []string {
	out := []string{}
	for _, e := range events {
		out = append(out, brief(e))
	}
	return out
}

func newManager(t testing.TB, opts job.Options) *job.Manager {
	t.Helper()
	opts.Owner = "hive-1"
	m := job.New(opts)
	t.Cleanup(func() { must.NoError(t, m.Close(context.Background())) })
	return m
}

func TestLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{})
		start := time.Now()
		j := m.Start(core.OpModelDownload, "", func(ctx context.Context, r *job.Run) (any, error) {
			r.Log("fetching %s", "tiny")
			r.Progress(core.Progress{Phase: "download", Done: 1, Total: 2})
			time.Sleep(time.Second)
			return result{42}, nil
		})
		must.Eq(t, core.JobRunning, j.State)
		must.Eq(t, core.OpModelDownload, j.Operation)
		must.Eq(t, "hive-1", j.Hive)
		must.Eq(t, start, j.CreatedAt)
		hive, err := job.Owner(j.ID)
		must.NoError(t, err)
		must.Eq(t, "hive-1", hive)
		must.Eq(t, strings.ToLower(j.ID), j.ID)

		events := follow(t, m, j.ID, 0)
		must.Eq(t, []string{`1 "fetching tiny"`, "2 download 1/2", `3 result {"answer":42}`, "4 succeeded"}, briefs(events))
		must.Eq(t, start, events[0].At)
		must.Eq(t, start.Add(time.Second), events[3].At)

		j, err = m.Get(j.ID)
		must.NoError(t, err)
		must.Eq(t, core.JobSucceeded, j.State)
		must.Eq(t, start.Add(time.Second), j.EndedAt)
		must.Eq(t, 4, j.LastSeq)
		must.Nil(t, j.Error)
		var got result
		must.NoError(t, json.Unmarshal(j.Result, &got))
		must.Eq(t, 42, got.Answer)
		must.Eq(t, []core.Job{j}, m.List())

		// Cancelling an ended job changes nothing.
		again, err := m.Cancel(j.ID)
		must.NoError(t, err)
		must.Eq(t, j, again)
	})
}

func TestEnds(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		fn      func(ctx context.Context, r *job.Run) (any, error)
		cancel  bool
		state   core.JobState
		failure *core.Failure
		result  string
	}{
		{name: "no result", fn: func(context.Context, *job.Run) (any, error) { return nil, nil }, state: core.JobSucceeded},
		{
			name: "a failure keeps kind and hint", state: core.JobFailed,
			fn: func(context.Context, *job.Run) (any, error) {
				return result{1}, core.Errorf(core.TooLarge, "spawn: 3 bytes are missing").Hint("Buy memory.")
			},
			failure: &core.Failure{Kind: core.TooLarge, Message: "spawn: 3 bytes are missing", Hint: "Buy memory."},
		},
		{
			name: "a panic", state: core.JobFailed, fn: func(context.Context, *job.Run) (any, error) { panic("oh no") },
			failure: &core.Failure{Kind: core.Internal, Message: "worker_spawn crashed: oh no", Hint: "This is a defect: please report it with the agent's log."},
		},
		{
			name: "a goroutine that ends itself", state: core.JobFailed,
			fn:      func(context.Context, *job.Run) (any, error) { runtime.Goexit(); return nil, nil },
			failure: &core.Failure{Kind: core.Internal, Message: "worker_spawn ended without a result"},
		},
		{
			name: "a result that is no JSON", state: core.JobFailed, fn: func(context.Context, *job.Run) (any, error) { return func() {}, nil },
			failure: &core.Failure{Kind: core.Internal, Message: "encode the result: json: unsupported type: func()"},
		},
		{
			name: "a result that is too large for a message", state: core.JobFailed,
			fn:      func(context.Context, *job.Run) (any, error) { return strings.Repeat("x", 3<<20-1), nil }, // and two quotes
			failure: &core.Failure{Kind: core.TooLarge, Message: "keep the result: it has 3145729 bytes; at most 3145728 are kept"},
		},
		{
			name: "cancelled", cancel: true, state: core.JobCancelled,
			fn:      func(ctx context.Context, _ *job.Run) (any, error) { <-ctx.Done(); return nil, ctx.Err() },
			failure: &core.Failure{Kind: core.Cancelled, Message: "the job was cancelled"},
		},
		{
			name: "cancelled, but it was done already", cancel: true, state: core.JobSucceeded, result: `{"answer":2}`,
			fn: func(ctx context.Context, _ *job.Run) (any, error) { <-ctx.Done(); return result{2}, nil },
		},
		{
			name: "cancelled, and trouble with it", cancel: true, state: core.JobCancelled,
			fn: func(ctx context.Context, _ *job.Run) (any, error) {
				<-ctx.Done()
				return nil, core.Errorf(core.Unavailable, "the worker did not stop")
			},
			failure: &core.Failure{Kind: core.Unavailable, Message: "the worker did not stop"},
		},
		{
			name: "gave up by itself", state: core.JobFailed, fn: func(context.Context, *job.Run) (any, error) { return nil, context.DeadlineExceeded },
			failure: &core.Failure{Kind: core.DeadlineExceeded, Message: "context deadline exceeded"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var told []string
				m := newManager(t, job.Options{Panicked: func(id string, op core.Operation, value any, stack []byte) {
					must.StrContains(t, string(stack), "job_test.go")
					told = append(told, fmt.Sprint(id, op, value))
				}})
				j := m.Start(core.OpWorkerSpawn, "", tt.fn)
				if tt.cancel {
					synctest.Wait()
					running, err := m.Cancel(j.ID)
					must.NoError(t, err)
					must.Eq(t, core.JobRunning, running.State)
				}
				events := follow(t, m, j.ID, 0)
				end := events[len(events)-1]
				j, err := m.Get(j.ID)
				must.NoError(t, err)
				must.Eq(t, tt.state, j.State)
				must.Eq(t, tt.failure, j.Error)
				must.Eq(t, tt.result, string(j.Result))
				must.Eq(t, core.EventEnd, end.Kind)
				must.Eq(t, tt.state, end.State)
				must.Eq(t, tt.failure, end.Error)
				must.Eq(t, j.LastSeq, end.Seq)
				if tt.name == "a panic" {
					must.Eq(t, []string{fmt.Sprint(j.ID, core.OpWorkerSpawn, "oh no")}, told)
				} else {
					must.Len(t, 0, told)
				}
			})
		})
	}
}

// A phase makes at most ten events a second, however often it reports, and its last report always
// becomes an event.
func TestProgressIsCoalesced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{})
		var seen []string
		j := m.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
			for i := range int64(1000) { // of 1 ms: one second
				r.Progress(core.Progress{Phase: "a", Done: i, Total: 1000})
				r.Progress(core.Progress{Phase: "b", Done: 2 * i})
				time.Sleep(time.Millisecond)
			}
			r.Progress(core.Progress{Phase: "a", Done: 1000, Total: 1000})
			r.Progress(core.Progress{Phase: "a", Done: 1000, Total: 1000}) // reports nothing new
			// Without further reports, the last one becomes an event on its own.
			time.Sleep(time.Minute)
			r.Log("almost done")
			r.Progress(core.Progress{Phase: "c", Done: 1})
			r.Progress(core.Progress{Phase: "c", Done: 2}) // the end flushes it
			return nil, nil
		})
		var last time.Time
		began, seq := time.Now(), int64(0)
		must.NoError(t, m.Events(t.Context(), j.ID, 0, func(e core.Event) error {
			seq++
			must.Eq(t, seq, e.Seq)
			if e.Kind == core.EventProgress && e.Progress.Phase == "a" {
				must.True(t, last.IsZero() || e.At.Sub(last) >= 100*time.Millisecond)
				last = e.At
			}
			if e.Kind == core.EventProgress && e.Progress.Phase != "c" {
				must.LessEq(t, 1100*time.Millisecond, e.At.Sub(began), must.Sprint("it waited for another word"))
			}
			_, text, _ := strings.Cut(brief(e), " ")
			seen = append(seen, text)
			return nil
		}))
		count := map[string]int{}
		for _, s := range seen {
			count[s[:1]]++
		}
		must.Between(t, 10, count["a"], 12)
		must.Between(t, 10, count["b"], 12)
		must.Eq(t, []string{`"almost done"`, "c 1/0", "c 2/0", "succeeded"}, seen[len(seen)-4:])
		must.SliceContains(t, seen, "a 1000/1000")
		must.SliceContains(t, seen, "b 1998/0")
	})
}

// All readers see the same events, whenever they connect and whatever they have already seen.
func TestReadersAndResume(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{})
		j := m.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
			for i := range 20 {
				r.Log("line %d", i)
				time.Sleep(time.Second)
			}
			return nil, nil
		})
		var wg sync.WaitGroup
		lists := make([][]string, 50)
		for i := range lists {
			wg.Go(func() {
				// Some connect late, some after the job has ended.
				time.Sleep(time.Duration(i) * 500 * time.Millisecond)
				// The reader reads a little, is cut off, and resumes after the events that it has.
				cut := errors.New("cut")
				after := int64(0)
				for {
					n := 0
					err := m.Events(t.Context(), j.ID, after, func(e core.Event) error {
						lists[i], after = append(lists[i], brief(e)), e.Seq
						if n++; n == 7 {
							return cut
						}
						return nil
					})
					if err == nil {
						return
					}
					must.ErrorIs(t, err, cut)
				}
			})
		}
		wg.Wait()
		want := briefs(follow(t, m, j.ID, 0))
		must.Len(t, 21, want)
		for _, got := range lists {
			must.Eq(t, want, got)
		}
		must.Eq(t, want[18:], briefs(follow(t, m, j.ID, 18)))
		must.Eq(t, []string{}, briefs(follow(t, m, j.ID, 21)))
		must.Eq(t, []string{}, briefs(follow(t, m, j.ID, 1000)))
		must.Eq(t, want, briefs(follow(t, m, j.ID, -5)))
	})
}

// A reader that does not read delays neither the job nor other readers, and its context ends it.
func TestReaderGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{})
		j := m.Start(core.OpModelDownload, "", func(ctx context.Context, r *job.Run) (any, error) {
			r.Log("one")
			<-ctx.Done()
			return nil, ctx.Err()
		})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		seen := 0
		err := m.Events(ctx, j.ID, 0, func(core.Event) error { seen++; return nil })
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
		must.ErrorIs(t, err, context.DeadlineExceeded)
		must.Eq(t, 1, seen)
		got, err := m.Get(j.ID)
		must.NoError(t, err)
		must.Eq(t, core.JobRunning, got.State) // readers come and go
	})
}

// The oldest progress is dropped first, then the oldest lines; numbers, result and end stay.
func TestEventsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{MaxEvents: 5})
		j := m.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
			r.Log("first")
			for i := range int64(4) {
				r.Progress(core.Progress{Phase: fmt.Sprint("p", i), Done: i})
			}
			r.Log("second")
			return result{1}, nil
		})
		synctest.Wait() // a reader connected in the meantime may see more
		must.Eq(t, []string{`1 "first"`, "5 p3 3/0", `6 "second"`, `7 result {"answer":1}`, "8 succeeded"}, briefs(follow(t, m, j.ID, 0)))

		j = m.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
			for i := range 100 {
				r.Log("%d", i)
			}
			r.Log("%s", strings.Repeat("ü", 10000))
			return nil, nil
		})
		synctest.Wait()
		events := follow(t, m, j.ID, 0)
		must.Len(t, 5, events)
		must.Eq(t, `98 "97"`, brief(events[0]))
		must.Eq(t, 8<<10+len("…"), len(events[3].Message))
	})
}

func TestRequestID(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{Retain: 1})
		runs := 0
		fn := func(context.Context, *job.Run) (any, error) { runs++; return nil, nil }
		a := m.Start(core.OpWorkerSpawn, "request", fn)
		synctest.Wait()
		b := m.Start(core.OpWorkerSpawn, "request", fn)
		synctest.Wait()
		must.Eq(t, a.ID, b.ID)
		must.Eq(t, core.JobSucceeded, b.State)
		must.Eq(t, 1, runs)
		c := m.Start(core.OpWorkerSpawn, "", fn)
		synctest.Wait()
		must.NotEq(t, a.ID, c.ID) // it displaced the first job and its request ID
		d := m.Start(core.OpWorkerSpawn, "request", fn)
		synctest.Wait()
		must.NotEq(t, a.ID, d.ID)
		must.Eq(t, 3, runs)
	})
}

func TestRetention(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{Retain: 3})
		running := m.Start(core.OpModelDownload, "", func(ctx context.Context, _ *job.Run) (any, error) { <-ctx.Done(); return nil, ctx.Err() })
		var all []string
		for range 10 {
			all = append(all, m.Start(core.OpModelDownload, "", func(context.Context, *job.Run) (any, error) { return nil, nil }).ID)
			synctest.Wait()
		}
		must.True(t, slices.IsSorted(all)) // although the clock stood still
		var kept []string
		for _, j := range m.List() {
			kept = append(kept, j.ID)
		}
		// Newest first; a running job is never dropped.
		must.Eq(t, []string{all[9], all[8], all[7], running.ID}, kept)
		for _, f := range []func(string) error{
			func(id string) error { _, err := m.Get(id); return err },
			func(id string) error { _, err := m.Cancel(id); return err },
			func(id string) error {
				return m.Events(t.Context(), id, 0, func(core.Event) error { return nil })
			},
		} {
			err := f(all[0])
			must.Eq(t, core.NotFound, core.KindOf(err))
			must.NotEq(t, "", core.HintOf(err))
			must.NoError(t, func() error { _, err := m.Get(all[9]); return err }())
		}
	})
}

func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := job.New(job.Options{Owner: "hive-1"})
		j := m.Start(core.OpModelDownload, "", func(ctx context.Context, r *job.Run) (any, error) {
			<-ctx.Done()
			time.Sleep(5 * time.Second) // cleans up
			return nil, ctx.Err()
		})
		short, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := m.Close(short)
		must.Eq(t, core.DeadlineExceeded, core.KindOf(err))
		must.StrContains(t, err.Error(), "1 still running")
		start := time.Now()
		must.NoError(t, m.Close(t.Context()))
		must.Eq(t, 4*time.Second, time.Since(start))
		got, err := m.Get(j.ID)
		must.NoError(t, err)
		must.Eq(t, core.JobCancelled, got.State)
		must.StrContains(t, got.Error.Message, "shutting down")
		must.NotEq(t, "", got.Error.Hint)

		late := m.Start(core.OpModelDownload, "", func(context.Context, *job.Run) (any, error) { panic("must not run") })
		must.Eq(t, core.JobFailed, late.State)
		must.Eq(t, core.Unavailable, late.Error.Kind)
		must.Len(t, 1, follow(t, m, late.ID, 0))
	})
}

// A message from a goroutine that an operation left behind has no effect.
func TestLateMessages(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{})
		var run *job.Run
		var left context.Context // for what the operation left behind: it ends with the job
		j := m.Start(core.OpModelDownload, "", func(ctx context.Context, r *job.Run) (any, error) {
			run, left = r, ctx
			must.StrHasSuffix(t, "-hive-1", r.ID())
			return nil, nil
		})
		synctest.Wait()
		must.ErrorIs(t, left.Err(), context.Canceled)
		run.Log("late")
		run.Progress(core.Progress{Phase: "late"})
		time.Sleep(time.Second)
		must.Eq(t, []string{"1 succeeded"}, briefs(follow(t, m, j.ID, 0)))
	})
}

func TestOwner(t *testing.T) {
	t.Parallel()
	for id, want := range map[string]string{
		"01arz3ndektsv4rrffq69g5fav-hive-1": "hive-1",
		"01arz3ndektsv4rrffq69g5fav-":       "",
		"01arz3ndektsv4rrffq69g5fav":        "",
		"01ARZ3NDEKTSV4RRFFQ69G5FAV-hive-1": "",
		"01arz3ndektsv4rrffq69g5fa!-hive-1": "",
		"x-hive-1":                          "",
		"":                                  "",
	} {
		got, err := job.Owner(id)
		must.Eq(t, want, got, must.Sprint(id))
		must.Eq(t, want == "", core.KindOf(err) == core.Invalid, must.Sprint(id))
	}
}

func FuzzOwner(f *testing.F) {
	f.Add("01arz3ndektsv4rrffq69g5fav-hive-1")
	f.Add("-")
	f.Fuzz(func(t *testing.T, id string) {
		if hive, err := job.Owner(id); err == nil {
			must.StrHasSuffix(t, "-"+hive, id)
			must.Eq(t, 26+1+len(hive), len(id))
		}
	})
}

// Later phases displace quiet ones, but none whose last report is not yet an event.
func TestManyPhases(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := newManager(t, job.Options{})
		j := m.Start(core.OpModelDownload, "", func(_ context.Context, r *job.Run) (any, error) {
			for i := range 40 {
				r.Progress(core.Progress{Phase: fmt.Sprint("file ", i), Total: 2})
			}
			r.Progress(core.Progress{Phase: "file 39", Done: 1, Total: 2})
			r.Progress(core.Progress{Phase: "file 38", Done: 2, Total: 2})
			return nil, nil
		})
		told := briefs(follow(t, m, j.ID, 0))
		must.Eq(t, []string{"41 file 38 2/2", "42 file 39 1/2", "43 succeeded"}, told[40:])
	})
}

func TestProgressOrder(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := job.New(job.Options{Owner: "h"})
		j := m.Start("op", "", func(_ context.Context, r *job.Run) (any, error) {
			for i := range int64(101) {
				r.Progress(core.Progress{Phase: "read", Done: i, Total: 100})
			}
			r.Progress(core.Progress{Phase: "prepare"})
			r.Progress(core.Progress{Phase: "prepare", Done: 1})
			r.Log("loaded")
			return nil, nil
		})
		var told []string
		must.NoError(t, m.Events(t.Context(), j.ID, 0, func(e core.Event) error {
			if e.Progress != nil {
				told = append(told, fmt.Sprint(e.Progress.Phase, " ", e.Progress.Done))
			} else {
				told = append(told, string(e.Kind))
			}
			return nil
		}))
		must.Eq(t, []string{"read 0", "read 100", "prepare 0", "prepare 1", "log", "end"}, told)
		must.NoError(t, m.Close(t.Context()))
	})
}
