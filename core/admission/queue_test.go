package admission

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func ticket(key string, cost int64) *Ticket[int] {
	return &Ticket[int]{Key: key, Cost: cost, Since: epoch}
}

func joined(t *testing.T, q *Queue[int], x *Ticket[int]) bool {
	t.Helper()
	evicted, ok := q.Join(x)
	must.Nil(t, evicted)
	return ok
}

func TestQueueOfOneKey(t *testing.T) {
	t.Parallel()
	q := NewQueue[int](2)
	must.Nil(t, q.Head(epoch))
	a, b, c := ticket("", 1000), ticket("", 1), ticket("", 50)
	must.True(t, joined(t, q, a))
	must.True(t, joined(t, q, b))
	must.False(t, joined(t, q, c))
	must.Eq(t, 2, q.Len())
	must.True(t, q.Head(epoch) == a, must.Sprint("first in, first out, whatever it costs"))
	q.Leave(c)
	must.Eq(t, 2, q.Len())
	q.Leave(a)
	must.True(t, q.Head(epoch) == b)
	must.True(t, joined(t, q, c))
	q.Serve(c)
	q.Serve(b)
	must.Zero(t, q.Len())
	must.Nil(t, q.Head(epoch))
	must.False(t, joined(t, NewQueue[int](0), a))
}

// A key with many tickets does not keep others out of a full queue, and loses only its latest
// ticket.
func TestQueueMakesRoom(t *testing.T) {
	t.Parallel()
	q := NewQueue[int](4)
	var greedy []*Ticket[int]
	for range 4 {
		greedy = append(greedy, ticket("greedy", 1))
		must.True(t, joined(t, q, greedy[len(greedy)-1]))
	}
	first, second, third := ticket("polite", 1), ticket("polite", 1), ticket("polite", 1)
	evicted, ok := q.Join(first)
	must.True(t, ok)
	must.True(t, evicted == greedy[3])
	must.True(t, evicted.Evicted)
	evicted, ok = q.Join(second)
	must.True(t, ok)
	must.True(t, evicted == greedy[2])
	must.False(t, joined(t, q, third), must.Sprint("both have as many"))
	must.False(t, joined(t, q, ticket("greedy", 1)))
	must.Eq(t, 4, q.Len())
	other, ok := q.Join(ticket("other", 1))
	must.True(t, ok)
	must.NotNil(t, other)
	_, ok = q.Join(ticket("fourth", 1))
	must.True(t, ok)
	must.False(t, joined(t, q, ticket("fifth", 1)), must.Sprint("each has one"))
	must.Eq(t, 4, q.Len())
}

// shares serves n tickets of keys that always wait, with random costs, and returns what each key
// got.
func shares(seed uint64, n int, weights map[string]int64, most int64) map[string]int64 {
	r := rand.New(rand.NewPCG(seed, 7))
	q := NewQueue[int](1000)
	join := func(key string) {
		_, _ = q.Join(&Ticket[int]{Key: key, Weight: weights[key], Cost: 1 + r.Int64N(most), Since: epoch})
	}
	for key := range weights {
		for range 1 + len(key) { // some keys wait with more tickets than others
			join(key)
		}
	}
	got := map[string]int64{}
	for range n {
		head := q.Head(epoch)
		q.Serve(head)
		really := 1 + r.Int64N(most) // the estimate was wrong
		q.Correct(head.Key, really-head.Cost)
		got[head.Key] += really
		join(head.Key)
	}
	return got
}

func TestQueueShares(t *testing.T) {
	t.Parallel()
	for seed := range uint64(3) {
		for _, most := range []int64{2, 300, 5000, 200_000} {
			got := shares(seed, 4000, map[string]int64{"a": 0, "greedy key": 0, "third": 0}, most)
			sum := got["a"] + got["greedy key"] + got["third"]
			for key, n := range got {
				must.Between(t, 0.30, float64(n)/float64(sum), 0.367, must.Sprint(key, seed, most))
			}
		}
		got := shares(seed, 6000, map[string]int64{"low": 1, "normal": 4, "high": 16}, 500)
		must.Between(t, 3.6, float64(got["normal"])/float64(got["low"]), 4.4)
		must.Between(t, 3.6, float64(got["high"])/float64(got["normal"]), 4.4)
	}
}

// A key whose requests cost more than estimated gets no larger share.
func TestQueueCorrects(t *testing.T) {
	t.Parallel()
	q := NewQueue[int](10)
	got := map[string]int64{}
	for _, key := range []string{"long", "short"} {
		for range 2 {
			must.True(t, joined(t, q, ticket(key, 100)))
		}
	}
	for range 1000 {
		head := q.Head(epoch)
		q.Serve(head)
		really := map[string]int64{"long": 300, "short": 100}[head.Key]
		q.Correct(head.Key, really-head.Cost)
		got[head.Key] += really
		must.True(t, joined(t, q, ticket(head.Key, 100)))
	}
	must.Between(t, 0.48, float64(got["long"])/float64(got["long"]+got["short"]), 0.52)
}

// A low-priority key whose first ticket has waited long enough counts as a normal one.
func TestQueueAges(t *testing.T) {
	t.Parallel()
	share := func(now time.Time) float64 {
		q := NewQueue[int](10)
		got := map[string]int64{}
		for _, key := range []string{"low", "normal"} {
			for range 2 {
				_, _ = q.Join(&Ticket[int]{Key: key, Weight: map[string]int64{"low": 1}[key], Cost: 100, Since: epoch})
			}
		}
		for range 1000 {
			head := q.Head(now)
			q.Serve(head)
			got[head.Key] += head.Cost
			_, _ = q.Join(&Ticket[int]{Key: head.Key, Weight: map[string]int64{"low": 1}[head.Key], Cost: 100, Since: epoch})
		}
		return float64(got["low"]) / float64(got["low"]+got["normal"])
	}
	must.Between(t, 0.18, share(epoch), 0.22)
	must.Between(t, 0.45, share(epoch.Add(AgeAfter)), 0.55)
}

// Whatever joins and leaves, every ticket is served or leaves exactly once, no ticket starves, and
// the head stays the head.
func TestQueueRandom(t *testing.T) {
	t.Parallel()
	for seed := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 3))
		q := NewQueue[int](20)
		in := map[*Ticket[int]]bool{}
		for range 3000 {
			switch r.IntN(3) {
			case 0:
				x := &Ticket[int]{Key: fmt.Sprint(r.IntN(5)), Weight: []int64{0, 1, 16}[r.IntN(3)], Cost: r.Int64N(3000) - 5, Since: epoch}
				evicted, ok := q.Join(x)
				if evicted != nil {
					must.True(t, in[evicted])
					delete(in, evicted)
				}
				if ok {
					in[x] = true
				}
			case 1:
				for x := range in {
					q.Leave(x)
					delete(in, x)
					break
				}
			default:
				head := q.Head(epoch)
				must.Eq(t, len(in) == 0, head == nil)
				if head == nil {
					continue
				}
				must.True(t, in[head])
				must.True(t, q.Head(epoch.Add(time.Hour)) == head)
				q.Serve(head)
				q.Correct(head.Key, r.Int64N(1000)-500)
				delete(in, head)
			}
			must.Eq(t, len(in), q.Len())
		}
		served := 0
		for head := q.Head(epoch); head != nil; head = q.Head(epoch) {
			q.Serve(head)
			served++
		}
		must.Eq(t, len(in), served)
	}
}
