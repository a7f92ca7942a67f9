package liveness

import (
	"context"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Lead performs the leader's duties, from TakeOver to StepDown, until ctx ends. Call it once the
// registry holds everything committed before.
func (m *Monitor) Lead(ctx context.Context) error {
	m.TakeOver()
	defer m.StepDown()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	pinging := make(chan struct{})
	go func() {
		defer close(pinging)
		if m.opts.Pinger != nil {
			m.pingSilent(ctx)
		}
	}()
	m.write(ctx)
	cancel()
	<-pinging
	return nil
}

// TakeOver starts with the hives of the registry and the reports this queen received before it led.
// Hives without a link to it get LinkGrace.
func (m *Monitor) TakeOver() {
	now := time.Now()
	m.opts.TermChanged()
	registry := m.opts.Registry.View()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leading = true
	hives := 0
	registry.EachHive(nil, func(h *core.Hive) bool {
		hives++
		p := m.peerLocked(h.ID)
		switch {
		case p.link != nil:
		case h.Status == core.HiveDown:
			p.forgetAt = now.Add(ForgetAfter)
		default:
			p.graceUntil, p.forgetAt = now.Add(LinkGrace), time.Time{}
			m.doubtLocked(p)
		}
		m.scheduleLocked(p)
		return true
	})
	behind := 0
	for _, p := range m.peers {
		if p.link == nil || p.report == nil {
			continue // a report from before a broken link is outdated
		}
		if same, _ := p.report.registered(registry); same {
			p.registeredLocked()
		} else {
			behind++
			m.backlog.report(p)
		}
		if p.suspect != "" {
			m.doubtLocked(p)
		} else if m.opts.Pinger == nil {
			p.downAt = m.downAtLocked(p)
		}
		m.scheduleLocked(p)
	}
	m.changedLocked()
	m.log.Info("leading the cluster", "hives", hives, "links", m.links, "behind", behind)
}

// StepDown drops what only a leader needs.
func (m *Monitor) StepDown() {
	defer m.opts.TermChanged()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.leading = false
	for _, p := range m.peers {
		p.downAt, p.graceUntil, p.answered, p.unanswered = time.Time{}, time.Time{}, time.Time{}, 0
		p.dirty, p.writing, p.gone, p.forget = false, false, false, false
		if p.link == nil && p.report == nil {
			m.dropLocked(p)
		}
	}
	m.backlog.clear()
	clear(m.silent)
	m.changedLocked()
	m.log.Info("no longer leading the cluster")
}

// Leads reports whether this queen has taken over the leadership, as far as it knows.
func (m *Monitor) Leads() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leading
}
