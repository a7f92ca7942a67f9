package store

import "time"

// SetFree makes the store believe in that much free space.
func (s *Store) SetFree(bytes int64) { s.free = func(string) (int64, error) { return bytes, nil } }

// SetLimits bounds archives.
func (s *Store) SetLimits(entries int, bytes int64) {
	s.limits.entries, s.limits.bytes = entries, bytes
}

// FailAt makes a step fail.
func (s *Store) FailAt(fail func(step string) error) { s.fail = fail }

// Clean does what Open does with leftovers, at another time.
func (s *Store) Clean(now time.Time) error { return s.cleanPartial(now) }

// Nearest is for tests.
func Nearest(name string, names []string) []string { return nearest(name, names) }

// ParseDigest is for tests.
func ParseDigest(text string) (string, error) {
	d, err := parseDigest(text)
	return d.String(), err
}
