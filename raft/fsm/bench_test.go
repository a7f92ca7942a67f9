package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// hives returns n hives with 4 workers each, of that many models.
func hives(n, models int) (list []fsm.HiveState) {
	for i := range n {
		h := fsm.HiveState{Hive: addressed(hive(fmt.Sprintf("%08x", i*2654435761%(1<<32)), 1, ""), fmt.Sprintf("10.%d.%d.1:7834", i/256, i%256))}
		for w := range 4 {
			worker := worker(h.Hive.ID, fmt.Sprintf("worker-%s-%d", h.Hive.ID, w), wReady, fmt.Sprint("nonce", i, w))
			worker.Model = fmt.Sprintf("model-%d", (i*4+w)%models)
			h.Workers = append(h.Workers, worker)
		}
		list = append(list, h)
	}
	return list
}

func entries(t testing.TB, commands []*raftv1.Command) (logs []*raft.Log) {
	t.Helper()
	for i, c := range commands {
		c.MinFsm = fsm.Required(c)
		must.NoError(t, fsm.Validate(c))
		data, err := fsm.Encode(c)
		must.NoError(t, err)
		logs = append(logs, &raft.Log{Index: uint64(i + 1), Data: data})
	}
	return logs
}

// BenchmarkRegister10000Hives registers hives as after a power cut: 10,000 hives with 4 workers
// each.
func BenchmarkRegister10000Hives(b *testing.B) {
	for _, models := range []int{1, 500} {
		for _, size := range []int{1, 16, 64, fsm.MaxHivesPerCommand} {
			var commands []*raftv1.Command
			for rest := hives(10_000, models); len(rest) > 0; {
				n := fsm.FitSyncHives(rest[:min(size, len(rest))])
				commands = append(commands, fsm.SyncHives(rest[:n]))
				rest = rest[n:]
			}
			logs := entries(b, commands)
			b.Run(fmt.Sprintf("models-%d/batches-of-%d", models, size), func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					f := fsm.New()
					for _, l := range logs {
						f.Apply(l)
					}
				}
				b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/all")
			})
		}
	}
}

// BenchmarkSnapshot40000Workers writes and restores a snapshot of 10,000 hives.
func BenchmarkSnapshot40000Workers(b *testing.B) {
	f := fsm.New()
	for rest := hives(10_000, 500); len(rest) > 0; rest = rest[min(len(rest), fsm.MaxHivesPerCommand):] {
		batch := rest[:min(len(rest), fsm.MaxHivesPerCommand)]
		apply(b, f, f.State().AppliedIndex()+1, fsm.SyncHives(batch))
	}
	data := snapshot(b, f)
	must.Len(b, 40_000, f.State().Workers(nil))
	b.Run("write", func(b *testing.B) {
		for b.Loop() {
			must.NoError(b, fsm.WriteSnapshot(io.Discard, f.State().Snapshot()))
		}
		b.ReportMetric(float64(len(data)), "bytes")
	})
	b.Run("restore", func(b *testing.B) {
		for b.Loop() {
			must.NoError(b, fsm.New().Restore(io.NopCloser(bytes.NewReader(data))))
		}
	})
}

// BenchmarkChange changes one worker in a registry of 40,000 workers of few models, or of one.
func BenchmarkChange(b *testing.B) {
	for _, models := range []int{1, 500} {
		all := hives(10_000, models)
		f := fsm.New()
		for rest := all; len(rest) > 0; rest = rest[min(len(rest), fsm.MaxHivesPerCommand):] {
			apply(b, f, f.State().AppliedIndex()+1, fsm.SyncHives(rest[:min(len(rest), fsm.MaxHivesPerCommand)]))
		}
		h := all[4321]
		var commands []*raftv1.Command
		for i := range 2 {
			h.Workers[0].State = []core.WorkerState{loading, wReady}[i]
			commands = append(commands, fsm.SyncHive(h.Hive, h.Workers))
		}
		logs := entries(b, commands)
		b.Run(fmt.Sprintf("models-%d", models), func(b *testing.B) {
			b.ReportAllocs()
			i := f.State().AppliedIndex()
			for b.Loop() {
				i++
				f.Apply(&raft.Log{Index: i, Data: logs[i%2].Data})
			}
		})
	}
}
