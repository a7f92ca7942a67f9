package batch

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

func TestRate(t *testing.T) {
	t.Parallel()
	var r rate
	now := time.Unix(1000, 0)
	must.Eq(t, 0, r.perSecond(now))
	for range 100 { // 100 tokens a second for 10 s
		for range 10 {
			r.add(1, now)
		}
		now = now.Add(100 * time.Millisecond)
	}
	must.Between(t, 90, r.perSecond(now), 110) // the oldest slice is incomplete
	must.Eq(t, 1000, r.total.Load())
	must.Between(t, 50, r.perSecond(now.Add(2*time.Second)), 70)
	must.Eq(t, 0, r.perSecond(now.Add(10*time.Second)))
	now = now.Add(time.Minute)
	r.add(50, now)
	must.Eq(t, 50, r.perSecond(now)) // a burst counts as at least a second
}
