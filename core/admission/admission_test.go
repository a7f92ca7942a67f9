package admission

import (
	"encoding/binary"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

var epoch = time.Unix(1_800_000_000, 0)

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		waiting, running int
		service, want    time.Duration
	}{
		{0, 0, 0, time.Second},
		{128, 8, time.Second, 16 * time.Second},
		{128, 0, time.Second, time.Minute},
		{10, 4, 100 * time.Millisecond, time.Second},
		{9, 1, time.Second, 10 * time.Second},
		{9, 2, time.Second, 5 * time.Second},
		{9, 0, time.Second, 10 * time.Second},
		{1000, 1, time.Hour, time.Minute},
	} {
		must.Eq(t, c.want, RetryAfter(c.waiting, c.running, c.service))
	}
}

func TestBudget(t *testing.T) {
	t.Parallel()
	b := NewBudget(0.2, 3)
	retries := func(now time.Time) (n int) {
		for n < 1000 && b.Retry(now) {
			n++
		}
		return n
	}
	must.Eq(t, 3, retries(epoch), must.Sprint("the reserve"))
	for i := range 100 {
		b.Request(epoch.Add(time.Duration(i) * 100 * time.Millisecond))
	}
	must.Eq(t, 20, retries(epoch.Add(10*time.Second)))
	must.Eq(t, 0, retries(epoch.Add(20*time.Second)))
	must.Eq(t, 3, retries(epoch.Add(time.Minute)), must.Sprint("what is old does not count"))
	must.Eq(t, 0, retries(epoch.Add(time.Minute)))
	must.Eq(t, 3, retries(epoch.Add(time.Hour)))

	// The window is half a minute, in steps of three seconds.
	b = NewBudget(0.5, 0)
	b.Request(epoch)
	b.Request(epoch)
	b.Request(epoch.Add(3 * time.Second))
	b.Request(epoch.Add(3 * time.Second))
	must.True(t, b.Retry(epoch.Add(27*time.Second)))
	must.False(t, b.Retry(epoch.Add(30*time.Second)), must.Sprint("of the four requests two are old"))
	must.False(t, b.Retry(epoch.Add(33*time.Second)))
}

func fingerprint(n int) (f Fingerprint) {
	binary.BigEndian.PutUint64(f[:], uint64(n))
	return f
}

func TestSuspects(t *testing.T) {
	t.Parallel()
	s := NewSuspects(time.Minute)
	f := fingerprint(1)
	must.Zero(t, s.Deadly(f, epoch))
	must.False(t, s.Lost(f, epoch))
	must.Zero(t, s.Deadly(f, epoch))
	must.True(t, s.Lost(f, epoch.Add(30*time.Second)))
	must.Eq(t, time.Minute, s.Deadly(f, epoch.Add(30*time.Second)))
	must.Zero(t, s.Deadly(fingerprint(2), epoch))
	must.Eq(t, 10*time.Second, s.Deadly(f, epoch.Add(80*time.Second)))
	must.Zero(t, s.Deadly(f, epoch.Add(90*time.Second)))
	must.False(t, s.Lost(f, epoch.Add(91*time.Second)), must.Sprint("what is old does not count"))

	for i := range 3 * maxSuspects {
		s.Lost(fingerprint(i), epoch.Add(2*time.Minute))
	}
	must.LessEq(t, maxSuspects, s.Len())
	must.LessEq(t, maxSuspects, len(s.oldest))
	last := fingerprint(3*maxSuspects - 1)
	must.True(t, s.Lost(last, epoch.Add(2*time.Minute)))
	s.Lost(f, epoch.Add(time.Hour))
	must.Eq(t, 1, s.Len(), must.Sprint("old entries go"))
}
