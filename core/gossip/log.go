package gossip

import (
	"bytes"
	"fmt"
	"log"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
)

// Bounds on the library's log lines: one line for every bad packet would let an attacker fill the
// disk.
const (
	logBurst  = 20
	logPeriod = 10 * time.Second
	// logAgain is the time between two lines of one kind.
	logAgain = time.Minute
	maxKinds = 64
	maxLine  = 300
)

// libraryLog returns a logger for memberlist. memberlist's errors concern one packet or one
// attempt, mostly to a node that is away: they are logged as warnings at most, one a minute per
// kind. Its info lines become debug. name returns the name of a node for its ID; nil: no names.
func libraryLog(l hclog.Logger, name func(id string) string) *log.Logger {
	if name == nil {
		name = func(string) string { return "" }
	}
	return log.New(&levels{log: l, name: name, kinds: map[string]*kind{}}, "", 0)
}

type levels struct {
	log  hclog.Logger
	name func(id string) string

	mu         sync.Mutex // guards below
	since      time.Time
	lines      int
	suppressed int
	kinds      map[string]*kind
}

// kind identifies all lines that differ only in numbers.
type kind struct {
	told, last time.Time
	count      int // lines since the last logged one
}

// Write logs one line.
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
			w.log.Debug(w.readable(line))
		}
		return n, nil
	}
	// Most lines are dropped, and anyone who sends packets can cause them: a dropped line costs no
	// more than determining its kind.
	ok, repeated, missed := w.allow(kindOf(line), time.Now())
	switch {
	case !ok:
		if w.log.IsDebug() {
			w.log.Debug(w.readable(line))
		}
		return n, nil
	case missed > 0:
		w.log.Warn("gossip warnings were left out", "count", missed)
	}
	text := w.readable(line)
	if repeated > 0 {
		w.log.Warn(text, "repeated", repeated)
	} else {
		w.log.Warn(text)
	}
	return n, nil
}

// allow reports whether to log a line of a kind, how many of its kind were dropped since the last
// one, and how many lines of all kinds were dropped because there were too many.
func (w *levels) allow(what string, now time.Time) (ok bool, repeated, missed int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := w.kinds[what]
	if k != nil && now.Sub(k.told) < logAgain {
		k.count++
		k.last = now
		return false, 0, 0
	}
	if w.since.IsZero() || now.Sub(w.since) >= logPeriod {
		missed = w.suppressed
		w.since, w.lines, w.suppressed = now, 0, 0
	}
	if w.lines++; w.lines > logBurst {
		w.suppressed++
		return false, 0, 0
	}
	if k == nil {
		if len(w.kinds) >= maxKinds {
			clear(w.kinds)
		}
		k = &kind{}
		w.kinds[what] = k
	}
	repeated = k.count
	if now.Sub(k.last) >= 2*logAgain { // it is a new problem
		repeated = 0
	}
	k.told, k.last, k.count = now, now, 0
	return true, repeated, missed
}

var (
	byteList = regexp.MustCompile(`\[(?:\d{1,3} ){3,}\d{1,3}\]`) // a []byte printed with %v
	hexList  = regexp.MustCompile(`(?:\\x[0-9a-f]{2}){3,}`)
	nodeID   = regexp.MustCompile(`\b[0-9a-f]{8}\b`)
)

// readable returns a line of the library without the bytes it prints, with names beside node IDs,
// bounded in length.
func (w *levels) readable(line []byte) string {
	text := strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == '\uFFFD' {
			return '·'
		}
		return r
	}, strings.ToValidUTF8(string(line[:min(len(line), 16*maxLine)]), "·"))
	text = byteList.ReplaceAllStringFunc(text, func(s string) string { return fmt.Sprintf("(%d bytes)", strings.Count(s, " ")+1) })
	text = hexList.ReplaceAllString(text, "…")
	text = nodeID.ReplaceAllStringFunc(text, func(id string) string {
		if name := w.name(id); name != "" && name != id {
			return name + " (" + id + ")"
		}
		return id
	})
	if r := []rune(text); len(r) > maxLine {
		text = string(r[:maxLine]) + "…"
	}
	return text
}

// kindOf returns what the lines of one kind have in common: everything but digits, letters next to
// digits (which may belong to an address or a number), and unprintable characters.
func kindOf(line []byte) string {
	out := make([]byte, 0, maxLine)
	for _, word := range bytes.FieldsFunc(line[:min(len(line), maxLine)], func(r rune) bool { return r == ' ' }) {
		if len(out) > 0 {
			out = append(out, ' ')
		}
		if bytes.ContainsFunc(word, func(r rune) bool { return r >= '0' && r <= '9' || r < ' ' || r >= 0x7f }) {
			out = append(out, '#')
			continue
		}
		out = append(out, word...)
	}
	return string(out)
}
