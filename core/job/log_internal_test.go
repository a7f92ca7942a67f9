package job

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func logText(t testing.TB, h header, events ...core.Event) []byte {
	t.Helper()
	b, err := appendLine(nil, h)
	must.NoError(t, err)
	for _, e := range events {
		b, err = appendLine(b, e)
		must.NoError(t, err)
	}
	return b
}

// The parsed part of a file is complete, in order, and the same when parsed again.
func FuzzReadLog(f *testing.F) {
	at := time.Unix(1e9, 0).UTC()
	whole := logText(f, header{ID: "j", Operation: "o", RequestID: "r", At: 7},
		core.Event{Seq: 1, At: at, Kind: core.EventLog, Message: "m"},
		core.Event{Seq: 3, At: at, Kind: core.EventProgress, Progress: &core.Progress{Phase: "p", Done: 1}},
		core.Event{Seq: 4, At: at, Kind: core.EventResult, Result: []byte(`{}`)},
		core.Event{Seq: 5, At: at, Kind: core.EventEnd, State: core.JobSucceeded})
	f.Add(whole)
	f.Add(whole[:len(whole)-3])
	f.Add(append(bytes.Clone(whole), whole...))
	f.Add([]byte("00000000 {}\n"))
	f.Add(logText(f, header{}, core.Event{Seq: 1, Kind: core.EventProgress}))
	f.Fuzz(func(t *testing.T, text []byte) {
		h, events, good, err := readLog(bytes.NewReader(text))
		if err != nil {
			must.Eq(t, core.Integrity, core.KindOf(err))
			return
		}
		must.LessEq(t, int64(len(text)), good)
		last := int64(0)
		for i, e := range events {
			must.Greater(t, last, e.Seq)
			last = e.Seq
			if e.Kind == core.EventEnd {
				must.Eq(t, len(events)-1, i)
			}
			if e.Kind == core.EventProgress {
				must.NotNil(t, e.Progress)
			}
		}
		again, same, all, err := readLog(bytes.NewReader(text[:good]))
		must.NoError(t, err)
		must.Eq(t, h, again)
		must.Eq(t, len(events), len(same))
		must.Eq(t, good, all)
	})
}

// readLine accepts a line only with a valid checksum, wherever it is cut.
func TestReadLine(t *testing.T) {
	t.Parallel()
	whole, err := appendLine(nil, header{ID: "a"})
	must.NoError(t, err)
	whole = bytes.TrimSuffix(whole, []byte("\n"))
	var h header
	must.True(t, readLine(whole, &h))
	must.Eq(t, "a", h.ID)
	for n := range whole {
		must.False(t, readLine(whole[:n], &h), must.Sprint(n))
		changed := bytes.Clone(whole)
		changed[n] ^= 1
		must.False(t, readLine(changed, &h), must.Sprint(n))
	}
	must.False(t, readLine(append([]byte("00000000x"), whole[9:]...), &h))
}

// A file without a whole first line is damaged; a read error does not count as damage.
func TestReadLogFails(t *testing.T) {
	t.Parallel()
	for name, r := range map[string]io.Reader{
		"an empty file":       strings.NewReader(""),
		"half a line":         strings.NewReader("01234567 {"),
		"another kind":        strings.NewReader("{}\n"),
		"a line without end":  strings.NewReader(strings.Repeat("x", maxLineBytes+1)),
		"a line that is long": strings.NewReader(strings.Repeat("x", maxLineBytes+1) + "\n"),
	} {
		_, _, good, err := readLog(r)
		must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(name))
		must.Zero(t, good)
	}
	_, _, _, err := readLog(iotest.ErrReader(errors.New("the disk is gone")))
	must.Eq(t, core.Internal, core.KindOf(err))
}

func progressed(phase string) core.Event {
	return core.Event{Kind: core.EventProgress, Progress: &core.Progress{Phase: phase}}
}

// Beyond its bounds, a history drops progress, then lines, oldest first, but never result and end.
func TestHistory(t *testing.T) {
	t.Parallel()
	line := func(text string) core.Event { return core.Event{Kind: core.EventLog, Message: text} }
	result, end := core.Event{Kind: core.EventResult}, core.Event{Kind: core.EventEnd}
	kept := func(limit int, events ...core.Event) []core.Event {
		h := history{max: limit}
		for _, e := range events {
			h.add(e)
		}
		return h.events
	}
	a, b, p, q := line("a"), line("b"), progressed("p"), progressed("q")
	must.Eq(t, []core.Event{p, a, q}, kept(3, p, a, q))
	must.Eq(t, []core.Event{a, q, b}, kept(3, p, a, q, b))
	must.Eq(t, []core.Event{b, result, end}, kept(3, a, b, result, end))
	must.Eq(t, []core.Event{result, end}, kept(1, a, result, end))

	large := line(strings.Repeat("x", maxHistoryBytes/2-128))
	must.Eq(t, []core.Event{large, large}, kept(9, large, large)) // of the maximum size
	must.Eq(t, []core.Event{large, a}, kept(9, large, large, a))
	long := progressed(strings.Repeat("x", maxHistoryBytes/2-128))
	must.Eq(t, []core.Event{long, long, result}, kept(9, long, long, result))
	must.Eq(t, []core.Event{long, p}, kept(9, long, long, p))

	must.Eq(t, []core.Event{a, q}, trim([]core.Event{p, a, q}, 2))
	must.Eq(t, []core.Event{p, a}, trim([]core.Event{p, a}, 2))
	must.Eq(t, []core.Event{result, end}, trim([]core.Event{p, a, result, end}, 0))
}
