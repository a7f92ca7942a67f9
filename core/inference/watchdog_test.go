package inference

import (
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestHangs(t *testing.T) {
	t.Parallel()
	o := &Options{FirstTokenTimeout: 5 * time.Minute, TokenTimeout: time.Minute, HungTimeout: 15 * time.Second}
	const s, m = time.Second, time.Minute
	for _, c := range []struct {
		name            string
		streamed, token bool
		quiet           time.Duration
		signs           Signs
		want            bool
	}{
		{"a moment", true, true, s, Signs{}, false},
		{"process that does nothing", true, true, 15 * s, Signs{Silence: 15 * s}, true},
		{"the same before the first token", true, false, 15 * s, Signs{Silence: 16 * s}, true},
		{"the same, not streamed", false, false, 15 * s, Signs{Silence: 16 * s}, true},
		{"silent, but it sends", true, true, s, Signs{Silence: m}, false},
		{"quiet, but it tells its state", true, true, 59 * s, Signs{Silence: s}, false},
		{"no further token", true, true, m, Signs{Progress: true}, true},
		{"long prompt", true, false, 10 * m, Signs{Progress: true, Stalled: s}, false},
		{"long prompt that is stuck", true, false, 10 * m, Signs{Progress: true, Stalled: 5 * m}, true},
		{"no first token, no progress told", true, false, 5 * m, Signs{}, true},
		{"long answer", false, false, 60 * m, Signs{Progress: true, Stalled: s}, false},
		{"long answer, no progress told", false, false, 60 * m, Signs{}, false},
		{"stuck answer", false, false, 5 * m, Signs{Progress: true, Stalled: 5 * m}, true},
	} {
		must.Eq(t, c.want, hangs(o, c.streamed, c.token, c.quiet, c.signs), must.Sprint(c.name))
	}
}

// hang sends text and then nothing until the connection is closed.
func hang(text string) behaviour {
	return func(c net.Conn) {
		_, _ = io.WriteString(c, text)
		_, _ = c.Read(make([]byte, 1))
	}
}

// FAULTS G-15: a hung worker delays a request by the timeout, not indefinitely.
func TestServeStalledWorker(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		worker behaviour
		signs  Signs
		body   string
		kind   core.Kind
		after  time.Duration
	}{
		{"hung before the answer", hang(""), Signs{Silence: time.Hour}, askTiny, "", 15 * time.Second},
		{"hung after the header", hang(streamAnswer), Signs{Silence: time.Hour}, streamTiny, "", 15 * time.Second},
		{"hung under a stream", hang(streamAnswer + oneToken), Signs{Silence: time.Hour}, streamTiny, core.WorkerLost, 15 * time.Second},
		{"no further token", hang(streamAnswer + oneToken), Signs{}, streamTiny, core.WorkerLost, time.Minute},
		{"no first token", hang(streamAnswer + ": busy\n\n"), Signs{}, streamTiny, "", 5 * time.Minute},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBench(Options{}, c.worker, says(wholeAnswer))
				b.signs = func() Signs { return c.signs }
				defer b.end()
				start := time.Now()
				_, err := b.ask(c.body)
				if c.kind == "" && c.body == streamTiny && err != nil && c.name == "no first token" {
					// the stream had begun with a comment, and the second worker does not stream
					must.StrContains(t, err.Error(), "did not stream")
				} else {
					must.Eq(t, c.kind, core.KindOf(err), must.Sprint(err))
				}
				must.Between(t, c.after, time.Since(start), c.after+c.after/2)
				must.Eq(t, []string{"w0"}, b.failed)
				must.Zero(t, b.running)
			})
		})
	}
}

// A worker whose progress shows that it evaluates a long prompt is left alone.
func TestServeLongPrompt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBench(Options{}, func(c net.Conn) {
			time.Sleep(time.Hour)
			_, _ = io.WriteString(c, wholeAnswer)
		})
		b.signs = func() Signs { return Signs{Progress: true, Stalled: time.Second, Silence: time.Second} }
		defer b.end()
		status, err := b.ask(askTiny)
		must.NoError(t, err)
		must.Eq(t, 200, status)
		must.SliceEmpty(t, b.failed)
	})
}
