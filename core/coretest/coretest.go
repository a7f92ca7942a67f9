// Package coretest holds what tests of several packages share: loggers, patience, and the import table.
package coretest

import (
	"io"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Logger returns a logger that writes to the test's own output.
func Logger(t testing.TB) hclog.Logger {
	t.Helper()
	return hclog.New(&hclog.LoggerOptions{Name: "test", Level: hclog.Debug, Output: Output(t)})
}

// Output is the test's own output for as long as the test runs. What comes later is dropped, where t.Output panics: libraries have goroutines that
// nobody can wait for.
func Output(t testing.TB) io.Writer {
	o := &output{w: t.Output()}
	t.Cleanup(o.end)
	return o
}

type output struct {
	mu sync.Mutex // guards below
	w  io.Writer  // nil: the test has ended
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.w == nil {
		return len(p), nil
	}
	return o.w.Write(p)
}

func (o *output) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.w = nil
}

// Eventually calls check until it returns nil, and fails the test with its last error when that takes longer than patience.
// It is for foreign processes and real sockets; inside one process use testing/synctest.
func Eventually(t testing.TB, patience time.Duration, check func() error) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-deadline.C:
			t.Fatalf("still not so after %s: %v", patience, err)
		case <-tick.C:
		}
	}
}
