package sse

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const (
	roleEvent = `data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}` + "\n\n"
	oneToken  = `data: {"choices":[{"index":0,"delta":{"content":"t1"},"finish_reason":null}]}` + "\n\n"
	doneEvent = "data: [DONE]\n\n"
)

// splitAll reads r to its end and returns what was passed on, and how the stream ended.
func splitAll(r io.Reader) (string, int, Ending, error) {
	s := Splitter{buf: make([]byte, 64)}
	var out bytes.Buffer
	n := 0
	for {
		_, err := s.Fill(r)
		block, events := s.Next()
		out.Write(block)
		n += events
		switch {
		case s.ending != Open:
			return out.String(), n, s.ending, nil
		case errors.Is(err, io.EOF):
			out.Write(s.Rest())
			return out.String(), n, s.ending, nil
		case err != nil:
			return out.String(), n, s.ending, err
		}
	}
}

func TestSplitterLimits(t *testing.T) {
	t.Parallel()
	fits := "data: " + strings.Repeat("a", maxEvent-64) + "\n\n"
	out, n, end, err := splitAll(strings.NewReader(fits + doneEvent))
	must.NoError(t, err)
	must.Eq(t, len(fits+doneEvent), len(out))
	must.Eq(t, 2, n)
	must.Eq(t, Whole, end)
	for name, s := range map[string]string{
		"line":  "data: " + strings.Repeat("a", 2*maxEvent),
		"lines": strings.Repeat("data: abc\n", maxEvent/5),
	} {
		_, _, _, err = splitAll(strings.NewReader(s))
		must.ErrorIs(t, err, ErrEventTooLarge, must.Sprint(name))
	}
}

func TestHasToken(t *testing.T) {
	t.Parallel()
	for data, want := range map[string]bool{
		`{"choices":[{"delta":{"role":"assistant","content":null}}]}`:                     false,
		`{"choices":[{"delta":{"role":"assistant","content":""}}]}`:                       false,
		`{"choices":[{"delta":{"content":"a"}}]}`:                                         true,
		`{"choices":[{"delta": {"content": "a"}}]}`:                                       true,
		`{"choices":[{"text":"a"}]}`:                                                      true,
		`{"choices":[{"delta":{"content":null,"reasoning_content":"a"}}]}`:                true,
		`{"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}`:                            true,
		`{"choices":[{"delta":{},"finish_reason":null}],"prompt_progress":{"total":100}}`: false,
	} {
		must.Eq(t, want, hasToken([]byte(data)), must.Sprint(data))
	}
}

func FuzzSplitter(f *testing.F) {
	for _, s := range []string{
		roleEvent + oneToken + doneEvent, "data: {}\r\n\r\ndata: [DONE]\r\n\r\n", "data:x\r\r:c\r\rdata:[DONE]\r\r", "\ufeffdata: 1\n\n", "data: {\"error\":{\"message\":\"m\"}}\n\n",
		": c\n\nid: 1\nevent: e\ndata\ndata:\n\n", "data: [DONE]", "\n\n\n", "\r", "\xef\xbb",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		out, n, end, err := splitAll(bytes.NewReader(stream))
		slow, n2, end2, err2 := splitAll(iotest.OneByteReader(bytes.NewReader(stream)))
		if (err == nil) != (err2 == nil) || err == nil && (out != slow || n != n2 || end != end2) {
			t.Fatalf("the same bytes in one piece: %q %d %v; one by one: %q %d %v", out, n, end, slow, n2, end2)
		}
		if err != nil {
			return
		}
		// The output is a prefix of the input, except for a byte order mark and the line ends of a
		// final [DONE].
		if want := strings.TrimPrefix(string(stream), "\ufeff"); !strings.HasPrefix(want, strings.TrimRight(out, "\r\n")) {
			t.Fatalf("%q became %q", stream, out)
		}
		// A client sees whole events only, and a [DONE] exactly when the stream is complete.
		if strings.ContainsRune(out, '\r') || strings.ContainsRune(out, 0) {
			return // the reader below does not accept a lone CR
		}
		events, done := openai.NewEventReader(strings.NewReader(out)), false
		for {
			ev, err := events.Next()
			if errors.Is(err, io.ErrUnexpectedEOF) && !strings.Contains(out, "\n:") && !strings.HasPrefix(out, ":") {
				t.Fatalf("a part of an event was passed on: %q", out)
			}
			if err != nil {
				break
			}
			if ev.IsDone() {
				done = true
			}
		}
		if done != (end == Whole) {
			t.Fatalf("done %v, ending %v of %q", done, end, out)
		}
	})
}

func TestSplitterTokens(t *testing.T) {
	t.Parallel()
	const role, text, tool, end = `data: {"choices":[{"delta":{"role":"assistant","content":""}}]}`, `data: {"choices":[{"delta":{"content":"a"}}]}`,
		`data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}`, `data: {"choices":[{"delta":{},"finish_reason":"stop"}]}`
	for name, tt := range map[string]struct {
		events []string
		want   int64
	}{
		"text":            {[]string{role, text, text, end, "data: [DONE]"}, 2},
		"tool calls":      {[]string{role, tool, end, "data: [DONE]"}, 1},
		"told":            {[]string{role, text, end, `data: {"choices":[],"usage":{"prompt_tokens":9,"completion_tokens":17}}`, "data: [DONE]"}, 17},
		"told as we go":   {[]string{text + "\n\n" + `data: {"choices":[{"delta":{"content":"b"}}],"usage":{"completion_tokens": 2}}`, "data: [DONE]"}, 2},
		"nothing":         {[]string{role, end, "data: [DONE]"}, 0},
		"too many digits": {[]string{text, `data: {"usage":{"completion_tokens":123456789012345678901234567890}}`}, 123456789012},
	} {
		s := NewSplitter()
		r := strings.NewReader(strings.Join(tt.events, "\n\n") + "\n\n")
		for {
			_, err := s.Fill(r)
			s.Next()
			if err != nil {
				break
			}
		}
		must.Eq(t, tt.want, s.Tokens(), must.Sprint(name))
	}
}
