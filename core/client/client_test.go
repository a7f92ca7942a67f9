package client

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"
	"go.uber.org/goleak"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestAddresses(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"http://127.0.0.1:7833":    "http://127.0.0.1:7833",
		"https://queen:7833/":      "https://queen:7833",
		"queen:7833":               "http://queen:7833",
		"127.0.0.1":                "http://127.0.0.1:7833",
		"[::1]:7833":               "http://[::1]:7833",
		" localhost:1 ":            "http://localhost:1",
		"localhost":                "http://localhost:7833",
		"::1":                      "http://[::1]:7833",
		"[::1]":                    "http://[::1]:7833",
		"[::1]:1":                  "http://[::1]:1",
		"fe80::1%eth0":             "http://[fe80::1%25eth0]:7833",
		":1":                       "http://127.0.0.1:1",
		"1234":                     "http://127.0.0.1:1234",
		"0.0.0.0:7833":             "http://127.0.0.1:7833",
		"0.0.0.0":                  "http://127.0.0.1:7833",
		"[::]:7833":                "http://[::1]:7833",
		"::":                       "http://[::1]:7833",
		"http://0.0.0.0:7833/":     "http://127.0.0.1:7833",
		"http://h:7833/v1":         "http://h:7833",
		"https://h:7833/v1/":       "https://h:7833",
		"h:7833/v1":                "http://h:7833",
		"HTTPS://h":                "https://h",
		"https://llm.example.com":  "https://llm.example.com",
		"https://[2001:db8::1]/v1": "https://[2001:db8::1]",
		"queen.lan":                "http://queen.lan:7833",
		"":                         "",
		"ftp://queen":              "",
		"http://":                  "",
		"http://a/b":               "",
		"http://user:secret@a/":    "",
		"http://a?x=1":             "",
		"http://a b":               "",
		"unix:///run/rbee.sock":    "",
		"http://[::1":              "",
		"http://queen:notaport/":   "",
		"h:7833/v1?key=1":          "",
		"queen:0":                  "",
		"queen:65536":              "",
		"70000":                    "",
		"[queen]:7833":             "",
		"a:b:c":                    "",
		"/v1":                      "",
	} {
		c, err := New(Options{Addresses: []string{in}})
		if want == "" {
			must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(in))
			must.NotEq(t, "", core.HintOf(err))
			must.StrNotContains(t, err.Error(), "secret")
			continue
		}
		must.NoError(t, err, must.Sprint(in))
		must.Eq(t, want, c.Address(), must.Sprint(in))
	}
	c, err := New(Options{})
	must.NoError(t, err)
	must.Eq(t, DefaultAddress, c.Address())
}

// An address without a scheme uses TLS when there is something to protect.
func TestAddressScheme(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		o    Options
		want string
	}{
		{Options{ServerName: "x"}, DefaultSecureAddress},
		{Options{ServerName: "x", Addresses: []string{"localhost"}}, "https://localhost:7833"},
		{Options{Token: "x"}, DefaultAddress},
		{Options{Token: "x", Addresses: []string{"localhost"}}, "http://localhost:7833"},
		{Options{Token: "x", Addresses: []string{"127.0.0.2"}}, "http://127.0.0.2:7833"},
		{Options{Token: "x", Addresses: []string{"h"}}, "https://h:7833"},
		{Options{Token: "x", Addresses: []string{"10.0.0.1:1"}}, "https://10.0.0.1:1"},
		{Options{Token: "x", Addresses: []string{"http://h"}}, "http://h"},
	} {
		c, err := New(tt.o)
		must.NoError(t, err)
		must.Eq(t, tt.want, c.Address())
	}
}

// A token is never sent in clear unless explicitly allowed.
func TestTokenInClear(t *testing.T) {
	t.Parallel()
	var got atomic.Value
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		got.Store(r.Header.Get("Authorization"))
		if r.Header.Get("Authorization") == "" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = io.WriteString(w, `{"data":[]}`)
	}))
	t.Cleanup(srv.Close)
	for _, tt := range []struct {
		address string
		allowed bool
		sent    bool
	}{
		{srv.URL, false, false},
		{strings.TrimPrefix(srv.URL, "http://"), false, false},
		{strings.TrimPrefix(srv.URL, "http://"), true, false}, // without an explicit http://
		{srv.URL, true, true},
	} {
		c, err := New(Options{Addresses: []string{tt.address}, Token: "secret", TokenInClear: tt.allowed})
		must.NoError(t, err)
		t.Cleanup(c.Close)
		_, err = c.Hives(t.Context())
		if tt.sent {
			must.NoError(t, err)
			must.Eq(t, "Bearer secret", got.Load())
			must.Eq(t, []string{srv.URL}, c.InClear())
			continue
		}
		must.Eq(t, "", got.Load())
		must.Eq(t, core.Unauthenticated, core.KindOf(err))
		must.StrContains(t, core.HintOf(err), "https://")
		must.SliceEmpty(t, c.InClear())
	}
}

// Requests to a private address never go through a proxy.
func TestProxyOnlyForInternet(t *testing.T) {
	t.Parallel()
	proxy, err := url.Parse("http://proxy.example:3128")
	must.NoError(t, err)
	names := map[string]string{"llm.example.com": "203.0.113.7", "intern.example.com": "10.1.2.3", "both.example.com": "203.0.113.7 fd00::1"}
	choose := direct(func(*http.Request) (*url.URL, error) { return proxy, nil }, func(_ context.Context, host string) ([]netip.Addr, error) {
		var ips []netip.Addr
		for ip := range strings.FieldsSeq(names[host]) {
			ips = append(ips, netip.MustParseAddr(ip))
		}
		if len(ips) == 0 {
			return nil, errors.New("no such host")
		}
		return ips, nil
	})
	for at, direct := range map[string]bool{
		"http://10.9.0.1:7833": true, "https://192.168.1.1:7833": true, "http://172.16.0.9": true, "http://[fd00::1]:7833": true, "http://[fe80::1]": true,
		"http://100.64.1.1:7833": true, "http://127.0.0.1:7833": true, "http://[::ffff:10.0.0.1]": true, "http://queen:7833": true, "https://queen.lan:7833": true,
		"http://queen.local.": true, "https://intern.example.com": true, "https://both.example.com": true,
		"https://llm.example.com": false, "http://203.0.113.7:7833": false, "https://unknown.example.com": false, "http://[2001:db8::1]": false,
	} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, at, http.NoBody)
		must.NoError(t, err)
		p, err := choose(r)
		must.NoError(t, err)
		must.Eq(t, direct, p == nil, must.Sprint(at))
	}
}

// serve returns a client of a handler.
func serve(t *testing.T, h http.HandlerFunc) *Client {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	c, err := New(Options{Addresses: []string{srv.URL}, Token: "secret", TokenInClear: true, UserAgent: "test"})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestTokenAndUserAgentSent(t *testing.T) {
	t.Parallel()
	got := make(chan http.Header, 1)
	c := serve(t, func(w http.ResponseWriter, r *http.Request) {
		got <- r.Header
		_, _ = io.WriteString(w, `{}`)
	})
	_, err := c.Status(t.Context())
	must.NoError(t, err)
	h := <-got
	must.Eq(t, "Bearer secret", h.Get("Authorization"))
	must.Eq(t, "test", h.Get("User-Agent"))
}

func TestForeignErrors(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		status int
		body   string
		kind   core.Kind
		text   string
	}{
		{404, `{"error":{"message":"gone","type":"x","kind":"not_found","hint":"h"}}`, core.NotFound, "gone"},
		{400, `{"error":{"message":"no","type":"x","code":400}}`, core.Invalid, "no"},
		{401, ``, core.Unauthenticated, "401"},
		{429, `slow down`, core.Overloaded, "slow down"},
		{502, `<html>Bad Gateway</html>`, core.WorkerLost, "502 Bad Gateway with an HTML page"},
		{503, `{"error":{"message":"later","type":"x"}}`, core.Unavailable, "later"},
		{500, `{"error":{"message":"new","type":"x","kind":"kind_of_tomorrow"}}`, "kind_of_tomorrow", "new"},
		{418, `{}`, core.Invalid, "{}"},
	} {
		client := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(c.status)
			_, _ = io.WriteString(w, c.body)
		})
		_, err := client.Status(t.Context())
		must.Eq(t, c.kind, core.KindOf(err))
		must.StrContains(t, err.Error(), c.text)
	}
}

// A stream that ends without [DONE] never counts as a complete answer, even without a gateway to
// report it.
func TestStreamsEndEarly(t *testing.T) {
	t.Parallel()
	const chunk = `data: {"choices":[{"index":0,"delta":{"content":"a"}}]}` + "\n\n"
	for name, s := range map[string]struct {
		body string
		cut  bool
		kind core.Kind
	}{
		"nothing":      {"", false, core.WorkerLost},
		"no [DONE]":    {chunk, false, core.WorkerLost},
		"within":       {chunk + "data: {", false, core.WorkerLost},
		"cut":          {chunk, true, core.WorkerLost},
		"error":        {chunk + `data: {"error":{"message":"m","type":"t","kind":"unavailable"}}` + "\n\ndata: [DONE]\n\n", false, core.Unavailable},
		"foreign":      {chunk + `data: {"error":"m"}` + "\n\n", false, core.Internal},
		"no JSON":      {"data: <html>\n\n", false, core.Internal},
		"line too big": {"data: " + strings.Repeat("a", 2<<20), false, core.Internal},
		"whole":        {chunk + "data: [DONE]\n\n", false, ""},
	} {
		c := serve(t, func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			_, _ = io.WriteString(w, s.body)
			if s.cut {
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		})
		err := c.ChatStream(t.Context(), openai.ChatRequest{Model: "m"}, func(openai.ChatChunk) error { return nil })
		must.Eq(t, s.kind, core.KindOf(err), must.Sprint(name))
	}
	c := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{}`) })
	must.Error(t, c.ChatStream(t.Context(), openai.ChatRequest{Model: "m"}, nil))
}

// A request that may have been carried out is sent again only with the same ID.
func TestSubmitTwiceIsOneJob(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var ids, attempts []string
	handler := func(drop bool) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			var q core.Request
			_ = json.NewDecoder(r.Body).Decode(&q)
			mu.Lock()
			ids, attempts = append(ids, q.RequestID), append(attempts, r.Header.Get(AttemptHeader))
			mu.Unlock()
			if drop {
				panic(http.ErrAbortHandler)
			}
			_, _ = io.WriteString(w, `{"id":"j1"}`)
		}
	}
	one, two := httptest.NewServer(handler(true)), httptest.NewServer(handler(false))
	defer one.Close()
	defer two.Close()
	c, err := New(Options{Addresses: []string{one.URL, two.URL}})
	must.NoError(t, err)
	defer c.Close()
	job, err := c.Submit(t.Context(), core.Request{Operation: core.OpModelDownload})
	must.NoError(t, err)
	must.Eq(t, "j1", job.ID)
	must.Eq(t, 2, len(ids))
	must.NotEq(t, "", ids[0])
	must.Eq(t, ids[0], ids[1])
	must.Eq(t, []string{"1", "2"}, attempts)

	// The caller may have sent its own ID before.
	_, err = c.Submit(t.Context(), core.Request{Operation: core.OpModelDownload, RequestID: "mine"})
	must.NoError(t, err)
	must.Eq(t, "", attempts[len(attempts)-1])
}

// roundTrip is an http.RoundTripper without a network, for tests with fake time.
type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func fakeClient(t *testing.T, f roundTrip) *Client {
	t.Helper()
	c, err := New(Options{HTTPClient: &http.Client{Transport: f}})
	must.NoError(t, err)
	return c
}

func eventStream(body io.Reader) *http.Response {
	return &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(body)}
}

func TestFollowReconnects(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		asked := []string{}
		c := fakeClient(t, func(r *http.Request) (*http.Response, error) {
			n++
			asked = append(asked, r.Header.Get("Last-Event-ID"))
			switch n {
			case 1: // cut within an event
				return eventStream(strings.NewReader("id: 1\nevent: log\ndata: {\"seq\":1,\"kind\":\"log\"}\n\nid: 2\nevent: log\ndata: {\"se")), nil
			case 2:
				return nil, errors.New("connection refused")
			case 3:
				return &http.Response{StatusCode: http.StatusServiceUnavailable, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"error":{"message":"m","type":"t","kind":"unavailable"}}`))}, nil
			case 4: // silent forever
				pr, pw := io.Pipe()
				context.AfterFunc(r.Context(), func() { pw.CloseWithError(r.Context().Err()) })
				return eventStream(pr), nil
			case 5:
				return eventStream(strings.NewReader("event: error\ndata: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"kind\":\"unavailable\"}}\n\n")), nil
			}
			return eventStream(strings.NewReader(": hi\n\ndata: {\"seq\":1,\"kind\":\"log\"}\n\ndata: {\"seq\":2,\"kind\":\"log\"}\n\ndata: {\"seq\":3,\"kind\":\"end\",\"state\":\"succeeded\"}\n\n")), nil
		})
		var seen []int64
		must.NoError(t, c.FollowJob(t.Context(), "j", 0, func(e core.Event) error {
			seen = append(seen, e.Seq)
			return nil
		}))
		must.Eq(t, []int64{1, 2, 3}, seen)
		must.Eq(t, []string{"0", "1", "1", "1", "1", "1"}, asked)
	})
}

func TestFollowGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		c := fakeClient(t, func(*http.Request) (*http.Response, error) { return nil, errors.New("connection refused") })
		err := c.FollowJob(t.Context(), "j", 0, nil)
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.Between(t, followPatience, time.Since(start), followPatience+5*time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		must.Eq(t, core.DeadlineExceeded, core.KindOf(c.FollowJob(ctx, "j", 0, nil)))
	})
}

func TestRun(t *testing.T) {
	t.Parallel()
	for end, want := range map[string]core.Kind{
		`{"id":"j1","state":"succeeded","result":{"pid":7,"worker":{"id":"w1"}}}`:                     "",
		`{"id":"j1","state":"failed","error":{"kind":"too_large","message":"no room","hint":"h"}}`:    core.TooLarge,
		`{"id":"j1","state":"cancelled","error":{"kind":"cancelled","message":"asked to","hint":""}}`: core.Cancelled,
		`{"id":"j1","state":"failed"}`: core.Internal,
	} {
		c := serve(t, func(w http.ResponseWriter, r *http.Request) {
			switch {
			case r.Method == http.MethodPost:
				w.WriteHeader(http.StatusAccepted)
				_, _ = io.WriteString(w, `{"id":"j1","state":"running"}`)
			case strings.HasSuffix(r.URL.Path, "/stream"):
				w.Header().Set("Content-Type", "text/event-stream")
				_, _ = io.WriteString(w, "data: {\"seq\":1,\"kind\":\"end\"}\n\n")
			default:
				_, _ = io.WriteString(w, end)
			}
		})
		job, err := c.Run(t.Context(), core.Request{Operation: core.OpWorkerSpawn}, nil)
		must.Eq(t, want, core.KindOf(err))
		must.Eq(t, "j1", job.ID)
		spawned, err := Result[core.SpawnResult](job)
		if want == "" {
			must.NoError(t, err)
			must.Eq(t, 7, spawned.PID)
			must.Eq(t, "w1", spawned.Worker.ID)
		} else {
			must.Eq(t, core.Invalid, core.KindOf(err))
		}
	}
}

// Another server than rbee is reported as such, whatever it answers, and its page is not shown.
func TestForeignServer(t *testing.T) {
	t.Parallel()
	page := "<!DOCTYPE html><html>" + strings.Repeat("<p>welcome</p>", 5000) + "</html>"
	cases := []struct {
		name, media, body string
		status            int
		kind              core.Kind
		says              string
	}{
		{"page", "text/html; charset=utf-8", page, 200, core.Invalid, "200 OK with an HTML page"},
		{"page not found", "text/html", page, 404, core.Invalid, "404 Not Found with an HTML page"},
		{"page of no type", "", page, 500, core.Internal, "500 Internal Server Error with an HTML page"},
		{"sign in", "text/html", page, 401, core.Unauthenticated, "401 Unauthorized with an HTML page"},
		{"redirect", "", "", 302, core.Invalid, "302 Found"},
		{"text", "text/plain", "404 page\n not found \xff" + strings.Repeat("!", 9000), 404, core.Invalid, "404 Not Found: \"404 page not found !"},
		{"other JSON", "application/json", `{"detail":"Not Found"}`, 404, core.Invalid, "Not Found"},
		{"a proxy alone", "text/html", page, 503, core.Unavailable, "503 Service Unavailable with an HTML page"},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", c.media)
				w.WriteHeader(c.status)
				_, _ = io.WriteString(w, c.body)
			}))
			t.Cleanup(srv.Close)
			q, err := New(Options{Addresses: []string{srv.URL}, HTTPClient: srv.Client()})
			must.NoError(t, err)
			srv.Client().CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
			_, _, chat := q.Chat(t.Context(), openai.ChatRequest{})
			_, models := q.Models(t.Context())
			_, job := q.Submit(t.Context(), core.Request{})
			for name, err := range map[string]error{
				"health": q.Healthy(t.Context()), "models": models, "chat": chat, "job": job,
				"stream":   q.ChatStream(t.Context(), openai.ChatRequest{}, func(openai.ChatChunk) error { return nil }),
				"snapshot": q.SaveSnapshot(t.Context(), io.Discard),
			} {
				must.Error(t, err, must.Sprint(name))
				must.Eq(t, c.kind, core.KindOf(err), must.Sprint(name, err))
				must.StrContains(t, err.Error(), "the server at "+srv.URL+" is not rbee: ")
				must.StrContains(t, err.Error(), c.says)
				must.Less(t, 300, len(err.Error()))
				must.StrNotContains(t, err.Error(), "welcome")
				must.NotEq(t, "", core.HintOf(err))
			}
		})
	}
}

// The same holds for a server that does not speak HTTP, or uses TLS when it should not and vice
// versa.
func TestForeignProtocol(t *testing.T) {
	t.Parallel()
	answering := func(answer string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		must.NoError(t, err)
		done := make(chan struct{})
		go func() {
			defer close(done)
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				if strings.HasPrefix(answer, "SSH") { // the server speaks first
					_, _ = io.WriteString(conn, answer)
					_, _ = conn.Read(make([]byte, 1024))
				} else {
					_, _ = conn.Read(make([]byte, 1024))
					_, _ = io.WriteString(conn, answer)
				}
				conn.Close()
			}
		}()
		t.Cleanup(func() { l.Close(); <-done })
		return l.Addr().String()
	}
	for _, c := range []struct{ name, scheme, answer, says string }{
		{"SSH", "http", "SSH-2.0-OpenSSH_9.6\r\n", "is not rbee: it does not speak HTTP"},
		{"SSH with TLS", "https", "SSH-2.0-OpenSSH_9.6\r\n", "is not rbee: it does not speak TLS"},
		{"alert", "http", "\x15\x03\x03\x00\x02\x02\x16", "takes only TLS"},
		{"plain", "https", "HTTP/1.1 400 Bad Request\r\n\r\n", "has no TLS"},
	} {
		t.Run(c.name, func(t *testing.T) {
			q, err := New(Options{Addresses: []string{c.scheme + "://" + answering(c.answer)}})
			must.NoError(t, err)
			t.Cleanup(q.Close)
			err = q.Healthy(t.Context())
			must.ErrorContains(t, err, c.says)
			must.Eq(t, core.Invalid, core.KindOf(err))
		})
	}
}
