package liveness

import (
	"context"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

const (
	// writeInterval is the least time between two writes caused by reports or silence: at most 200
	// log entries per second.
	writeInterval = 5 * time.Millisecond
	// retryWrite is the pause after a write that failed.
	retryWrite = 50 * time.Millisecond
)

// backlog is the queue of a leader's writes about hives, oldest first. A hive is in each list at
// most once.
type backlog struct {
	reports []*peer       // hives whose last report must be written
	gone    []*peer       // hives to be written as down, or removed
	wake    chan struct{} // the backlog is not empty; holds one
}

// report queues the last report of a hive for writing.
func (b *backlog) report(p *peer) {
	if p.dirty {
		return
	}
	p.dirty = true
	b.reports = append(b.reports, p)
	wake(b.wake)
}

// giveUp queues a hive to be written as down, or with forget to be removed.
func (b *backlog) giveUp(p *peer, forget bool) {
	p.forget = forget
	if p.gone {
		return
	}
	p.gone = true
	b.gone = append(b.gone, p)
	wake(b.wake)
}

// clear drops the queued writes. The caller resets the peers.
func (b *backlog) clear() { b.reports, b.gone = nil, nil }

// write writes the changes caused by reports and silence, in batches, until ctx ends. It is their
// only writer: of two writes for one hive the later is the newer.
func (m *Monitor) write(ctx context.Context) {
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		select { // the first of several writes does not wait
		case <-pause.C:
		case <-ctx.Done():
			return
		}
		restored := m.opts.Registry.Replaced()
		wait := writeInterval
		switch batch, gone := m.nextWrite(); {
		case len(batch) > 0:
			if !m.writeReports(ctx, batch) {
				wait = retryWrite
			}
		case gone != nil:
			if !m.giveUp(ctx, gone) {
				wait = retryWrite
			}
		default:
			select {
			case <-m.backlog.wake:
				wait = 0
			case <-restored:
				m.TakeOver() // the registry was replaced
				wait = 0
			case <-ctx.Done():
				return
			}
		}
		pause.Reset(wait)
	}
}

// pending is a report that is being written.
type pending struct {
	peer   *peer
	report *Report
	ownIDs bool // another hive has a worker with an id of this report
}

func (b pending) state() fsm.HiveState {
	return fsm.HiveState{Hive: b.report.Hive, Workers: b.report.Workers, OwnIDs: b.ownIDs}
}

// sharesIDs reports whether another hive has a worker with an id of this report. Ids are random, so
// one of the two hives copied it; that must not let either shut the other out.
func (r *Report) sharesIDs(registry *state.Snapshot) bool {
	return slices.ContainsFunc(r.Workers, func(w core.Worker) bool {
		return slices.ContainsFunc(registry.WorkersWithID(nil, w.ID), func(other core.Worker) bool { return other.Hive != r.Hive.ID })
	})
}

// nextWrite takes the next writes from the backlog: reports first, as they come from live hives.
func (m *Monitor) nextWrite() ([]pending, *peer) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if batch := m.nextReportsLocked(); len(batch) > 0 {
		return batch, nil
	}
	for len(m.backlog.gone) > 0 {
		p := m.backlog.gone[0]
		m.backlog.gone = m.backlog.gone[1:]
		p.gone = false
		if m.peers[p.id] == p && (p.link == nil || p.suspect != "") {
			p.writing = true
			return nil, p
		}
	}
	return nil, nil
}

func (m *Monitor) nextReportsLocked() []pending {
	registry := m.opts.Registry.View()
	var batch []pending
	states := make([]fsm.HiveState, 0, min(len(m.backlog.reports), fsm.MaxHivesPerCommand))
	rest := m.backlog.reports
	for len(rest) > 0 && len(batch) < fsm.MaxHivesPerCommand {
		p := rest[0]
		rest = rest[1:]
		p.dirty = false
		switch same, old := p.report.registered(registry); {
		case same:
			p.registeredLocked()
			continue
		case p.link == nil && old != nil && old.Status == core.HiveDown:
			continue // it is older than what is known since
		}
		p.writing = true
		batch = append(batch, pending{p, p.report, p.report.sharesIDs(registry)})
		states = append(states, batch[len(batch)-1].state())
	}
	if fits := fsm.FitSyncHives(states); fits < len(batch) {
		for _, b := range batch[fits:] {
			b.peer.writing, b.peer.dirty = false, true
			rest = append(rest, b.peer)
		}
		batch = batch[:fits]
	}
	m.backlog.reports = rest
	if len(m.backlog.reports) == 0 {
		m.backlog.reports = nil // releases the array
	}
	return batch
}

// writeReports writes reports in one log entry and reports whether that worked, even if single
// reports were refused.
func (m *Monitor) writeReports(ctx context.Context, batch []pending) bool {
	var errs []error
	var err error
	if len(batch) == 1 {
		h := batch[0].report.Hive
		_, err = m.opts.Registry.Apply(ctx, "report "+h.ID, fsm.SyncHiveState(batch[0].state()))
		errs = []error{err}
		if k := core.KindOf(err); k == core.Conflict || k == core.Forbidden || k == core.Invalid {
			err = nil // it was refused: a retry would be as well
		}
	} else {
		states := make([]fsm.HiveState, 0, len(batch))
		for _, b := range batch {
			states = append(states, b.state())
		}
		var result fsm.Result
		result, err = m.opts.Registry.Apply(ctx, "", fsm.SyncHives(states))
		errs = result.Errs
		if err == nil && len(errs) != len(batch) {
			err = core.Errorf(core.Internal, "write reports: %d hives were written, but %d results returned", len(batch), len(errs))
		}
	}
	if err != nil && ctx.Err() == nil {
		m.log.Warn("failed to write reports of hives, retrying", "hives", len(batch), "error", err)
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	for i, b := range batch {
		p := b.peer
		p.writing = false
		if m.peers[p.id] != p || !m.leading {
			continue
		}
		switch {
		case err != nil:
			m.backlog.report(p)
		case errs[i] != nil:
			m.log.Error("report of a hive refused", "hive", p.id, "error", errs[i])
			if p.link != nil {
				p.link.endLocked(errs[i])
			}
		case p.report == b.report:
			p.registeredLocked()
			if m.failures.confirm(p.id, p.report, true) {
				m.publishLocked(p.id)
			}
		default: // it has reported since
			m.backlog.report(p)
		}
	}
	return err == nil
}

// registeredLocked tells the hive that the registry has its last report.
func (p *peer) registeredLocked() {
	if p.link != nil && p.link.registered != p.link.seq {
		p.link.registered = p.link.seq
		p.link.wakeUp()
	}
}

// giveUp writes that a silent hive is down, or removes one that was down for long, and reports
// whether that worked.
func (m *Monitor) giveUp(ctx context.Context, p *peer) bool {
	h := m.opts.Registry.View().PeekHive(nil, p.id)
	m.mu.Lock()
	forget := p.forget
	m.mu.Unlock()
	var err error
	switch {
	case h == nil:
	case h.Status == core.HiveDown && !forget:
	case h.Status == core.HiveDown:
		_, err = m.opts.Registry.Apply(ctx, "forget "+p.id, fsm.RemoveHive(p.id))
	default:
		_, err = m.opts.Registry.Apply(ctx, "silent "+p.id, fsm.SetHiveStatus(p.id, core.HiveDown, h.Incarnation))
	}
	if err != nil && core.KindOf(err) != core.NotFound {
		if ctx.Err() == nil {
			m.log.Error("failed to write that a hive is down, retrying", "hive", p.id, "error", err)
		}
	} else {
		err = nil
	}

	m.mu.Lock()
	defer m.mu.Unlock()
	p.writing = false
	if m.peers[p.id] != p || !m.leading {
		return err == nil
	}
	delete(m.silent, p.id)
	p.graceUntil = time.Time{}
	m.changedLocked()
	switch {
	case p.link != nil && p.suspect == "": // it has reported meanwhile
		m.backlog.report(p)
	case err != nil:
		m.backlog.giveUp(p, forget)
	case p.link == nil && (h == nil || forget && h.Status == core.HiveDown):
		m.dropLocked(p)
		m.log.Info("hive forgotten", "hive", m.label(p.id))
	default:
		m.log.Warn("hive is down, its workers are removed", "hive", m.label(p.id))
		if p.link != nil { // if it lives, it must open a new link
			p.link.endLocked(core.Errorf(core.Unavailable, "hive %s was silent for too long", p.id))
		}
		p.forgetAt = time.Now().Add(ForgetAfter)
		m.scheduleLocked(p)
	}
	return err == nil
}
