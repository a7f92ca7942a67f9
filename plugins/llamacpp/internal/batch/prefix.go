package batch

import "slices"

const (
	// turnSlack is how many of a prompt's last tokens may be missing from the next turn of its
	// conversation: chat templates omit the marker that opened the model's thinking. It is less
	// than what closes a question and opens an answer, so another question is not taken for a next
	// turn.
	turnSlack = 4
	// leastMoved is the minimum prefix, in tokens, that justifies copying a sequence, which moves
	// the whole slot, or a place in the store; see Scheduler.worth.
	leastMoved = 16
	// movedShare is the part of a slot's positions that takes about as long to evaluate as the
	// whole slot takes to copy: contributing/engine.md has the figures.
	movedShare = 256
)

// worth returns how many more tokens a source must have to justify a copy.
func (s *Scheduler) worth() int { return max(leastMoved, s.conf.SlotTokens/movedShare) }

// common returns the length of the common prefix of a and b.
func common(a, b []Token) int {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return i
		}
	}
	return n
}

// usable returns how many tokens of held a prompt can reuse, when held can only be cut at floor or
// later. At least one token of the prompt is left to evaluate, for its logits.
func usable(prompt, held []Token, floor int) int {
	n := min(common(prompt, held), len(prompt)-1)
	if n < len(held) && n < floor {
		return 0
	}
	return n
}

// source is where a prefix of a prompt is held.
type source struct {
	slot   *slot  // nil: in the store
	saved  *saved // nil with slot nil: nowhere
	tokens int
}

// place chooses a free slot for a prompt and fills it with as much of the prompt as is cheaper to
// reuse than to evaluate. A conversation continues in its slot; a new one takes the least recently
// used slot.
func (s *Scheduler) place(prompt []Token, adapters string) *slot {
	best := s.find(prompt, adapters, true)
	if x := best.slot; x != nil && x.req == nil && best.tokens >= max(x.turn-turnSlack, x.turn*3/4) {
		s.cut(x, best.tokens)
		return x
	}
	var to *slot
	for _, x := range s.slots {
		if x.req == nil && (to == nil || len(x.held) == 0 && len(to.held) > 0 ||
			(len(x.held) == 0) == (len(to.held) == 0) && x.used < to.used) {
			to = x
		}
	}
	own := 0
	if to.adapted == adapters {
		own = usable(prompt, to.held, s.floor(to))
	}
	switch {
	case best.slot == to, best.tokens < own+s.worth(), best.saved != nil && (to.copying || to.copied):
		s.keep(to, own)
		s.cut(to, own)
	case best.slot != nil:
		s.keep(to, 0)
		s.decoder.Copy(best.slot.seq, to.seq)
		to.held, to.copying, best.slot.copied = slices.Clone(best.slot.held), true, true
		to.chain = slices.Clone(best.slot.chain)
		s.cut(to, best.tokens)
	default:
		s.saved.take(best.saved)
		s.keep(to, 0)
		to.held, to.chain = nil, nil
		if s.decoder.Load(to.seq, best.saved.state) {
			to.held, to.chain = slices.Clone(best.saved.held), slices.Clone(best.saved.chain)
		}
		if best.tokens < len(best.saved.held) || best.saved.floor >= len(best.saved.held) {
			// Another conversation has the same prefix, or the slot cannot be cut back to it.
			s.clock++
			best.saved.used = s.clock
			s.saved.put(best.saved)
		} else {
			best.saved.state.Free()
		}
		s.cut(to, min(best.tokens, len(to.held)))
	}
	to.adapted = adapters
	return to
}

// putOff reports whether a request should wait for a slot: a prompt that is being read, or soon
// will be, has the same prefix, and copying that will soon pay off. It waits no longer than reading
// the prefix takes.
func (s *Scheduler) putOff(r *Request, admitted []*Request) bool {
	least := -1 // tokens that a prompt must share to be worth waiting for
	enough := func(prompt []Token, adapters string, held int) bool {
		if adapters != r.Adapters {
			return false
		}
		shared := min(common(r.Prompt, prompt), len(r.Prompt)-1)
		if shared < s.worth() || held >= shared {
			return false
		}
		if least < 0 {
			least = s.find(r.Prompt, r.Adapters, false).tokens + s.worth()
		}
		return shared >= least
	}
	for _, x := range s.prompts {
		if enough(x.req.Prompt, x.adapted, len(x.held)) {
			return true
		}
	}
	for _, a := range admitted {
		if enough(a.Prompt, a.Adapters, 0) {
			return true
		}
	}
	return false
}

// find returns the source with the longest prefix of a prompt. It prefers free slots to busy ones,
// and slots to the store. It considers slots whose own prompt is still being read only with
// reading.
func (s *Scheduler) find(prompt []Token, adapters string, reading bool) source {
	var best source
	for _, free := range []bool{true, false} {
		for _, x := range s.slots {
			if x.adapted != adapters || (x.req == nil) != free || !free && !reading && x.missing() > 0 {
				continue
			}
			n := usable(prompt, x.held, s.floor(x))
			if n > best.tokens && (free || n >= best.tokens+s.worth()) {
				best = source{slot: x, tokens: n}
			}
		}
	}
	for _, e := range s.saved.list {
		n := usable(prompt, e.held, e.floor)
		if e.adapted == adapters && (n >= best.tokens+s.worth() || best.saved != nil && n > best.tokens) {
			best = source{saved: e, tokens: n}
		}
	}
	return best
}

func (s *Scheduler) floor(x *slot) int {
	if len(x.held) == 0 {
		return 0
	}
	return s.decoder.Floor(x.seq)
}

// cut shortens a slot to its first n tokens, or empties it when that is impossible.
func (s *Scheduler) cut(x *slot, n int) {
	if n == len(x.held) {
		return
	}
	if n > 0 && s.decoder.Remove(x.seq, n) {
		x.held = x.held[:n]
		return
	}
	s.forget(x)
}

// forget empties a slot.
func (s *Scheduler) forget(x *slot) {
	if !s.decoder.Remove(x.seq, 0) {
		s.conf.Log.Warn("failed to clear the cache of a slot")
	}
	x.held, x.chain = nil, nil
}

// keep saves the contents of a slot before all but its first n tokens are lost.
func (s *Scheduler) keep(x *slot, n int) {
	if len(x.held)-n < s.worth() || x.copying || s.conf.SavedBytes <= 0 {
		return
	}
	for _, other := range s.slots {
		if other != x && other.adapted == x.adapted && common(x.held, other.held) == len(x.held) {
			return
		}
	}
	for _, e := range s.saved.list {
		if e.adapted == x.adapted && common(x.held, e.held) == len(x.held) {
			s.clock++
			e.used = s.clock
			return
		}
	}
	state := s.decoder.Save(x.seq, s.conf.SavedBytes)
	if state == nil {
		return
	}
	s.saved.put(&saved{held: slices.Clone(x.held), adapted: x.adapted, floor: s.floor(x), used: x.used, state: state, chain: s.chain(x.held, x.adapted)})
}

// mark returns the prompt token at which a slot gets a checkpoint; 0: none. It lies before the
// tokens that the next turn of the conversation may omit or spell differently, and must be worth a
// copy.
func (s *Scheduler) mark(x *slot, prompt []Token) int {
	n := len(prompt) - turnSlack
	if !s.conf.Checkpoints || s.conf.SavedBytes <= 0 || n-len(x.held) < s.worth() {
		return 0
	}
	return n
}

// checkpoint saves the prompt in a slot so far, as the slot cannot be cut back to it later.
func (s *Scheduler) checkpoint(x *slot) {
	s.clock++
	for _, e := range s.saved.list {
		if e.adapted == x.adapted && slices.Equal(e.held, x.held) {
			e.used = s.clock
			return
		}
	}
	if state := s.decoder.Save(x.seq, s.conf.SavedBytes); state != nil {
		s.saved.put(&saved{held: slices.Clone(x.held), adapted: x.adapted, floor: s.floor(x), used: s.clock, state: state, chain: s.chain(x.held, x.adapted)})
	}
}

// oldestKept returns the least recently used free slot that is not empty, or nil.
func (s *Scheduler) oldestKept() *slot {
	var oldest *slot
	for _, x := range s.slots {
		if x.req == nil && len(x.held) > 0 && (oldest == nil || x.used < oldest.used) {
			oldest = x
		}
	}
	return oldest
}

// saved is a sequence that gave up its slot.
type saved struct {
	held    []Token
	adapted string // see slot.adapted
	floor   int    // see Decoder.Floor
	used    int64
	state   State
	chain   []uint64 // hashes of the blocks of held
}

// store holds sequences within a bound of bytes and evicts the least recently used ones.
type store struct {
	limit, bytes int64
	list         []*saved
}

// put adds a sequence. It evicts those that the new one contains, and as many as needed to make
// room.
func (s *store) put(e *saved) {
	s.drop(func(o *saved) bool {
		return o.adapted == e.adapted && common(o.held, e.held) == len(o.held) && e.floor <= len(o.held)
	})
	s.list = append(s.list, e)
	s.bytes += e.state.Bytes()
	for s.bytes > s.limit && len(s.list) > 0 {
		oldest := slices.MinFunc(s.list, func(a, b *saved) int { return int(a.used - b.used) })
		s.drop(func(o *saved) bool { return o == oldest })
	}
}

// take removes a sequence without freeing its state.
func (s *store) take(e *saved) {
	s.list = slices.DeleteFunc(s.list, func(o *saved) bool { return o == e })
	s.bytes -= e.state.Bytes()
}

func (s *store) drop(these func(*saved) bool) {
	s.list = slices.DeleteFunc(s.list, func(o *saved) bool {
		gone := these(o)
		if gone {
			s.bytes -= o.state.Bytes()
			o.state.Free()
		}
		return gone
	})
}

func (s *store) clear() { s.drop(func(*saved) bool { return true }) }
