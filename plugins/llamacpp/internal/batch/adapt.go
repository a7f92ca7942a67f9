package batch

// Adapters: the engine uses one set of them per step, so requests with different sets take turns.
// The cached data of a sequence depends on the adapters that it was read with.

// takesPart reports whether a slot is running a request with these adapters.
func (x *slot) takesPart(adapters string) bool { return x.req != nil && x.adapted == adapters }

// takeTurn selects the adapters of the next step: those of the request that has waited longest for
// a step. It returns how many answers are in progress, with these adapters or others.
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
