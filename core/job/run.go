package job

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	// progressInterval is the minimum time between two progress events of one phase.
	progressInterval = 100 * time.Millisecond
	// maxMessageBytes bounds the message of a log event.
	maxMessageBytes = 8 << 10
)

// Run is a running job as its operation sees it. It is safe for concurrent use; after the operation
// has returned, its methods do nothing.
type Run struct {
	m  *Manager
	j  *job
	id string
}

// ID returns the job's ID.
func (r *Run) ID() string { return r.id }

// Progress reports the progress of a phase. Call it as often as you like: a phase makes at most ten
// events a second, and its last state always becomes an event before a later log line or another
// phase. Unchanged progress makes no event.
func (r *Run) Progress(p core.Progress) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.j.over {
		return
	}
	if !r.j.phases.has(p.Phase) {
		r.m.flushLocked(r.j, true) // report earlier progress first
	}
	r.j.phases.set(p)
	r.m.flushLocked(r.j, false)
}

// Log adds a line for people to read. It truncates messages over 8 KiB.
func (r *Run) Log(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if len(msg) > maxMessageBytes {
		msg = strings.ToValidUTF8(msg[:maxMessageBytes], "") + "…"
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if !r.j.over {
		r.m.flushLocked(r.j, true) // report earlier progress first
		r.m.emitLocked(r.j, core.Event{Kind: core.EventLog, Message: msg})
	}
}

// flushLocked turns due progress, or all of it, into events, and schedules the rest.
func (m *Manager) flushLocked(j *job, all bool) {
	ps := &j.phases
	if ps.timer != nil {
		ps.timer.Stop()
		ps.timer = nil
	}
	now := time.Now() // not Options.Now: an interval needs the monotonic clock
	var next time.Time
	ps.list = slices.DeleteFunc(ps.list, func(p *phase) bool {
		due := all || !now.Before(p.next)
		if due && p.pending {
			m.emitLocked(j, core.Event{Kind: core.EventProgress, Progress: new(p.value)})
			p.pending, p.next = false, now.Add(progressInterval)
			return false
		}
		if p.pending && (next.IsZero() || p.next.Before(next)) {
			next = p.next
		}
		// Later phases displace a quiet one, so that a thousand files do not stay a thousand
		// phases.
		return due && len(ps.list) > maxQuietPhases
	})
	if all || next.IsZero() {
		return
	}
	ps.timer = time.AfterFunc(next.Sub(now), func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if !j.over {
			m.flushLocked(j, false)
		}
	})
}

const maxQuietPhases = 32

// phases holds the progress of a job that may not have become an event yet.
type phases struct {
	list  []*phase // in order of their first progress
	timer *time.Timer
}

type phase struct {
	value   core.Progress
	pending bool      // value has not become an event yet
	next    time.Time // time of the next event at the earliest
}

func (ps *phases) has(name string) bool {
	return slices.ContainsFunc(ps.list, func(x *phase) bool { return x.value.Phase == name })
}

func (ps *phases) set(p core.Progress) {
	i := slices.IndexFunc(ps.list, func(x *phase) bool { return x.value.Phase == p.Phase })
	if i < 0 {
		ps.list = append(ps.list, &phase{value: p, pending: true})
		return
	}
	if x := ps.list[i]; x.value != p {
		x.value, x.pending = p, true
	}
}

// history holds the kept events of a job: in memory while it runs, and afterwards if it has no
// file.
type history struct {
	max     int
	events  []core.Event
	bytes   int  // size of the events that may be dropped
	dropped bool // the events are only in the file
}

// add keeps an event. Beyond the bounds it drops the oldest progress first, then the oldest log
// line; result and end always stay.
func (h *history) add(e core.Event) {
	h.events = append(h.events, e)
	h.bytes += weight(e)
	for len(h.events) > h.max || h.bytes > maxHistoryBytes {
		i := oldest(h.events)
		if i < 0 {
			return
		}
		h.bytes -= weight(h.events[i])
		h.events = slices.Delete(h.events, i, i+1)
	}
}

func (h *history) drop() { h.events, h.bytes, h.dropped = nil, 0, true }

// weight returns the approximate size in bytes of an event that may be dropped.
func weight(e core.Event) int {
	switch e.Kind {
	case core.EventProgress:
		return 128 + len(e.Progress.Phase)
	case core.EventLog:
		return 128 + len(e.Message)
	}
	return 0
}

// oldest returns the index of the event to drop first, or -1.
func oldest(events []core.Event) int {
	for _, kind := range []core.EventKind{core.EventProgress, core.EventLog} {
		if i := slices.IndexFunc(events, func(x core.Event) bool { return x.Kind == kind }); i >= 0 {
			return i
		}
	}
	return -1
}

// trim drops events until at most n are left, as far as possible.
func trim(events []core.Event, n int) []core.Event {
	for len(events) > n {
		i := oldest(events)
		if i < 0 {
			break
		}
		events = slices.Delete(events, i, i+1)
	}
	return events
}

// after returns a copy of the events with a number greater than seq.
func (h *history) after(seq int64) []core.Event {
	i, _ := slices.BinarySearchFunc(h.events, seq+1, func(e core.Event, s int64) int { return cmp.Compare(e.Seq, s) })
	return slices.Clone(h.events[i:])
}
