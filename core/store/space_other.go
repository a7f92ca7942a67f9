//go:build !linux && !darwin

package store

import "math"

// freeBytes is not known on this system: a full disk is noticed when it is full.
func freeBytes(string) (int64, error) { return math.MaxInt64, nil }
