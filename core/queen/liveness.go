package queen

import (
	"container/heap"
	"context"
	"slices"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

// The timing of reports and of what follows from silence, for queens and hives on one local
// network. A hive reports early when something changes.
//
// Every queen for itself avoids the workers of a hive whose line to it broke, that said it ends, or
// that is silent for its interval and SuspectGrace. That is nowhere but in its memory, and the next
// report undoes it. The leader then asks the hive for a sign of life by another way
// (Options.Pinger) and writes that it is down, which takes its workers out of the registry, when
// there is neither a report nor a sign for DownAfter, or no report for SilentAlive in spite of
// signs. Busy is not dead: a report, however late, undoes that as well.
//
// All of it is measured with the monotonic clock: the wall clock may jump as it likes.
const (
	BeatInterval      = time.Second             // between reports, as long as MaxBeatsPerSecond allows
	MaxBeatsPerSecond = 50                      // to one queen, of all hives together; above it the interval grows with the number of hives
	SuspectGrace      = 300 * time.Millisecond  // beyond the announced interval
	DownAfter         = 2800 * time.Millisecond // since the last report, and what the interval is above BeatInterval; or since the last sign of life
	SilentAlive       = 30 * time.Second        // for a hive that gives signs of life but does not report: TCP alone may hold reports back for that long
	DownAlone         = 10 * time.Second        // since the last report, where there is no Pinger; or twice the interval and 5 s, if that is longer
	LinkGrace         = 10 * time.Second        // for hives without a line, from the moment a queen leads; for routing, from its start
	ForgetAfter       = 24 * time.Hour          // a hive that is down is removed from the registry
	SilentWorker      = 3 * time.Second         // since a worker last told its state: it gets no request
	PingInterval      = 50 * time.Millisecond   // between two pings to one suspect hive
)

const (
	pingTimeout   = 500 * time.Millisecond
	maxPings      = 1024 // that wait for an answer at once
	leastPings    = 8    // that must have failed in a row before silence counts
	retryExpiry   = 200 * time.Millisecond
	maxExpiryWait = 365 * 24 * time.Hour // where nothing can expire
)

// pulse is what this queen knows of a hive beyond the registry. Its fields are guarded by Queen.mu.
// Zero times do not come.
type pulse struct {
	id     string
	line   *line   // nil: none
	report *report // the last one; nil: none yet
	heard  time.Time
	next   time.Duration // when it was told to report next
	// suspect is why the hive's workers are avoided; empty: they are not.
	suspect      string
	suspectSince time.Time
	suspectAt    time.Time
	forgetAt     time.Time

	// Only while leading.
	downAt     time.Time
	graceUntil time.Time // not down before
	answered   time.Time // the last ping
	unanswered int       // pings since
	dirty      bool      // its report waits for being written
	writing    bool      // something of it is being written
	gone       bool      // it waits for being written as down or, with forget, removed
	forget     bool

	wakeAt time.Time // when the heap has it looked at; not after due
	place  int       // in the heap; -1: not in it
}

// due is the earliest time at which something happens to the pulse; zero: never.
func (p *pulse) due() time.Time {
	var next time.Time
	for _, at := range []time.Time{p.suspectAt, p.downAt, p.forgetAt} {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// alarms is a heap of pulses by wakeAt. A due time that moves away leaves the heap as it is: the
// pulse is looked at in vain once, and put back.
type alarms []*pulse

func (a alarms) Len() int           { return len(a) }
func (a alarms) Less(i, j int) bool { return a[i].wakeAt.Before(a[j].wakeAt) }
func (a alarms) Swap(i, j int) {
	a[i], a[j] = a[j], a[i]
	a[i].place, a[j].place = i, j
}

func (a *alarms) Push(x any) {
	p, _ := x.(*pulse)
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

// pulseLocked gives the pulse of a hive.
func (q *Queen) pulseLocked(id string) *pulse {
	p, ok := q.pulses[id]
	if !ok {
		p = &pulse{id: id, place: -1}
		q.pulses[id] = p
	}
	return p
}

// dropLocked forgets a pulse that has no line.
func (q *Queen) dropLocked(p *pulse) {
	if p.place >= 0 {
		heap.Remove(&q.alarms, p.place)
	}
	delete(q.pulses, p.id)
	delete(q.silent, p.id)
	q.confirmLocked(p.id, nil, true)
}

// scheduleLocked sees to it that a pulse is looked at when it is due.
func (q *Queen) scheduleLocked(p *pulse) {
	due := p.due()
	switch {
	case due.IsZero():
		return
	case p.place < 0:
		p.wakeAt = due
		heap.Push(&q.alarms, p)
	case due.Before(p.wakeAt):
		p.wakeAt = due
		heap.Fix(&q.alarms, p.place)
	default:
		return
	}
	if p.place == 0 {
		wake(q.alarm)
	}
}

// wake fills a channel that holds one.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// watchPulses acts on due pulses until ctx ends.
func (q *Queen) watchPulses(ctx context.Context) {
	timer := time.NewTimer(maxExpiryWait)
	defer timer.Stop()
	for {
		timer.Reset(q.expire())
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-q.alarm:
		}
	}
}

// expire acts on every pulse that is due and says how long until the next.
func (q *Queen) expire() time.Duration {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	for len(q.alarms) > 0 {
		p := q.alarms[0]
		if p.wakeAt.After(now) {
			return p.wakeAt.Sub(now)
		}
		q.expireLocked(p, now)
		if p.place < 0 {
			continue // dropped
		}
		if due := p.due(); due.IsZero() {
			heap.Remove(&q.alarms, p.place)
		} else {
			p.wakeAt = due
			heap.Fix(&q.alarms, p.place)
		}
	}
	return maxExpiryWait
}

func (q *Queen) expireLocked(p *pulse, now time.Time) {
	if passed(p.suspectAt, now) {
		p.suspectAt = time.Time{}
		q.suspectLocked(p, "its hive is silent")
	}
	if passed(p.downAt, now) {
		p.downAt = q.downAtLocked(p)
		switch {
		case !passed(p.downAt, now):
		case q.opts.Pinger != nil && p.graceUntil.IsZero() && p.answered.IsZero() && p.unanswered < leastPings:
			p.downAt = now.Add(retryExpiry) // many are silent at once, and it has not been asked often enough
		default:
			p.downAt = time.Time{}
			q.goneLocked(p, false)
		}
	}
	if passed(p.forgetAt, now) {
		p.forgetAt = time.Time{}
		if q.leading {
			q.goneLocked(p, true)
		} else if p.line == nil {
			q.dropLocked(p)
		}
	}
}

func passed(deadline, now time.Time) bool { return !deadline.IsZero() && !deadline.After(now) }

// suspectLocked has the workers of a hive avoided from now on.
func (q *Queen) suspectLocked(p *pulse, why string) {
	if p.suspect != "" {
		return
	}
	p.suspect, p.suspectSince = why, time.Now()
	q.log.Warn("hive does not report: its workers are avoided", "hive", q.hiveLabel(p.id), "reason", why)
	q.changedLocked()
	if q.opts.Suspected != nil {
		q.opts.Suspected(p.id)
	}
	if q.leading {
		q.doubtLocked(p)
	}
}

// doubtLocked has the leader find out whether a suspect hive is down.
func (q *Queen) doubtLocked(p *pulse) {
	p.answered, p.unanswered = time.Time{}, 0
	p.downAt = q.downAtLocked(p)
	if q.opts.Pinger != nil && p.graceUntil.IsZero() {
		q.silent[p.id] = p
		wake(q.doubt)
	}
	q.scheduleLocked(p)
}

// trustLocked undoes suspectLocked and says whether there was something to undo.
func (q *Queen) trustLocked(p *pulse) bool {
	delete(q.silent, p.id)
	if p.suspect == "" {
		return false
	}
	q.log.Info("hive reports again", "hive", q.hiveLabel(p.id), "after", time.Since(p.suspectSince).Round(time.Millisecond), "reason", p.suspect)
	p.suspect, p.suspectSince = "", time.Time{}
	return true
}

// confirmLocked ends the avoidance of the workers of a hive that failed requests and are in its
// report, and says whether there were any. Those that are not are forgotten when the registry knows
// no more of them either: all.
func (q *Queen) confirmLocked(hive string, r *report, all bool) bool {
	found := false
	for at := range q.suspects {
		if at.hive == hive && (all || slices.ContainsFunc(r.workers, func(w core.Worker) bool { return w.Nonce == at.nonce })) {
			delete(q.suspects, at)
			found = true
		}
	}
	return found
}

// downAtLocked is when a hive is down if nothing more is heard of it.
func (q *Queen) downAtLocked(p *pulse) time.Time {
	var at time.Time
	switch {
	case p.heard.IsZero():
	case q.opts.Pinger == nil:
		at = p.heard.Add(max(DownAlone, 2*p.next+DownAlone/2))
	default:
		at = earlier(p.heard.Add(DownAfter+max(p.next-BeatInterval, 0)), p.suspectSince.Add(DownAfter))
		if !p.answered.IsZero() {
			at = earlier(later(at, p.answered.Add(DownAfter)), p.suspectSince.Add(SilentAlive))
		}
	}
	return later(at, p.graceUntil)
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// pingSilent asks the hives that the leader doubts for signs of life until ctx ends.
func (q *Queen) pingSilent(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxPings)
	timer := time.NewTimer(PingInterval)
	defer timer.Stop()
	for {
		q.mu.Lock()
		ids := make([]string, 0, len(q.silent))
		for id := range q.silent { // in another order each time, so that all get their turn when there are many
			ids = append(ids, id)
		}
		q.mu.Unlock()
		if len(ids) == 0 {
			select {
			case <-q.doubt:
				continue
			case <-ctx.Done():
				return
			}
		}
	round:
		for _, id := range ids {
			select {
			case slots <- struct{}{}:
				wg.Go(func() {
					defer func() { <-slots }()
					q.ping(ctx, id)
				})
			default:
				break round
			}
		}
		timer.Reset(PingInterval)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
	}
}

// ping asks one hive for a sign of life and notes the outcome.
func (q *Queen) ping(ctx context.Context, hive string) {
	limited, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := q.opts.Pinger.Ping(limited, hive)
	if ctx.Err() != nil {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	p, ok := q.silent[hive]
	if !ok {
		return // it has reported meanwhile, or is down
	}
	if err != nil {
		p.unanswered++
		return
	}
	p.answered, p.unanswered = time.Now(), 0
	if !p.downAt.IsZero() {
		p.downAt = q.downAtLocked(p)
	}
}

// takeOver starts with the hives of the registry and with what this queen heard of them before it
// led. Hives that have no line to it get LinkGrace.
func (q *Queen) takeOver() {
	now := time.Now()
	q.board.Clear() // of an earlier time
	registry := q.registry()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leading = true
	hives := 0
	registry.EachHive(nil, func(h *core.Hive) bool {
		hives++
		p := q.pulseLocked(h.ID)
		switch {
		case p.line != nil:
		case h.Status == core.HiveDown:
			p.forgetAt = now.Add(ForgetAfter)
		default:
			p.graceUntil, p.forgetAt = now.Add(LinkGrace), time.Time{}
			q.doubtLocked(p)
		}
		q.scheduleLocked(p)
		return true
	})
	behind := 0
	for _, p := range q.pulses {
		if p.line == nil || p.report == nil {
			continue // an older report is no news
		}
		if same, _ := p.report.registered(registry); same {
			p.registeredLocked()
		} else {
			behind++
			q.dirtyLocked(p)
		}
		if p.suspect != "" {
			q.doubtLocked(p)
		} else if q.opts.Pinger == nil {
			p.downAt = q.downAtLocked(p)
		}
		q.scheduleLocked(p)
	}
	q.changedLocked()
	q.log.Info("leading the cluster", "hives", hives, "lines", q.lines, "behind", behind)
}

// stepDown forgets what only a leader has to see to.
func (q *Queen) stepDown() {
	defer q.board.Clear()
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leading = false
	for _, p := range q.pulses {
		p.downAt, p.graceUntil, p.answered, p.unanswered = time.Time{}, time.Time{}, time.Time{}, 0
		p.dirty, p.writing, p.gone, p.forget = false, false, false, false
		if p.line == nil && p.report == nil {
			q.dropLocked(p)
		}
	}
	q.dirty, q.gone = nil, nil
	clear(q.silent)
	q.changedLocked()
	q.log.Info("no longer leading the cluster")
}

// leads says whether this queen has taken over the leadership and still has it. Raft knows of its
// loss some milliseconds before the queen's own loop does: a read in between would be refused here,
// instead of waiting for the next leader.
func (q *Queen) leads() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.leading && q.opts.Node.IsLeader()
}

// noLine is why a hive is not used that other queens may use.
const noLine = "has no line to this queen"

// linkedTo reports whether a hive reports to this queen, or may be about to.
func (q *Queen) linkedTo(hive string) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	p := q.pulses[hive]
	return p != nil && p.report != nil || time.Since(q.since) <= LinkGrace
}

// avoidLocked says why this queen gives a worker no request; empty: nothing speaks against it.
func (q *Queen) avoidLocked(w instance, p *pulse) string {
	if len(q.suspects) > 0 {
		if why, ok := q.suspects[w]; ok {
			return why
		}
	}
	switch {
	case p != nil && p.suspect != "":
		return p.suspect
	case (p == nil || p.report == nil) && time.Since(q.since) > LinkGrace:
		return "its hive " + noLine
	}
	return ""
}

// pulseOf says whether a hive has a line to this queen, and when it last reported; zero: not since
// this queen started.
func (q *Queen) pulseOf(hive string) (linked bool, last time.Time) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if p, ok := q.pulses[hive]; ok {
		return p.line != nil, p.heard
	}
	return false, time.Time{}
}
