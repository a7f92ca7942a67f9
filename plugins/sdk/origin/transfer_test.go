package origin_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// cut breaks a reply's connection.
func cut(w http.ResponseWriter) {
	_ = http.NewResponseController(w).Flush()
	panic(http.ErrAbortHandler)
}

func TestFetchResume(t *testing.T) {
	t.Parallel()
	file := bytes.Repeat([]byte("0123456789"), 50_000)
	content := func(w http.ResponseWriter, r *http.Request, tag string) {
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(file))
	}
	for name, tc := range map[string]struct {
		// serve answers the nth request, from 0.
		serve func(n int64, w http.ResponseWriter, r *http.Request)
		err   error
	}{
		"at once": {serve: func(_ int64, w http.ResponseWriter, r *http.Request) { content(w, r, `"a"`) }},
		"cut in the middle": {serve: func(n int64, w http.ResponseWriter, r *http.Request) {
			if n < 3 {
				w.Header().Set("ETag", `"a"`)
				w.Header().Set("Content-Length", fmt.Sprint(len(file)))
				if r.Header.Get("Range") != "" {
					content(&truncated{ResponseWriter: w, left: 100_000}, r, `"a"`)
					cut(w)
				}
				_, _ = w.Write(file[:100_000])
				cut(w)
			}
			content(w, r, `"a"`)
		}},
		"no ranges": {serve: func(n int64, w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(file)))
			if n == 0 {
				_, _ = w.Write(file[:1000])
				cut(w)
			}
			_, _ = w.Write(file)
		}},
		"busy at first": {serve: func(n int64, w http.ResponseWriter, r *http.Request) {
			if n == 0 {
				w.WriteHeader(http.StatusServiceUnavailable)
				return
			}
			content(w, r, `"a"`)
		}},
		"another file after a cut": {err: sdk.ErrIntegrity, serve: func(n int64, w http.ResponseWriter, r *http.Request) {
			if n == 0 {
				w.Header().Set("ETag", `"a"`)
				w.Header().Set("Content-Length", fmt.Sprint(len(file)))
				_, _ = w.Write(file[:1000])
				cut(w)
			}
			content(w, r, `"b"`)
		}},
		"another size": {err: sdk.ErrIntegrity, serve: func(_ int64, w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(file[:1000])
		}},
		"too much": {err: sdk.ErrIntegrity, serve: func(_ int64, w http.ResponseWriter, _ *http.Request) {
			_ = http.NewResponseController(w).Flush()
			_, _ = w.Write(append(file, 'x'))
		}},
		"another range": {err: sdk.ErrIntegrity, serve: func(n int64, w http.ResponseWriter, r *http.Request) {
			if n == 0 {
				w.Header().Set("Content-Length", fmt.Sprint(len(file)))
				_, _ = w.Write(file[:1000])
				cut(w)
			}
			w.Header().Set("Content-Range", fmt.Sprintf("bytes 5-9/%d", len(file)))
			w.WriteHeader(http.StatusPartialContent)
			_, _ = io.WriteString(w, "56789")
		}},
		"not there": {err: sdk.ErrNotFound, serve: func(_ int64, w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			s := serve(t, func(w http.ResponseWriter, r *http.Request) {
				must.Eq(t, "identity", r.Header.Get("Accept-Encoding"))
				must.Eq(t, "secret", r.Header.Get("Authorization"))
				tc.serve(n.Add(1)-1, w, r)
			})
			c := client(t, loopback(t))
			var got bytes.Buffer
			err := c.Fetch(t.Context(), s.URL+"/f?token=secret", http.Header{"Authorization": {"secret"}}, int64(len(file)), 0, &got)
			if tc.err != nil {
				must.ErrorIs(t, err, tc.err)
				must.StrNotContains(t, err.Error(), "secret")
				return
			}
			must.NoError(t, err)
			must.True(t, bytes.Equal(file, got.Bytes()))
		})
	}
}

// truncated passes on only the beginning of what is written.
type truncated struct {
	http.ResponseWriter
	left int
}

func (c *truncated) Write(b []byte) (int, error) {
	n := min(len(b), c.left)
	c.left -= n
	if n > 0 {
		_, _ = c.ResponseWriter.Write(b[:n])
	}
	return len(b), nil
}

func TestFetchFromAnOffset(t *testing.T) {
	t.Parallel()
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("0123456789"))
	})
	c := client(t, loopback(t))
	for offset, want := range map[int64]string{0: "0123456789", 4: "456789", 10: ""} {
		var got bytes.Buffer
		must.NoError(t, c.Fetch(t.Context(), s.URL, nil, 10, offset, &got))
		must.Eq(t, want, got.String())
		got.Reset()
		must.NoError(t, c.Fetch(t.Context(), s.URL, nil, 0, offset, &got)) // with unknown size
		must.Eq(t, want, got.String())
	}
	must.ErrorIs(t, c.Fetch(t.Context(), s.URL, nil, 10, 11, io.Discard), sdk.ErrInvalid)
	must.ErrorIs(t, c.Fetch(t.Context(), s.URL, nil, 10, -1, io.Discard), sdk.ErrInvalid)
}

func TestFetchWriteError(t *testing.T) {
	t.Parallel()
	full := errors.New("full")
	s := serve(t, func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "x") })
	err := client(t, loopback(t)).Fetch(t.Context(), s.URL, nil, 1, 0, failing{full})
	must.Eq(t, full, err)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestFetchStall(t *testing.T) {
	t.Parallel()
	var n atomic.Int64
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		if n.Add(1) == 1 {
			_, _ = io.WriteString(w, "01234")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
			return
		}
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader("0123456789"))
	})
	o := loopback(t)
	o.Stall = 300 * time.Millisecond
	var got bytes.Buffer
	must.NoError(t, client(t, o).Fetch(t.Context(), s.URL, nil, 10, 0, &got))
	must.Eq(t, "0123456789", got.String())
	must.GreaterEq(t, 2, n.Load())
}

func TestFetchCancel(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	s := serve(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		_, _ = io.WriteString(w, "01234")
		_ = http.NewResponseController(w).Flush()
		cancel()
		<-r.Context().Done()
	})
	must.ErrorIs(t, client(t, loopback(t)).Fetch(ctx, s.URL, nil, 10, 0, io.Discard), context.Canceled)
}
