//go:build race

package hive

import "runtime"

// One processor, as in core/gossip and for the same reason: Go 1.26.8's race detector crashes when
// two goroutines of a bubble receive from timers that are due, on two processors at once.
func init() { runtime.GOMAXPROCS(1) }
