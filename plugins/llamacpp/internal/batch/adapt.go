package batch

// Adapters: the engine has one set of them for a step, so that requests with others take turns. A
// sequence that was read with other adapters is another sequence, whatever its tokens are.

// takesPart reports whether a slot is at work with these adapters.
func (x *slot) takesPart(adapters string) bool { return x.req != nil && x.adapted == adapters }

// takeTurn sets the adapters of the next step: those of the request that waited longest for one. It
// returns how many answers go on, with these adapters or others.
func (s *Scheduler) takeTurn() (streams int) {
	var first *slot
	for _, x := range s.slots {
		if x.req == nil {
			continue
		}
		if x.next >= 0 {
			streams++
		}
		if first == nil || x.stepped < first.stepped {
			first = x
		}
	}
	if first == nil {
		return 0
	}
	s.adapted = first.adapted
	s.clock++
	for _, x := range s.slots {
		if x.takesPart(s.adapted) {
			x.stepped = s.clock
		}
	}
	return streams
}
