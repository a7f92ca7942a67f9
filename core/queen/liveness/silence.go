package liveness

import (
	"context"
	"sync"
	"time"
)

const (
	pingTimeout = 500 * time.Millisecond
	maxPings    = 1024 // pings waiting for an answer at once
	leastPings  = 8    // consecutive failed pings before silence counts
	retryExpiry = 200 * time.Millisecond
)

// expireLocked acts on the expired deadlines of a hive.
func (m *Monitor) expireLocked(p *peer, now time.Time) {
	if passed(p.suspectAt, now) {
		p.suspectAt = time.Time{}
		m.suspectLocked(p, "its hive is silent")
	}
	if passed(p.downAt, now) {
		p.downAt = m.downAtLocked(p)
		switch {
		case !passed(p.downAt, now):
		case m.opts.Pinger != nil && p.graceUntil.IsZero() && p.answered.IsZero() && p.unanswered < leastPings:
			p.downAt = now.Add(retryExpiry) // many hives are silent, and this one has not been pinged often enough
		default:
			p.downAt = time.Time{}
			m.backlog.giveUp(p, false)
		}
	}
	if passed(p.forgetAt, now) {
		p.forgetAt = time.Time{}
		if m.leading {
			m.backlog.giveUp(p, true)
		} else if p.link == nil {
			m.dropLocked(p)
		}
	}
}

func passed(deadline, now time.Time) bool { return !deadline.IsZero() && !deadline.After(now) }

// suspectLocked starts avoiding the workers of a hive.
func (m *Monitor) suspectLocked(p *peer, why string) {
	if p.suspect != "" {
		return
	}
	p.suspect, p.suspectSince = why, time.Now()
	m.log.Warn("hive does not report: its workers are avoided", "hive", m.label(p.id), "reason", why)
	m.publishLocked(p.id)
	m.changedLocked()
	if m.opts.Suspected != nil {
		m.opts.Suspected(p.id)
	}
	if m.leading {
		m.doubtLocked(p)
	}
}

// label returns the name of a hive for the log, or its id if the registry does not know it.
func (m *Monitor) label(id string) string {
	if h := m.opts.Registry.View().PeekHive(nil, id); h != nil && h.Name != "" {
		return h.Name
	}
	return id
}

// doubtLocked makes the leader find out whether a suspect hive is down.
func (m *Monitor) doubtLocked(p *peer) {
	p.answered, p.unanswered = time.Time{}, 0
	p.downAt = m.downAtLocked(p)
	if m.opts.Pinger != nil && p.graceUntil.IsZero() {
		m.silent[p.id] = p
		wake(m.doubt)
	}
	m.scheduleLocked(p)
}

// trustLocked undoes suspectLocked and reports whether there was anything to undo. The caller
// publishes.
func (m *Monitor) trustLocked(p *peer) bool {
	delete(m.silent, p.id)
	if p.suspect == "" {
		return false
	}
	m.log.Info("hive reports again", "hive", m.label(p.id), "after", time.Since(p.suspectSince).Round(time.Millisecond), "reason", p.suspect)
	p.suspect, p.suspectSince = "", time.Time{}
	return true
}

// downAtLocked returns when a hive counts as down if it stays silent.
func (m *Monitor) downAtLocked(p *peer) time.Time {
	var at time.Time
	switch {
	case p.heard.IsZero():
	case m.opts.Pinger == nil:
		at = p.heard.Add(max(DownAlone, 2*p.next+DownAlone/2))
	default:
		at = earlier(p.heard.Add(DownAfter+max(p.next-ReportInterval, 0)), p.suspectSince.Add(DownAfter))
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

// pingSilent pings the hives that the leader doubts until ctx ends.
func (m *Monitor) pingSilent(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, maxPings)
	timer := time.NewTimer(PingInterval)
	defer timer.Stop()
	for {
		m.mu.Lock()
		ids := make([]string, 0, len(m.silent))
		for id := range m.silent { // map order varies, so all get their turn when there are many
			ids = append(ids, id)
		}
		m.mu.Unlock()
		if len(ids) == 0 {
			select {
			case <-m.doubt:
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
					m.ping(ctx, id)
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

// ping pings one hive and records the outcome.
func (m *Monitor) ping(ctx context.Context, hive string) {
	limited, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	err := m.opts.Pinger.Ping(limited, hive)
	if ctx.Err() != nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	p, ok := m.silent[hive]
	if !ok {
		return // it has reported meanwhile, or is down
	}
	if err != nil {
		p.unanswered++
		return
	}
	p.answered, p.unanswered = time.Now(), 0
	if !p.downAt.IsZero() {
		p.downAt = m.downAtLocked(p)
	}
}
