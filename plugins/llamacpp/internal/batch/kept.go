package batch

import (
	"cmp"
	"iter"
	"slices"
)

// Sequence holds the tokens of a text and the state that lets an engine of the same model continue
// it.
type Sequence struct {
	Tokens   []Token
	Adapters string // see Request.Adapters
	Floor    int    // see Decoder.Floor
	State    State
}

// restore takes over the sequences that an earlier scheduler kept.
func (s *Scheduler) restore(list []Sequence) {
	for _, q := range list {
		s.clock++
		s.saved.put(&saved{held: q.Tokens, adapted: q.Adapters, floor: q.Floor, used: s.clock, state: q.State, chain: s.chain(q.Tokens, q.Adapters)})
	}
}

// part hands the kept sequences to a later scheduler. It keeps nothing after an engine failure.
func (s *Scheduler) part() {
	s.mu.Lock()
	failed := s.failure != ""
	s.mu.Unlock()
	if s.conf.Parting != nil && !failed {
		s.conf.Parting(s.kept())
	}
}

// kept yields the sequences of slots and store that are worth keeping, most recently used first,
// omitting those that an earlier one contains. Each state is valid until the next one is yielded.
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
