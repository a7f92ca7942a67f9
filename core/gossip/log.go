package gossip

import (
	"bytes"
	"log"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Of what the library says about failures at most this much is logged: one line for every bad
// packet would let anybody fill the disk.
const (
	logBurst  = 20
	logPeriod = 10 * time.Second
)

// libraryLog gives memberlist a logger. Its errors are about one packet or one try, and mostly
// about a node that is away: warnings at most. What it calls informative is for debugging.
func libraryLog(l hclog.Logger) *log.Logger {
	infer := l.StandardLogger(&hclog.StandardLoggerOptions{InferLevels: true})
	return log.New(&levels{to: infer, log: l}, "", 0)
}

type levels struct {
	to  *log.Logger
	log hclog.Logger

	mu         sync.Mutex
	since      time.Time
	lines      int
	suppressed int
}

// Write takes one line.
func (w *levels) Write(line []byte) (int, error) {
	n := len(line)
	line = bytes.TrimRight(line, "\n")
	warn := true
	for _, p := range []struct {
		prefix string
		warn   bool
	}{{"[ERR] ", true}, {"[ERROR] ", true}, {"[WARN] ", true}, {"[INFO] ", false}, {"[DEBUG] ", false}} {
		if rest, ok := bytes.CutPrefix(line, []byte(p.prefix)); ok {
			line, warn = rest, p.warn
			break
		}
	}
	if !warn {
		if w.log.IsDebug() {
			w.to.Print("[DEBUG] " + string(line))
		}
		return n, nil
	}
	if ok, missed := w.allow(); ok {
		if missed > 0 {
			w.log.Warn("gossip warnings were left out", "count", missed)
		}
		w.to.Print("[WARN] " + string(line))
	}
	return n, nil
}

func (w *levels) allow() (ok bool, missed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if now := time.Now(); w.since.IsZero() || now.Sub(w.since) >= logPeriod {
		missed = w.suppressed
		w.since, w.lines, w.suppressed = now, 0, 0
	}
	if w.lines++; w.lines > logBurst {
		w.suppressed++
		return false, 0
	}
	return true, missed
}
