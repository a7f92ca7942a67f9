package store

import (
	"fmt"

	"github.com/rbee-project/rbee/core"
)

const (
	reserveBytes   = 64 << 20 // kept free on the disk at all times
	spaceCheckStep = 64 << 20 // how often a file of unknown size is checked against the free space
)

// checkSpace refuses n bytes if the disk lacks room for them beyond what transfers have reserved.
func (s *transfers) checkSpace(n int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.checkSpaceLocked(n)
}

func (s *transfers) checkSpaceLocked(n int64) error {
	free, err := s.free(s.dir)
	if err != nil {
		s.log.Warn("free space unknown", "error", err)
		return nil // a full disk will show in a write error
	}
	missing := n - (free - s.expected - reserveBytes)
	if missing <= 0 {
		return nil
	}
	return core.Errorf(core.TooLarge, "%d bytes do not fit on the disk of the store: %d bytes are missing", n, missing).Hint(
		"Free at least %s on the disk of %s, or set store_dir to a folder on a larger one.", humanBytes(missing), s.dir)
}

// spaceError explains a write error as a full disk if that is the cause.
func spaceError(what string, err error) error {
	if err == nil {
		return nil
	}
	if noSpace(err) {
		return core.Errorf(core.TooLarge, "write %s: %w", what, err).Hint("The disk is full. Free some space and try again: what has arrived is kept.")
	}
	return fmt.Errorf("write %s: %w", what, err)
}

// reservation is disk space that a transfer has reserved and not yet used. It is safe for
// concurrent use.
type reservation struct {
	s    *transfers
	held int64 // guarded by s.mu
}

// reserve replaces the current reservation with n bytes. It returns core.TooLarge if the disk lacks
// room.
func (r *reservation) reserve(n int64) error {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.expected -= r.held
	r.held = 0
	if n <= 0 {
		return nil
	}
	if err := r.s.checkSpaceLocked(n); err != nil {
		return err
	}
	r.held = n
	r.s.expected += n
	return nil
}

// used records that n bytes of the reservation have been written.
func (r *reservation) used(n int64) {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	n = min(n, r.held)
	r.held -= n
	r.s.expected -= n
}

// release releases the rest of the reservation.
func (r *reservation) release() { _ = r.reserve(0) }
