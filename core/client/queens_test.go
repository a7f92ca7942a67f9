package client

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// threeQueens is a client of queens a, b and c, which answer as the test determines.
type threeQueens struct {
	mu    sync.Mutex // guards below
	asked []string
	does  map[string]func(r *http.Request) (*http.Response, error)
}

func (q *threeQueens) RoundTrip(r *http.Request) (*http.Response, error) {
	name := r.URL.Hostname()
	q.mu.Lock()
	q.asked = append(q.asked, name)
	does := q.does[name]
	q.mu.Unlock()
	if r.Body != nil {
		_, _ = io.Copy(io.Discard, r.Body)
	}
	if does == nil {
		return answer(200, `{}`), nil
	}
	return does(r)
}

// since returns the queens asked since the last call.
func (q *threeQueens) since() string {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := strings.Join(q.asked, "")
	q.asked = nil
	return s
}

func answer(status int, body string) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(body))}
}

func (q *threeQueens) client(t *testing.T) *Client {
	t.Helper()
	c, err := New(Options{Addresses: []string{"a:1", "b:1", "c:1"}, HTTPClient: &http.Client{Transport: q}})
	must.NoError(t, err)
	return c
}

var (
	refused = func(*http.Request) (*http.Response, error) {
		return nil, &net.OpError{Op: "dial", Err: errors.New("connection refused")}
	}
	dark = func(*http.Request) (*http.Response, error) { // a machine without power
		<-time.After(2 * time.Second)
		return nil, &net.OpError{Op: "dial", Err: errors.New("i/o timeout")}
	}
	broke = func(*http.Request) (*http.Response, error) {
		return nil, &net.OpError{Op: "read", Err: errors.New("connection reset by peer")}
	}
	silent = func(r *http.Request) (*http.Response, error) { // a suspended process
		<-r.Context().Done()
		return nil, r.Context().Err()
	}
	leaderless = func(*http.Request) (*http.Response, error) {
		return answer(503, `{"error":{"message":"there is no leader","type":"unavailable_error","code":"unavailable","kind":"unavailable","hint":"?consistency=stale"}}`), nil
	}
	stopping = func(*http.Request) (*http.Response, error) {
		return answer(503, `{"error":{"message":"this server is stopping","type":"unavailable_error","code":"stopping","kind":"unavailable","hint":"Ask another queen."}}`), nil
	}
)

func TestNextQueenTried(t *testing.T) {
	t.Parallel()
	look := func(ctx context.Context, c *Client) error { _, err := c.Hives(ctx); return err }
	submit := func(ctx context.Context, c *Client) error {
		_, err := c.Submit(ctx, core.Request{Operation: core.OpWorkerSpawn})
		return err
	}
	drain := func(ctx context.Context, c *Client) error { _, err := c.DrainHive(ctx, "h1", true); return err }
	remove := func(ctx context.Context, c *Client) error { return c.RemoveQueen(ctx, "q1") }
	create := func(ctx context.Context, c *Client) error {
		_, err := c.CreateToken(ctx, core.TokenRequest{})
		return err
	}
	restore := func(ctx context.Context, c *Client) error {
		_, err := c.RestoreSnapshot(ctx, strings.NewReader("snapshot"))
		return err
	}
	chat := func(ctx context.Context, c *Client) error {
		_, _, err := c.Chat(ctx, openai.ChatRequest{Model: "m"})
		return err
	}
	for _, c := range []struct {
		name  string
		call  func(context.Context, *Client) error
		a     func(*http.Request) (*http.Response, error)
		asked string
		kind  core.Kind
	}{
		{"look, refused", look, refused, "ab", ""},
		{"look, broke", look, broke, "ab", ""},
		{"look, silent", look, silent, "ab", ""},
		{"look, leaderless", look, leaderless, "ab", ""},
		{"look, stopping", look, stopping, "ab", ""},
		{"submit, refused", submit, refused, "ab", ""},
		{"submit, broke", submit, broke, "ab", ""}, // it has a request ID
		{"submit, leaderless", submit, leaderless, "ab", ""},
		{"drain, broke", drain, broke, "ab", ""}, // draining twice has the effect of once
		{"remove, leaderless", remove, leaderless, "ab", ""},
		{"create, refused", create, refused, "ab", ""},
		{"create, broke", create, broke, "a", core.Unavailable},
		{"create, leaderless", create, leaderless, "a", core.Unavailable}, // may have happened
		{"create, stopping", create, stopping, "ab", ""},                  // it was not carried out
		{"restore, broke", restore, broke, "a", core.Unavailable},
		{"restore, stopping", restore, stopping, "a", core.Unavailable}, // the upload is consumed
		{"chat, refused", chat, refused, "ab", ""},
		{"chat, broke", chat, broke, "ab", ""},
		{"chat, no worker", chat, leaderless, "a", core.Unavailable},
		{"chat, stopping", chat, stopping, "ab", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				q := &threeQueens{does: map[string]func(*http.Request) (*http.Response, error){"a": c.a}}
				must.Eq(t, c.kind, core.KindOf(c.call(t.Context(), q.client(t))))
				must.Eq(t, c.asked, q.since())
			})
		})
	}
}

// A dead queen costs its timeout only now and then, not with every call; it is asked again when no
// better queen is left.
func TestDeadQueenTriedLast(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := &threeQueens{does: map[string]func(*http.Request) (*http.Response, error){"a": dark}}
		c, start := q.client(t), time.Now()
		for range 50 {
			_, err := c.Hives(t.Context())
			must.NoError(t, err)
		}
		must.Eq(t, "a"+strings.Repeat("b", 50), q.since())
		must.Eq(t, 2*time.Second, time.Since(start))
		must.Eq(t, "http://b:1", c.Address())

		q.does["b"] = leaderless // the others are better, and stay so while it cools down
		_, err := c.Hives(t.Context())
		must.NoError(t, err)
		must.Eq(t, "bc", q.since())

		q.does["a"], q.does["c"] = nil, refused
		_, err = c.Hives(t.Context())
		must.NoError(t, err)
		must.Eq(t, "ca", q.since())

		q.does["a"] = refused // no queen can help: an answer is worth more than silence
		_, err = c.Hives(t.Context())
		must.Eq(t, "there is no leader", err.Error())
		must.Eq(t, "?consistency=stale", core.HintOf(err))
		must.Eq(t, 3, len(q.since()))
		q.does["b"] = refused
		_, err = c.Hives(t.Context())
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.StrContains(t, err.Error(), "http://a:1, http://b:1, http://c:1")

		for range 20 { // however often it failed, it is not forgotten
			_, _ = c.Hives(t.Context())
		}
		clear(q.does)
		q.does["b"], q.does["c"] = dark, dark
		<-time.After(longestCool)
		_, err = c.Hives(t.Context())
		must.NoError(t, err)
	})
}

// A caller whose deadline is shorter than a dead queen's timeout succeeds with its next call.
func TestDeadQueenAndShortDeadline(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		q := &threeQueens{does: map[string]func(*http.Request) (*http.Response, error){"a": func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, &net.OpError{Op: "dial", Err: r.Context().Err()}
		}}}
		c := q.client(t)
		for i, want := range []core.Kind{core.DeadlineExceeded, "", ""} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			_, err := c.Hives(ctx)
			must.Eq(t, want, core.KindOf(err), must.Sprint(i))
			cancel()
		}
		must.Eq(t, "abb", q.since())
	})
}

// The last remaining queen gets all the time it needs, and so do slow operations.
func TestSlowAnswers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		slow := func(*http.Request) (*http.Response, error) {
			<-time.After(time.Minute)
			return answer(200, `{"data":[]}`), nil
		}
		q := &threeQueens{does: map[string]func(*http.Request) (*http.Response, error){"a": silent, "b": silent, "c": slow}}
		c, start := q.client(t), time.Now()
		_, err := c.Hives(t.Context())
		must.NoError(t, err)
		must.Eq(t, 2*silence+time.Minute, time.Since(start))
		must.Eq(t, "abc", q.since())
		q.does["a"] = slow
		c = q.client(t)
		_, err = c.Catalog(t.Context(), "h1", CatalogQuery{})
		must.NoError(t, err)
		must.Eq(t, "a", q.since())
	})
}

// When the queen that serves a followed job dies, stops or hangs, another queen takes over.
func TestFollowThroughAnotherQueen(t *testing.T) {
	t.Parallel()
	const first = "data: {\"seq\":1,\"kind\":\"log\"}\n\n"
	for name, end := range map[string]func(r *http.Request) io.Reader{
		"dies": func(*http.Request) io.Reader { return strings.NewReader(first + "data: {\"se") },
		"stops": func(*http.Request) io.Reader {
			return strings.NewReader(first + "event: error\ndata: {\"error\":{\"message\":\"m\",\"type\":\"t\",\"kind\":\"unavailable\"}}\n\n")
		},
		"hangs": func(r *http.Request) io.Reader {
			pr, pw := io.Pipe()
			go func() {
				_, _ = io.WriteString(pw, first)
				<-r.Context().Done()
				pw.CloseWithError(r.Context().Err())
			}()
			return pr
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				var resumed []string
				q := &threeQueens{does: map[string]func(*http.Request) (*http.Response, error){
					"a": func(r *http.Request) (*http.Response, error) { return eventStream(end(r)), nil },
					"b": func(r *http.Request) (*http.Response, error) {
						resumed = append(resumed, r.Header.Get("Last-Event-ID"))
						return eventStream(strings.NewReader("data: {\"seq\":2,\"kind\":\"end\"}\n\n")), nil
					},
				}}
				var seen []int64
				must.NoError(t, q.client(t).FollowJob(t.Context(), "j", 0, func(e core.Event) error {
					seen = append(seen, e.Seq)
					return nil
				}))
				must.Eq(t, []int64{1, 2}, seen)
				must.Eq(t, []string{"1"}, resumed)
				must.Eq(t, "ab", q.since())
			})
		})
	}
}

// net/http does not resend requests that must not be repeated, and resends those that may be.
func TestConnectionClosedMeanwhile(t *testing.T) {
	t.Parallel()
	for _, once := range []bool{true, false} {
		var mu sync.Mutex
		n := 0
		srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			mu.Lock()
			defer mu.Unlock()
			if n++; n == 2 {
				panic(http.ErrAbortHandler) // on the reused connection, after the request
			}
			_, _ = io.WriteString(w, `{}`)
		}))
		c, err := New(Options{Addresses: []string{srv.URL}})
		must.NoError(t, err)
		must.NoError(t, c.Healthy(t.Context()))
		if once {
			_, err = c.CreateToken(t.Context(), core.TokenRequest{})
			must.Eq(t, core.Unavailable, core.KindOf(err))
			must.StrContains(t, core.HintOf(err), "not known whether")
		} else {
			_, err = c.Submit(t.Context(), core.Request{})
			must.NoError(t, err)
		}
		c.Close()
		srv.Close()
		mu.Lock()
		must.Eq(t, map[bool]int{true: 2, false: 3}[once], n)
		mu.Unlock()
	}
}

// The writer's error is returned unchanged, and an answer of another kind does not count as a
// snapshot.
func TestSaveSnapshotErrors(t *testing.T) {
	t.Parallel()
	q := &threeQueens{does: map[string]func(*http.Request) (*http.Response, error){"a": func(*http.Request) (*http.Response, error) {
		resp := answer(200, "octets")
		resp.Header.Set("Content-Type", "application/octet-stream")
		return resp, nil
	}}}
	full := errors.New("disk full")
	must.ErrorIs(t, q.client(t).SaveSnapshot(t.Context(), writerFunc(func([]byte) (int, error) { return 0, full })), full)
	q.does["a"] = nil
	must.Eq(t, core.Invalid, core.KindOf(q.client(t).SaveSnapshot(t.Context(), io.Discard)))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }
