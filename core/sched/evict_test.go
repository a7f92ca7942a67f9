package sched

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
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
		{9, []string{"a", "c"}, 0}, // of what would do, the more costly is spared
		{20, []string{"a", "b", "c", "s"}, 0},
		{21, []string{}, 1},
	} {
		got, short := Evict(tt.missing, []Resident{pinned, stays, c, b, a}, anybody)
		must.Eq(t, tt.short, short)
		must.Eq(t, tt.want, names(got))
	}
}

// residentsAt returns residents at random.
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

// Over random devices: what goes is enough, none of it is superfluous, nothing that may not go
// does, and the order of the input does not matter.
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
