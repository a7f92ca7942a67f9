package inference

import (
	"crypto/sha256"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/admission"
)

// codeRefused is the error code for a request that killed workers.
const codeRefused = "request_refused"

// fingerprint identifies a request by its content and its key.
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

// refuseDeadly returns an error for a request that recently killed two workers.
func (s *Service) refuseDeadly(r *Request) error {
	s.mu.Lock()
	none := s.suspects.Len() == 0
	s.mu.Unlock()
	if none { // the usual case needs no hash
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

// lost counts a worker lost during the request and reports whether the request is refused from now
// on.
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

// releaseOver is the body size, in bytes, above which hashing the body to release it pays off.
const releaseOver = 64 << 10

// releaseBody releases the body of a request that goes to no other worker, as its stream may take
// hours. Only the fingerprint is kept.
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

// mayRetry reports whether the retry budget allows another attempt, and charges it.
func (s *Service) mayRetry() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.budget.Retry(time.Now())
}
