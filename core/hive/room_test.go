package hive

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/gguf"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// tightRig returns a hive whose main memory has room for one and a half workers of the type tight
// with 64 tokens. Its catalog has the models tiny and other.
func tightRig(t *testing.T, wait, warm time.Duration) *rig {
	t.Helper()
	f, err := os.Open(tinyModel)
	must.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	must.NoError(t, err)
	header, err := gguf.Read(f, info.Size())
	must.NoError(t, err)
	room := header.EstimateBytes(1, 64) * 3 / 2
	dir := shortDir(t)
	must.NoError(t, os.MkdirAll(filepath.Join(dir, "catalog"), 0o700))
	must.NoError(t, copyFile(tinyModel, filepath.Join(dir, "catalog", "other.gguf")))
	r := run(t, setup{dir: dir, change: func(o *Options) { o.MemoryLimit = room }, workers: fmt.Sprintf(`
worker "tight" {
  plugin = "rbee-worker-fake"
  config {
    token_delay = "400ms"
    tokens      = 20
    device {
      id          = "cpu"
      total_bytes = %d
      free_bytes  = %d
    }
  }
}`, 100*room, 100*room)})
	r.hive.workers.told("q", &queenv1.LinkResponse{Tenancy: &queenv1.Tenancy{
		KeepAlive: durationpb.New(time.Hour), SwapWait: durationpb.New(wait), SwapWarm: durationpb.New(warm),
	}})
	return r
}

func tight(model, keepAlive string) core.Request {
	return core.Request{Operation: core.OpWorkerSpawn, Type: "tight", Model: model, Slots: 1, ContextTokens: 64, KeepAlive: keepAlive}
}

// A model that a request needs gets the room of an idle worker, even of one that was started by
// hand; a spawn by hand gets that of workers that unload by themselves; a pinned worker stays.
func TestIdleWorkersMakeRoom(t *testing.T) {
	t.Parallel()
	r := tightRig(t, time.Hour, 0)
	now := func(model string) {
		t.Helper()
		r.told(patience, func(list []core.Worker) error {
			if len(list) != 1 || list[0].Model != model || list[0].Load.MemoryBytes == 0 {
				return fmt.Errorf("there are %+v", list)
			}
			return nil
		})
	}
	r.do(tight("tiny", core.KeepAliveDefault))
	r.do(tight("other", core.KeepAliveDefault))
	now("other")
	r.do(tight("tiny", "")) // by hand
	now("tiny")
	failed := r.failure(tight("other", "")) // also by hand
	must.Eq(t, core.TooLarge, failed.Kind)
	must.StrContains(t, failed.Message, "are missing")
	failed = r.failure(tight("tiny", core.KeepAliveDefault)) // a replica
	must.Eq(t, core.TooLarge, failed.Kind)
	pinned := tight("other", core.KeepAliveDefault)
	pinned.Pin = true
	r.do(pinned)
	now("other")
	failed = r.failure(tight("tiny", core.KeepAliveDefault))
	must.Eq(t, core.TooLarge, failed.Kind)
}

// A load waits for the requests of the worker whose room it takes: none of them is cut, and the
// worker accepts no new ones after its time.
func TestBusyWorkersMakeRoom(t *testing.T) {
	t.Parallel()
	r := tightRig(t, 500*time.Millisecond, 0)
	w := result1[core.SpawnResult](r, tight("tiny", core.KeepAliveDefault)).Worker
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	answer := make(chan error, 1)
	go func() {
		text, err := r.ask(ctx, w.ID, "hello")
		if err == nil && text == "" {
			err = fmt.Errorf("an empty answer")
		}
		answer <- err
	}()
	r.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].Load.Active == 0 {
			return fmt.Errorf("it has no request: %+v", list)
		}
		return nil
	})
	job := r.submit(tight("other", core.KeepAliveDefault))
	job, events := r.follow(job.ID)
	must.Eq(t, core.JobSucceeded, job.State)
	must.NoError(t, <-answer)
	phases := ""
	for _, e := range events {
		if e.Progress != nil {
			phases += e.Progress.Phase + "\n"
		}
	}
	must.StrContains(t, phases, "wait for room on cpu: worker "+w.ID+", which answers requests with tiny")
	coretest.Eventually(t, patience, func() error { return count(1)(r.queen.workers()) })
	must.Eq(t, "other", r.queen.workers()[0].Model)
}

// A load waits for its turn if its room is reserved by another load that has no worker yet.
func TestConcurrentLoads(t *testing.T) {
	t.Parallel()
	r := tightRig(t, time.Hour, 0)
	r.hive.rooms.mu.Lock()
	r.hive.rooms.reserved["first"] = reservation{device: "cpu", bytes: r.hive.settings.defaults.Load().MemoryLimit, model: "tiny", keepAlive: core.KeepAliveDefault}
	r.hive.rooms.mu.Unlock()
	job := r.submit(tight("other", core.KeepAliveDefault))
	coretest.Eventually(t, patience, func() error {
		r.hive.rooms.mu.Lock()
		defer r.hive.rooms.mu.Unlock()
		if len(r.hive.rooms.waiters) == 0 {
			return fmt.Errorf("nothing waits")
		}
		return nil
	})
	r.hive.rooms.unreserve("first")
	job, _ = r.follow(job.ID)
	must.Eq(t, core.JobSucceeded, job.State)
}

// A worker serves for a while before it makes room, however short its use.
func TestWarmWorkersStay(t *testing.T) {
	t.Parallel()
	r := tightRig(t, 0, 2*time.Second)
	r.do(tight("tiny", core.KeepAliveDefault))
	began := time.Now()
	r.do(tight("other", core.KeepAliveDefault))
	must.GreaterEq(t, 1500*time.Millisecond, time.Since(began))
}
