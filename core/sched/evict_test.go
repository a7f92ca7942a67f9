package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func anybody(Resident) bool { return true }

func names(list []Resident) []string {
	out := []string{}
	for _, r := range list {
		out = append(out, r.Worker)
	}
	return out
}

func TestEvict(t *testing.T) {
	t.Parallel()
	a := Resident{Worker: "a", Bytes: 4, LoadTook: time.Second, Share: 0.5}
	b := Resident{Worker: "b", Bytes: 4, LoadTook: 10 * time.Second, Share: 0.5}
	c := Resident{Worker: "c", Bytes: 8, LoadTook: 10 * time.Second, Share: 0.6}
	stays := Resident{Worker: "s", Bytes: 4, Stays: true}
	pinned := Resident{Worker: "p", Bytes: 100, Fixed: true}
	for _, tt := range []struct {
		missing int64
		want    []string
		short   int64
	}{
		{4, []string{"a"}, 0},      // the cheapest
		{5, []string{"a", "b"}, 0}, // and the next
		{9, []string{"a", "c"}, 0}, // of two that suffice, the more costly is spared
		{20, []string{"a", "b", "c", "s"}, 0},
		{21, []string{}, 1},
	} {
		got, short := Evict(tt.missing, []Resident{pinned, stays, c, b, a}, anybody)
		must.Eq(t, tt.short, short)
		must.Eq(t, tt.want, names(got))
	}
}

// residentsAt returns random residents.
func residentsAt(r *rand.Rand) []Resident {
	list := make([]Resident, r.IntN(9))
	for i := range list {
		list[i] = Resident{
			Worker: fmt.Sprintf("w%d", i), Bytes: int64(r.IntN(10)), Fixed: r.IntN(5) == 0, Stays: r.IntN(3) == 0, Ending: r.IntN(6) == 0, Busy: r.IntN(2) == 0,
			Ready: time.Duration(r.IntN(10)) * time.Second, Idle: time.Duration(r.IntN(100)) * time.Second,
			LoadTook: time.Duration(r.IntN(5)) * time.Second, Share: float64(r.IntN(4)) / 4,
		}
	}
	return list
}

// Over random devices: the evicted workers suffice, none of them is superfluous, all of them may
// go, and the order of the input does not matter.
func TestTurnProperties(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(17, 1))
	s := Swap{MaxWait: 5 * time.Second, MinWarm: 3 * time.Second}
	kinds := map[string]int{}
	for range 10_000 {
		list := residentsAt(r)
		missing, waited := int64(1+r.IntN(30)), time.Duration(r.IntN(10))*time.Second
		turn := s.Turn(missing, waited, list)
		shuffled := slices.Clone(list)
		r.Shuffle(len(list), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		again := s.Turn(missing, waited, shuffled)
		must.Eq(t, turn.Unload, again.Unload)
		must.Eq(t, turn.Missing, again.Missing)
		ending, most := int64(0), int64(0)
		for _, x := range list {
			switch {
			case x.Ending:
				ending += x.Bytes
			case !x.Fixed:
				most += x.Bytes
			}
		}
		freed := int64(0)
		for _, x := range turn.Unload {
			must.False(t, x.Fixed || x.Ending)
			must.True(t, x.Ready >= s.MinWarm)
			must.True(t, !x.Busy || waited >= s.MaxWait, must.Sprint("a busy worker goes before its time"))
			freed += x.Bytes
		}
		switch {
		case len(turn.Unload) > 0:
			kinds["unload"]++
			must.True(t, freed+ending >= missing)
			for _, x := range turn.Unload {
				must.True(t, freed-x.Bytes+ending < missing, must.Sprint("one goes in vain"))
			}
		case turn.Never():
			kinds["never"]++
			must.Eq(t, missing-ending-most, turn.Missing)
		default:
			kinds["wait"]++
			must.Positive(t, turn.Wait)
			must.LessEq(t, turnPoll, turn.Wait)
			must.NotEq(t, "", turn.For)
			must.True(t, ending+most >= missing)
		}
	}
	for _, kind := range []string{"unload", "never", "wait"} {
		must.Greater(t, 300, kinds[kind], must.Sprint(kind))
	}
}

// A waiting load decides again when something is due, and names the workers it waits for. A loading
// worker is not ended, however short MinWarm is.
func TestTurnWaits(t *testing.T) {
	t.Parallel()
	s := Swap{MaxWait: 10 * time.Second, MinWarm: 5 * time.Second}
	busy := Resident{Worker: "w", Model: "m", Bytes: 4, Busy: true, Ready: time.Minute}
	loads := Resident{Worker: "w", Model: "m", Bytes: 4, Busy: true}
	young := func(d time.Duration) Resident { return Resident{Worker: "w", Model: "m", Bytes: 4, Ready: d} }
	ending := Resident{Worker: "w", Bytes: 4, Ending: true, Ready: time.Minute}
	for _, tt := range []struct {
		name   string
		swap   Swap
		waited time.Duration
		of     []Resident
		want   Turn
	}{
		{"requests", s, 0, []Resident{busy}, Turn{Wait: time.Second, For: "worker w, which answers requests with m"}},
		{"requests, shortly before the end of waiting", s, s.MaxWait - 20*time.Millisecond, []Resident{busy}, Turn{Wait: 20 * time.Millisecond, For: "worker w, which answers requests with m"}},
		{"requests, at the end of waiting", s, s.MaxWait, []Resident{busy}, Turn{Unload: []Resident{busy}, For: "requests that are running"}},
		{"just loaded", s, s.MaxWait, []Resident{young(time.Second)}, Turn{Wait: time.Second, For: "worker w, which has just loaded m"}},
		{"warm soon", s, s.MaxWait, []Resident{young(s.MinWarm - time.Millisecond)}, Turn{Wait: time.Millisecond, For: "worker w, which has just loaded m"}},
		{"warm", s, 0, []Resident{young(s.MinWarm)}, Turn{Unload: []Resident{young(s.MinWarm)}, For: "idle workers to unload"}},
		{"loads", s, time.Hour, []Resident{loads}, Turn{Wait: time.Second, For: "worker w, which loads m"}},
		{"loads, and no worker need be warm", Swap{MaxWait: time.Second}, time.Hour, []Resident{loads}, Turn{Wait: time.Second, For: "worker w, which loads m"}},
		{"loads, and will be warm soon after", Swap{MaxWait: time.Second, MinWarm: 10 * time.Millisecond}, time.Hour, []Resident{loads}, Turn{Wait: time.Second, For: "worker w, which loads m"}},
		{"ends already", s, time.Hour, []Resident{ending}, Turn{Wait: time.Second, For: "a worker that is ending"}},
		{"never", s, 0, nil, Turn{Missing: 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got := tt.swap.Turn(4, tt.waited, tt.of)
			must.Eq(t, tt.want, got)
			must.Eq(t, tt.want.Missing > 0, got.Never())
		})
	}
}

// The cheapest to lose is evicted first: the idle before the busy, those that unload by themselves
// before those that stay, then by cost, then the longest idle, then by name.
func TestEvictOrder(t *testing.T) {
	t.Parallel()
	sorted := []Resident{
		{Worker: "b", Idle: 2 * time.Second},
		{Worker: "a", Idle: time.Second},
		{Worker: "c", Idle: time.Second},
		{Worker: "d", LoadTook: time.Second, Share: 0.5, Idle: time.Hour},
		{Worker: "0", Stays: true, Idle: time.Hour},
		{Worker: "1", Busy: true},
		{Worker: "2", Busy: true, LoadTook: time.Second, Share: 1},
		{Worker: "3", Busy: true, Stays: true},
	}
	for i := range sorted {
		sorted[i].Bytes = 1
	}
	shuffled := slices.Clone(sorted)
	slices.Reverse(shuffled)
	for n := range sorted {
		gone, short := Evict(int64(n), shuffled, anybody)
		must.Zero(t, short)
		must.Eq(t, names(sorted[:n]), names(gone))
	}
}

// A hive with free room is preferred to one where idle workers must unload, and that to one where
// busy ones must; a refusal counts the memory that could be freed.
func TestPlaceMakesRoom(t *testing.T) {
	t.Parallel()
	room := func(id string, free, idle, busy int64) Room {
		dev := core.Device{ID: "cpu", Kind: "cpu", TotalBytes: 100, FreeBytes: free}
		return Room{
			Hive: core.Hive{ID: id, Name: id, Status: core.HiveReady, WorkerTypes: []string{"cpu"}, Devices: []core.Device{dev}},
			Idle: map[string]int64{"cpu": idle}, Busy: map[string]int64{"cpu": busy},
		}
	}
	free, idle, busy := room("free", 50, 0, 0), room("idle", 40, 60, 0), room("busy", 40, 0, 60)
	for _, tt := range []struct {
		rooms        []Room
		hive, reason string
	}{
		{[]Room{busy, idle, free}, "free", "most free memory"},
		{[]Room{busy, idle}, "idle", "unloads idle workers"},
		{[]Room{busy, room("full", 0, 0, 0)}, "busy", "waits for busy workers"},
	} {
		p, _, ok := Place(Demand{Model: "m", MinBytes: 50}, tt.rooms)
		must.True(t, ok)
		must.Eq(t, tt.hive, p.Hive)
		must.Eq(t, tt.reason, p.Reason)
	}
	_, refused, ok := Place(Demand{Model: "m", MinBytes: 90}, []Room{room("h", 10, 20, 30)})
	must.False(t, ok)
	must.Eq(t, 30, refused[0].MissingBytes)
	must.StrContains(t, refused[0].Reason, "cpu lacks 30 bytes: 90 needed, 10 of 100 free, 50 more if workers unload")
}

// Over random clusters: a chosen hive has room, counting what may unload; no hive with room is
// refused; and the order of the hives does not matter.
func TestPlaceProperties(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(17, 2))
	chosen := 0
	for range 5000 {
		rooms := make([]Room, r.IntN(5))
		for i := range rooms {
			id := fmt.Sprintf("h%d", i)
			h := core.Hive{ID: id, Name: id, Status: core.HiveReady, Draining: r.IntN(6) == 0, WorkerTypes: []string{"cpu"}}
			rooms[i] = Room{Suspect: r.IntN(6) == 0, HasModel: r.IntN(2) == 0, Workers: r.IntN(3), Idle: map[string]int64{}, Busy: map[string]int64{}}
			for d := range 1 + r.IntN(3) {
				dev := core.Device{ID: fmt.Sprintf("cpu:%d", d), Kind: "cpu", TotalBytes: 10, FreeBytes: int64(r.IntN(11))}
				used := dev.TotalBytes - dev.FreeBytes
				rooms[i].Idle[dev.ID] = int64(r.IntN(int(used) + 1))
				rooms[i].Busy[dev.ID] = int64(r.IntN(int(used-rooms[i].Idle[dev.ID]) + 1))
				h.Devices = append(h.Devices, dev)
			}
			rooms[i].Hive = h
		}
		d := Demand{Model: "m", MinBytes: int64(1 + r.IntN(12))}
		best := func(x Room) (level int) {
			if x.Suspect || x.Hive.Draining {
				return 3
			}
			level = 3
			for _, dev := range x.Hive.Devices {
				have := dev.FreeBytes
				for at, more := range []int64{0, x.Idle[dev.ID], x.Busy[dev.ID]} {
					if have += more; have >= d.MinBytes {
						level = min(level, at)
					}
				}
			}
			return level
		}
		p, refused, ok := Place(d, rooms)
		least, able := 3, 0
		for _, x := range rooms {
			if at := best(x); at < 3 {
				able++
				least = min(least, at)
			}
		}
		must.Eq(t, able > 0, ok)
		must.Len(t, len(rooms)-able, refused)
		if ok {
			chosen++
			i := slices.IndexFunc(rooms, func(x Room) bool { return x.Hive.ID == p.Hive })
			must.Eq(t, least, best(rooms[i]), must.Sprint("somebody has to go who need not"))
		}
		r.Shuffle(len(rooms), func(i, j int) { rooms[i], rooms[j] = rooms[j], rooms[i] })
		again, _, _ := Place(d, rooms)
		must.Eq(t, p.Hive, again.Hive)
	}
	must.Greater(t, 1000, chosen)
}
