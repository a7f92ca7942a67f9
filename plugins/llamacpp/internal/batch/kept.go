package batch

import (
	"cmp"
	"iter"
	"slices"
)

// Sequence is what was read of a text, and what an engine of the same model needs to go on with it.
type Sequence struct {
	Tokens   []Token
	Adapters string // as Request.Adapters
	Floor    int    // as Decoder.Floor
	State    State
}

// restore takes over what an earlier scheduler kept.
func (s *Scheduler) restore(list []Sequence) {
	for _, q := range list {
		s.clock++
		s.saved.put(&saved{held: q.Tokens, adapted: q.Adapters, floor: q.Floor, used: s.clock, state: q.State, chain: s.chain(q.Tokens, q.Adapters)})
	}
}

// part gives away what is kept, for a later scheduler. An engine that failed keeps nothing.
func (s *Scheduler) part() {
	s.mu.Lock()
	failed := s.failure != ""
	s.mu.Unlock()
	if s.conf.Parting != nil && !failed {
		s.conf.Parting(s.kept())
	}
}

// kept returns what slots and store hold that is worth keeping, what was used last first, and
// nothing that the one before contains. The states are valid until the next one.
func (s *Scheduler) kept() iter.Seq[Sequence] {
	type holder struct {
		slot  *slot
		saved *saved
		used  int64
	}
	var all []holder
	for _, x := range s.slots {
		if len(x.held) >= s.worth() && !x.copying {
			all = append(all, holder{slot: x, used: x.used})
		}
	}
	for _, e := range s.saved.list {
		all = append(all, holder{saved: e, used: e.used})
	}
	slices.SortStableFunc(all, func(a, b holder) int { return cmp.Compare(b.used, a.used) })
	return func(yield func(Sequence) bool) {
		var given []Sequence // without states
		for _, h := range all {
			q := Sequence{}
			if x := h.slot; x != nil {
				q = Sequence{Tokens: x.held, Adapters: x.adapted, Floor: s.floor(x)}
			} else {
				q = Sequence{Tokens: h.saved.held, Adapters: h.saved.adapted, Floor: h.saved.floor, State: h.saved.state}
			}
			if slices.ContainsFunc(given, func(o Sequence) bool {
				return o.Adapters == q.Adapters && common(q.Tokens, o.Tokens) == len(q.Tokens) && o.Floor <= len(q.Tokens)
			}) {
				continue
			}
			given = append(given, q)
			if h.slot == nil {
				if !yield(q) {
					return
				}
				continue
			}
			if q.State = s.decoder.Save(h.slot.seq, s.conf.SavedBytes); q.State == nil {
				continue
			}
			more := yield(q)
			q.State.Free()
			if !more {
				return
			}
		}
	}
}
