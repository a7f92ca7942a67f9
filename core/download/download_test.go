package download_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

func noise(size int) []byte {
	b := make([]byte, size)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// server is an HTTP server that serves one file, and records its requests.
type server struct {
	*httptest.Server
	mu    sync.Mutex // guards below
	asked []http.Header
	paths []string
}

func serve(t *testing.T, h http.HandlerFunc) *server {
	t.Helper()
	s := &server{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		s.asked = append(s.asked, r.Header.Clone())
		s.paths = append(s.paths, r.URL.Path)
		s.mu.Unlock()
		h(w, r)
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *server) headers(name string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []string
	for _, h := range s.asked {
		out = append(out, h.Get(name))
	}
	return out
}

// content serves body as a well-behaved server does.
func content(body []byte, etag string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		if etag != "" {
			w.Header().Set("ETag", etag)
		}
		http.ServeContent(w, r, "model.gguf", time.Time{}, bytes.NewReader(body))
	}
}

func options(t testing.TB) download.Options {
	t.Helper()
	c, err := origin.New(origin.Options{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	return download.Options{Client: c, Connections: 4, Backoff: time.Millisecond, Stall: 30 * time.Second}
}

func file(s *server, body []byte) download.File {
	return download.File{URL: s.URL + "/model.gguf", SizeBytes: int64(len(body)), Digested: true}
}

func origins(t *testing.T, f download.File, o download.Options) *download.Origin {
	t.Helper()
	out, err := download.New(f, o)
	must.NoError(t, err)
	return out
}

func TestRange(t *testing.T) {
	t.Parallel()
	body := noise(100_000)
	s := serve(t, content(body, `"v1"`))
	o := origins(t, file(s, body), options(t))
	for _, r := range [][2]int64{{0, 1}, {5, 70_000}, {99_999, 100_000}, {0, 100_000}, {50_000, -1}} {
		var b bytes.Buffer
		must.NoError(t, o.Fetch(t.Context(), r[0], r[1], &b))
		end := r[1]
		if end < 0 {
			end = int64(len(body))
		}
		must.True(t, bytes.Equal(body[r[0]:end], b.Bytes()), must.Sprint(r))
	}
	must.Eq(t, []string{"bytes=0-0", "bytes=5-69999", "bytes=99999-99999", "", "bytes=50000-"}, s.headers("Range"))
	must.Eq(t, []string{"", `"v1"`, `"v1"`, "", `"v1"`}, s.headers("If-Range"))
	must.Eq(t, 4, o.Connections())
	must.Eq(t, `etag "v1"`, o.Version())
}

// S-01: a transfer resumes a broken connection at the same byte, as long as bytes arrive between
// the breaks.
func TestCuts(t *testing.T) {
	t.Parallel()
	body := noise(1 << 20)
	cuts := 0
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		cuts++
		if cuts == 40 {
			content(body, `"v1"`)(w, r)
			return
		}
		content(body, `"v1"`)(&cutter{ResponseWriter: w, left: 20_000}, r)
	})
	o := origins(t, file(s, body), options(t))
	var b bytes.Buffer
	must.NoError(t, o.Fetch(t.Context(), 0, int64(len(body)), &b))
	must.True(t, bytes.Equal(body, b.Bytes()))
	must.Eq(t, 40, cuts)
}

// cutter breaks the connection after some bytes.
type cutter struct {
	http.ResponseWriter
	left int
}

func (c *cutter) Write(b []byte) (int, error) {
	n, err := c.ResponseWriter.Write(b[:min(len(b), c.left)])
	c.left -= n
	if c.left == 0 {
		if err := http.NewResponseController(c.ResponseWriter).Flush(); err != nil {
			panic(err)
		}
		panic(http.ErrAbortHandler)
	}
	return n, err
}

// S-02: bytes are never accepted from a server that contradicts itself or has another version.
func TestDishonestServers(t *testing.T) {
	t.Parallel()
	body := noise(100_000)
	part := func(contentRange string, b []byte, length string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Range", contentRange)
			w.Header().Set("ETag", `"v1"`)
			if length != "" {
				w.Header().Set("Content-Length", length)
			}
			w.WriteHeader(http.StatusPartialContent)
			_, _ = w.Write(b)
			if length == "" {
				_ = http.NewResponseController(w).Flush()
			}
		}
	}
	for name, tc := range map[string]struct {
		serve http.HandlerFunc
		kind  core.Kind
		says  string
	}{
		"another range":            {part("bytes 0-99/100000", body[:100], "100"), core.Conflict, "instead of that from 1000 to 1999"},
		"more than the range":      {part("bytes 1000-2000/100000", body[1000:2001], "1001"), core.Conflict, "instead of that"},
		"another size":             {part("bytes 1000-1999/100001", body[1000:2000], "1000"), core.Conflict, "should have 100000 bytes"},
		"beyond the end":           {part("bytes 1000-100000/*", body[1000:2000], "1000"), core.Conflict, "instead of that"},
		"length and range differ":  {part("bytes 1000-1999/100000", body[1000:2001], "1001"), core.Conflict, "has 1001 bytes"},
		"206 with too many bytes":  {part("bytes 1000-1999/100000", body[1000:5000], ""), core.Conflict, "more than it announced"},
		"no Content-Range":         {part("", body[1000:2000], "1000"), core.Conflict, "answers with the part"},
		"not in bytes":             {part("lines 1000-1999/100000", body[1000:2000], "1000"), core.Conflict, "answers with the part"},
		"backwards":                {part("bytes 1999-1000/100000", body[1000:2000], "1000"), core.Conflict, "answers with the part"},
		"numbers with signs":       {part("bytes +1000-+1999/100000", body[1000:2000], "1000"), core.Conflict, "answers with the part"},
		"no such range":            {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusRequestedRangeNotSatisfiable) }, core.Conflict, "does not have the bytes"},
		"empty":                    {func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Content-Length", "0") }, core.Conflict, "it has 0 bytes"},
		"whole file, another size": {content(body[:90_000], `"v1"`), core.Conflict, "should have 100000"},
		"compressed": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			_, _ = w.Write(body)
		}, core.Unsupported, "sends the file encoded"},
		"not there":      {http.NotFound, core.NotFound, "404"},
		"not without us": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusUnauthorized) }, core.Unauthenticated, "401"},
		"not for us":     {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusForbidden) }, core.Forbidden, "403"},
		"always down":    {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusBadGateway) }, core.Unavailable, "502"},
		"wait till tomorrow": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "86400")
			w.WriteHeader(http.StatusTooManyRequests)
		}, core.Unavailable, "429"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serve(t, tc.serve)
			o := origins(t, file(s, body), options(t))
			var b bytes.Buffer
			err := o.Fetch(t.Context(), 1000, 2000, &b)
			must.Eq(t, tc.kind, core.KindOf(err), must.Sprint(err))
			must.ErrorContains(t, err, tc.says)
			if tc.kind == core.Conflict {
				must.ErrorContains(t, err, "model.gguf at 127.0.0.1")
			}
			must.True(t, bytes.HasPrefix(body[1000:2000], b.Bytes()), must.Sprint("what was written is the file's"))
		})
	}
}

func TestVersionChanges(t *testing.T) {
	t.Parallel()
	old, body := noise(100_000), noise(100_001)[1:]
	for name, tc := range map[string]struct {
		first, then string // ETags, or Last-Modified after "@"
		kind        core.Kind
	}{
		"ETag":                 {`"v1"`, `"v2"`, core.Conflict},
		"weak ETag":            {`W/"v1"`, `W/"v2"`, core.Conflict},
		"the same weak one":    {`W/"v1"`, `W/"v1"`, ""},
		"Last-Modified":        {"@Mon, 02 Jan 2006 15:04:05 GMT", "@Tue, 03 Jan 2006 15:04:05 GMT", core.Conflict},
		"no name any more":     {`"v1"`, "", core.Conflict},
		"never a name, digest": {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				version, b := tc.first, old
				if n.Add(1) > 1 {
					version, b = tc.then, body
				}
				if m, ok := strings.CutPrefix(version, "@"); ok {
					w.Header().Set("Last-Modified", m)
					version = ""
				}
				content(b, version)(w, r)
			})
			o := origins(t, file(s, old), options(t))
			var b bytes.Buffer
			must.NoError(t, o.Fetch(t.Context(), 0, 50_000, &b))
			err := o.Fetch(t.Context(), 50_000, 100_000, &b)
			must.Eq(t, tc.kind, core.KindOf(err), must.Sprint(err))
			if tc.kind == "" {
				return
			}
			must.Eq(t, 50_000, b.Len(), must.Sprint("nothing of the other version"))
			// From then on the new version counts.
			b.Reset()
			must.NoError(t, o.Fetch(t.Context(), 0, 100_000, &b))
			must.True(t, bytes.Equal(body, b.Bytes()))
		})
	}
	t.Run("since an earlier process", func(t *testing.T) {
		t.Parallel()
		s := serve(t, content(body, `"v2"`))
		o := origins(t, file(s, body), options(t))
		o.Expect(`etag "v1"`)
		var b bytes.Buffer
		must.Eq(t, core.Conflict, core.KindOf(o.Fetch(t.Context(), 10, 20, &b)))
		must.Eq(t, 0, b.Len())
		must.Eq(t, []string{`"v1"`}, s.headers("If-Range"))
	})
}

// S-02: a server that ignores ranges is read over one connection, past the end of the requested
// range.
func TestNoRanges(t *testing.T) {
	t.Parallel()
	body := noise(100_000)
	plain := func(etag string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if etag != "" {
				w.Header().Set("ETag", etag)
			}
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			_, _ = w.Write(body)
		}
	}
	t.Run("goes on", func(t *testing.T) {
		t.Parallel()
		s := serve(t, plain(""))
		o := origins(t, file(s, body), options(t))
		must.Eq(t, 4, o.Connections())
		var b bytes.Buffer
		must.NoError(t, o.Fetch(t.Context(), 0, 10, &b))
		must.True(t, bytes.Equal(body, b.Bytes()))
		must.Eq(t, 1, o.Connections())
	})
	t.Run("from the middle", func(t *testing.T) {
		t.Parallel()
		s := serve(t, plain(`"v1"`))
		o := origins(t, file(s, body), options(t))
		var b bytes.Buffer
		must.NoError(t, o.Fetch(t.Context(), 70_000, 100_000, &b))
		must.True(t, bytes.Equal(body[70_000:], b.Bytes()))
	})
	t.Run("not from the middle without a name and a digest", func(t *testing.T) {
		t.Parallel()
		s := serve(t, plain(""))
		f := file(s, body)
		f.Digested = false
		o := origins(t, f, options(t))
		must.Eq(t, 1, o.Connections())
		must.Eq(t, core.Conflict, core.KindOf(o.Fetch(t.Context(), 70_000, 100_000, io.Discard)))
	})
	t.Run("the writer has enough", func(t *testing.T) {
		t.Parallel()
		s := serve(t, plain(""))
		o := origins(t, file(s, body), options(t))
		enough := errors.New("enough")
		must.ErrorIs(t, o.Fetch(t.Context(), 0, 10, writerFunc(func(b []byte) (int, error) { return 10, enough })), enough)
	})
}

type writerFunc func(b []byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// A credential goes only to the address's own server. The target of the redirect is asked directly
// from then on, until it refuses.
func TestRedirect(t *testing.T) {
	t.Parallel()
	body := noise(100_000)
	expired := false
	cdn := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if expired {
			expired = false
			w.WriteHeader(http.StatusForbidden)
			return
		}
		content(body, `"v1"`)(w, r)
	})
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, cdn.URL+"/signed?key=1", http.StatusFound)
	})
	f := file(s, body)
	f.Header = map[string]string{"Authorization": "Bearer secret", "Accept": "application/octet-stream"}
	o := origins(t, f, options(t))
	must.NoError(t, o.Fetch(t.Context(), 0, 10, io.Discard))
	must.NoError(t, o.Fetch(t.Context(), 10, 20, io.Discard))
	must.SliceLen(t, 1, s.headers("Authorization"))
	must.Eq(t, []string{"application/octet-stream"}, s.headers("Accept"))
	expired = true
	must.NoError(t, o.Fetch(t.Context(), 20, 30, io.Discard))
	must.Eq(t, []string{"Bearer secret", "Bearer secret"}, s.headers("Authorization"))
	must.Eq(t, []string{"", "", "", ""}, cdn.headers("Authorization"))
}

// No error shows the address's query or a header.
func TestNoSecrets(t *testing.T) {
	t.Parallel()
	s := serve(t, http.NotFound)
	f := file(s, noise(10))
	f.URL += "?token=secret"
	f.Header = map[string]string{"Authorization": "secret"}
	o := origins(t, f, options(t))
	err := o.Fetch(t.Context(), 0, 10, io.Discard)
	s.Close()
	for _, err := range []error{err, o.Fetch(t.Context(), 0, 10, io.Discard)} {
		must.Error(t, err)
		must.StrNotContains(t, fmt.Sprintf("%v %+v %s", err, err, core.HintOf(err)), "secret")
	}
	must.StrNotContains(t, o.Name()+o.Origin()+o.Version(), "secret")
	_, err = download.New(download.File{URL: "ftp://user:secret@host/x"}, options(t))
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.StrNotContains(t, err.Error(), "secret")
}

// Private addresses are refused unless they are allowed; the error tells how to allow them.
func TestGuard(t *testing.T) {
	t.Parallel()
	s := serve(t, content(noise(10), ""))
	c, err := origin.New(origin.Options{})
	must.NoError(t, err)
	t.Cleanup(c.Close)
	o := options(t)
	o.Client = c
	err = origins(t, file(s, noise(10)), o).Fetch(t.Context(), 0, 10, io.Discard)
	must.Eq(t, core.Forbidden, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "allow_addresses")
	must.SliceEmpty(t, s.headers("Range"))
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	body := noise(1000)
	var n atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) == 1 {
			w.Header().Set("Retry-After", "1")
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		content(body, "")(w, r)
	})
	began := time.Now()
	must.NoError(t, origins(t, file(s, body), options(t)).Fetch(t.Context(), 0, 1000, io.Discard))
	must.GreaterEq(t, time.Second, time.Since(began))
}

// A silent server is dropped and asked again.
func TestStall(t *testing.T) {
	t.Parallel()
	body := noise(100_000)
	var n atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1) > 1 {
			content(body, `"v1"`)(w, r)
			return
		}
		w.Header().Set("ETag", `"v1"`)
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:50_000])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	o := options(t)
	o.Stall = 300 * time.Millisecond
	var b bytes.Buffer
	must.NoError(t, origins(t, file(s, body), o).Fetch(t.Context(), 0, 100_000, &b))
	must.True(t, bytes.Equal(body, b.Bytes()))
	must.Eq(t, []string{"", "bytes=50000-99999"}, s.headers("Range"))
}

func TestCancel(t *testing.T) {
	t.Parallel()
	body := noise(100_000)
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", strconv.Itoa(len(body)))
		_, _ = w.Write(body[:50_000])
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	err := origins(t, file(s, body), options(t)).Fetch(ctx, 0, 100_000, writerFunc(func(b []byte) (int, error) {
		cancel()
		return len(b), nil
	}))
	must.ErrorIs(t, err, context.Canceled)
}

func TestLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := download.NewLimiter(1000)
		began := time.Now()
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				n, err := l.Writer(t.Context(), io.Discard).Write(make([]byte, 2000))
				must.NoError(t, err)
				must.Eq(t, 2000, n)
			})
		}
		wg.Wait()
		must.Eq(t, 6*time.Second, time.Since(began).Round(10*time.Millisecond))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		n, err := l.Writer(ctx, io.Discard).Write(make([]byte, 1_000_000))
		must.ErrorIs(t, err, context.DeadlineExceeded)
		must.Less(t, 2100, n)
	})
	var none *download.Limiter
	must.Eq[io.Writer](t, io.Discard, none.Writer(t.Context(), io.Discard))
}

func FuzzContentRange(f *testing.F) {
	for _, s := range []string{"bytes 0-0/1", "bytes 5-9/10", "bytes */10", "bytes 5-9/*", "bytes */*", "bytes 9-5/10", "bytes -5/10", "bytes 5-9", "items 5-9/10", "bytes 0-9223372036854775807/9223372036854775807"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		first, last, total, ok := download.ParseContentRange(s)
		if !ok {
			return
		}
		if last >= 0 && (first < 0 || last < first || total >= 0 && last >= total) || total < -1 {
			t.Fatalf("%q became %d-%d/%d", s, first, last, total)
		}
	})
}
