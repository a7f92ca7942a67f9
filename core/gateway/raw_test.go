package gateway

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// rawAsk writes bytes to the gateway and returns the first answer and whether the connection was
// closed after it.
func rawAsk(t *testing.T, addr, request string) (*http.Response, string, bool) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must.NoError(t, err)
	defer c.Close()
	must.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	go func() { _, _ = io.WriteString(c, request) }()
	br := bufio.NewReader(c)
	resp, err := http.ReadResponse(br, nil)
	must.NoError(t, err)
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	_, err = br.ReadByte()
	return resp, string(body), err != nil && !isTimeout(err)
}

func isTimeout(err error) bool {
	ne, ok := errors.AsType[net.Error](err)
	return ok && ne.Timeout()
}

// FAULTS G-11: bodies that are too long, or whose stated length is wrong.
func TestBodyLimits(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.MaxBodyBytes, o.BodyTimeout = 1<<10, 200*time.Millisecond })
	r.serve("w1", func(http.ResponseWriter, *http.Request) { t.Error("the worker was asked") })
	head := "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
	for name, c := range map[string]struct {
		request string
		status  int
	}{
		"stated length":      {head + "Content-Length: 1025\r\n\r\n" + strings.Repeat("a", 1025), 413},
		"stated, never sent": {head + "Content-Length: 99999999999\r\n\r\n", 413},
		"chunked":            {head + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("400\r\n"+strings.Repeat("a", 1024)+"\r\n", 1000), 413},
		"chunked for ever":   {head + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("200\r\n"+strings.Repeat("a", 512)+"\r\n", 3), 413},
		"shorter than said":  {head + "Content-Length: 1000\r\n\r\n{", 408},
		"chunked, stalls":    {head + "Transfer-Encoding: chunked\r\n\r\n5\r\n{\"mod", 408},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			resp, body, closed := rawAsk(t, r.addr, c.request)
			must.Eq(t, c.status, resp.StatusCode)
			errorIn(t, body)
			must.True(t, closed)
		})
	}
}

// countingListener counts the bytes that its connections read.
type countingListener struct {
	net.Listener
	n atomic.Int64
}

func (l *countingListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	return &countingConn{c, &l.n}, err
}

type countingConn struct {
	net.Conn
	n *atomic.Int64
}

func (c *countingConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.n.Add(int64(n))
	return n, err
}

// FAULTS G-11: almost nothing is read beyond the limit.
func TestOversizedBodyRead(t *testing.T) {
	t.Parallel()
	for name, framing := range map[string]string{"stated": "Content-Length: 10000000\r\n\r\n", "chunked": "Transfer-Encoding: chunked\r\n\r\n989680\r\n"} {
		tcp, err := net.Listen("tcp", "127.0.0.1:0")
		must.NoError(t, err)
		l := &countingListener{Listener: tcp}
		srv := New(Options{MaxBodyBytes: 1 << 10}).Server()
		var wg sync.WaitGroup
		wg.Go(func() { _ = srv.Serve(l) })
		resp, _, closed := rawAsk(t, tcp.Addr().String(), "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"+framing+strings.Repeat("a", 200<<10))
		must.Eq(t, 413, resp.StatusCode, must.Sprint(name))
		must.True(t, closed)
		must.Less(t, 65<<10, l.n.Load(), must.Sprint(name))
		must.NoError(t, srv.Close())
		wg.Wait()
	}
}

// A wrong length must not reserve memory for bytes never sent.
func TestUntrustedContentLength(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	c, err := net.Dial("tcp", r.addr)
	must.NoError(t, err)
	_, err = io.WriteString(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 16777216\r\n\r\n{")
	must.NoError(t, err)
	must.NoError(t, c.(*net.TCPConn).CloseWrite())
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	must.NoError(t, err)
	must.Eq(t, 400, resp.StatusCode)
	resp.Body.Close()
	c.Close()
}

// FAULTS G-13: bytes that could be read as two requests are refused, or reach the worker as exactly
// one.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var seen atomic.Int32
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		seen.Add(1)
		for _, h := range []string{"Connection", "Transfer-Encoding", "X-Evil"} {
			if req.Header.Get(h) != "" {
				t.Errorf("the worker saw %s", h)
			}
		}
		body, _ := io.ReadAll(req.Body)
		if string(body) != askTiny || req.ContentLength != int64(len(askTiny)) {
			t.Errorf("the worker saw the body %q", body)
		}
		answerJSON(200, wholeAnswer)(w, req)
	})
	chunk := fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(askTiny), askTiny)
	length := fmt.Sprintf("Content-Length: %d\r\n", len(askTiny))
	smuggled := "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\n\r\n"
	for name, c := range map[string]struct {
		headers, body string
		status        int
		seen          int32
	}{
		"CL and TE":             {length + "Transfer-Encoding: chunked\r\n", chunk, 200, 1}, // the length is dropped, as RFC 9112 requires
		"two lengths":           {length + "Content-Length: 3\r\n", askTiny, 400, 0},
		"length with a plus":    {"Content-Length: +3\r\n", "abc", 400, 0},
		"TE twice":              {"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", chunk, 501, 0},
		"TE unknown":            {"Transfer-Encoding: xchunked\r\n", chunk, 501, 0},
		"folded header":         {length + "X-Evil: a\r\n b\r\n", askTiny, 200, 1},
		"bare CR in a header":   {length + "X-Evil: a\rTransfer-Encoding: chunked\r\n", askTiny, 400, 0},
		"space before a colon":  {length + "X-Evil : a\r\n", askTiny, 400, 0},
		"length as a hop":       {length + "Connection: content-length\r\n", askTiny, 200, 1},
		"second in the body":    {length, askTiny + "GET / HTTP/1.1\r\n", 200, 1},
		"chunk size with a lie": {"Transfer-Encoding: chunked\r\n", "0_3\r\nabc\r\n0\r\n\r\n" + smuggled, 400, 0},
	} {
		t.Run(name, func(t *testing.T) {
			before := seen.Load()
			resp, _, _ := rawAsk(t, r.addr, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"+c.headers+"\r\n"+c.body)
			must.Eq(t, c.status, resp.StatusCode)
			must.Eq(t, c.seen, seen.Load()-before)
		})
	}
	r.jobs.mu.Lock()
	defer r.jobs.mu.Unlock()
	must.SliceEmpty(t, r.jobs.submitted)
}

// DNS rebinding, and writes from foreign pages.
func TestGuard(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.Hosts = []string{"Desk.Lan"} })
	port := r.addr[strings.LastIndex(r.addr, ":"):]
	for _, c := range []struct {
		method, host, headers string
		status                int
	}{
		{"GET", "localhost" + port, "", 200},
		{"GET", "LOCALHOST." + port, "", 200},
		{"GET", "127.0.0.1", "", 200},
		{"GET", "127.9.9.9:1", "", 200},
		{"GET", "[::1]" + port, "", 200},
		{"GET", "[::1]", "", 200},
		{"GET", "desk.lan" + port, "", 200},
		{"GET", "evil.example", "", 403},
		{"GET", "evil.example" + port, "", 403},
		{"GET", "localhost.evil.example", "", 403},
		{"GET", "127.0.0.1.evil.example", "", 403},
		{"GET", "10.0.0.1", "", 403},
		{"GET", "0.0.0.0" + port, "", 200},
		{"GET", "[::]", "", 200},
		{"POST", "0.0.0.0" + port, "Origin: http://evil.example\r\n", 403},
		{"GET", "localhost", "Origin: http://evil.example\r\n", 200}, // the page cannot read the answer: no CORS headers
		{"POST", "localhost" + port, "", 202},
		{"POST", "localhost" + port, "Origin: http://localhost" + port + "\r\n", 202},
		{"POST", "localhost" + port, "Origin: http://localhost" + port + "\r\nSec-Fetch-Site: same-origin\r\n", 202},
		{"POST", "localhost" + port, "Origin: http://evil.example\r\n", 403},
		{"POST", "localhost" + port, "Origin: http://localhost:1\r\n", 403},
		{"POST", "localhost" + port, "Origin: null\r\n", 403},
		{"POST", "localhost" + port, "Origin: http://localhost" + port + "\r\nOrigin: http://evil.example\r\n", 403},
		{"POST", "localhost" + port, "Sec-Fetch-Site: cross-site\r\n", 403},
		{"POST", "evil.example", "", 403},
		{"DELETE", "localhost" + port, "Origin: http://evil.example\r\n", 403},
	} {
		path, body := "/v1/jobs", ""
		if c.method == "POST" {
			body = `{"operation":"model_download"}`
		}
		if c.method == "DELETE" {
			path += "/j1-h1"
		}
		resp, answer, _ := rawAsk(t, r.addr, fmt.Sprintf("%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%sContent-Length: %d\r\n\r\n%s", c.method, path, c.host, c.headers, len(body), body))
		must.Eq(t, c.status, resp.StatusCode, must.Sprintf("%+v", c))
		if c.status == 403 {
			must.Eq(t, "forbidden", code(errorIn(t, answer)))
		}
		for h := range resp.Header {
			must.False(t, strings.HasPrefix(h, "Access-Control"))
		}
	}
	r.jobs.mu.Lock()
	defer r.jobs.mu.Unlock()
	must.Len(t, 3, r.jobs.submitted)
	must.SliceEmpty(t, r.jobs.cancelled)
}

func TestServerLimits(t *testing.T) {
	t.Parallel()
	srv := New(Options{}).Server()
	must.Eq(t, 5*time.Second, srv.ReadHeaderTimeout)
	must.Eq(t, 2*time.Minute, srv.IdleTimeout)
	must.Eq(t, 64<<10, srv.MaxHeaderBytes)
	r := newRig(t, nil)
	resp, _, closed := rawAsk(t, r.addr, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: "+strings.Repeat("a", 80<<10)+"\r\n\r\n")
	must.Eq(t, 431, resp.StatusCode)
	must.True(t, closed)
}

// rawConn is a client connection for raw requests.
type rawConn struct {
	t  *testing.T
	c  net.Conn
	br *bufio.Reader
}

func dialRaw(t *testing.T, addr string) *rawConn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	must.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	must.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	return &rawConn{t, c, bufio.NewReader(c)}
}

// ask sends a request and returns the answer, read to its end.
func (c *rawConn) ask(request string) *http.Response {
	c.t.Helper()
	_, err := io.WriteString(c.c, request)
	must.NoError(c.t, err)
	resp, err := http.ReadResponse(c.br, nil)
	must.NoError(c.t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	must.NoError(c.t, err)
	must.NoError(c.t, resp.Body.Close())
	return resp
}

// isClosed reports whether the server has closed the connection; if not, the server answers once
// more.
func (c *rawConn) isClosed() bool {
	_, _ = io.WriteString(c.c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
	_, err := c.br.ReadByte()
	return err != nil
}
