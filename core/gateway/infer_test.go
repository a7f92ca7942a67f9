package gateway

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

const wholeAnswer = `{"id":"c1","object":"chat.completion","choices":[]}`

func answerJSON(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func TestBodyPassThrough(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	type seen struct {
		path, body string
		header     http.Header
	}
	got := make(chan seen, 1)
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		got <- seen{req.URL.Path, string(body), req.Header}
		answerJSON(200, wholeAnswer)(w, req)
	})
	body := "{ \"weird\" : 1e3 ,\n\t\"messages\":[{\"content\":\"h\\u00e9\\ud83d\\ude00 é\"}], \"model\" :\"tiny\", \"Zeta\":null}\n"
	for _, path := range []string{"/v1/chat/completions", "/chat/completions", "/v1/completions", "/completions"} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+path, strings.NewReader(body))
		must.NoError(t, err)
		req.Header.Set("Authorization", "Bearer secret")
		req.Header.Set("Cookie", "a=b")
		req.Header.Set("X-Request-Id", "my-id")
		resp, answer, err := r.do(req)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, wholeAnswer, answer)
		must.Eq(t, "w1", resp.Header.Get("X-Rbee-Worker"))
		must.Eq(t, "test", resp.Header.Get("X-Rbee-Route"))
		must.Eq(t, "my-id", resp.Header.Get("X-Request-Id"))
		s := <-got
		must.Eq(t, "/v1/"+strings.TrimPrefix(strings.TrimPrefix(path, "/v1"), "/"), s.path)
		must.Eq(t, body, s.body)
		must.Eq(t, "my-id", s.header.Get("X-Request-Id"))
		for _, secret := range []string{"Authorization", "Cookie", "X-Idempotency-Key"} {
			must.Eq(t, "", s.header.Get(secret))
		}
	}
	must.Zero(t, r.router.running())
}

func TestRefusedBeforeAnyWorker(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.MaxBodyBytes = 4 << 10 })
	r.serve("w1", func(http.ResponseWriter, *http.Request) { t.Error("the worker was asked") })
	for _, c := range []struct {
		name, path, body string
		status           int
		code, param      string
	}{
		{"no model", "/v1/chat/completions", `{"messages":[]}`, 400, "invalid", "model"},
		{"empty model", "/v1/chat/completions", `{"model":""}`, 400, "invalid", "model"},
		{"unknown model", "/v1/chat/completions", `{"model":"tiney"}`, 404, "model_not_found", "model"},
		{"unknown model in a stream", "/v1/chat/completions", `{"model":"tiney","stream":true}`, 404, "model_not_found", "model"},
		{"too long", "/v1/chat/completions", `{"model":"tiny","x":"` + strings.Repeat("a", 4<<10) + `"}`, 413, "request_too_large", ""},
		{"empty", "/v1/chat/completions", ``, 400, "invalid", ""},
		{"array", "/v1/completions", `[]`, 400, "invalid", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			resp, body, err := r.post(c.path, c.body)
			must.NoError(t, err)
			must.Eq(t, c.status, resp.StatusCode, must.Sprint(body))
			e := errorIn(t, body)
			must.Eq(t, c.code, code(e))
			if c.param != "" {
				must.NotNil(t, e.Param)
				must.Eq(t, c.param, *e.Param)
			}
			if c.status == 404 || c.param == "model" || c.status == 501 {
				must.NotEq(t, "", e.Hint)
			}
			must.NotEq(t, "", resp.Header.Get("X-Request-Id"))
		})
	}
}

// FAULTS G-17: a worker that reports itself busy is alive. It is not avoided for that.
func TestNextWorkerBeforeFirstByte(t *testing.T) {
	t.Parallel()
	for _, stream := range []bool{false, true} {
		ask, want := askTiny, wholeAnswer
		good := answerJSON(200, wholeAnswer)
		if stream {
			ask, want = streamAsk, roleEvent+tokenEvent(1)+doneEvent
			good = streamOf(roleEvent, tokenEvent(1), doneEvent)
		}
		for name, bad := range map[string]func(r *rig){
			"502":      func(r *rig) { r.serve("bad", answerJSON(502, `{"error":{"message":"x","type":"y"}}`)) },
			"429 busy": func(r *rig) { r.serve("bad", answerJSON(429, `{"error":{"message":"slow down","type":"y"}}`)) },
			"503 busy": func(r *rig) { r.serve("bad", answerJSON(503, `{"error":{"message":"Loading model","type":"y"}}`)) },
			"504":      func(r *rig) { r.serve("bad", answerJSON(504, ``)) },
			"no socket": func(r *rig) {
				r.add(core.Worker{ID: "bad", Model: "tiny"}, "")
			},
			"nobody listens":        func(r *rig) { r.listen("bad").Close() },
			"closed without answer": func(r *rig) { r.raw("bad", func(net.Conn) {}) },
			"cut in the answer": func(r *rig) {
				r.raw("bad", func(c net.Conn) {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"id\":")
				})
			},
			"cut without a length": func(r *rig) {
				r.raw("bad", func(c net.Conn) {
					_, _ = io.WriteString(c, "HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{\"id\":")
				})
			},
			"stream headers, then gone": func(r *rig) {
				r.raw("bad", func(c net.Conn) {
					_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ndat\r\n")
				})
			},
			"stream headers, empty": func(r *rig) { r.serve("bad", streamOf()) },
		} {
			t.Run(fmt.Sprintf("%s stream=%v", name, stream), func(t *testing.T) {
				t.Parallel()
				r := newRig(t, nil)
				bad(r)
				r.serve("good", good)
				resp, body, err := r.post("/v1/chat/completions", ask)
				must.NoError(t, err)
				must.Eq(t, 200, resp.StatusCode)
				must.Eq(t, want, body)
				must.Eq(t, "good", resp.Header.Get("X-Rbee-Worker"))
				must.Eq(t, "test; attempt 2", resp.Header.Get("X-Rbee-Route"))
				if strings.HasSuffix(name, "busy") {
					must.SliceEmpty(t, r.router.failures())
					must.Eq(t, time.Second, r.router.busy["bad"])
					return
				}
				must.Eq(t, []string{"bad"}, r.router.failures())
			})
		}
	}
}

func TestNoCandidateLeft(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		bad    func(r *rig)
		status int
		code   string
	}{
		{"cannot be reached", func(r *rig) { r.listen("w1").Close() }, 503, "unavailable"},
		{"says 503", func(r *rig) { r.serve("w1", answerJSON(503, ``)) }, 503, "unavailable"},
		{"dies with the request", func(r *rig) { r.raw("w1", func(net.Conn) {}) }, 502, "worker_lost"},
		{"dies in the answer", func(r *rig) {
			r.raw("w1", func(c net.Conn) {
				_, _ = io.WriteString(c, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{\"id\"\r\n")
			})
		}, 502, "worker_lost"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			c.bad(r)
			resp, body, err := r.post("/v1/chat/completions", askTiny)
			must.NoError(t, err)
			must.Eq(t, c.status, resp.StatusCode)
			e := errorIn(t, body)
			must.Eq(t, c.code, code(e))
			must.Eq(t, c.code, e.Kind)
			must.NotEq(t, "", e.Hint)
			must.Eq(t, "1", resp.Header.Get("Retry-After"))
			if c.name == "says 503" {
				must.SliceEmpty(t, r.router.failures())
				return
			}
			must.Eq(t, []string{"w1"}, r.router.failures())
		})
	}
}

// FAULTS G-04: a client's mistake does not count against a worker.
func TestWorkerRefusals(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var asked atomic.Int32
	for _, id := range []string{"w1", "w2"} {
		r.serve(id, func(w http.ResponseWriter, req *http.Request) {
			asked.Add(1)
			body, _ := io.ReadAll(req.Body)
			switch {
			case bytes.Contains(body, []byte("plain")):
				http.Error(w, "no", http.StatusBadRequest)
			case bytes.Contains(body, []byte("busy")):
				w.Header().Set("Retry-After", "7")
				answerJSON(429, `{"error":{"message":"busy","type":"rate_limit_error","param":null,"code":null}}`)(w, req)
			default:
				answerJSON(400, `{"error":{"code":400,"message":"bad grammar","type":"invalid_request_error"}}`)(w, req)
			}
		})
	}
	for range 200 {
		resp, body, err := r.post("/v1/chat/completions", askTiny)
		must.NoError(t, err)
		must.Eq(t, 400, resp.StatusCode)
		must.Eq(t, `{"error":{"code":400,"message":"bad grammar","type":"invalid_request_error"}}`, body)
	}
	must.Eq(t, 200, asked.Load())
	must.SliceEmpty(t, r.router.failures())

	resp, body, err := r.post("/v1/chat/completions", `{"model":"tiny","x":"busy"}`)
	must.NoError(t, err)
	must.Eq(t, 429, resp.StatusCode)
	must.Eq(t, "7", resp.Header.Get("Retry-After"))
	must.Eq(t, "busy", errorIn(t, body).Message)

	resp, body, err = r.post("/v1/chat/completions", `{"model":"tiny","stream":true,"x":"plain"}`)
	must.NoError(t, err)
	must.Eq(t, 400, resp.StatusCode)
	errorIn(t, body)
	must.SliceEmpty(t, r.router.failures())
}

// The keep-alive trap: a worker that closes connections after an answer without announcing it.
func TestStaleConnectionRetry(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	var requests atomic.Int32
	r.raw("w1", func(c net.Conn) {
		requests.Add(1)
		_, _ = fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(wholeAnswer), wholeAnswer)
		// A second request on the connection is read and then dropped unanswered: the worst moment
		// to close it.
		_ = readRequest(c)
	})
	for range 50 {
		resp, _, err := r.post("/v1/chat/completions", askTiny)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
	}
	must.Eq(t, 50, requests.Load())
	must.SliceEmpty(t, r.router.failures())
}

// FAULTS G-05, in short: the worker learns within 100 ms that the client has disconnected.
func TestDisconnectCancelsWorker(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		ask   string
		first string // what the worker sends before it waits
	}{
		"prompt processing": {streamAsk, ""},
		"decoding":          {streamAsk, roleEvent + tokenEvent(1)},
		"not streamed":      {askTiny, ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := newRig(t, nil)
			working, gone := make(chan struct{}), make(chan time.Time, 1)
			r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
				_, _ = io.Copy(io.Discard, req.Body)
				if c.first != "" {
					streamOf(c.first)(w, req)
				}
				close(working)
				<-req.Context().Done()
				gone <- time.Now()
			})
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(c.ask))
			must.NoError(t, err)
			ended := make(chan error, 1)
			go func() {
				resp, err := r.client.Do(req)
				if err == nil {
					_, err = io.Copy(io.Discard, resp.Body)
					resp.Body.Close()
				}
				ended <- err
			}()
			<-working
			left := time.Now()
			cancel()
			must.ErrorIs(t, <-ended, context.Canceled)
			select {
			case at := <-gone:
				must.Less(t, 3*time.Second, at.Sub(left))
			case <-time.After(5 * time.Second):
				t.Fatal("the worker was never told")
			}
			eventually(t, "nothing runs", func() bool { return r.router.running() == 0 })
			must.SliceEmpty(t, r.router.failures())
		})
	}
}

// FAULTS G-05 d: a client that only closes its sending half counts as disconnected.
func TestHalfCloseCancelsWorker(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil)
	working, gone := make(chan struct{}), make(chan struct{})
	r.serve("w1", func(w http.ResponseWriter, req *http.Request) {
		_, _ = io.Copy(io.Discard, req.Body)
		close(working)
		<-req.Context().Done()
		close(gone)
	})
	c, err := net.Dial("tcp", r.addr)
	must.NoError(t, err)
	defer c.Close()
	_, err = fmt.Fprintf(c, "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s", len(streamAsk), streamAsk)
	must.NoError(t, err)
	<-working
	must.NoError(t, c.(*net.TCPConn).CloseWrite())
	select {
	case <-gone:
	case <-time.After(5 * time.Second):
		t.Fatal("the worker was never told")
	}
}

// FAULTS G-05 a: while a worker is starting.
func TestDisconnectEndsWait(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(o *rigOptions) { o.inf.ProgressAfter, o.inf.ProgressInterval = time.Millisecond, time.Millisecond })
	waiting, gone := make(chan struct{}), make(chan struct{})
	r.router.wait = func(ctx context.Context, _ func(core.Progress)) error {
		close(waiting)
		<-ctx.Done()
		close(gone)
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(streamAsk))
	must.NoError(t, err)
	resp, err := r.client.Do(req)
	must.NoError(t, err)
	defer resp.Body.Close()
	<-waiting
	cancel()
	<-gone
}

func TestWaitForWorkerStart(t *testing.T) {
	t.Parallel()
	fast := func(o *rigOptions) { o.inf.ProgressAfter, o.inf.ProgressInterval = time.Millisecond, time.Millisecond }
	// slow returns control once the client has seen a comment.
	slow := func(r *rig, then error) (seen chan struct{}) {
		seen = make(chan struct{})
		r.router.wait = func(ctx context.Context, progress func(core.Progress)) error {
			progress(core.Progress{Phase: "load\nmodel", Done: 1, Total: 4})
			select {
			case <-seen:
			case <-ctx.Done():
				return ctx.Err()
			}
			return then
		}
		return seen
	}
	ask := func(t *testing.T, r *rig, seen chan struct{}) (*http.Response, string, error) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+"/v1/chat/completions", strings.NewReader(streamAsk))
		must.NoError(t, err)
		resp, err := r.client.Do(req)
		must.NoError(t, err)
		defer resp.Body.Close()
		first := make([]byte, 10)
		_, err = io.ReadFull(resp.Body, first)
		must.NoError(t, err)
		close(seen)
		rest, err := io.ReadAll(resp.Body)
		return resp, string(first) + string(rest), err
	}

	t.Run("then it answers", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, fast)
		r.serve("w1", streamOf(roleEvent, tokenEvent(1), doneEvent))
		seen := slow(r, nil)
		resp, body, err := ask(t, r, seen)
		must.NoError(t, err)
		must.Eq(t, 200, resp.StatusCode)
		must.Eq(t, "text/event-stream", resp.Header.Get("Content-Type"))
		must.StrContains(t, body, ": rbee: load model 25%\n")
		must.True(t, strings.HasSuffix(body, "%\n"+roleEvent+tokenEvent(1)+doneEvent))
	})
	t.Run("then it fails", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, fast)
		seen := slow(r, core.Errorf(core.TooLarge, "does not fit").Hint("Buy memory."))
		_, body, err := ask(t, r, seen)
		must.ErrorIs(t, err, io.ErrUnexpectedEOF)
		e := lastError(t, body)
		must.Eq(t, "too_large", code(e))
		must.Eq(t, "Buy memory.", e.Hint)
	})
	t.Run("then the worker refuses", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, fast)
		r.serve("w1", answerJSON(400, `{"error":{"message":"bad grammar","type":"invalid_request_error"}}`))
		seen := slow(r, nil)
		_, body, err := ask(t, r, seen)
		must.ErrorIs(t, err, io.ErrUnexpectedEOF)
		e := lastError(t, body)
		must.Eq(t, "bad grammar", e.Message)
		must.Eq(t, "invalid", e.Kind)
	})
	t.Run("then the first dies and the second answers", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, fast)
		r.raw("w1", func(net.Conn) {})
		r.serve("w2", streamOf(tokenEvent(1), doneEvent))
		seen := slow(r, nil)
		_, body, err := ask(t, r, seen)
		must.NoError(t, err)
		must.True(t, strings.HasSuffix(body, "%\n"+tokenEvent(1)+doneEvent))
	})
	t.Run("too long for a stream", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, func(o *rigOptions) { fast(o); o.inf.StartTimeout = 50 * time.Millisecond })
		slow(r, nil)
		_, body, err := r.post("/v1/chat/completions", streamAsk)
		must.ErrorIs(t, err, io.ErrUnexpectedEOF)
		must.Eq(t, "deadline_exceeded", code(lastError(t, body)))
	})
	t.Run("too long", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, func(o *rigOptions) { o.inf.StartTimeout = 20 * time.Millisecond })
		slow(r, nil)
		resp, body, err := r.post("/v1/chat/completions", askTiny)
		must.NoError(t, err)
		must.Eq(t, 504, resp.StatusCode)
		must.NotEq(t, "", resp.Header.Get("Retry-After"))
		must.Eq(t, "deadline_exceeded", code(errorIn(t, body)))
	})
	t.Run("a quick failure keeps its status", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, nil)
		r.router.wait = func(context.Context, func(core.Progress)) error {
			return core.Errorf(core.Unavailable, "no hive has room")
		}
		resp, body, err := r.post("/v1/chat/completions", streamAsk)
		must.NoError(t, err)
		must.Eq(t, 503, resp.StatusCode)
		must.Eq(t, "unavailable", code(errorIn(t, body)))
	})
}

func TestEveryKindHasAStatus(t *testing.T) {
	t.Parallel()
	want := map[core.Kind]int{
		core.Internal: 500, core.Invalid: 400, core.NotFound: 404, core.Conflict: 409, core.InUse: 409, core.Unavailable: 503, core.Overloaded: 429,
		core.TooLarge: 507, core.Integrity: 500, core.Unsupported: 501, core.Unauthenticated: 401, core.Forbidden: 403, core.Cancelled: 499,
		core.DeadlineExceeded: 504, core.WorkerLost: 502,
	}
	must.MapLen(t, len(want), answers)
	for kind, status := range want {
		e, a := envelope(core.Errorf(kind, "x").Hint("do y"))
		must.Eq(t, status, a.status)
		must.Eq(t, string(kind), e.Kind)
		must.Eq(t, "do y", e.Hint)
		must.NotEq(t, "", e.Type)
	}
	_, a := envelope(errors.New("unclassified"))
	must.Eq(t, 500, a.status)
}
