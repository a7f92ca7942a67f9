package download_test

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
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
	"github.com/rbee-project/rbee/plugins/sdk/origin/origintest"
)

// A body that is not closed would hold its connection indefinitely.
func TestBodiesAreClosed(t *testing.T) {
	t.Parallel()
	data := noise(1000)
	for name, tc := range map[string]struct {
		// serve answers the nth request, from 1.
		serve func(n int64, w http.ResponseWriter, r *http.Request)
		kind  core.Kind
		asked int64
	}{
		"whole": {func(_ int64, w http.ResponseWriter, r *http.Request) { content(data, `"v1"`)(w, r) }, "", 1},
		"cut": {func(n int64, w http.ResponseWriter, r *http.Request) {
			if n == 1 {
				w = &cutter{ResponseWriter: w, left: 500}
			}
			content(data, `"v1"`)(w, r)
		}, "", 2},
		"not there": {func(_ int64, w http.ResponseWriter, r *http.Request) { http.NotFound(w, r) }, core.NotFound, 1},
		"broken":    {func(_ int64, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }, core.Unavailable, 6},
		"another size": {func(_ int64, w http.ResponseWriter, r *http.Request) {
			content(data[:900], `"v1"`)(w, r)
		}, core.Conflict, 1},
		"loop": {func(_ int64, w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/x", http.StatusFound) }, core.Unavailable, 6},
		"an address that has expired": {func(n int64, w http.ResponseWriter, r *http.Request) {
			switch {
			case r.URL.Path != "/signed":
				http.Redirect(w, r, "/signed", http.StatusFound)
			case n == 2:
				content(data, `"v1"`)(&cutter{ResponseWriter: w, left: 500}, r)
			case n == 3:
				w.WriteHeader(http.StatusForbidden)
			default:
				content(data, `"v1"`)(w, r)
			}
		}, "", 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var n atomic.Int64
			s := serve(t, func(w http.ResponseWriter, r *http.Request) { tc.serve(n.Add(1), w, r) })
			o := options(t)
			b := origintest.Watch(o.Client.HTTP())
			err := origins(t, file(s, data), o).Fetch(t.Context(), 0, 1000, io.Discard)
			must.Eq(t, tc.kind, core.KindOf(err), must.Sprint(err))
			must.Eq(t, tc.asked, b.All.Load())
			must.Zero(t, b.Open.Load())
		})
	}
}

// roundTripper is a server without a network.
type roundTripper func(r *http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := f(r)
	if resp != nil {
		resp.Request = r
	}
	return resp, err
}

func offline(t *testing.T, sizeBytes int64, f roundTripper) *download.Origin {
	t.Helper()
	c, err := origin.New(origin.Options{})
	must.NoError(t, err)
	c.HTTP().Transport = f
	return origins(t, download.File{URL: "https://models.example/m.gguf", SizeBytes: sizeBytes, Digested: true}, download.Options{Client: c})
}

// A transfer may take long as a whole, and so may its writer, but a server has 30 seconds for each
// part, and six attempts with growing pauses to deliver one.
func TestDeadlines(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var used []context.Context
		o := offline(t, 10, func(r *http.Request) (*http.Response, error) {
			used = append(used, r.Context())
			time.Sleep(20 * time.Second) // for the header
			return origintest.Reply(http.StatusOK, &origintest.Slow{Context: r.Context(), Left: 10, Pause: 20 * time.Second}), nil
		})
		began := time.Now()
		must.NoError(t, o.Fetch(t.Context(), 0, 10, writerFunc(func(b []byte) (int, error) {
			time.Sleep(time.Minute)
			return len(b), nil
		})))
		must.Eq(t, 20*time.Second+10*80*time.Second, time.Since(began))
		must.Len(t, 1, used)
		must.Error(t, used[0].Err())

		for name, f := range map[string]roundTripper{
			"header": func(r *http.Request) (*http.Response, error) { <-r.Context().Done(); return nil, r.Context().Err() },
			"body": func(r *http.Request) (*http.Response, error) {
				return origintest.Reply(http.StatusOK, origintest.Stuck{Context: r.Context()}), nil
			},
		} {
			var at []time.Time
			o := offline(t, 10, func(r *http.Request) (*http.Response, error) {
				at = append(at, time.Now())
				return f(r)
			})
			err := o.Fetch(t.Context(), 0, 10, io.Discard)
			must.Eq(t, core.Unavailable, core.KindOf(err), must.Sprint(name))
			must.ErrorContains(t, err, "nothing has come for too long (30s)")
			must.Len(t, 6, at, must.Sprint(name))
			var chance time.Duration // so that many do not retry at the same time
			for i := range 5 {
				pause := 500 * time.Millisecond << i
				waited := at[i+1].Sub(at[i])
				must.Between(t, 30*time.Second+pause/2, waited, 30*time.Second+pause, must.Sprint(name, i))
				chance += waited - 30*time.Second - pause/2
			}
			must.Positive(t, chance)
		}
	})
}

// A pause is at most 15 seconds, unless the server asks for more, and ends with the transfer.
func TestPauses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, err := origin.New(origin.Options{})
		must.NoError(t, err)
		asked := 0
		c.HTTP().Transport = roundTripper(func(*http.Request) (*http.Response, error) {
			asked++
			return nil, errors.New("broken")
		})
		o := origins(t, download.File{URL: "https://models.example/m.gguf", SizeBytes: 10}, download.Options{Client: c, Backoff: time.Hour})
		began := time.Now()
		must.Error(t, o.Fetch(t.Context(), 0, 10, io.Discard))
		must.Eq(t, 6, asked)
		must.Between(t, 5*7500*time.Millisecond, time.Since(began), 5*15*time.Second)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began = time.Now()
		must.ErrorIs(t, o.Fetch(ctx, 0, 10, io.Discard), context.DeadlineExceeded)
		must.Eq(t, time.Second, time.Since(began))
	})
}

// Attempts are counted from the last byte received.
func TestProgressCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		o := offline(t, 10, func(r *http.Request) (*http.Response, error) {
			asked++
			if asked%5 != 0 { // four failures, then one byte
				return nil, errors.New("broken")
			}
			resp := origintest.Reply(http.StatusPartialContent, io.NopCloser(strings.NewReader("x")))
			if r.Header.Get("Range") == "" {
				resp.StatusCode = http.StatusOK
			}
			resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-9/10", asked/5-1))
			return resp, nil
		})
		var got bytes.Buffer
		must.NoError(t, o.Fetch(t.Context(), 0, 10, &got))
		must.Eq(t, "xxxxxxxxxx", got.String())
		must.Eq(t, 50, asked)
	})
}

// A server's "nothing follows the end" is accepted only for the expected file.
func TestRangeBehindEnd(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		size, from int64
		says       string
		kind       core.Kind
	}{
		"the whole was there":           {100, 100, "bytes */100", ""},
		"size unknown":                  {0, 100, "bytes */100", ""},
		"a shorter file":                {100, 50, "bytes */50", core.Conflict},
		"another place":                 {100, 50, "bytes */100", core.Conflict},
		"size unknown, another place":   {0, 50, "bytes */100", core.Conflict},
		"nothing said about the length": {100, 100, "bytes */*", core.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			o := offline(t, tc.size, func(*http.Request) (*http.Response, error) {
				resp := origintest.Reply(http.StatusRequestedRangeNotSatisfiable, http.NoBody)
				resp.Header.Set("Content-Range", tc.says)
				return resp, nil
			})
			must.Eq(t, tc.kind, core.KindOf(o.Fetch(t.Context(), tc.from, -1, io.Discard)))
		})
	}
}

// A transfer stays within the limit, and arrives in parts small enough to look smooth.
func TestFetchIsLimited(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		c, err := origin.New(origin.Options{})
		must.NoError(t, err)
		c.HTTP().Transport = roundTripper(func(*http.Request) (*http.Response, error) {
			return origintest.Reply(http.StatusOK, io.NopCloser(bytes.NewReader(noise(1_000_000)))), nil
		})
		o := origins(t, download.File{URL: "https://models.example/m.gguf"}, download.Options{Client: c, Limit: download.NewLimiter(100_000)})
		began, most := time.Now(), 0
		must.NoError(t, o.Fetch(t.Context(), 0, -1, writerFunc(func(b []byte) (int, error) { most = max(most, len(b)); return len(b), nil })))
		must.Eq(t, 10*time.Second, time.Since(began).Round(time.Millisecond))
		must.LessEq(t, 10_000, most)

		// This holds for pieces of any size, and a cancelled transfer does not wait.
		c.HTTP().Transport = roundTripper(func(*http.Request) (*http.Response, error) {
			return origintest.Reply(http.StatusOK, io.NopCloser(iotest.OneByteReader(bytes.NewReader(noise(1000))))), nil
		})
		o = origins(t, download.File{URL: "https://models.example/m.gguf"}, download.Options{Client: c, Limit: download.NewLimiter(100)})
		began = time.Now()
		must.NoError(t, o.Fetch(t.Context(), 0, -1, io.Discard))
		must.Eq(t, 10*time.Second, time.Since(began).Round(time.Millisecond))
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		began = time.Now()
		must.ErrorIs(t, o.Fetch(ctx, 0, -1, io.Discard), context.DeadlineExceeded)
		must.Eq(t, 1500*time.Millisecond, time.Since(began))
	})
}

// A part must lie within the file's size and be complete.
func TestParts(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		size, from, to int64
		says           string
		kind           core.Kind
	}{
		"whole part":             {10, 5, 10, "bytes 5-9/10", ""},
		"no total":               {10, 5, 10, "bytes 5-9/*", ""},
		"less than asked for":    {10, 2, 10, "bytes 2-9/10", ""},
		"beyond the size":        {10, 5, -1, "bytes 5-10/*", core.Conflict},
		"another total":          {10, 5, 10, "bytes 5-9/11", core.Conflict},
		"no part but a total":    {10, 5, 10, "bytes */10", core.Conflict},
		"size unknown":           {0, 5, 10, "bytes 5-9/10", ""},
		"a part of what was not": {10, 0, 10, "bytes 0-9/10", core.Conflict},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			data := []byte("0123456789x")
			o := offline(t, tc.size, func(r *http.Request) (*http.Response, error) {
				first, last, _, _ := download.ParseContentRange(tc.says)
				resp := origintest.Reply(http.StatusPartialContent, io.NopCloser(bytes.NewReader(data[first:last+1])))
				resp.Header.Set("Content-Range", tc.says)
				return resp, nil
			})
			var got bytes.Buffer
			must.Eq(t, tc.kind, core.KindOf(o.Fetch(t.Context(), tc.from, tc.to, &got)), must.Sprint(got.String()))
			if tc.kind == "" {
				must.Eq(t, string(data[tc.from:tc.to]), got.String())
			}
		})
	}
}

// A body without a length that ends early is resumed where it ended; if the size is unknown, its
// end is the file's end. Skipped bytes count as well.
func TestEarlyEnd(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for name, tc := range map[string]struct {
			size, from int64
			bodies     []string // "|" marks the end of a read
			want       string
			kind       core.Kind
		}{
			"goes on":            {10, 0, []string{"01234", "0123456789"}, "0123456789", ""},
			"within the skipped": {10, 5, []string{"012", "0123456789"}, "56789", ""},
			"no size":            {0, 5, []string{"0123456789"}, "56789", ""},
			"not even the start": {0, 5, []string{"012", "", "01", "012", "0123456789"}, "56789", ""},
			"never comes":        {0, 5, []string{"012", "", "01", "012", "", "0123"}, "", core.Unavailable},
			"comes empty":        {10, 0, []string{"", "", "", "", "", ""}, "", core.Unavailable},
			"too much":           {10, 5, []string{"0123456789x"}, "", core.Conflict},
			"too much, later":    {10, 5, []string{"0123456789|x"}, "56789", core.Conflict},
		} {
			asked := 0
			o := offline(t, tc.size, func(*http.Request) (*http.Response, error) {
				asked++
				var parts []io.Reader
				for part := range strings.SplitSeq(tc.bodies[asked-1], "|") {
					parts = append(parts, strings.NewReader(part))
				}
				return origintest.Reply(http.StatusOK, io.NopCloser(io.MultiReader(parts...))), nil
			})
			var got bytes.Buffer
			must.Eq(t, tc.kind, core.KindOf(o.Fetch(t.Context(), tc.from, -1, &got)), must.Sprint(name))
			must.Eq(t, tc.want, got.String(), must.Sprint(name))
			must.Eq(t, len(tc.bodies), asked)
		}
	})
}

// A server may send less than requested: the rest is then requested.
func TestShortParts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		for _, size := range []int64{10, 0} {
			data, asked := "0123456789", []string{}
			o := offline(t, size, func(r *http.Request) (*http.Response, error) {
				asked = append(asked, r.Header.Get("Range"))
				first, _, _, _ := download.ParseContentRange("bytes " + strings.TrimPrefix(r.Header.Get("Range"), "bytes=") + "/10")
				resp := origintest.Reply(http.StatusPartialContent, io.NopCloser(strings.NewReader(data[first:first+2])))
				resp.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/10", first, first+1))
				return resp, nil
			})
			var got bytes.Buffer
			must.NoError(t, o.Fetch(t.Context(), 2, 8, &got))
			must.Eq(t, "234567", got.String())
			must.Eq(t, []string{"bytes=2-7", "bytes=4-7", "bytes=6-7"}, asked)
		}
		must.Zero(t, time.Since(began), must.Sprint("that is no trouble: there is no pause"))
	})
}

// A file of unknown size is as long as its server announces, and an earlier end is a break.
func TestAnnouncedLength(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, from := range []int64{0, 3} {
			asked := 0
			o := offline(t, 0, func(*http.Request) (*http.Response, error) {
				asked++
				resp := origintest.Reply(http.StatusOK, io.NopCloser(strings.NewReader("0123456789"[:5*min(asked, 2)])))
				resp.ContentLength = 10
				return resp, nil
			})
			var got bytes.Buffer
			must.NoError(t, o.Fetch(t.Context(), from, -1, &got))
			must.Eq(t, "0123456789"[from:], got.String())
			must.Eq(t, 2, asked)
		}
	})
}

// A server that is too busy is asked again when it suggests, unless that is longer than a transfer
// waits.
func TestLongestPause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for seconds, asks := range map[int]int{20: 2, 30: 2, 31: 1} {
			asked := 0
			o := offline(t, 1, func(*http.Request) (*http.Response, error) {
				if asked++; asked == 1 {
					resp := origintest.Reply(http.StatusTooManyRequests, http.NoBody)
					resp.Header.Set("Retry-After", fmt.Sprint(seconds))
					return resp, nil
				}
				return origintest.Reply(http.StatusOK, io.NopCloser(strings.NewReader("x"))), nil
			})
			began := time.Now()
			err := o.Fetch(t.Context(), 0, 1, io.Discard)
			must.Eq(t, asks == 2, err == nil, must.Sprint(seconds, err))
			must.Eq(t, asks, asked)
			if err == nil {
				must.Eq(t, time.Duration(seconds)*time.Second, time.Since(began))
			}
		}
	})
}

// The body of an error is used only for the message, and is read only as far as the message needs.
func TestErrorBodyIsBounded(t *testing.T) {
	t.Parallel()
	read := 0
	o := offline(t, 10, func(*http.Request) (*http.Response, error) {
		return origintest.Reply(http.StatusNotFound, io.NopCloser(readerFunc(func(b []byte) (int, error) {
			if read += len(b); read > 1<<20 {
				return 0, io.EOF
			}
			return copy(b, bytes.Repeat([]byte{'x'}, len(b))), nil
		}))), nil
	})
	must.Eq(t, core.NotFound, core.KindOf(o.Fetch(t.Context(), 0, 10, io.Discard)))
	must.LessEq(t, 8<<10, read)
}

type readerFunc func(b []byte) (int, error)

func (f readerFunc) Read(b []byte) (int, error) { return f(b) }

// At the end of the redirects, "wait" and "nothing follows the end" are answers about the file. Any
// other refusal concerns the address, which is looked up again.
func TestDirectAddressRefuses(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for status, want := range map[int]string{
			http.StatusForbidden: "redirect direct direct redirect direct", http.StatusNotFound: "redirect direct direct redirect direct",
			http.StatusBadRequest: "redirect direct direct redirect direct", 499: "redirect direct direct redirect direct",
			http.StatusTooManyRequests: "redirect direct direct direct", http.StatusInternalServerError: "redirect direct direct direct",
			http.StatusRequestedRangeNotSatisfiable: "redirect direct direct",
		} {
			var asked []string
			o := offline(t, 10, func(r *http.Request) (*http.Response, error) {
				if r.URL.Path != "/direct" {
					asked = append(asked, "redirect")
					resp := origintest.Reply(http.StatusFound, http.NoBody)
					resp.Header.Set("Location", "/direct")
					return resp, nil
				}
				asked = append(asked, "direct")
				if len(asked) == 3 {
					return origintest.Reply(status, http.NoBody), nil
				}
				resp := origintest.Reply(http.StatusPartialContent, io.NopCloser(strings.NewReader("01234")))
				resp.Header.Set("Content-Range", "bytes 0-4/10")
				return resp, nil
			})
			must.NoError(t, o.Fetch(t.Context(), 0, 5, io.Discard))
			err := o.Fetch(t.Context(), 0, 5, io.Discard)
			must.Eq(t, status == http.StatusRequestedRangeNotSatisfiable, err != nil, must.Sprint(status, err))
			must.Eq(t, want, strings.Join(asked, " "), must.Sprint(status))
		}
	})
}

// A server's description of a part is parsed strictly or rejected.
func TestParseContentRange(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][3]int64{
		"bytes 5-9/10": {5, 9, 10}, "bytes 0-0/1": {0, 0, 1}, "bytes 5-9/*": {5, 9, -1}, "bytes */10": {0, -1, 10}, "bytes */*": {0, -1, -1}, "bytes */0": {0, -1, 0},
		"bytes 9-5/10": {}, "bytes 5-10/10": {}, "bytes 5-9": {}, "bytes 5/10": {}, "bytes 5-/10": {}, "bytes -9/10": {}, "5-9/10": {}, "lines 5-9/10": {}, "bytes=5-9/10": {}, "bytes 5-9/": {},
		"bytes 5-9/x": {}, "bytes 5-9/-1": {}, "bytes +5-9/10": {}, "bytes 5-9/10 ": {}, "": {}, "bytes 5-9/99999999999999999999": {}, "bytes 5-:/10": {}, "bytes /-9/10": {},
	} {
		first, last, total, ok := download.ParseContentRange(text)
		must.Eq(t, want != [3]int64{}, ok, must.Sprintf("%q", text))
		if ok {
			must.Eq(t, want, [3]int64{first, last, total}, must.Sprintf("%q", text))
		}
	}
}

// Without a digest, only the server's name for the version shows that new bytes belong to the
// existing ones.
func TestResumeWithoutDigest(t *testing.T) {
	t.Parallel()
	const monday, tuesday = "Mon, 02 Jan 2006 15:04:05 GMT", "Tue, 03 Jan 2006 15:04:05 GMT"
	for name, tc := range map[string]struct {
		from           int64
		known          string
		etag, modified string
		says           string // empty: the transfer continues
	}{
		"the beginning needs no name": {},
		"nobody knows":                {from: 5, says: "the file at models.example has changed: it is unknown whether it is the same as before"},
		"named now":                   {from: 5, etag: `"v1"`},
		"the same ETag":               {from: 5, known: `etag "v1"`, etag: `"v1"`},
		"another ETag":                {from: 5, known: `etag "v1"`, etag: `"v2"`, says: "it is another version than before"},
		"the same date":               {from: 5, known: "modified " + monday, modified: monday},
		"another date":                {from: 5, known: "modified " + monday, modified: tuesday, says: "it is another version than before"},
		"an ETag instead of a date":   {from: 5, known: "modified " + monday, etag: `"v1"`, says: "it is another version than before"},
		"no name any more":            {from: 5, known: `etag "v1"`, says: "it is another version than before"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c, err := origin.New(origin.Options{})
			must.NoError(t, err)
			c.HTTP().Transport = roundTripper(func(*http.Request) (*http.Response, error) { // it ignores ranges
				resp := origintest.Reply(http.StatusOK, io.NopCloser(strings.NewReader("0123456789")))
				resp.Header.Set("ETag", tc.etag)
				resp.Header.Set("Last-Modified", tc.modified)
				return resp, nil
			})
			o := origins(t, download.File{URL: "https://models.example/", SizeBytes: 10}, download.Options{Client: c})
			o.Expect(tc.known)
			var got bytes.Buffer
			err = o.Fetch(t.Context(), tc.from, 9, &got)
			if tc.says == "" {
				must.NoError(t, err)
				must.Eq(t, "0123456789"[tc.from:], got.String())
				return
			}
			must.Eq(t, core.Conflict, core.KindOf(err))
			must.ErrorContains(t, err, tc.says)
			must.Zero(t, got.Len())
		})
	}
}

// After a conflict nothing is remembered: neither the version nor the target of the redirects.
func TestConflictForgets(t *testing.T) {
	t.Parallel()
	body := noise(1000)
	var cdn *server
	s := serve(t, func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, cdn.URL+"/signed", http.StatusFound) })
	var n atomic.Int64
	cdn = serve(t, func(w http.ResponseWriter, r *http.Request) { content(body, fmt.Sprintf(`"v%d"`, n.Add(1)))(w, r) })
	o := origins(t, file(s, body), options(t))
	must.NoError(t, o.Fetch(t.Context(), 0, 10, io.Discard))
	must.Eq(t, core.Conflict, core.KindOf(o.Fetch(t.Context(), 10, 20, io.Discard)))
	must.Eq(t, "", o.Version())
	must.NoError(t, o.Fetch(t.Context(), 0, 10, io.Discard))
	must.Len(t, 2, s.headers("Range")) // the address was asked again
}

// A weak ETag can be compared, but cannot be the condition of a range request.
func TestIfRange(t *testing.T) {
	t.Parallel()
	for tag, want := range map[string]string{`etag "v1"`: `"v1"`, `etag W/"v1"`: "", "modified Mon, 02 Jan 2006 15:04:05 GMT": "Mon, 02 Jan 2006 15:04:05 GMT", "": ""} {
		o := offline(t, 100, func(r *http.Request) (*http.Response, error) {
			must.Eq(t, want, r.Header.Get("If-Range"), must.Sprint(tag))
			must.Eq(t, "identity", r.Header.Get("Accept-Encoding"))
			must.Eq(t, "*/*", r.Header.Get("Accept"))
			return origintest.Reply(http.StatusNotFound, http.NoBody), nil
		})
		o.Expect(tag)
		must.Eq(t, core.NotFound, core.KindOf(o.Fetch(t.Context(), 10, 20, io.Discard)))
	}
}

// Idle time earns no credit, a new rate applies at once, and a cancelled caller does not wait.
func TestLimiterKeepsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := download.NewLimiter(10_000)
		send := func(ctx context.Context, n int) time.Duration {
			began := time.Now()
			_, _ = l.Writer(ctx, io.Discard).Write(make([]byte, n)) // may be cancelled
			return time.Since(began).Round(time.Millisecond)
		}
		must.Eq(t, time.Second, send(t.Context(), 10_000))
		time.Sleep(time.Hour)
		must.Eq(t, time.Second, send(t.Context(), 10_000))

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		l.SetRate(1)
		must.Eq(t, time.Second, send(ctx, 1000))
		l.SetRate(10_000)
		must.Eq(t, time.Second, send(t.Context(), 10_000), must.Sprint("the slow part is forgotten"))

		// A cancelled writer returns how many bytes got through.
		ctx, cancel = context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		n, err := l.Writer(ctx, io.Discard).Write(make([]byte, 20_000))
		must.ErrorIs(t, err, context.DeadlineExceeded)
		must.Between(t, 14_000, n, 15_360)
		time.Sleep(time.Hour) // the time reserved for it

		// Bytes pass evenly: at most a tenth of a second's worth at a time.
		var most int
		w := l.Writer(t.Context(), writerFunc(func(b []byte) (int, error) { most = max(most, len(b)); return len(b), nil }))
		l.SetRate(100_000)
		_, err = w.Write(make([]byte, 100_000))
		must.NoError(t, err)
		must.Eq(t, 10_000, most)
	})
}
