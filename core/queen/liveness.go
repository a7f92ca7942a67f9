package queen

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// The timing of heartbeats, for queens and hives on one local network. A hive beats early when its workers change.
//
// A hive that is silent for its announced interval and SuspectGrace is suspect: it gets no new request, in the leader's memory only. One that is silent
// for its TTL (MinTTL, or twice the interval if that is longer) and TTLGrace is down, in the registry: its workers are gone. Busy is not dead: every
// beat, however late, undoes both.
const (
	BeatInterval      = time.Second      // between beats, as long as MaxBeatsPerSecond allows
	MaxBeatsPerSecond = 50               // of all hives together; above it the interval grows with the number of hives
	SuspectGrace      = 2 * time.Second  // beyond the announced interval
	MinTTL            = 5 * time.Second  // of a beat
	TTLGrace          = 5 * time.Second  // beyond the TTL
	FailoverTTL       = 60 * time.Second // for every hive, from the moment a queen becomes leader
	ForgetAfter       = 24 * time.Hour   // a hive that is down is removed from the registry
)

const (
	retryExpiry   = time.Second            // after a failed write of an expiry
	maxExpiryWait = 365 * 24 * time.Hour   // where nothing can expire
	minExpiryWait = 100 * time.Microsecond // keeps a deadline that is now from becoming a busy loop
)

// pulse is what the leader knows of one hive beyond the registry. Zero times do not expire.
type pulse struct {
	incarnation uint64
	at          time.Time // of the last beat to this leader; zero: none yet
	suspectAt   time.Time
	downAt      time.Time
	forgetAt    time.Time
	suspect     bool
	free        map[string]int64     // free bytes by device id
	loads       map[string]core.Load // by worker nonce
}

// next is the earliest time at which something happens to the pulse; zero: never.
func (p *pulse) next() time.Time {
	var next time.Time
	for _, at := range []time.Time{p.suspectAt, p.downAt, p.forgetAt} {
		if !at.IsZero() && (next.IsZero() || at.Before(next)) {
			next = at
		}
	}
	return next
}

// lead does the leader's duties until ctx ends. node.Run calls it when the registry holds everything that was committed before.
func (q *Queen) lead(ctx context.Context) error {
	q.takeOver()
	defer q.stepDown()
	timer := time.NewTimer(maxExpiryWait)
	defer timer.Stop()
	for {
		timer.Reset(max(q.expire(ctx), minExpiryWait))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-q.wake:
		}
	}
}

// takeOver starts with the hives of the registry. The former leader's deadlines are not known, so each gets a long one.
func (q *Queen) takeOver() {
	now := time.Now()
	hives := q.registry().Hives(nil)
	q.mu.Lock()
	defer q.mu.Unlock()
	q.pulses = make(map[string]*pulse, len(hives))
	for _, h := range hives {
		p := &pulse{incarnation: h.Incarnation}
		if h.Status == core.HiveDown {
			p.forgetAt = now.Add(ForgetAfter)
		} else {
			p.downAt = now.Add(FailoverTTL)
		}
		q.pulses[h.ID] = p
	}
	q.leading = true
	q.changedLocked()
	q.log.Info("leading the cluster", "hives", len(hives))
}

// stepDown forgets what only a leader hears of.
func (q *Queen) stepDown() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.leading = false
	q.pulses = map[string]*pulse{}
	q.changedLocked()
	q.log.Info("no longer leading the cluster")
}

func (q *Queen) leads() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.leading
}

// beaten notes a beat that is in the registry and says when the next is due. The caller holds the hive's lock.
func (q *Queen) beaten(b beat, registry *state.Snapshot) (next time.Duration, err error) {
	now := time.Now()
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.leading {
		// Leadership was lost while the beat was written: no deadline may start here. The new leader hears the next beat.
		return 0, q.notLeader()
	}
	old, known := q.pulses[b.hive.ID]
	if !known {
		old = &pulse{}
	}
	live := 0
	for id, p := range q.pulses {
		if id != b.hive.ID && p.forgetAt.IsZero() {
			live++
		}
	}
	next = max(BeatInterval, time.Duration(live+1)*time.Second/MaxBeatsPerSecond)
	p := &pulse{
		incarnation: b.hive.Incarnation,
		at:          b.at,
		suspectAt:   now.Add(next + SuspectGrace),
		downAt:      now.Add(max(MinTTL, 2*next) + TTLGrace),
		free:        make(map[string]int64, len(b.hive.Devices)),
		loads:       make(map[string]core.Load, len(b.workers)),
	}
	for _, d := range b.hive.Devices {
		p.free[d.ID] = d.FreeBytes
	}
	cleared := false
	for _, w := range b.workers {
		p.loads[w.Nonce] = w.Load
		if _, ok := q.suspects[w.Nonce]; ok {
			delete(q.suspects, w.Nonce)
			cleared = true
		}
	}
	if len(q.suspects) > 0 {
		q.pruneSuspectsLocked(registry)
	}
	q.pulses[b.hive.ID] = p
	if old.at.IsZero() || old.suspect || cleared {
		q.changedLocked()
	}
	if old.suspect {
		q.log.Info("hive beats again", "hive", b.hive.ID)
	}
	if !known || !old.forgetAt.IsZero() {
		select { // the loop may be waiting for later deadlines than the new ones
		case q.wake <- struct{}{}:
		default:
		}
	}
	return next, nil
}

// pruneSuspectsLocked forgets avoided workers that are gone.
func (q *Queen) pruneSuspectsLocked(registry *state.Snapshot) {
	there := map[string]bool{}
	for _, w := range registry.Workers(nil) {
		there[w.Nonce] = true
	}
	for nonce := range q.suspects {
		if !there[nonce] {
			delete(q.suspects, nonce)
		}
	}
}

// expire acts on every deadline that has passed and says how long until the next.
func (q *Queen) expire(ctx context.Context) time.Duration {
	var due []string
	now := time.Now()
	q.mu.Lock()
	for id, p := range q.pulses {
		if passed(p.suspectAt, now) {
			p.suspect, p.suspectAt = true, time.Time{}
			q.changedLocked()
			q.log.Warn("hive is silent, its workers are avoided", "hive", id, "last_beat", p.at)
		}
		if passed(p.downAt, now) || passed(p.forgetAt, now) {
			due = append(due, id)
		}
	}
	q.mu.Unlock()

	for _, id := range due {
		if err := q.giveUp(ctx, id); err != nil && ctx.Err() == nil {
			q.log.Error("cannot write that a hive is gone, trying again", "hive", id, "error", err)
		}
	}

	wait := maxExpiryWait
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, p := range q.pulses {
		if next := p.next(); !next.IsZero() {
			wait = min(wait, time.Until(next))
		}
	}
	return wait
}

// giveUp writes that a silent hive is down, or removes one that was down for long, unless it has beaten meanwhile.
func (q *Queen) giveUp(ctx context.Context, id string) error {
	unlock, err := q.lock(ctx, "hive/"+id) // no beat is half-way
	if err != nil {
		return err
	}
	defer unlock()
	q.mu.Lock()
	p, ok := q.pulses[id]
	var down, forget bool
	var incarnation uint64
	if ok {
		down, forget, incarnation = passed(p.downAt, time.Now()), passed(p.forgetAt, time.Now()), p.incarnation
	}
	q.mu.Unlock()
	switch {
	case down:
		err = q.apply(ctx, "silent "+id, fsm.SetHiveStatus(id, core.HiveDown, incarnation))
	case forget:
		err = q.apply(ctx, "forget "+id, fsm.RemoveHive(id))
	default:
		return nil
	}

	q.mu.Lock()
	defer q.mu.Unlock()
	if q.pulses[id] != p {
		return nil // leadership changed; the hive's lock keeps beats away
	}
	now := time.Now()
	switch {
	case err != nil && core.KindOf(err) == core.NotFound:
		delete(q.pulses, id)
		err = nil
	case err != nil && down:
		p.downAt = now.Add(retryExpiry)
	case err != nil:
		p.forgetAt = now.Add(retryExpiry)
	case down:
		q.pulses[id] = &pulse{incarnation: incarnation, at: p.at, forgetAt: now.Add(ForgetAfter)}
		q.log.Warn("hive is down, its workers are gone", "hive", id, "last_beat", p.at)
	default:
		delete(q.pulses, id)
		q.log.Info("hive is forgotten", "hive", id)
	}
	q.changedLocked()
	return err
}

func passed(deadline, now time.Time) bool { return !deadline.IsZero() && !deadline.After(now) }
