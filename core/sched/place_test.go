package sched

import (
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func room(id string, change ...func(*Room)) Room {
	r := Room{Hive: core.Hive{
		ID: id, Name: "name-" + id, Status: core.HiveReady, WorkerTypes: []string{"cpu"},
		Devices: []core.Device{{ID: "cpu", Kind: "cpu", TotalBytes: 1000, FreeBytes: 600}},
	}}
	for _, f := range change {
		f(&r)
	}
	return r
}

func TestPlace(t *testing.T) {
	t.Parallel()
	gpu := func(free int64, problem string) func(*Room) {
		return func(r *Room) {
			r.Hive.WorkerTypes = append(r.Hive.WorkerTypes, "cuda")
			r.Hive.Devices = append(r.Hive.Devices, core.Device{ID: "cuda:0", Kind: "cuda", TotalBytes: 9000, FreeBytes: free, Problem: problem})
		}
	}
	free := func(n int64) func(*Room) { return func(r *Room) { r.Hive.Devices[0].FreeBytes = n } }
	has := func(r *Room) { r.HasModel = true }
	for _, c := range []struct {
		name    string
		demand  Demand
		rooms   []Room
		want    string
		reason  string
		refused []string
		missing []int64 // missing bytes in refused; nil: not compared
	}{
		{name: "no hive"},
		{name: "only hive", demand: Demand{MinBytes: 600}, rooms: []Room{room("a")}, want: "a", reason: "only hive"},
		{name: "only hive, and it has the model", rooms: []Room{room("a", has)}, want: "a", reason: "only hive"},
		{name: "one of its devices has room", demand: Demand{MinBytes: 700}, rooms: []Room{room("a", gpu(8000, ""))}, want: "a", reason: "only hive"},
		{
			name: "one byte too much", demand: Demand{MinBytes: 601}, rooms: []Room{room("a")},
			refused: []string{"name-a cpu lacks 1 bytes: 601 needed, 600 of 1000 free"},
		},
		{
			name: "missing bytes of every device", demand: Demand{MinBytes: 10_000}, rooms: []Room{room("a", gpu(8000, ""))},
			refused: []string{"name-a cpu lacks 9400 bytes: 10000 needed, 600 of 1000 free; cuda:0 lacks 2000 bytes: 10000 needed, 8000 of 9000 free"},
			missing: []int64{2000}, // missing on its best device
		},
		{
			name: "missing bytes of the first device", demand: Demand{MinBytes: 10_000}, rooms: []Room{room("a", gpu(500, ""))},
			refused: []string{"name-a cpu lacks 9400 bytes: 10000 needed, 600 of 1000 free; cuda:0 lacks 9500 bytes: 10000 needed, 500 of 9000 free"},
			missing: []int64{9400},
		},
		{
			name: "no worker types at all", demand: Demand{Type: "cuda"}, rooms: []Room{room("a", func(r *Room) { r.Hive.WorkerTypes = nil })},
			refused: []string{`name-a has no worker type "cuda"`},
		},
		{
			name: "worker types are told in order, once", demand: Demand{Type: "rocm"},
			rooms:   []Room{room("a", func(r *Room) { r.Hive.WorkerTypes = []string{"cuda", "cpu", "cuda"} })},
			refused: []string{`name-a has no worker type "rocm", it has cpu, cuda`},
		},
		{
			name: "down, silent, without types", rooms: []Room{
				room("a", func(r *Room) { r.Hive.Status = core.HiveDown }),
				room("b", func(r *Room) { r.Suspect = true }),
				room("c", func(r *Room) { r.Hive.WorkerTypes = nil }),
				room("d", func(r *Room) { r.Hive.Status = core.HiveSuspect }),
				room("e", func(r *Room) { r.Hive.Draining = true }),
			},
			refused: []string{"name-a is down", "name-b is silent", "name-c has no worker type", "name-d is silent", "name-e drains"},
		},
		{
			name: "worker type", demand: Demand{Type: "cuda", MinBytes: 700}, rooms: []Room{room("a"), room("b", gpu(700, ""))},
			want: "b", reason: "only one of 2 hives that can", refused: []string{`name-a has no worker type "cuda", it has cpu`},
		},
		{
			name: "memory of another type's device does not help", demand: Demand{Type: "cpu", MinBytes: 700}, rooms: []Room{room("a", gpu(8000, ""))},
			refused: []string{"name-a cpu lacks 100 bytes: 700 needed, 600 of 1000 free"},
		},
		{
			name: "a type that is installed but not listed", demand: Demand{Type: "openai", MinBytes: 100},
			rooms: []Room{room("a", func(r *Room) { r.Binaries = []core.WorkerBinary{{Type: "openai"}} })}, want: "a", reason: "only hive",
		},
		{
			name: "a damaged binary does not count", demand: Demand{Type: "openai"},
			rooms:   []Room{room("a", func(r *Room) { r.Binaries = []core.WorkerBinary{{Type: "openai", Damaged: "no manifest"}} })},
			refused: []string{`name-a has no worker type "openai", it has cpu`},
		},
		{
			name: "another type's binary does not count", demand: Demand{Type: "rocm"},
			rooms:   []Room{room("a", func(r *Room) { r.Binaries = []core.WorkerBinary{{Type: "openai"}} })},
			refused: []string{`name-a has no worker type "rocm", it has cpu`},
		},
		{
			name: "the probe knows the devices of a type", demand: Demand{Type: "cpu", MinBytes: 700},
			rooms: []Room{room("a", gpu(8000, ""), func(r *Room) {
				r.Binaries = []core.WorkerBinary{{Type: "cpu", Devices: []core.Device{{ID: "cuda:0"}}}}
			})},
			want: "a", reason: "only hive",
		},
		{
			// Devices known to another type's binary, or to a damaged one, do not count.
			name: "the devices of a type, among other binaries", demand: Demand{Type: "cpu", MinBytes: 700},
			rooms: []Room{room("a", gpu(8000, ""), func(r *Room) {
				r.Binaries = []core.WorkerBinary{
					{Type: "cuda", Devices: []core.Device{{ID: "cuda:0"}}},
					{Type: "cpu", Damaged: "no manifest", Devices: []core.Device{{ID: "cuda:0"}}},
					{Type: "cpu", Devices: []core.Device{{ID: "cpu"}}},
				}
			})},
			refused: []string{"name-a cpu lacks 100 bytes: 700 needed, 600 of 1000 free"},
		},
		{
			name: "the devices of a type, after another binary", demand: Demand{Type: "cpu", MinBytes: 700},
			rooms: []Room{room("a", gpu(8000, ""), func(r *Room) {
				r.Binaries = []core.WorkerBinary{
					{Type: "cuda", Devices: []core.Device{{ID: "cuda:0"}}},
					{Type: "cpu", Devices: []core.Device{{ID: "cuda:0"}}},
				}
			})},
			want: "a", reason: "only hive",
		},
		{
			name: "a type whose devices nobody knows", demand: Demand{Type: "openai", MinBytes: 700},
			rooms:   []Room{room("a", func(r *Room) { r.Binaries = []core.WorkerBinary{{Type: "openai"}} })},
			refused: []string{"name-a cpu lacks 100 bytes: 700 needed, 600 of 1000 free"},
		},
		{
			name: "a hive is as good as its best device, the last", demand: Demand{MinBytes: 100}, rooms: []Room{room("a", gpu(8000, "")), room("b", free(900))},
			want: "a", reason: "most free memory",
		},
		{
			name: "a hive is as good as its best device, the first", demand: Demand{MinBytes: 100}, rooms: []Room{room("a", free(950), gpu(100, "")), room("b", free(900))},
			want: "a", reason: "most free memory",
		},
		{
			name: "device with a problem", demand: Demand{Device: "cuda:0"}, rooms: []Room{room("a", gpu(8000, "driver is too old"))},
			refused: []string{"name-a cuda:0 cannot be used: driver is too old"},
		},
		{
			name: "no such device", demand: Demand{Device: "cuda:1"}, rooms: []Room{room("a", gpu(8000, ""))},
			refused: []string{`name-a has no device "cuda:1", it has cpu, cuda:0`},
		},
		{
			name: "nothing probed yet", demand: Demand{Device: "cuda:1", MinBytes: 1 << 60},
			rooms: []Room{room("a", func(r *Room) { r.Hive.Devices = nil })}, want: "a", reason: "only hive",
		},
		{
			name: "size unknown", demand: Demand{MinBytes: 1 << 60},
			rooms: []Room{room("a", func(r *Room) { r.Hive.Devices[0].TotalBytes = 0 })}, want: "a", reason: "only hive",
		},
		{
			name: "a hive that drains gets nothing", rooms: []Room{room("a", has, free(900), func(r *Room) { r.Hive.Draining = true }), room("b")},
			want: "b", reason: "only one of 2 hives that can", refused: []string{"name-a drains"},
		},
		{name: "the model is there", rooms: []Room{room("a", free(900)), room("b", has)}, want: "b", reason: "has the model"},
		{name: "most free", rooms: []Room{room("a"), room("b", free(601))}, want: "b", reason: "most free memory"},
		{
			name: "room for the whole context before the model", demand: Demand{MinBytes: 100, EstimateBytes: 650},
			rooms: []Room{room("a", free(650)), room("b", has)}, want: "a", reason: "most free memory",
		},
		{
			name: "less context when nobody has room for it", demand: Demand{MinBytes: 100, EstimateBytes: 5000},
			rooms: []Room{room("a", free(650)), room("b", has)}, want: "b", reason: "has the model",
		},
		{
			name: "nothing probed may have room for the whole context", demand: Demand{MinBytes: 100, EstimateBytes: 5000},
			rooms: []Room{room("a", free(650)), room("b", func(r *Room) { r.Hive.Devices = nil })}, want: "b", reason: "most free memory",
		},
		{name: "fewest workers", rooms: []Room{room("a", func(r *Room) { r.Workers = 1 }), room("b")}, want: "b", reason: "most free memory"},
		{name: "by id at last", rooms: []Room{room("b"), room("a")}, want: "a", reason: "most free memory"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			for range 2 {
				got, refused, ok := Place(c.demand, c.rooms)
				var texts []string
				for _, r := range refused {
					texts = append(texts, r.String())
				}
				must.Eq(t, c.want != "", ok)
				must.Eq(t, Placement{Hive: c.want, Reason: c.reason}, got)
				must.Eq(t, c.refused, texts)
				for i, r := range refused {
					must.Eq(t, strings.Contains(r.Reason, "lacks"), r.MissingBytes > 0)
					if c.missing != nil {
						must.Eq(t, c.missing[i], r.MissingBytes)
					}
				}
				slices.Reverse(c.rooms)
			}
		})
	}
}
