package job

import (
	"bytes"
	"testing"
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

// The parsed part of a file is whole, in order, and the same when it is parsed again up to its end.
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
