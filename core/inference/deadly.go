package inference

import (
	"crypto/sha256"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/admission"
)

// codeRefused is the code of the answer to a request that killed workers.
const codeRefused = "request_refused"

// fingerprint identifies what is asked and by whom.
func fingerprint(r *Request) admission.Fingerprint {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(r.Key), []byte(r.Path)} {
		h.Write(part)
		h.Write([]byte{0})
	}
	h.Write(r.Body)
	if r.Form != nil {
		h.Write(r.Form.Head())
	}
	return admission.Fingerprint(h.Sum(nil)[:len(admission.Fingerprint{})])
}

// refuseDeadly returns an error for a request that has killed two workers lately.
func (s *Service) refuseDeadly(r *Request) error {
	s.mu.Lock()
	none := s.suspects.Len() == 0
	s.mu.Unlock()
	if none { // the usual case, without a hash
		return nil
	}
	f := fingerprint(r)
	s.mu.Lock()
	left := s.suspects.Deadly(f, time.Now())
	s.mu.Unlock()
	if left == 0 {
		return nil
	}
	return &FieldError{Code: codeRefused, Err: core.Errorf(core.Invalid, "two workers were lost while they worked on this request").Hint(
		"It is refused for %s; change it, or look at the logs of the workers.", left.Round(time.Second))}
}

// lost counts a worker that was lost under the request and reports whether the request is refused
// from now on.
func (c *call) lost() (deadly bool) {
	s := c.s
	if c.print == nil {
		c.print = new(fingerprint(&c.r))
	}
	s.mu.Lock()
	deadly = s.suspects.Lost(*c.print, time.Now())
	s.mu.Unlock()
	if deadly {
		s.log.Error("a request killed two workers and is refused for a while", "request", c.r.ID, "for", s.o.RefuseDeadly)
	}
	return deadly
}

// releaseOver is the length of a body, in bytes, from which it is worth its digest to be rid of it.
const releaseOver = 64 << 10

// releaseBody gives up the body of a request that is given to no other worker: a stream may take
// hours from then on. Only the fingerprint is kept.
func (c *call) releaseBody() {
	if len(c.r.Body) < releaseOver || c.r.Release == nil {
		return
	}
	c.print = new(fingerprint(&c.r))
	c.r.Body = nil
	c.r.Release()
}

// admitted counts a request for the retry budget.
func (s *Service) admitted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.budget.Request(time.Now())
}

// mayRetry reports whether the retry budget allows to repeat a request, and takes from it.
func (s *Service) mayRetry() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.budget.Retry(time.Now())
}
