package swarm_test

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/swarm"
)

// testDigest is the digest that all tests use.
var testDigest = "sha256:" + strings.Repeat("ab", 32) // constant

// desk is a board with hives a to f and its own clock.
type desk struct {
	t     *testing.T
	b     *swarm.Board
	now   time.Time
	hives map[string]swarm.Hive
}

func newDesk(t *testing.T) *desk {
	t.Helper()
	d := &desk{t: t, now: time.Unix(1_000_000, 0), hives: map[string]swarm.Hive{}}
	for _, id := range []string{"a", "b", "c", "d", "e", "f"} {
		d.hives[id] = swarm.Hive{Name: "hive-" + id, Address: id + ":7834"}
	}
	d.b = swarm.NewBoard(func(id string) (swarm.Hive, bool) { h, ok := d.hives[id]; return h, ok })
	return d
}

// known marks the file as one for which the hives were asked.
func (d *desk) known(answers map[string]swarm.Holding) *desk {
	d.t.Helper()
	ask, _, err := d.b.Begin(d.now, testDigest)
	must.NoError(d.t, err)
	must.True(d.t, ask)
	d.b.Asked(d.now, testDigest, answers)
	return d
}

func (d *desk) claim(c swarm.Claim) swarm.Plan {
	d.t.Helper()
	c.Digest = testDigest
	p, err := d.b.Claim(d.now, c)
	must.NoError(d.t, err)
	return p
}

func (d *desk) ask(hive string, have int64, change ...func(*swarm.Claim)) swarm.Plan {
	d.t.Helper()
	c := swarm.Claim{Hive: hive, Stage: swarm.Asking, HaveBytes: have}
	for _, f := range change {
		f(&c)
	}
	return d.claim(c)
}

func (d *desk) suspect(hive string) {
	h := d.hives[hive]
	h.Suspect = true
	d.hives[hive] = h
}

func avoiding(hives ...string) func(*swarm.Claim) { return func(c *swarm.Claim) { c.Avoid = hives } }
func noOrigin(c *swarm.Claim)                     { c.NoOrigin = true }
func mute(c *swarm.Claim)                         { c.Mute = true }

// gist summarizes a plan in a word or two.
func gist(p swarm.Plan) string {
	var from []string
	for _, s := range p.Seeders {
		from = append(from, s.Hive)
	}
	switch {
	case p.Origin:
		return "origin"
	case len(from) > 0:
		return strings.Join(from, " ")
	case p.Nobody:
		return "nobody"
	case p.Waiting != "":
		return "wait for " + p.Waiting
	}
	return "wait"
}

func TestBoard(t *testing.T) {
	t.Parallel()
	nothing := map[string]swarm.Holding{}
	for name, tt := range map[string]struct {
		holdings map[string]swarm.Holding
		do       func(d *desk) swarm.Plan
		want     string
	}{
		"the first goes to the origin": {nothing, func(d *desk) swarm.Plan { return d.ask("a", 0) }, "origin"},
		"the others take it from the first": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			return d.ask("b", 0)
		}, "a"},
		"the first may ask twice": {nothing, func(d *desk) swarm.Plan { // its answer was lost
			d.ask("a", 0)
			return d.ask("a", 0)
		}, "origin"},
		"a hive that has it comes before the origin": {map[string]swarm.Holding{"c": {Whole: true}}, func(d *desk) swarm.Plan { return d.ask("a", 0) }, "c"},
		"a hive whose line broke is not sent anybody": {map[string]swarm.Holding{"c": {Whole: true}}, func(d *desk) swarm.Plan {
			d.suspect("c")
			return d.ask("a", 0)
		}, "origin"},
		"a hive without an address is not sent anybody": {map[string]swarm.Holding{"c": {Whole: true}}, func(d *desk) swarm.Plan {
			d.hives["c"] = swarm.Hive{Name: "c"}
			return d.ask("a", 0)
		}, "origin"},
		"a hive that has failed is avoided": {map[string]swarm.Holding{"c": {Whole: true}}, func(d *desk) swarm.Plan { return d.ask("a", 0, avoiding("c")) }, "origin"},
		"a hive that asks for what it was said to have does not have it": {map[string]swarm.Holding{"c": {Whole: true}}, func(d *desk) swarm.Plan {
			d.ask("c", 0)
			return d.ask("a", 0)
		}, "c"}, // now at the origin
		"a hive at the origin stays there when a new leader asks": {map[string]swarm.Holding{"b": {Fetching: true, FromOrigin: true}}, func(d *desk) swarm.Plan { return d.ask("a", 0) }, "b"},
		"the origin passes on when its hive dies": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.ask("b", 10)
			d.suspect("a")
			d.now = d.now.Add(3 * time.Second)
			return d.ask("b", 10)
		}, "origin"},
		"the origin does not pass on from a hive that is only slow to say so": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.now = d.now.Add(8 * time.Second)
			return d.ask("b", 0)
		}, "a"},
		"the origin passes on from a hive that says nothing": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.now = d.now.Add(swarm.ClaimTTL + time.Second)
			return d.ask("b", 0)
		}, "origin"},
		"the origin passes on when its hive is gone from the registry": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			delete(d.hives, "a")
			return d.ask("b", 0)
		}, "origin"},
		"the origin passes on when its hive gives up": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.ask("b", 0)
			d.claim(swarm.Claim{Hive: "a", Stage: swarm.Over})
			return d.ask("b", 0)
		}, "origin"},
		"the origin passes on when nothing comes from it": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			for range 35 {
				d.now = d.now.Add(time.Second)
				d.claim(swarm.Claim{Hive: "a", Stage: swarm.FromOrigin, HaveBytes: 1})
			}
			return d.ask("b", 1, avoiding("a"))
		}, "origin"},
		"the origin stays where something comes from it": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			for i := range int64(35) {
				d.now = d.now.Add(time.Second)
				d.claim(swarm.Claim{Hive: "a", Stage: swarm.FromOrigin, HaveBytes: i + 2})
			}
			return d.ask("b", 1, avoiding("a"))
		}, "wait for hive-a"},
		"the one that has more goes on at the origin": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.ask("b", 100)
			d.ask("c", 50)
			d.claim(swarm.Claim{Hive: "a", Stage: swarm.Over})
			return d.ask("c", 50)
		}, "b"},
		"and is sent there": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.ask("b", 100)
			d.ask("c", 50)
			d.claim(swarm.Claim{Hive: "a", Stage: swarm.Over})
			d.ask("c", 50)
			return d.ask("b", 100)
		}, "origin"},
		"nobody is sent in a circle": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.ask("b", 7)
			return d.ask("c", 7)
		}, "a"}, // not b, which has no more bytes
		"a hive with the whole file serves it": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.claim(swarm.Claim{Hive: "a", Stage: swarm.Whole})
			return d.ask("b", 0)
		}, "a"},
		"a hive that gives nothing is not asked": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0, mute)
			d.claim(swarm.Claim{Hive: "b", Stage: swarm.Whole, Mute: true})
			return d.ask("c", 0)
		}, "origin"},
		"and goes to the origin beside the others": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			return d.ask("b", 0, mute, avoiding("a"))
		}, "origin"},
		"and takes from hives where it can": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			return d.ask("b", 0, mute)
		}, "a"},
		"where the origin fails one, another tries": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.ask("b", 0)
			d.ask("a", 0, noOrigin)
			return d.ask("b", 0)
		}, "origin"},
		"meanwhile the first waits": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.ask("b", 0)
			return d.ask("a", 0, noOrigin)
		}, "wait"},
		"where it fails all, nobody is left": {nothing, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.ask("b", 0)
			d.ask("b", 0, noOrigin)
			return d.ask("a", 0, noOrigin)
		}, "nobody"},
		"the load is spread": {map[string]swarm.Holding{"c": {Whole: true}, "d": {Whole: true}}, func(d *desk) swarm.Plan {
			d.ask("a", 0)
			d.claim(swarm.Claim{Hive: "a", Stage: swarm.FromHive, Source: "c"})
			return d.ask("b", 0)
		}, "d c"},
		"a part of it helps when those that have it are busy": {map[string]swarm.Holding{"f": {Whole: true}}, func(d *desk) swarm.Plan {
			for i, hive := range []string{"a", "b", "c", "d"} {
				d.claim(swarm.Claim{Hive: hive, Stage: swarm.FromHive, Source: "f", HaveBytes: int64(i)})
			}
			return d.ask("e", 2)
		}, "d f"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			must.Eq(t, tt.want, gist(tt.do(newDesk(t).known(tt.holdings))))
		})
	}
}

func TestBoardAsksHivesOnce(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	_, err := d.b.Claim(d.now, swarm.Claim{Hive: "a", Digest: testDigest, Stage: swarm.Asking})
	must.Eq(t, core.Unavailable, core.KindOf(err))
	ask, asked, err := d.b.Begin(d.now, testDigest)
	must.NoError(t, err)
	must.True(t, ask)
	ask, again, err := d.b.Begin(d.now, testDigest)
	must.NoError(t, err)
	must.False(t, ask)
	select {
	case <-again:
		t.Fatal("the hives have not answered yet")
	default:
	}
	d.b.Asked(d.now, testDigest, nil)
	<-asked
	d.b.Asked(d.now, testDigest, nil) // harmless

	// Files that nobody asks for are forgotten after a while, and a change of leader forgets
	// everything.
	d.ask("a", 0)
	d.now = d.now.Add(31 * time.Second)
	ask, asked, err = d.b.Begin(d.now, testDigest)
	must.NoError(t, err)
	must.True(t, ask)
	d.b.Clear()
	<-asked // no waiter is stuck forever
	d.b.Asked(d.now, testDigest, map[string]swarm.Holding{"c": {Whole: true}})
	ask, _, err = d.b.Begin(d.now, testDigest)
	must.NoError(t, err)
	must.True(t, ask)
}

// One hive cannot fill the board, and all hives together are bounded.
func TestBoardIsBounded(t *testing.T) {
	t.Parallel()
	d := newDesk(t)
	var last error
	files := 0
	for ; files < 10_000; files++ {
		digest := fmt.Sprintf("sha256:%064x", files)
		if _, _, last = d.b.Begin(d.now, digest); last != nil {
			break
		}
		d.b.Asked(d.now, digest, nil)
		_, err := d.b.Claim(d.now, swarm.Claim{Hive: "a", Digest: digest, Stage: swarm.Asking})
		if files < 64 {
			must.NoError(t, err)
		} else {
			must.Eq(t, core.Overloaded, core.KindOf(err))
		}
	}
	must.Eq(t, core.Overloaded, core.KindOf(last))
	must.Less(t, 5000, files)
}

// Whatever hives do, some hive that wants the file makes progress: it is sent to one that has more,
// or to the origin, and they never all wait for each other.
func TestBoardNobodyIsStuck(t *testing.T) {
	t.Parallel()
	for run := range uint64(200) {
		r := rand.New(rand.NewPCG(run, 1))
		d := newDesk(t).known(nil)
		ids := []string{"a", "b", "c", "d", "e", "f"}
		have := map[string]int64{}
		alive := map[string]bool{}
		for _, id := range ids {
			alive[id] = true
		}
		for range 60 {
			d.now = d.now.Add(time.Duration(r.IntN(900)) * time.Millisecond)
			progress := false
			for _, i := range r.Perm(len(ids)) {
				id := ids[i]
				if !alive[id] {
					continue
				}
				p := d.ask(id, have[id])
				switch {
				case p.Origin:
					have[id] += 3
					progress = true
					d.claim(swarm.Claim{Hive: id, Stage: swarm.FromOrigin, HaveBytes: have[id]})
				case len(p.Seeders) > 0:
					from := p.Seeders[0].Hive
					if have[from] > have[id] {
						have[id] = have[from]
						progress = true
					}
					d.claim(swarm.Claim{Hive: id, Stage: swarm.FromHive, Source: from, HaveBytes: have[id]})
				}
			}
			if len(alive) > 2 && r.IntN(8) == 0 {
				dead := ids[r.IntN(len(ids))]
				if alive[dead] {
					delete(alive, dead)
					d.suspect(dead)
					d.now = d.now.Add(3 * time.Second)
				}
			}
			must.True(t, progress, must.Sprintf("run %d: nobody goes on", run))
		}
	}
}
