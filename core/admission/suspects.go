package admission

import "time"

const (
	maxSuspects  = 1024 // requests remembered
	deadlyLosses = 2    // lost workers after which a request is deadly
)

// Fingerprint identifies a request by its content and its key.
type Fingerprint [16]byte

// Suspects remembers requests during which workers were lost. A request that has killed two workers
// is refused for a while. The table is bounded: it drops the oldest entry.
type Suspects struct {
	keep   time.Duration
	losses map[Fingerprint]*suspect
	oldest []Fingerprint // ordered by first loss
}

type suspect struct {
	lost  int
	until time.Time
}

// NewSuspects returns a table that forgets a request once keep has passed since its last loss.
func NewSuspects(keep time.Duration) *Suspects {
	return &Suspects{keep: keep, losses: map[Fingerprint]*suspect{}}
}

// Lost counts a worker lost during a request and reports whether the request is now deadly.
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

// Deadly returns how much longer a request is refused; 0: it is not refused.
func (s *Suspects) Deadly(f Fingerprint, now time.Time) time.Duration {
	if e, ok := s.losses[f]; ok && e.lost >= deadlyLosses {
		return max(e.until.Sub(now), 0)
	}
	return 0
}

// Len returns the number of remembered requests.
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
