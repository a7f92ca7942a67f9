package liveness

import (
	"container/heap"
	"context"
	"time"
)

// maxExpiryWait is how long to wait when nothing can expire.
const maxExpiryWait = 365 * 24 * time.Hour

// alarms is a heap of the hives that have a deadline, ordered by peer.wakeAt. Postponing a deadline
// does not change the heap: the hive is then checked once in vain and reinserted.
type alarms []*peer

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].wakeAt.Before(a[j].wakeAt) }
func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i, j
}

func (a *alarms) Push(x any) {
	p, _ := x.(*peer)
	p.place = len(*a)
	*a = append(*a, p)
}

func (a *alarms) Pop() any {
	last := len(*a) - 1
	p := (*a)[last]
	(*a)[last] = nil
	*a = (*a)[:last]
	p.place = -1
	return p
}

// set inserts a hive by its due time, or moves it forward. It reports whether this made the hive
// the first one.
func (a *alarms) set(p *peer) (first bool) {
	due := p.due()
	switch {
	case due.IsZero():
		return false
	case p.place < 0:
		p.wakeAt = due
		heap.Push(a, p)
	case due.Before(p.wakeAt):
		p.wakeAt = due
		heap.Fix(a, p.place)
	default:
		return false
	}
	return p.place == 0
}

// reset moves a hive to its due time, or removes it if it is never due.
func (a *alarms) reset(p *peer) {
	if due := p.due(); due.IsZero() {
		a.remove(p)
	} else {
		p.wakeAt = due
		heap.Fix(a, p.place)
	}
}

// remove removes a hive if present.
func (a *alarms) remove(p *peer) {
	if p.place >= 0 {
		heap.Remove(a, p.place)
	}
}

// scheduleLocked sets the alarm of a hive to its due time.
func (m *Monitor) scheduleLocked(p *peer) {
	if m.alarms.set(p) {
		wake(m.alarm)
	}
}

// watchAlarms acts on due peers until ctx ends.
func (m *Monitor) watchAlarms(ctx context.Context) {
	timer := time.NewTimer(maxExpiryWait)
	defer timer.Stop()
	for {
		timer.Reset(m.expire())
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-m.alarm:
		}
	}
}

// expire acts on every hive that is due and returns the time until the next one is.
func (m *Monitor) expire() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	for len(m.alarms) > 0 {
		p := m.alarms[0]
		if p.wakeAt.After(now) {
			return p.wakeAt.Sub(now)
		}
		m.expireLocked(p, now)
		if p.place < 0 {
			continue // dropped
		}
		m.alarms.reset(p)
	}
	return maxExpiryWait
}
