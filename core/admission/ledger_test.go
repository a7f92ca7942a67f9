package admission

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// In any order of events, no span of the window's length exceeds the limit, and the wait that a
// refusal returns is correct.
func TestWindowProperty(t *testing.T) {
	t.Parallel()
	for seed := range uint64(5) {
		r := rand.New(rand.NewPCG(seed, 1))
		const per, limit = time.Minute, 50
		w := NewWindow(per)
		now := epoch
		var taken []time.Time
		for range 2000 {
			now = now.Add(time.Duration(r.ExpFloat64() * float64(400*time.Millisecond)))
			if w.Sum(now)+1 > limit {
				wait := w.Until(limit-1, now)
				must.Positive(t, wait)
				must.LessEq(t, per+per/windowSlots, wait)
				if r.IntN(4) == 0 { // a client that waits is admitted
					now = now.Add(wait)
					must.Less(t, int64(limit), w.Sum(now))
				}
				continue
			}
			w.Add(1, now, now)
			taken = append(taken, now)
		}
		for i, begin := range taken {
			n := 0
			for _, at := range taken[i:] {
				if at.Sub(begin) >= per {
					break
				}
				n++
			}
			must.LessEq(t, limit, n)
		}
		must.Greater(t, 500, len(taken))
	}
}

func TestWindowCorrections(t *testing.T) {
	t.Parallel()
	w := NewWindow(time.Minute)
	w.Add(1000, epoch, epoch)
	later := epoch.Add(50 * time.Second)
	w.Add(100, later, later)
	w.Add(-900, epoch, later) // the first count was too high
	must.Eq(t, 200, w.Sum(later))
	must.Eq(t, 100, w.Sum(epoch.Add(62*time.Second)), must.Sprint("a correction leaves with what it corrects"))
	w.Add(-500, epoch, epoch.Add(63*time.Second))
	must.Eq(t, 100, w.Sum(epoch.Add(63*time.Second)), must.Sprint("what is gone is not corrected"))
	w.Add(-500, later, epoch.Add(63*time.Second))
	must.Zero(t, w.Sum(epoch.Add(63*time.Second)), must.Sprint("nothing falls below zero"))
	w.Add(5, epoch, epoch.Add(time.Hour))
	must.Zero(t, w.Sum(epoch.Add(time.Hour)))
	w.Add(5, epoch.Add(time.Hour), epoch.Add(time.Hour))
	must.Eq(t, 5, w.Sum(epoch), must.Sprint("a clock that goes back changes nothing"))
}

func TestLedger(t *testing.T) {
	t.Parallel()
	l := NewLedger()
	rates := []Rate{{Requests, 3, time.Minute}, {Tokens, 1000, time.Hour}, {Concurrent, 2, 0}}
	states, refused := l.Take("k", "q1", rates, 400, epoch)
	must.Nil(t, refused)
	must.Eq(t, []int64{2, 600, 1}, []int64{states[0].Remaining, states[1].Remaining, states[2].Remaining})
	must.Positive(t, states[0].Reset)
	_, refused = l.Take("k", "q2", rates, 500, epoch)
	must.Nil(t, refused)
	_, refused = l.Take("k", "q2", rates, 1, epoch)
	must.Eq(t, &Refusal{rates[2], time.Second}, refused, must.Sprint("two run, at two queens"))
	l.Settle("k", "q1", rates, epoch, 400, 20, epoch)
	_, refused = l.Take("k", "q1", rates, 600, epoch)
	must.NotNil(t, refused)
	must.Eq(t, Tokens, refused.Rate.Of, must.Sprint("20 used and 500 counted of 1000"))
	states, refused = l.Take("k", "q1", rates, 480, epoch)
	must.Nil(t, refused)
	must.Zero(t, states[0].Remaining)
	l.Settle("k", "q1", rates, epoch, 480, 5000, epoch)
	l.Settle("k", "q2", rates, epoch, 500, 10, epoch)
	_, refused = l.Take("k", "q1", rates, 1, epoch.Add(2*time.Minute))
	must.Eq(t, Tokens, refused.Rate.Of, must.Sprint("an answer may use more than was counted: it is counted then"))
	_, refused = l.Take("other", "q1", rates, 1, epoch)
	must.Nil(t, refused)

	// A request larger than the limit is admitted when nothing else counts, and uses up the limit.
	l = NewLedger()
	small := []Rate{{Tokens, 100, time.Minute}}
	_, refused = l.Take("k", "q1", small, 1_000_000, epoch)
	must.Nil(t, refused)
	_, refused = l.Take("k", "q1", small, 1, epoch)
	must.NotNil(t, refused)
	must.Between(t, time.Minute-time.Second, refused.Retry, time.Minute+time.Second)
}

// Requests of a queen that has disappeared stop counting; those of a live queen do not.
func TestLedgerHolders(t *testing.T) {
	t.Parallel()
	l := NewLedger()
	rates := []Rate{{Concurrent, 2, 0}}
	for _, holder := range []string{"q1", "q2"} {
		_, refused := l.Take("k", holder, rates, 0, epoch)
		must.Nil(t, refused)
	}
	for i := range 20 {
		l.Running("q2", map[string]int64{"k": 1}, epoch.Add(time.Duration(i)*time.Second))
	}
	now := epoch.Add(20 * time.Second)
	_, refused := l.Take("k", "q3", rates, 0, now)
	must.Nil(t, refused)
	_, refused = l.Take("k", "q3", rates, 0, now)
	must.NotNil(t, refused)
	l.Running("q2", nil, now) // the end of this request was lost in transit
	_, refused = l.Take("k", "q3", rates, 0, now)
	must.Nil(t, refused)
}

func TestLedgerHistory(t *testing.T) {
	t.Parallel()
	own, next := NewLedger(), NewLedger()
	rates := []Rate{{Requests, 10, time.Minute}, {Concurrent, 9, 0}}
	for i := range 4 {
		_, refused := own.Take("k", "q1", rates, 0, epoch.Add(time.Duration(i)*5*time.Second))
		must.Nil(t, refused)
	}
	now := epoch.Add(20 * time.Second)
	must.False(t, next.Told("k", "q1"))
	for range 2 { // counts only once
		next.Tell("k", "q1", rates, own.History("k", rates, now), now)
	}
	must.True(t, next.Told("k", "q1"))
	states, refused := next.Take("k", "q1", rates, 0, now)
	must.Nil(t, refused)
	must.Eq(t, 5, states[0].Remaining)
	states, _ = next.Take("k", "q1", rates, 0, epoch.Add(63*time.Second))
	must.Eq(t, 5, states[0].Remaining, must.Sprint("what is told ends when it would have ended"))
	// Invalid history from a broken queen lowers no count.
	next.Tell("k", "q2", rates, [][]Slot{{{At: 1 << 60, Count: -5}, {At: -7, Count: 3}}, nil, nil}, now)
	states, _ = next.Take("k", "q1", rates, 0, epoch.Add(63*time.Second))
	must.LessEq(t, int64(4), states[0].Remaining)
}

func TestLedgerBounded(t *testing.T) {
	t.Parallel()
	l := NewLedger()
	for i := range MaxAccounts + 100 {
		l.account(string(binaryKey(i)), epoch.Add(time.Duration(i)))
	}
	must.LessEq(t, MaxAccounts, l.Len())
	must.NotNil(t, l.accounts[string(binaryKey(MaxAccounts+99))])
	must.Nil(t, l.accounts[string(binaryKey(0))])
}

func binaryKey(n int) []byte { return []byte{byte(n >> 16), byte(n >> 8), byte(n)} }
