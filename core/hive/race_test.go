//go:build race

package hive

import "runtime"

// Use one processor, as in core/gossip and for the same reason: Go 1.26.8's race detector crashes
// when two goroutines of a bubble receive from due timers on two processors at once.
func init() { runtime.GOMAXPROCS(1) }
