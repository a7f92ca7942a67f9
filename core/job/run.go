package job

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	// progressInterval is the least time between two progress events of one phase.
	progressInterval = 100 * time.Millisecond
	// maxMessageBytes bounds a log event.
	maxMessageBytes = 8 << 10
)

// Run is a running job as its operation sees it. Methods may be called concurrently; after the
// operation returned they do nothing.
type Run struct {
	m  *Manager
	j  *job
	id string
}

// ID returns the job's id.
func (r *Run) ID() string { return r.id }

// Progress tells how far a phase is. It may be called as often as one likes: at most ten events a
// second come of one phase, and the last state of a phase always becomes an event, before a log
// line or another phase that follows it. What did not change makes no event.
func (r *Run) Progress(p core.Progress) {
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if r.j.over {
		return
	}
	if !r.j.phases.has(p.Phase) {
		r.m.flushLocked(r.j, true) // what was before is told before
	}
	r.j.phases.set(p)
	r.m.flushLocked(r.j, false)
}

// Log adds a line for people. Messages over 8 KiB are cut.
func (r *Run) Log(format string, args ...any) {
	msg := fmt.Sprintf(format, args...)
	if len(msg) > maxMessageBytes {
		msg = strings.ToValidUTF8(msg[:maxMessageBytes], "") + "…"
	}
	r.m.mu.Lock()
	defer r.m.mu.Unlock()
	if !r.j.over {
		r.m.flushLocked(r.j, true) // what was before is told before
		r.m.emitLocked(r.j, core.Event{Kind: core.EventLog, Message: msg})
	}
}

// flushLocked makes events of the progress that is due, or of all, and sees to it that the rest
// follows in time.
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
		// A phase that has been quiet is forgotten once others push it out, so that a thousand
		// files are not a thousand phases.
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

// phases is the progress of a job that may not have become an event yet.
type phases struct {
	list  []*phase // in order of their first progress
	timer *time.Timer
}

type phase struct {
	value   core.Progress
	pending bool      // value has not become an event
	next    time.Time // no event before
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

// history is the kept events of a job, in memory while it runs, and afterwards where it has no
// file.
type history struct {
	max     int
	events  []core.Event
	bytes   int  // of the events that may be forgotten
	dropped bool // they are in the file only
}

// add keeps an event. Over the bounds the oldest progress goes first, then the oldest log line;
// result and end always stay.
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

// weight is about what an event takes that may be forgotten, in bytes.
func weight(e core.Event) int {
	switch e.Kind {
	case core.EventProgress:
		return 128 + len(e.Progress.Phase)
	case core.EventLog:
		return 128 + len(e.Message)
	}
	return 0
}

// oldest returns the event that is forgotten first, or -1.
func oldest(events []core.Event) int {
	for _, kind := range []core.EventKind{core.EventProgress, core.EventLog} {
		if i := slices.IndexFunc(events, func(x core.Event) bool { return x.Kind == kind }); i >= 0 {
			return i
		}
	}
	return -1
}

// trim forgets events until there are at most n, as far as they may be forgotten.
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

// after returns a copy of the events with a greater number than seq.
func (h *history) after(seq int64) []core.Event {
	i, _ := slices.BinarySearchFunc(h.events, seq+1, func(e core.Event, s int64) int {
		switch {
		case e.Seq < s:
			return -1
		case e.Seq > s:
			return 1
		}
		return 0
	})
	return slices.Clone(h.events[i:])
}
