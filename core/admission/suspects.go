package admission

import "time"

const (
	maxSuspects  = 1024 // requests that are remembered
	deadlyLosses = 2    // lost workers that make a request deadly
)

// Fingerprint identifies a request by what it asks and who asks it.
type Fingerprint [16]byte

// Suspects remembers requests under which workers were lost. A request that has killed two workers
// is refused for a while. The table is bounded: the oldest entry makes room.
type Suspects struct {
	keep   time.Duration
	losses map[Fingerprint]*suspect
	oldest []Fingerprint // in the order of their first loss
}

type suspect struct {
	lost  int
	until time.Time
}

// NewSuspects returns a table that forgets a request keep after its last loss.
func NewSuspects(keep time.Duration) *Suspects {
	return &Suspects{keep: keep, losses: map[Fingerprint]*suspect{}}
}

// Lost counts a worker that was lost under a request and reports whether the request is deadly now.
func (s *Suspects) Lost(f Fingerprint, now time.Time) (deadly bool) {
	e, ok := s.losses[f]
	if !ok || !now.Before(e.until) {
		if !ok {
			s.makeRoom(now)
			s.oldest = append(s.oldest, f)
		}
		e = &suspect{}
		s.losses[f] = e
	}
	e.lost++
	e.until = now.Add(s.keep)
	return e.lost >= deadlyLosses
}

// Deadly returns for how much longer a request is refused; 0: it is not.
func (s *Suspects) Deadly(f Fingerprint, now time.Time) time.Duration {
	if e, ok := s.losses[f]; ok && e.lost >= deadlyLosses {
		return max(e.until.Sub(now), 0)
	}
	return 0
}

// Len returns the number of requests that are remembered.
func (s *Suspects) Len() int { return len(s.losses) }

func (s *Suspects) makeRoom(now time.Time) {
	for len(s.oldest) > 0 {
		first := s.oldest[0]
		if len(s.losses) < maxSuspects && now.Before(s.losses[first].until) {
			return
		}
		delete(s.losses, first)
		s.oldest = s.oldest[1:]
	}
}
