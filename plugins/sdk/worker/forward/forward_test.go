package forward_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker/forward"
)

func target(t testing.TB, base string) forward.Target {
	t.Helper()
	u, err := url.Parse(base)
	must.NoError(t, err)
	return forward.Target{URL: u}
}

// front serves a Forwarder to the test's clients.
func front(t testing.TB, o forward.Options) *httptest.Server {
	t.Helper()
	f := forward.New(o)
	t.Cleanup(f.Close)
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	return s
}

// behind serves h as the server behind a Forwarder.
func behind(t testing.TB, h http.HandlerFunc, change func(*forward.Options)) *httptest.Server {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	o := forward.Options{Targets: []forward.Target{target(t, s.URL)}}
	if change != nil {
		change(&o)
	}
	return front(t, o)
}

func post(t testing.TB, s *httptest.Server, path, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+path, strings.NewReader(body))
	must.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer the-clients")
	req.Header.Set("Cookie", "secret=1")
	resp, err := s.Client().Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	must.NoError(t, err)
	return resp, string(got)
}

func TestForwardRequest(t *testing.T) {
	t.Parallel()
	type seen struct {
		path, body string
		header     http.Header
	}
	got := make(chan seen, 1)
	h := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- seen{r.URL.RequestURI(), string(body), r.Header}
		fmt.Fprint(w, "{}")
	}
	for name, tc := range map[string]struct{ model, body, want string }{
		"as it is":         {"", "{\"model\" : \"a\",\n \"x\":1e400}", "{\"model\" : \"a\",\n \"x\":1e400}"},
		"model replaced":   {`there"`, "{ \"model\" : \"a\",\n \"x\":1e400}", "{ \"model\" : \"there\\\"\",\n \"x\":1e400}"},
		"not in an object": {"there", `{"tools":[{"model":"a"}],"model":null}`, `{"tools":[{"model":"a"}],"model":"there"}`},
		"twice":            {"there", `{"model":"a","model":"b"}`, `{"model":"there","model":"there"}`},
		"no model":         {"there", `{"x":"model"}`, `{"x":"model"}`},
		"no object":        {"there", `["model","a"]`, `["model","a"]`},
		"cut":              {"there", `{"model":"a","x":`, `{"model":"a","x":`},
	} {
		t.Run(name, func(t *testing.T) {
			s := behind(t, h, func(o *forward.Options) { o.Model, o.Targets[0].Key = tc.model, "ours" })
			resp, _ := post(t, s, "/v1/chat/completions?a=b", tc.body)
			must.Eq(t, http.StatusOK, resp.StatusCode)
			r := <-got
			must.Eq(t, "/v1/chat/completions?a=b", r.path)
			must.Eq(t, tc.want, r.body)
			must.Eq(t, "Bearer ours", r.header.Get("Authorization"))
			must.Eq(t, "", r.header.Get("Cookie"))
		})
	}
}

// A body with a one-megabyte image part arrives unchanged.
func TestForwardLargeBody(t *testing.T) {
	t.Parallel()
	body := `{"model":"m","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:image/png;base64,` + strings.Repeat("QUJD", 1<<18) + `"}}]}]}`
	s := behind(t, func(w http.ResponseWriter, r *http.Request) {
		// Read it all first: an HTTP/1.1 server closes the body once the response begins.
		all, _ := io.ReadAll(r.Body)
		_, _ = w.Write(all)
	}, nil)
	_, got := post(t, s, "/v1/chat/completions", body)
	must.True(t, got == body)
}

func TestForwardErrors(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		status        int
		kind, body    string
		want          int
		message, code string
	}{
		"llama-server":    {400, "application/json", `{"error":{"code":400,"message":"too long","type":"exceed_context_size_error","n_ctx":512}}`, 400, "too long", "400"},
		"OpenAI":          {404, "application/json", `{"error":{"message":"no model","type":"invalid_request_error","param":"model","code":"model_not_found"}}`, 404, "no model", "model_not_found"},
		"Ollama's text":   {404, "application/json", `{"error":"model 'x' not found"}`, 404, "model 'x' not found", ""},
		"a bare object":   {400, "application/json", `{"object":"error","message":"bad","type":"BadRequestError","param":null,"code":400}`, 400, "bad", ""},
		"FastAPI's list":  {422, "application/json", `{"detail":[{"loc":["body","messages",0],"msg":"Field required","type":"missing"}]}`, 400, "messages: Field required", ""},
		"FastAPI's text":  {404, "application/json", `{"detail":"Not Found"}`, 404, "Not Found", ""},
		"plain text":      {404, "text/plain", "404 page not found\n", 404, "404 page not found", ""},
		"a page":          {502, "text/html", "<html><h1>nginx at 10.0.0.1</h1>", 502, "the server answered 502 Bad Gateway without a message", ""},
		"nothing":         {500, "", "", 500, "the server answered 500 Internal Server Error without a message", ""},
		"wrong method":    {405, "application/json", `{"detail":"Method Not Allowed"}`, 404, "Method Not Allowed", ""},
		"the wrong key":   {401, "application/json", `{"error":{"message":"Invalid API key sk-123"}}`, 502, "the server behind this worker refuses the worker's key", "server_refuses"},
		"a redirect":      {302, "text/html", "", 502, "the server answered 302 Found without a message", ""},
		"200 that is not": {200, "application/json", ` { "error": {"message":"it broke"}}`, 502, "it broke", ""},
		"a secret path":   {500, "application/json", `{"error":{"message":"cannot open /srv/models/x.gguf"}}`, 500, "cannot open my-model", ""},
		"loading":         {503, "application/json", `{"error":{"message":"Loading model","type":"unavailable_error","code":503}}`, 503, "Loading model", "503"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := behind(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", tc.kind)
				w.Header().Set("Location", "http://elsewhere.example/")
				w.WriteHeader(tc.status)
				fmt.Fprint(w, tc.body)
			}, func(o *forward.Options) { o.Hide = map[string]string{"/srv/models/x.gguf": "my-model"} })
			resp, body := post(t, s, "/v1/chat/completions", "{}")
			must.Eq(t, tc.want, resp.StatusCode)
			must.Eq(t, "", resp.Header.Get("Location"))
			var envelope struct{ Error openai.Error }
			must.NoError(t, json.Unmarshal([]byte(body), &envelope), must.Sprint(body))
			must.Eq(t, tc.message, envelope.Error.Message)
			must.NotEq(t, "", envelope.Error.Type)
			code := ""
			if envelope.Error.Code != nil {
				code = *envelope.Error.Code
			}
			must.Eq(t, tc.code, code)
			if tc.want == http.StatusServiceUnavailable {
				must.Eq(t, "1", resp.Header.Get("Retry-After"))
			}
		})
	}
}

// Every event, including comments, is passed on as it arrives, and late headers are waited for.
func TestForwardStream(t *testing.T) {
	t.Parallel()
	next := make(chan string)
	s := behind(t, func(w http.ResponseWriter, _ *http.Request) {
		for text := range next {
			w.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
			fmt.Fprint(w, text)
			w.(http.Flusher).Flush()
		}
	}, nil)
	end := sync.OnceFunc(func() { close(next) })
	t.Cleanup(end) // so that a failing test does not hang on its server
	answered := make(chan *http.Response)
	go func() {
		resp, err := s.Client().Post(s.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{}`))
		must.NoError(t, err)
		answered <- resp
	}()
	pieces := []string{": waking up\n\n", "data: {\"a\":1}\n\n", "data: {\"b\":\"é", "\"}\n\ndata: [DONE]\n\n"}
	next <- pieces[0]
	resp := <-answered
	defer resp.Body.Close()
	must.Eq(t, "no", resp.Header.Get("X-Accel-Buffering"))
	in := bufio.NewReader(resp.Body)
	for i, p := range pieces {
		if i > 0 {
			next <- p
		}
		got := make([]byte, len(p))
		_, err := io.ReadFull(in, got)
		must.NoError(t, err)
		must.Eq(t, p, string(got))
	}
	end()
	rest, err := io.ReadAll(in)
	must.NoError(t, err)
	must.Eq(t, "", string(rest))
}

// raw starts a server that writes bytes on each connection and closes it.
func raw(t testing.TB, answer func(net.Conn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
					answer(c)
				}
			})
		}
	})
	return "http://" + l.Addr().String()
}

func TestForwardCutAnswer(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		bytes  string
		status int // 0: the answer is cut
	}{
		"no byte":          {"", 502},
		"no HTTP":          {"SSH-2.0-OpenSSH\r\n", 502},
		"endless header":   {"HTTP/1.1 200 OK\r\nA: " + strings.Repeat("x", 1<<20), 502},
		"half a stream":    {"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n5\r\ndata:\r\n", 0},
		"half a body":      {"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", 0},
		"wrong chunk size": {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\nzz\r\n", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := front(t, forward.Options{Targets: []forward.Target{target(t, raw(t, func(c net.Conn) { _, _ = io.WriteString(c, tc.bytes) }))}})
			resp, err := s.Client().Post(s.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{}`))
			if tc.status == 0 && err != nil {
				return // cut before its first byte was sent
			}
			must.NoError(t, err)
			defer resp.Body.Close()
			_, err = io.ReadAll(resp.Body)
			if tc.status == 0 {
				must.Error(t, err)
				return
			}
			must.NoError(t, err)
			must.Eq(t, tc.status, resp.StatusCode)
		})
	}
}

// A server may close its connection after a stream although it promised to keep it open: the next
// request must not be sent on the closing connection.
func TestForwardClosesAfterStream(t *testing.T) {
	t.Parallel()
	const answer = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nKeep-Alive: timeout=5, max=100\r\nTransfer-Encoding: chunked\r\n\r\n" +
		"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
	s := front(t, forward.Options{Targets: []forward.Target{target(t, raw(t, func(c net.Conn) { _, _ = io.WriteString(c, answer) }))}})
	for range 50 {
		resp, body := post(t, s, "/v1/chat/completions", "{}")
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, "data: [DONE]\n\n", body)
	}
}

func TestForwardCancel(t *testing.T) {
	t.Parallel()
	for name, stream := range map[string]bool{"before headers": false, "in a stream": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			begun, ended := make(chan struct{}), make(chan struct{})
			s := behind(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body)
				if stream {
					w.Header().Set("Content-Type", "text/event-stream")
					fmt.Fprint(w, ": x\n\n")
					w.(http.Flusher).Flush()
				}
				close(begun)
				<-r.Context().Done()
				close(ended)
			}, nil)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			go func() {
				<-begun
				cancel()
			}()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/v1/chat/completions", strings.NewReader(`{}`))
			must.NoError(t, err)
			if resp, err := s.Client().Do(req); err == nil {
				_, err = io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				must.Error(t, err)
			}
			select {
			case <-ended:
			case <-time.After(20 * time.Second):
				t.Fatal("the server was not told")
			}
		})
	}
}

func TestForwardReplicas(t *testing.T) {
	t.Parallel()
	var counts [2]atomic.Int64
	hold, waiting := make(chan struct{}), make(chan struct{}, 2)
	var targets []forward.Target
	for i := range counts {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			counts[i].Add(1)
			if r.URL.Path == "/v1/hold" {
				waiting <- struct{}{}
				<-hold
			}
			fmt.Fprint(w, "{}")
		}))
		t.Cleanup(s.Close)
		targets = append(targets, target(t, s.URL))
	}
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	_ = dead.Close()
	s := front(t, forward.Options{Targets: append([]forward.Target{target(t, "http://"+dead.Addr().String())}, targets...)})
	var wg sync.WaitGroup
	for range 2 {
		wg.Go(func() { post(t, s, "/v1/hold", "{}") })
	}
	<-waiting
	<-waiting
	must.Eq(t, 1, counts[0].Load()) // one request each
	must.Eq(t, 1, counts[1].Load())
	close(hold)
	wg.Wait()

	alone := front(t, forward.Options{Targets: []forward.Target{target(t, "http://"+dead.Addr().String())}})
	resp, body := post(t, alone, "/v1/chat/completions", "{}")
	must.Eq(t, http.StatusServiceUnavailable, resp.StatusCode)
	must.Eq(t, "2", resp.Header.Get("Retry-After"))
	must.StrNotContains(t, body, dead.Addr().String())
}

func TestForwardSocket(t *testing.T) {
	t.Parallel()
	dir, err := os.MkdirTemp("", "fwd") //nolint:usetesting // t.TempDir is too long for a socket
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	must.NoError(t, err)
	s := &httptest.Server{Listener: l, Config: &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "here") })}}
	s.Start()
	t.Cleanup(s.Close)
	tg := target(t, "http://server")
	tg.Socket = filepath.Join(dir, "s")
	_, body := post(t, front(t, forward.Options{Targets: []forward.Target{tg}}), "/v1/x", "{}")
	must.Eq(t, "here", body)
}

func TestForwardCounts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		kind string
		body []string
		want forward.Usage
	}{
		"stream":            {"text/event-stream", []string{"data: {}\n\nda", "ta: {}\n\n", ": ping\n\n", "data: {}\n\n"}, forward.Usage{Generated: 2}},
		"stream with usage": {"text/event-stream", []string{"data: {}\n\n", `data: {"usage":{"completion_tokens": 9,"prompt_tokens":7,"prompt_tokens_details":{"cached_tokens":3}}}` + "\n\n"}, forward.Usage{Prompt: 7, Cached: 3, Generated: 9}},
		"whole":             {"application/json", []string{`{"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":4}}`}, forward.Usage{Prompt: 5, Generated: 4}},
		"at the beginning":  {"application/json", []string{`{"usage":{"prompt_tokens":5,"completion_tokens":4},"x":"`, strings.Repeat("y", 10000), `"}`}, forward.Usage{Prompt: 5, Generated: 4}},
		"lies":              {"application/json", []string{`{"usage":{"prompt_tokens":99999999999999999999,"completion_tokens":-4,"cached_tokens":7}}`}, forward.Usage{}},
		"in the text":       {"application/json", []string{`{"x":"\"prompt_tokens\":5"}`}, forward.Usage{}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var got forward.Usage
			s := behind(t, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", tc.kind)
				for _, b := range tc.body {
					fmt.Fprint(w, b)
					w.(http.Flusher).Flush()
				}
			}, func(o *forward.Options) {
				o.Count = func(u forward.Usage) {
					mu.Lock()
					defer mu.Unlock()
					got = forward.Usage{Prompt: got.Prompt + u.Prompt, Cached: got.Cached + u.Cached, Generated: got.Generated + u.Generated}
				}
			})
			post(t, s, "/v1/chat/completions", "{}")
			coretest.Eventually(t, 10*time.Second, func() error {
				mu.Lock()
				defer mu.Unlock()
				if name == "stream" && got.Generated == 3 { // several events may arrive in one read
					return nil
				}
				if got != tc.want {
					return fmt.Errorf("%+v, want %+v", got, tc.want)
				}
				return nil
			})
		})
	}
}

// An answer of any length passes through the request's single buffer.
func TestForwardLargeAnswer(t *testing.T) {
	t.Parallel()
	const size = int64(1 << 26)
	zeros := make([]byte, 1<<20)
	s := behind(t, func(w http.ResponseWriter, _ *http.Request) {
		for range size >> 20 {
			if _, err := w.Write(zeros); err != nil {
				return
			}
		}
	}, nil)
	resp, err := s.Client().Post(s.URL+"/v1/chat/completions", "application/json", strings.NewReader(`{}`))
	must.NoError(t, err)
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	must.NoError(t, err)
	must.Eq(t, size, n)
}

func TestForwardAsk(t *testing.T) {
	t.Parallel()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		w.WriteHeader(http.StatusTeapot)
		fmt.Fprintf(w, "%s %s %s %s", r.Method, r.URL.Path, r.Header.Get("Authorization"), body)
	}))
	t.Cleanup(s.Close)
	tg := target(t, s.URL+"/base/")
	tg.Key = "k"
	f := forward.New(forward.Options{Targets: []forward.Target{tg}})
	t.Cleanup(f.Close)
	must.True(t, f.Spoke().IsZero())
	status, body, err := f.Ask(t.Context(), 0, http.MethodPost, "/v1/models", "body", 32)
	must.NoError(t, err)
	must.Eq(t, http.StatusTeapot, status)
	must.Eq(t, "POST /base/v1/models Bearer k bo", string(body))
	must.False(t, f.Spoke().IsZero())
	s.Close()
	_, _, err = f.Ask(t.Context(), 0, http.MethodGet, "/v1/models", "", 32)
	must.True(t, err != nil && !errors.Is(err, context.Canceled))
}

func FuzzReplaceModel(f *testing.F) {
	for _, s := range []string{`{"model":"a"}`, `{"a":{"model":1},"model":[1,2]}`, `{`, `[]`, `{"model":"\u0000"} x`, "\xff"} {
		f.Add([]byte(s), "there")
	}
	f.Fuzz(func(t *testing.T, body []byte, model string) {
		out := forward.ReplaceModel(body, model)
		if json.Valid(body) && !json.Valid(out) {
			t.Fatalf("%q becomes %q", body, out)
		}
	})
}
