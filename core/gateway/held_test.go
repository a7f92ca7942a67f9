package gateway

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/fakecluster"
)

func (r *rig) held() int64 {
	r.bodies.mu.Lock()
	defer r.bodies.mu.Unlock()
	return r.bodies.used
}

// A request in another dialect holds its body no longer than one in OpenAI's: until the stream has
// begun, which then runs for long.
func TestTranslatedBodyReleased(t *testing.T) {
	t.Parallel()
	const size = 200 << 10
	text := strings.Repeat("x", size)
	for name, tt := range map[string]struct {
		path, body string
		most       int64 // bytes, once the stream has begun
	}{
		"anthropic": {"/v1/messages", `{"model":"tiny","max_tokens":9,"stream":true,"messages":[{"role":"user","content":"` + text + `"}]}`, 0},
		"ollama":    {"/api/chat", `{"model":"tiny","messages":[{"role":"user","content":"` + text + `"}]}`, 0},
		// The conversation is stored for previous_response_id.
		"responses": {"/v1/responses", `{"model":"tiny","stream":true,"input":"` + text + `"}`, 2*size + 10<<10},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			finished := make(chan struct{})
			finish := sync.OnceFunc(func() { close(finished) })
			t.Cleanup(finish)
			r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
				_, _ = io.Copy(io.Discard, q.Body)
				streamOf(tokenEvent(1))(w, q)
				<-finished
				streamOf(doneEvent)(w, q)
			})
			resp, err := r.client.Post(r.url+tt.path, "application/json", strings.NewReader(tt.body))
			must.NoError(t, err)
			defer resp.Body.Close()
			must.Eq(t, 200, resp.StatusCode)
			_, err = resp.Body.Read(make([]byte, 1))
			must.NoError(t, err)
			eventually(t, "the body is given up", func() bool { return r.held() <= tt.most })
			finish()
			_, err = io.Copy(io.Discard, resp.Body)
			must.NoError(t, err)
			r.stop()
			kept := int64(0)
			if name == "responses" {
				kept = size + 2<<10 // the conversation and its answer are counted until dropped
			}
			must.LessEq(t, kept, r.held())
			if kept > 0 {
				must.Greater(t, size, int(r.held()))
				must.True(t, r.answers.Spare(1))
			}
			must.Eq(t, 0, r.held())
		})
	}
}

// Stored conversations are counted with the bodies, and yield to them.
func TestKeptAnswersGiveWay(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.BodyMemory = 300 << 10 })
	r.serve("w1", answerJSON(200, `{"choices":[{"message":{"content":"a"},"finish_reason":"stop"}]}`))
	for range 40 {
		resp, body, err := r.post("/v1/responses", `{"model":"tiny","input":"`+strings.Repeat("x", 8<<10)+`"}`)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode, must.Sprint(body))
	}
	eventually(t, "only conversations are held", func() bool { return r.held() > 200<<10 && r.held() < 300<<10 })
	resp, _, err := r.post("/v1/chat/completions", padded(120<<10))
	must.NoError(t, err)
	must.Eq(t, 200, resp.StatusCode)
}

// A client that has sent half of a compressed body holds no window for it.
func TestSlowZstdMemory(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var packed bytes.Buffer
	z, err := zstd.NewWriter(&packed, zstd.WithWindowSize(8<<20))
	must.NoError(t, err)
	_, err = io.WriteString(z, padded(1<<20))
	must.NoError(t, err)
	must.NoError(t, z.Close())
	c, err := net.Dial("tcp", r.addr)
	must.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Encoding: zstd\r\nContent-Length: 16000\r\n\r\n"+packed.String()[:20])
	must.NoError(t, err)
	eventually(t, "the body is being read", func() bool { return r.held() > 0 })
	must.LessEq(t, 16<<10, r.held())
	must.NoError(t, c.Close())
	eventually(t, "it holds nothing", func() bool { return r.held() == 0 })
}

// A connection stays usable after a chunked request, whatever preceded it, but not after one that
// also stated its length.
func TestChunkedKeepAlive(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.serve("w1", streamOf(tokenEvent(1), doneEvent))
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
	chunked := head + "Transfer-Encoding: chunked\r\n\r\n" + chunk(streamAsk) + "0\r\n\r\n"
	stated := askWith(streamAsk)
	both := head + "content-LENGTH: 5\r\nTransfer-Encoding: chunked\r\n\r\n" + chunk(streamAsk) + "0\r\n\r\n"
	for name, tt := range map[string]struct {
		requests []string
		closed   bool
	}{
		"chunks":                {[]string{chunked, chunked, chunked}, false},
		"chunks after a length": {[]string{stated, chunked, stated, chunked}, false},
		"both":                  {[]string{both}, true},
		"both after a length":   {[]string{stated, both}, true},
		"both after chunks":     {[]string{chunked, both}, true},
		"a length after chunks": {[]string{chunked, stated}, false},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := dialRaw(t, r.addr)
			for i, q := range tt.requests {
				resp := c.ask(q)
				must.Eq(t, 200, resp.StatusCode, must.Sprint(i))
				must.Eq(t, tt.closed && i == len(tt.requests)-1, resp.Close, must.Sprint(i))
			}
			must.Eq(t, tt.closed, c.isClosed())
		})
	}

	conns := map[net.Conn]bool{}
	for range 3 {
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { conns[i.Conn] = true }}
		q, err := http.NewRequestWithContext(httptrace.WithClientTrace(t.Context(), trace), http.MethodPost, r.url+"/v1/chat/completions", io.MultiReader(strings.NewReader(streamAsk)))
		must.NoError(t, err)
		resp, _, err := r.do(q)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
	}
	must.MapLen(t, 1, conns)
}

func TestOllamaDeleteNothing(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	// the hive has deleted the model meanwhile
	r.cluster.Change(func(s *fakecluster.State) { s.Models = []core.Model{{ID: "tiny"}} })
	for _, name := range []string{"tiny", "nobody"} {
		q, err := http.NewRequestWithContext(t.Context(), http.MethodDelete, r.url+"/api/delete", strings.NewReader(`{"model":"`+name+`"}`))
		must.NoError(t, err)
		resp, body, err := r.do(q)
		must.NoError(t, err)
		must.Eq(t, 404, resp.StatusCode)
		must.StrContains(t, body, `no model`)
	}
}
