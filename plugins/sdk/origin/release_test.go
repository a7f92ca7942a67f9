package origin_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
	"github.com/rbee-project/rbee/plugins/sdk/origin/origintest"
)

// A body that is never closed leaks its connection.
func TestBodiesAreClosed(t *testing.T) {
	t.Parallel()
	var asked atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/loop":
			http.Redirect(w, r, "/loop", http.StatusFound)
		case "/busy":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/large":
			w.Header().Set("Content-Length", "999999999")
			_, _ = io.WriteString(w, "x")
		case "/odd":
			w.Header().Set("Content-Encoding", "br")
			_, _ = io.WriteString(w, "x")
		case "/cut":
			w.Header().Set("Content-Length", "10")
			if asked.Add(1) == 1 {
				_, _ = io.WriteString(w, "01234")
				cut(w)
			}
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader("0123456789"))
		case "/file":
			http.ServeContent(w, r, "", time.Time{}, strings.NewReader("0123456789"))
		default:
			http.NotFound(w, r)
		}
	})
	c := client(t, loopback(t))
	b := origintest.Watch(c.HTTP())
	for path, err := range map[string]error{"/file": nil, "/loop": sdk.ErrUnavailable, "/busy": sdk.ErrUnavailable, "/large": sdk.ErrTooLarge, "/odd": sdk.ErrIntegrity, "/none": sdk.ErrNotFound} {
		before := b.All.Load()
		_, got := c.Get(t.Context(), s.URL+path, nil)
		must.ErrorIs(t, got, err, must.Sprint(path))
		must.Greater(t, before, b.All.Load())
		must.Zero(t, b.Open.Load(), must.Sprint("Get "+path))
	}
	for path, err := range map[string]error{"/file": nil, "/cut": nil, "/loop": sdk.ErrUnavailable, "/busy": sdk.ErrUnavailable, "/none": sdk.ErrNotFound} {
		before := b.All.Load()
		must.ErrorIs(t, c.Fetch(t.Context(), s.URL+path, nil, 10, 0, io.Discard), err, must.Sprint(path))
		must.Greater(t, before, b.All.Load())
		must.Zero(t, b.Open.Load(), must.Sprint("Fetch "+path))
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/loop", nil)
	must.NoError(t, err)
	_, err = c.Do(req)
	must.ErrorIs(t, err, sdk.ErrUnavailable)
	must.Zero(t, b.Open.Load())
}

// A request that is refused before it is sent also closes its body.
func TestRefusedRequestBodyClosed(t *testing.T) {
	t.Parallel()
	sent := &origintest.Body{ReadCloser: io.NopCloser(strings.NewReader("x"))}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://127.0.0.1:1/", sent)
	must.NoError(t, err)
	_, err = client(t, origin.Options{}).HTTP().Transport.RoundTrip(req)
	must.ErrorIs(t, err, sdk.ErrForbidden)
	must.True(t, sent.Closed.Load())
}

// A closed client keeps no connections open, neither to an origin nor to a proxy.
func TestCloseClosesConnections(t *testing.T) {
	t.Parallel()
	for _, proxied := range []bool{false, true} {
		var idle, open atomic.Int64
		s := httptest.NewUnstartedServer(answers("x"))
		s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				open.Add(1)
			case http.StateIdle:
				idle.Add(1)
			case http.StateClosed:
				open.Add(-1)
			}
		}
		s.Start()
		t.Cleanup(s.Close)
		o, address := loopback(t), s.URL
		if proxied {
			o.Environ, address = []string{"HTTP_PROXY=" + s.URL}, "http://origin.example/"
		}
		c, err := origin.New(o)
		must.NoError(t, err)
		_, err = c.Get(t.Context(), address, nil)
		must.NoError(t, err)
		eventually(t, "the connection is kept", func() bool { return idle.Load() == 1 && open.Load() == 1 })
		c.Close()
		eventually(t, "it is closed", func() bool { return open.Load() == 0 })
	}
}

func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !f(); {
		if time.Now().After(end) {
			t.Fatal("not within 10 seconds: " + what)
		}
		timer := time.NewTimer(time.Millisecond)
		<-timer.C
	}
}

// A reply must be complete within a minute; a request is tried four times with growing pauses. The
// context of each attempt ends with it.
func TestReplyDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var began []time.Time
		var used []context.Context
		c := origin.NewForTest(origin.Options{}, func(r *http.Request) (*http.Response, error) {
			began, used = append(began, time.Now()), append(used, r.Context())
			return origintest.Reply(http.StatusOK, origintest.Stuck{Context: r.Context()}), nil
		})
		_, err := c.Get(t.Context(), "https://origin.example/", nil)
		must.ErrorIs(t, err, sdk.ErrUnavailable)
		must.ErrorContains(t, err, "no whole reply within 1m0s")
		must.Len(t, 4, began)
		var chance time.Duration // jitter, so that many clients do not retry at once
		for i, pause := range []time.Duration{500 * time.Millisecond, time.Second, 2 * time.Second} {
			waited := began[i+1].Sub(began[i])
			must.Between(t, time.Minute+pause, waited, time.Minute+pause*3/2)
			chance += waited - time.Minute - pause
		}
		must.Positive(t, chance)
		for _, ctx := range used {
			must.Error(t, ctx.Err())
		}
	})
	var asked *http.Request
	c := origin.NewForTest(origin.Options{}, func(r *http.Request) (*http.Response, error) {
		asked = r
		return origintest.Reply(http.StatusOK, http.NoBody), nil
	})
	_, err := c.Get(t.Context(), "https://origin.example/", nil)
	must.NoError(t, err)
	must.Error(t, asked.Context().Err())
}

// Cancelling a request ends the pause before its retry.
func TestCancelDuringBackoff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := origin.NewForTest(origin.Options{Backoff: time.Hour}, func(*http.Request) (*http.Response, error) {
			asked++
			return origintest.Reply(http.StatusServiceUnavailable, http.NoBody), nil
		})
		for name, f := range map[string]func(ctx context.Context) error{
			"Get":   func(ctx context.Context) error { _, err := c.Get(ctx, "https://origin.example/", nil); return err },
			"Fetch": func(ctx context.Context) error { return c.Fetch(ctx, "https://origin.example/", nil, 0, 0, io.Discard) },
		} {
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			must.Error(t, f(ctx), must.Sprint(name))
			cancel()
			must.Eq(t, time.Second, time.Since(began), must.Sprint(name))
			must.Eq(t, 1, asked, must.Sprint(name))
			asked = 0
		}
	})
}

// A transfer may take long as a whole, but not long without a byte: 30 seconds unless configured
// otherwise, for the header and for each part.
func TestFetchDeadlines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var used []context.Context
		asked := 0
		var answer func(ctx context.Context) (*http.Response, error)
		c := origin.NewForTest(origin.Options{}, func(r *http.Request) (*http.Response, error) {
			asked++
			used = append(used, r.Context())
			return answer(r.Context())
		})
		fetch := func(size int64, w io.Writer) (time.Duration, error) {
			asked = 0
			began := time.Now()
			err := c.Fetch(t.Context(), "https://origin.example/", nil, size, 0, w)
			for _, ctx := range used {
				must.Error(t, ctx.Err(), must.Sprint("a request's context is still alive"))
			}
			return time.Since(began), err
		}
		var got bytes.Buffer
		answer = func(ctx context.Context) (*http.Response, error) {
			time.Sleep(20 * time.Second) // delays the header
			return origintest.Reply(http.StatusOK, &origintest.Slow{Context: ctx, Left: 10, Pause: 20 * time.Second}), nil
		}
		took, err := fetch(10, &got)
		must.NoError(t, err)
		must.Eq(t, "xxxxxxxxxx", got.String())
		must.Eq(t, 220*time.Second, took)

		for name, f := range map[string]func(ctx context.Context) (*http.Response, error){
			"header": func(ctx context.Context) (*http.Response, error) { <-ctx.Done(); return nil, ctx.Err() },
			"body": func(ctx context.Context) (*http.Response, error) {
				return origintest.Reply(http.StatusOK, origintest.Stuck{Context: ctx}), nil
			},
		} {
			answer = f
			took, err = fetch(0, io.Discard)
			must.ErrorContains(t, err, "nothing has come for too long (30s)", must.Sprint(name))
			must.Eq(t, 5, asked, must.Sprint(name)) // attempts
			must.Between(t, 5*30*time.Second+7500*time.Millisecond, took, 5*30*time.Second+12*time.Second, must.Sprint(name))
		}
	})
}

// The count of attempts restarts with every byte received.
func TestFetchAttemptsReset(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) {
			asked++
			if asked%4 != 0 { // three failures, then one byte
				return nil, errors.New("broken")
			}
			r := origintest.Reply(http.StatusPartialContent, io.NopCloser(strings.NewReader("x")))
			if asked == 4 {
				r.StatusCode = http.StatusOK
			}
			r.Header.Set("Content-Range", fmt.Sprintf("bytes %d-9/10", asked/4-1))
			return r, nil
		})
		var got bytes.Buffer
		must.NoError(t, c.Fetch(t.Context(), "https://origin.example/", nil, 10, 0, &got))
		must.Eq(t, "xxxxxxxxxx", got.String())
		must.Eq(t, 40, asked)
	})
}

// A request gives up on an origin or proxy that accepts a connection and then sends nothing.
func TestConnectionDeadlines(t *testing.T) {
	t.Parallel()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() }) // nothing calls Accept: the kernel completes the handshake
	for name, tc := range map[string]struct {
		o       origin.Options
		address string
	}{
		"header":          {origin.Options{HeaderTimeout: 50 * time.Millisecond}, "http://" + l.Addr().String()},
		"TLS":             {origin.Options{DialTimeout: 50 * time.Millisecond}, "https://" + l.Addr().String()},
		"header by proxy": {origin.Options{HeaderTimeout: 50 * time.Millisecond, Environ: []string{"HTTP_PROXY=http://" + l.Addr().String()}}, "http://origin.example"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tc.o.Allow = allow(t, "127.0.0.0/8")
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, tc.address, nil)
			must.NoError(t, err)
			_, err = client(t, tc.o).Do(req)
			must.ErrorIs(t, err, sdk.ErrUnavailable)
			must.NoError(t, ctx.Err())
		})
	}
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("X", strings.Repeat("x", 300<<10)) })
	_, err = client(t, loopback(t)).Get(t.Context(), s.URL, nil)
	must.ErrorContains(t, err, "header")
}

// A transfer of known size that ends early resumes where it stopped, and only if the version is the
// same.
func TestFetchResumeAfterEarlyEnd(t *testing.T) {
	t.Parallel()
	for tag, want := range map[string]string{`"v1"`: `"v1"`, `W/"v1"`: "", "": ""} {
		synctest.Test(t, func(t *testing.T) {
			asked := 0
			c := origin.NewForTest(origin.Options{}, func(r *http.Request) (*http.Response, error) {
				asked++
				resp := origintest.Reply(http.StatusOK, io.NopCloser(strings.NewReader("01234"))) // no Content-Length
				resp.Header.Set("ETag", tag)
				if asked > 1 {
					must.Eq(t, "bytes=5-", r.Header.Get("Range"))
					must.Eq(t, want, r.Header.Get("If-Range"))
					resp = origintest.Reply(http.StatusPartialContent, io.NopCloser(strings.NewReader("56789")))
					resp.Header.Set("Content-Range", "bytes 5-9/10")
				}
				return resp, nil
			})
			var got bytes.Buffer
			must.NoError(t, c.Fetch(t.Context(), "https://origin.example/", nil, 10, 0, &got))
			must.Eq(t, "0123456789", got.String())
			must.Eq(t, 2, asked)
		})
	}
	c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) {
		t.Error("nothing is left to do, and it was asked")
		return origintest.Reply(http.StatusNotFound, http.NoBody), nil
	})
	must.NoError(t, c.Fetch(t.Context(), "https://origin.example/", nil, 10, 10, io.Discard))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	must.ErrorIs(t, c.Fetch(ctx, "https://origin.example/", nil, 10, 10, io.Discard), context.Canceled)
}

// A complete reply that is shorter than the resume offset is another file, even if its size is
// unknown.
func TestFetchShorterFile(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) {
			return origintest.Reply(http.StatusOK, io.NopCloser(strings.NewReader("012"))), nil // no Content-Length
		})
		var got bytes.Buffer
		must.Error(t, c.Fetch(t.Context(), "https://origin.example/", nil, 0, 5, &got))
		must.Zero(t, got.Len())
	})
}

// endless returns head, then repeats text endlessly.
type endless struct{ head, text []byte }

func (e *endless) Read(p []byte) (n int, err error) {
	if n = copy(p, e.head); n > 0 {
		e.head = e.head[n:]
		return n, nil
	}
	for n < len(p) {
		m := copy(p[n:], e.text)
		n, e.text = n+m, append(e.text[m:], e.text[:m]...)
	}
	return n, nil
}

// Endless bodies are read only up to their bound.
func TestEndlessBodies(t *testing.T) {
	t.Parallel()
	var resp *http.Response
	c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) { return resp, nil })
	resp = origintest.Reply(http.StatusNotFound, io.NopCloser(&endless{text: []byte("x")}))
	err := c.Fetch(t.Context(), "https://origin.example/", nil, 0, 0, io.Discard)
	status, ok := errors.AsType[*origin.StatusError](err)
	must.True(t, ok)
	must.Len(t, 4<<10, status.Body)

	resp = origintest.Reply(http.StatusNotFound, io.NopCloser(&endless{text: []byte("x")}))
	_, err = c.Get(t.Context(), "https://origin.example/", nil)
	status, ok = errors.AsType[*origin.StatusError](err)
	must.True(t, ok)
	must.LessEq(t, 4<<10, len(status.Body))

	// An endless sequence of empty gzip blocks, which decompress to nothing.
	resp = origintest.Reply(http.StatusOK, io.NopCloser(&endless{head: []byte{0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff}, text: []byte{0, 0, 0, 0xff, 0xff}}))
	resp.Header.Set("Content-Encoding", "gzip")
	_, err = c.Get(t.Context(), "https://origin.example/", nil)
	must.ErrorIs(t, err, sdk.ErrTooLarge)
}

// A name lookup that hangs times out, for an origin and for a proxy.
func TestNameDeadline(t *testing.T) {
	t.Parallel()
	for _, proxies := range [][]string{nil, {"HTTP_PROXY=http://proxy.example"}} {
		t.Run(fmt.Sprint(proxies), func(t *testing.T) {
			t.Parallel()
			given := make(chan struct{})
			resolver := &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
				<-given // longer than the resolver's own timeout
				return nil, errors.New("no server of names")
			}}
			c, err := origin.New(origin.Options{DialTimeout: 50 * time.Millisecond, Resolver: resolver, Environ: proxies})
			must.NoError(t, err)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://origin.example", nil)
			must.NoError(t, err)
			_, err = c.Do(req)
			must.ErrorIs(t, err, sdk.ErrUnavailable)
			must.NoError(t, ctx.Err())
			close(given)
		})
	}
}

// A reply may be as large as its bound and is requested compressed; one with an absurd compression
// ratio is rejected before all of it is decompressed.
func TestReplyBounds(t *testing.T) {
	t.Parallel()
	var resp *http.Response
	c := origin.NewForTest(origin.Options{}, func(r *http.Request) (*http.Response, error) {
		must.Eq(t, "gzip", r.Header.Get("Accept-Encoding"))
		return resp, nil
	})
	get := func(body io.Reader, length int64, encoding string) (int, error) {
		resp = origintest.Reply(http.StatusOK, io.NopCloser(body))
		resp.ContentLength = length
		resp.Header.Set("Content-Encoding", encoding)
		reply, err := c.Get(t.Context(), "https://origin.example/", nil)
		return len(reply.Body), err
	}
	whole := make([]byte, origin.MaxReplyBytes+1)
	for _, length := range []int64{-1, origin.MaxReplyBytes} {
		n, err := get(bytes.NewReader(whole[1:]), length, "")
		must.NoError(t, err)
		must.Eq(t, origin.MaxReplyBytes, n)
	}
	for _, length := range []int64{-1, origin.MaxReplyBytes + 1} {
		_, err := get(bytes.NewReader(whole), length, "identity")
		must.ErrorIs(t, err, sdk.ErrTooLarge)
	}
	// A small reply may have any compression ratio.
	_, err := get(packed(t, 256<<10), -1, "gzip")
	must.NoError(t, err)
	_, err = get(packed(t, 400<<10), -1, "gzip")
	must.ErrorIs(t, err, sdk.ErrTooLarge)
	bomb := packed(t, 64<<20)
	all := bomb.Len()
	_, err = get(bomb, -1, "gzip")
	must.ErrorIs(t, err, sdk.ErrTooLarge)
	must.Less(t, all/2, all-bomb.Len(), must.Sprint("it was read to its end"))
}

// packed returns size zeros, compressed.
func packed(t *testing.T, size int) *bytes.Buffer {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	_, err := z.Write(make([]byte, size))
	must.NoError(t, err)
	must.NoError(t, z.Close())
	return &b
}

// "Range not satisfiable" means the end of the file only if the size matches the expected one.
func TestFetchRangeNotSatisfiable(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		size, from int64
		says       string
		good       bool
	}{
		"size unknown":              {0, 5, "bytes */5", true},
		"a shorter file":            {10, 5, "bytes */5", false},
		"another place":             {10, 5, "bytes */10", false},
		"unknown, another place":    {0, 5, "bytes */10", false},
		"nothing about the length":  {0, 5, "bytes */*", false},
		"nothing at all":            {0, 5, "", false},
		"nothing, from the start":   {10, 0, "", false},
		"as long as what was there": {0, 0, "bytes */0", true},
	} {
		c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) {
			resp := origintest.Reply(http.StatusRequestedRangeNotSatisfiable, http.NoBody)
			resp.Header.Set("Content-Range", tc.says)
			return resp, nil
		})
		err := c.Fetch(t.Context(), "https://origin.example/", nil, tc.size, tc.from, io.Discard)
		must.Eq(t, tc.good, err == nil, must.Sprint(name, err))
		must.Eq(t, !tc.good, errors.Is(err, sdk.ErrIntegrity), must.Sprint(name))
	}
}

// More bytes than announced mean another file, even if none were announced.
func TestFetchLongerThanAnnounced(t *testing.T) {
	t.Parallel()
	c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) {
		resp := origintest.Reply(http.StatusOK, io.NopCloser(strings.NewReader("x")))
		resp.ContentLength = 0
		return resp, nil
	})
	var got bytes.Buffer
	must.ErrorIs(t, c.Fetch(t.Context(), "https://origin.example/", nil, 0, 0, &got), sdk.ErrIntegrity)
	must.Zero(t, got.Len())
}

// The version is fixed by the first byte written; if the size is unknown, everything received is
// the file.
func TestFetchEmptyFirstVersion(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) {
			asked++
			body := io.Reader(strings.NewReader("01234"))
			if asked == 1 {
				body = iotest.ErrReader(errors.New("broken"))
			}
			resp := origintest.Reply(http.StatusOK, io.NopCloser(body))
			resp.Header.Set("ETag", fmt.Sprintf(`"v%d"`, asked))
			return resp, nil
		})
		var got bytes.Buffer
		must.NoError(t, c.Fetch(t.Context(), "https://origin.example/", nil, 0, 0, &got))
		must.Eq(t, "01234", got.String())
		must.Eq(t, 2, asked)
	})
	c := origin.NewForTest(origin.Options{}, func(*http.Request) (*http.Response, error) {
		return origintest.Reply(http.StatusTeapot, io.NopCloser(strings.NewReader("no"))), nil
	})
	err := c.Fetch(t.Context(), "https://origin.example/f?token=secret", nil, 0, 0, io.Discard)
	must.ErrorContains(t, err, "https://origin.example/f answers 418 I'm a teapot")
}
