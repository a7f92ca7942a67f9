package state_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

// large returns a registry of 10,000 hives with 4 workers each.
func large(b *testing.B, models int) *state.Store {
	b.Helper()
	s := state.New()
	must.NoError(b, s.Update(1, func(tx *state.Txn) error {
		for i := range 10_000 {
			tx.PutHive(core.Hive{ID: fmt.Sprintf("%08x", i*2654435761%(1<<32)), Incarnation: 1, Status: core.HiveReady, Devices: []core.Device{{ID: "cpu"}}})
		}
		for i := range 40_000 {
			hive := fmt.Sprintf("%08x", i%10_000*2654435761%(1<<32))
			tx.PutWorker(core.Worker{
				ID: fmt.Sprintf("worker-%s-%d", hive, i/10_000), Hive: hive, Type: "cpu", Model: modelName(i % models),
				State: core.WorkerReady, Slots: 4, Nonce: fmt.Sprint("n", i),
			})
		}
		return nil
	}))
	return s
}

func modelName(n int) string { return fmt.Sprintf("library/model-%d-instruct-q4_k_m", n) }

// BenchmarkRouteLookup measures the lookups that routing makes per request, in a new snapshot each
// time: the workers of a model, and whether their hives are available. p99-ns is the 99th
// percentile of single lookups, the clock included.
func BenchmarkRouteLookup(b *testing.B) {
	for _, shape := range []struct {
		name   string
		models int
	}{
		{"4-workers-per-model", 10_000},
		{"80-workers-per-model", 500},
	} {
		s := large(b, shape.models)
		want := 40_000 / shape.models
		names := make([]string, shape.models)
		for i := range names {
			names[i] = modelName(i)
		}
		for _, query := range []struct {
			name string
			run  func(model string) int
		}{
			{"each", func(model string) (found int) {
				s.Snapshot().EachWorkerOfModel(nil, model, func(w *core.Worker) bool {
					if w.State == core.WorkerReady {
						found++
					}
					return true
				})
				return found
			}},
			{"each-route", func(model string) (found int) {
				s.Snapshot().EachRoute(nil, model, func(w *core.Worker, h *core.Hive) bool {
					if w.State == core.WorkerReady && h.Status == core.HiveReady && !h.Draining {
						found++
					}
					return true
				})
				return found
			}},
			{"list", func(model string) int { return len(s.Snapshot().WorkersOfModel(nil, model)) }},
		} {
			b.Run(shape.name+"/"+query.name, func(b *testing.B) {
				b.ReportAllocs()
				r := rand.New(rand.NewPCG(1, 1))
				times := make([]time.Duration, 0, 1<<20)
				for b.Loop() {
					model := names[r.IntN(len(names))] // usually cold in the caches
					start := time.Now()
					found := query.run(model)
					if took := time.Since(start); len(times) < cap(times) {
						times = append(times, took)
					}
					if found != want {
						b.Fatalf("%d workers of %s", found, model)
					}
				}
				slices.Sort(times)
				b.ReportMetric(float64(times[len(times)*99/100]), "p99-ns")
			})
		}
	}
}
