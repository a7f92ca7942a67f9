package gateway

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// lastError returns the error event that ends a stream; the test fails if the stream ends
// otherwise.
func lastError(t testing.TB, body string) openai.Error {
	t.Helper()
	must.StrNotContains(t, body, "[DONE]")
	must.True(t, strings.HasSuffix(body, "\n\n"))
	lines := strings.Split(strings.TrimSuffix(body, "\n\n"), "\n")
	return errorIn(t, strings.TrimPrefix(lines[len(lines)-1], "data: "))
}

const chunkedHead = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

func chunked(s string) string {
	return strings.ToLower(strings.TrimLeft(hex(len(s)), "0")) + "\r\n" + s + "\r\n"
}

func hex(n int) string {
	const digits = "0123456789abcdef"
	out := make([]byte, 8)
	for i := range out {
		out[7-i] = digits[n&15]
		n >>= 4
	}
	return string(out)
}

// FAULTS G-03 and G-16: an incomplete answer never looks complete.
func TestBrokenStreams(t *testing.T) {
	t.Parallel()
	some := roleEvent + tokenEvent(1)
	for name, c := range map[string]struct {
		worker func(c net.Conn)
		code   string
	}{
		"killed": {func(c net.Conn) { _, _ = io.WriteString(c, chunkedHead+chunked(some)) }, "worker_lost"},
		"killed in an event": {func(c net.Conn) {
			_, _ = io.WriteString(c, chunkedHead+chunked(some+`data: {"choices":[{"delta":{"con`))
		}, "worker_lost"},
		"ended in order without [DONE]": {func(c net.Conn) { _, _ = io.WriteString(c, chunkedHead+chunked(some)+"0\r\n\r\n") }, "worker_lost"},
		"ended in order within an event": {func(c net.Conn) {
			_, _ = io.WriteString(c, chunkedHead+chunked(some+"data: [DON")+"0\r\n\r\n")
		}, "worker_lost"},
		"reset": {func(c net.Conn) {
			_, _ = io.WriteString(c, chunkedHead+chunked(some)+"1000\r\nabc")
		}, "worker_lost"},
		"broken chunk": {func(c net.Conn) { _, _ = io.WriteString(c, chunkedHead+chunked(some)+"zz\r\n") }, "worker_lost"},
		"one line without end": {func(c net.Conn) {
			_, _ = io.WriteString(c, chunkedHead+chunked(some))
			for range 40 {
				if _, err := io.WriteString(c, chunked(strings.Repeat("x", 64<<10))); err != nil {
					return
				}
			}
		}, "internal"},
		"the worker's own error": {func(c net.Conn) {
			_, _ = io.WriteString(c, chunkedHead+chunked(some+`data: {"error":{"message":"out of memory","type":"server_error","code":"oom"}}`+"\n\n"+doneEvent)+"0\r\n\r\n")
		}, "oom"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			r.raw("w1", c.worker)
			r.serve("w2", streamOf(doneEvent)) // must not be asked: the client has seen part of the answer
			resp, body, err := r.post("/v1/chat/completions", streamAsk)
			must.Eq(t, 200, resp.StatusCode)
			must.ErrorIs(t, err, io.ErrUnexpectedEOF, must.Sprint("the framing must be cut"))
			must.True(t, strings.HasPrefix(body, some))
			must.Eq(t, c.code, code(lastError(t, body)))
			must.Eq(t, 1, strings.Count(body, `"error"`))
			if c.code == "worker_lost" {
				must.Eq(t, []string{"w1"}, r.router.failures())
			} else {
				must.SliceEmpty(t, r.router.failures())
			}
			_, metrics := r.get("/metrics")
			must.StrContains(t, metrics, "rbee_gateway_broken_streams_total{reason=")
		})
	}
}

// FAULTS G-14 and G-16: unusual but valid streams pass byte for byte.
func TestOddStreamsPassThrough(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		parts []string // each is one chunk on the wire
		want  string   // empty: the parts
	}{
		"events in one":          {parts: []string{roleEvent + tokenEvent(1) + tokenEvent(2) + doneEvent}},
		"byte for byte":          {parts: strings.Split(roleEvent+tokenEvent(1)+doneEvent, "")},
		"comments":               {parts: []string{": hi\n\n", ":\n\n", tokenEvent(1), ": ping\n\n", doneEvent}},
		"comment without blank":  {parts: []string{": hi\n", tokenEvent(1), doneEvent}},
		"CRLF":                   {parts: []string{"data: {}\r\n\r\n", "data: [DONE]\r\n\r\n"}},
		"CRLF split":             {parts: []string{"data: {}\r", "\n\r", "\n", "data: [DONE]\r\n\r", "\n"}},
		"CR":                     {parts: []string{"data: {}\r\r", "data: [DONE]\r\r"}, want: "data: {}\r\rdata: [DONE]\n\n"},
		"no space after data":    {parts: []string{"data:{}\n\n", "data:[DONE]\n\n"}},
		"other fields":           {parts: []string{"id: 7\nevent: x\nretry: 10\ndata: {}\n\n", doneEvent}},
		"several data lines":     {parts: []string{"data: {\ndata: }\n\n", doneEvent}},
		"data that is no JSON":   {parts: []string{"data: <html>\n\n", doneEvent}},
		"byte order mark":        {parts: []string{"\ufeffdata: {}\n\n", doneEvent}, want: "data: {}\n\n" + doneEvent},
		"byte order mark split":  {parts: []string{"\xef", "\xbb", "\xbfdata: {}\n\n", doneEvent}, want: "data: {}\n\n" + doneEvent},
		"no blank line at end":   {parts: []string{"data: {}\n\n", "data: [DONE]\n"}, want: "data: {}\n\n" + doneEvent},
		"no line end at end":     {parts: []string{"data: {}\n\n", "data: [DONE]"}, want: "data: {}\n\n" + doneEvent},
		"something after [DONE]": {parts: []string{tokenEvent(1), doneEvent, "data: {\"more\":1}\n\n"}, want: tokenEvent(1) + doneEvent},
		"junk with [DONE]":       {parts: []string{tokenEvent(1) + doneEvent + "\n\n\x00junk"}, want: tokenEvent(1) + doneEvent},
		"a large event":          {parts: []string{"data: \"" + strings.Repeat("y", 700<<10) + "\"\n\n", doneEvent}},
		"error as text":          {parts: []string{`data: {"choices":[{"delta":{"content":"{\"error\":1}"}}]}` + "\n\n", doneEvent}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			r.serve("w1", streamOf(c.parts...))
			want := c.want
			if want == "" {
				want = strings.Join(c.parts, "")
			}
			for range 3 { // also on a reused connection
				resp, body, err := r.post("/v1/chat/completions", streamAsk)
				must.NoError(t, err)
				must.Eq(t, 200, resp.StatusCode)
				must.Eq(t, want, body)
				must.Eq(t, "no-store", resp.Header.Get("Cache-Control"))
				must.Eq(t, "no", resp.Header.Get("X-Accel-Buffering"))
			}
			must.SliceEmpty(t, r.router.failures())
		})
	}
}

// Each event arrives before the next one is written.
func TestEventsAreNotHeldBack(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	next := make(chan struct{})
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 5 {
			_, _ = io.WriteString(w, tokenEvent(i))
			_ = http.NewResponseController(w).Flush()
			<-next
		}
		_, _ = io.WriteString(w, doneEvent)
	})
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(streamAsk))
	must.NoError(t, err)
	resp, err := r.client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	for i := range 5 {
		got := make([]byte, len(tokenEvent(i)))
		_, err := io.ReadFull(resp.Body, got)
		must.NoError(t, err)
		must.Eq(t, tokenEvent(i), string(got))
		next <- struct{}{}
	}
	rest, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	must.Eq(t, doneEvent, string(rest))
}

// The worker keeps its connection open after [DONE]: the client must not wait for it.
func TestDoneEndsTheAnswer(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	gone := make(chan struct{})
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		streamOf(tokenEvent(1), doneEvent)(w, req)
		<-req.Context().Done()
		close(gone)
	})
	_, body, err := r.post("/v1/chat/completions", streamAsk)
	must.NoError(t, err)
	must.Eq(t, tokenEvent(1)+doneEvent, body)
	<-gone
}

// FAULTS G-06, in short: a client that does not read is dropped at the limit, and its request to
// the worker with it.
func TestUnreadStreamTimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.WriteTimeout = 200 * time.Millisecond })
	gone := make(chan struct{})
	event := "data: \"" + strings.Repeat("z", 32<<10) + "\"\n\n"
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		defer close(gone)
		w.Header().Set("Content-Type", "text/event-stream")
		for req.Context().Err() == nil {
			if _, err := io.WriteString(w, event); err != nil {
				return
			}
		}
	})
	c, err := net.Dial("tcp", r.addr)
	must.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: "+itoa(len(streamAsk))+"\r\n\r\n"+streamAsk)
	must.NoError(t, err)
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Fatal("the worker still writes")
	}
}

func TestMetricsOfStreams(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.serve("w1", streamOf(roleEvent, tokenEvent(1), tokenEvent(2), tokenEvent(3), doneEvent))
	_, _, err := r.post("/v1/chat/completions", streamAsk)
	must.NoError(t, err)
	_, text := r.get("/metrics")
	for _, want := range []string{
		`rbee_gateway_streams_total{model="tiny"} 1`,
		`rbee_gateway_stream_events_total 5`,
		`rbee_gateway_time_to_first_token_seconds_count 1`,
		`rbee_gateway_inference_duration_seconds_count 1`,
		`rbee_gateway_requests_total{route="POST /v1/chat/completions",status="2xx"} 1`,
		`rbee_gateway_in_flight_requests 1`,
	} {
		must.StrContains(t, text, want)
	}
	must.StrNotContains(t, text, "broken_streams_total{")
	for range 2 * maxModelLabels {
		r.metrics.model(strings.Repeat("m", len(r.metrics.models)+1))
	}
	must.Eq(t, "other", r.metrics.model("one more"))
	must.Eq(t, "tiny", r.metrics.model("tiny"))
}

// At the end of the grace period, a stream ends with the reason.
func TestShutdownTellsStreams(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	sent := make(chan struct{})
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		streamOf(tokenEvent(1))(w, req)
		close(sent)
		<-req.Context().Done()
	})
	req, err := http.NewRequestWithContext(context.Background(), http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(streamAsk))
	must.NoError(t, err)
	resp, err := r.client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	<-sent
	go r.stop()
	body, err := io.ReadAll(resp.Body)
	must.ErrorIs(t, err, io.ErrUnexpectedEOF)
	must.True(t, strings.HasPrefix(string(body), tokenEvent(1)))
	must.Eq(t, "unavailable", code(lastError(t, string(body))))
	r.stop()
	must.Zero(t, r.router.running())
	must.SliceEmpty(t, r.router.failures())
	_, err = net.Dial("tcp", r.addr)
	must.Error(t, err)
}
