//go:build race

package gossip_test

import (
	"os"
	"runtime"
	"testing"
)

// Use one processor: Go 1.26.8 crashes (SIGSEGV in __tsan::SlotLock) when two goroutines of a
// bubble receive from due timers on two processors at once, as memberlist's tickers are after
// probes of equal length. runtime.(*timer).maybeRunChan has one race context for the whole bubble.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
