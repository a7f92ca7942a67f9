package sdktest

import (
	"testing"
	"time"
)

// This file checks what a process must do besides answering calls.

func (s *workerSuite) brokenStderr(t *testing.T) {
	w, c := s.started(t, s.o.Config)
	if w.BreakStderr == nil {
		t.Skip("there is no standard error to break")
	}
	s.needsChat(t, w)
	w.BreakStderr()
	for range 5 {
		if _, err := s.ask(t.Context(), c); err != nil {
			brokenNow(t, "stderr", "a worker whose host is gone must go on: %v", err)
		}
	}
	if _, err := w.Client.Status(t.Context()); err != nil {
		brokenNow(t, "stderr", "Status: %v", err)
	}
}

func (s *workerSuite) stdout(t *testing.T) {
	w, c := s.started(t, s.o.Config)
	if w.Printed == nil {
		t.Skip("there is no standard output")
	}
	s.needsChat(t, w)
	ask := func() {
		t.Helper()
		if _, err := s.ask(t.Context(), c); err != nil {
			brokenNow(t, "stdout", "%v", err)
		}
		if _, err := w.Client.Status(t.Context()); err != nil {
			brokenNow(t, "stdout", "Status: %v", err)
		}
	}
	ask()
	if text := w.Printed(); text != "" {
		broken(t, "stdout", "after the handshake line it writes %q: it belongs on standard error", text)
	}
	w.BreakStdout()
	for range 3 {
		ask()
	}
}

func (s *workerSuite) tether(t *testing.T) {
	w, _ := s.started(t, s.o.Config)
	if w.Untether == nil {
		t.Skip("there is no standard input")
	}
	w.Untether()
	select {
	case <-w.Exited:
	case <-time.After(patience):
		broken(t, "tether", "the process is still there %s after its standard input ended", patience)
	}
}
