package gateway

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// http2Client returns an HTTP/2 client of a rig's gateway.
func http2Client(t *testing.T, r *rig) (c *http.Client, url string) {
	t.Helper()
	addr, ca, _ := tlsRig(t, r)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	transport := &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS13}}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}, "https://" + addr
}

// An answer may take longer than the body and write timeouts: before its first byte, between two
// bytes, and as a whole.
func TestSlowAnswers(t *testing.T) {
	t.Parallel()
	const limit = 100 * time.Millisecond
	wait := func() { <-time.After(4 * limit) }
	for name, tt := range map[string]struct {
		ask, want string
		answer    http.HandlerFunc
	}{
		"whole": {askTiny, `{"id":"1"}`, func(w http.ResponseWriter, _ *http.Request) {
			wait()
			w.Header().Set("Content-Type", "application/json")
			_, _ = io.WriteString(w, `{"id":"1"}`)
		}},
		"first byte": {streamAsk, tokenEvent(1) + doneEvent, func(w http.ResponseWriter, q *http.Request) {
			wait()
			streamOf(tokenEvent(1), doneEvent)(w, q)
		}},
		"next byte": {streamAsk, tokenEvent(1) + tokenEvent(2) + doneEvent, func(w http.ResponseWriter, q *http.Request) {
			streamOf(tokenEvent(1))(w, q)
			wait()
			streamOf(tokenEvent(2))(w, q)
			wait()
			streamOf(doneEvent)(w, q)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(o *rigOptions) { o.WriteTimeout, o.BodyTimeout = limit, 2*limit })
			r.serve("w1", tt.answer)
			c, url := http2Client(t, r)
			for _, use := range []struct {
				c     *http.Client
				url   string
				major int
			}{{c, url, 2}, {r.client, r.url, 1}, {r.client, r.url, 1}} { // the last two on one connection
				resp, err := use.c.Post(use.url+"/v1/chat/completions", "application/json", strings.NewReader(tt.ask))
				must.NoError(t, err)
				must.Eq(t, use.major, resp.ProtoMajor)
				body, err := io.ReadAll(resp.Body)
				must.NoError(t, err)
				resp.Body.Close()
				must.Eq(t, 200, resp.StatusCode)
				must.Eq(t, tt.want, string(body))
			}
		})
	}
}

// A client that reads nothing of its stream is dropped, even if its connection is healthy.
func TestSlowReaderHTTP2(t *testing.T) {
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
	c, url := http2Client(t, r)
	resp, err := c.Post(url+"/v1/chat/completions", "application/json", strings.NewReader(streamAsk))
	must.NoError(t, err)
	defer resp.Body.Close()
	select {
	case <-gone:
	case <-time.After(20 * time.Second):
		t.Fatal("the worker still writes")
	}
	other, err := c.Get(url + "/healthz")
	must.NoError(t, err)
	other.Body.Close()
	must.Eq(t, 200, other.StatusCode)
}

// A request whose length may have been stated twice is the last one on its connection, RFC 9112
// 6.1.
func TestLengthAndChunksClose(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	r.serve("w1", streamOf(tokenEvent(1), doneEvent))
	resp, _, closed := rawAsk(t, r.addr, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"+
		chunk(streamAsk)+"0\r\n\r\n")
	must.Eq(t, 200, resp.StatusCode)
	must.True(t, closed)
}

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

// padded returns a request body of n bytes.
func padded(n int) string {
	const head, tail = `{"model":"tiny","messages":[{"role":"user","content":"`, `"}]}`
	return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
}

// Bodies have a memory budget: a request that exceeds it is refused with a retry delay, or waits
// briefly.
func TestBodyMemory(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		token  string
		other  string // path of the second request
		wait   time.Duration
		status int // status of the second request
	}{
		"all":        {status: 503},
		"wait":       {wait: time.Minute, status: 200},
		"one token":  {token: "rbee_only-infer_secret", other: "rbee_only-infer_secret", status: 429},
		"two tokens": {token: "rbee_only-infer_secret", other: "rbee_all-but-read_secret", status: 200},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, func(o *rigOptions) {
				o.BodyMemory, o.BodyWait = 100<<10, 20*time.Millisecond
				if tt.wait > 0 {
					o.BodyWait = tt.wait
				}
				if tt.token != "" {
					o.BodyMemory = 200 << 10
					_, o.Auth = guarded(io.Discard)
				}
			})
			begun, finished := make(chan struct{}, 2), make(chan struct{})
			finish := sync.OnceFunc(func() { close(finished) })
			t.Cleanup(finish)
			r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
				_, _ = io.Copy(io.Discard, q.Body)
				begun <- struct{}{}
				<-finished
				w.Header().Set("Content-Type", "application/json")
				_, _ = io.WriteString(w, `{}`)
			})
			ask := func(token string) *http.Response {
				q, err := http.NewRequest(http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(padded(60<<10)))
				must.NoError(t, err)
				if token != "" {
					q.Header.Set("Authorization", "Bearer "+token)
				}
				resp, err := r.client.Do(q)
				must.NoError(t, err)
				t.Cleanup(func() { resp.Body.Close() })
				return resp
			}
			first := make(chan *http.Response, 1)
			go func() { first <- ask(tt.token) }()
			<-begun
			second := make(chan *http.Response, 1)
			go func() { second <- ask(tt.other) }()
			if tt.status == 200 {
				if tt.wait == 0 {
					select { // it does not wait
					case <-begun:
					case resp := <-second:
						t.Fatalf("status %d", resp.StatusCode)
					}
				}
				finish()
			}
			resp := <-second
			must.Eq(t, tt.status, resp.StatusCode)
			if tt.status != 200 {
				var e struct{ Error openai.Error }
				must.NoError(t, json.NewDecoder(resp.Body).Decode(&e))
				must.Eq(t, "overloaded", *e.Error.Code)
				must.Eq(t, "1", resp.Header.Get("Retry-After"))
				finish()
			}
			must.Eq(t, 200, (<-first).StatusCode)
			r.stop() // which waits for the handlers
			must.Eq(t, 0, r.bodies.used)
			must.MapEmpty(t, r.bodies.keys)
		})
	}
}

// A client that states a length and sends nothing holds next to no memory.
func TestSlowSenderMemory(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	c, err := net.Dial("tcp", r.addr)
	must.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16000000\r\n\r\n"+strings.Repeat(" ", 5<<10))
	must.NoError(t, err)
	used := func() int64 {
		r.bodies.mu.Lock()
		defer r.bodies.mu.Unlock()
		return r.bodies.used
	}
	eventually(t, "it holds twice what it sent", func() bool { return used() == 8<<10 })
	must.NoError(t, c.Close())
	eventually(t, "it holds nothing", func() bool { return used() == 0 })
}

// Idle connections make room for new ones; connections with a running request do not.
func TestConnectionLimit(t *testing.T) {
	t.Parallel()
	log := &syncBuffer{}
	r := newRig(t, func(o *rigOptions) {
		o.MaxConns, o.Logger = 8, hclog.New(&hclog.LoggerOptions{Output: log, Level: hclog.Warn})
	})
	finished := make(chan struct{})
	finish := sync.OnceFunc(func() { close(finished) })
	t.Cleanup(finish)
	r.serve("w1", func(w http.ResponseWriter, q *http.Request) {
		streamOf(tokenEvent(1))(w, q)
		<-finished
		streamOf(doneEvent)(w, q)
	})
	begin := func() *bufio.Reader { // returns nil if there is no room
		c, err := net.Dial("tcp", r.addr)
		must.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		must.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
		if _, err = io.WriteString(c, askWith(streamAsk)); err != nil {
			return nil
		}
		br := bufio.NewReader(c)
		line, err := br.ReadString('\n')
		if err != nil {
			return nil
		}
		must.StrContains(t, line, "200")
		return br
	}
	stream := begin()
	must.NotNil(t, stream)
	for range 40 {
		c, err := net.Dial("tcp", r.addr)
		must.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
	}
	resp, _ := r.get("/healthz")
	must.Eq(t, 200, resp.StatusCode)
	must.StrContains(t, log.String(), "too many connections: closed an idle one")
	must.Eq(t, 1, strings.Count(log.String(), "\n"))

	for range 3 { // together with the first, the half that one address may have
		eventually(t, "the server has noted that others are idle", func() bool { return begin() != nil })
	}
	c, err := net.Dial("tcp", r.addr)
	must.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = io.WriteString(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	if err == nil {
		_, err = c.Read(make([]byte, 1))
	}
	must.Error(t, err)
	must.False(t, isTimeout(err))
	finish()
	for line := ""; !strings.Contains(line, "[DONE]"); {
		line, err = stream.ReadString('\n')
		must.NoError(t, err)
	}
	r.client.CloseIdleConnections()
	eventually(t, "there is room again", func() bool {
		resp, err := r.client.Get(r.url + "/healthz")
		if err == nil {
			resp.Body.Close()
		}
		return err == nil
	})
}
