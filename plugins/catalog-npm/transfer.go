package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/catalog"
)

// transfer is one file on its way from a registry. Broken connections are mended by asking for the rest.
type transfer struct {
	c    *client
	url  *url.URL
	size int64 // 0: unknown
	w    io.Writer
	at   int64  // of the next byte to write
	etag string // of the part that was written by this transfer
	from int64  // where the transfer began
}

// errWrite is a failure of whom the bytes are for.
type errWrite struct{ error }

func (e errWrite) Unwrap() error { return e.error }

// run writes the file from t.at to its end. There is no limit to how long it takes as long as something comes.
func (t *transfer) run(ctx context.Context) error {
	for attempt := 1; ; attempt++ {
		before := t.at
		err := t.attempt(ctx)
		if err == nil {
			return nil
		}
		if e, ok := errors.AsType[errWrite](err); ok {
			return e.error
		}
		if t.at > before {
			attempt = 1
		}
		if !t.c.again(ctx, attempt, err) {
			return t.c.explain(ctx, t.url, err)
		}
	}
}

// attempt asks for what is missing and writes what comes.
func (t *transfer) attempt(ctx context.Context) error {
	if t.size > 0 && t.at == t.size {
		return nil
	}
	ctx, kick, stop := t.c.watched(ctx)
	defer stop()
	// The digest is that of the file as it is: no compression on the way.
	h := http.Header{"Accept-Encoding": {"identity"}, "Accept": {"*/*"}}
	if t.at > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", t.at))
		if t.etag != "" {
			h.Set("If-Range", t.etag)
		}
	}
	resp, err := t.c.do(ctx, http.MethodGet, t.url, h)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	kick()
	r := body{resp.Body, kick}
	skip, total := int64(0), resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
		// It does not know ranges, or the file is another one than before.
		if err := t.same(resp); err != nil {
			return err
		}
		skip = t.at
	case http.StatusPartialContent:
		start, whole, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || start != t.at {
			return fmt.Errorf("%s was asked for the bytes from %d and answers %q: %w", t.url.Redacted(), t.at, resp.Header.Get("Content-Range"), catalog.ErrIntegrity)
		}
		if err := t.same(resp); err != nil {
			return err
		}
		total = whole
	case http.StatusRequestedRangeNotSatisfiable:
		if _, whole, ok := contentRange(resp.Header.Get("Content-Range")); ok && whole == t.at && (t.size == 0 || t.size == whole) {
			return nil // all was there
		}
		return t.changed()
	default:
		return failed(t.url, resp)
	}
	if total >= 0 && t.size > 0 && total != t.size {
		return t.changed()
	}
	if total < 0 && t.size > 0 {
		total = t.size
	}
	t.etag = strongETag(resp)
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, r, skip); err != nil {
			return cause(ctx, err)
		}
	}
	return t.copy(ctx, r, total)
}

// same refuses the rest of another file than the one whose beginning was written.
func (t *transfer) same(resp *http.Response) error {
	if tag := strongETag(resp); t.at > t.from && t.etag != "" && tag != "" && tag != t.etag {
		return t.changed()
	}
	return nil
}

func (t *transfer) changed() error {
	return sdk.WithHint(fmt.Errorf("%s has changed since it was looked up: %w", t.url.Redacted(), catalog.ErrIntegrity), "Try again: it is looked up and fetched anew.")
}

// copy writes what comes, and misses the rest if that is not all of total (below 0: unknown).
func (t *transfer) copy(ctx context.Context, r io.Reader, total int64) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := r.Read(buf)
		if total >= 0 && int64(n) > total-t.at {
			return fmt.Errorf("%s sends more than the %d bytes that it announced: %w", t.url.Redacted(), total, catalog.ErrIntegrity)
		}
		if n > 0 {
			written, err := t.w.Write(buf[:n])
			t.at += int64(written)
			if err != nil {
				return errWrite{err}
			}
		}
		if errors.Is(err, io.EOF) {
			if total >= 0 && t.at < total {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return cause(ctx, err)
		}
	}
}

// cause is why a request's context ended, where that is why the request failed.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && errors.Is(c, errStalled) {
		return c
	}
	return err
}

func strongETag(resp *http.Response) string {
	if tag := resp.Header.Get("ETag"); !strings.HasPrefix(tag, "W/") {
		return tag
	}
	return ""
}

// contentRange reads "bytes 5-9/10" as 5, 10 and "bytes */10" as 0, 10. An unknown whole is -1.
func contentRange(text string) (start, whole int64, ok bool) {
	rest, ok := strings.CutPrefix(text, "bytes ")
	if !ok {
		return 0, 0, false
	}
	span, all, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, false
	}
	whole = -1
	if all != "*" {
		n, err := strconv.ParseInt(all, 10, 64)
		if err != nil || n < 0 {
			return 0, 0, false
		}
		whole = n
	}
	if span == "*" {
		return 0, whole, true
	}
	first, last, ok := strings.Cut(span, "-")
	a, err1 := strconv.ParseInt(first, 10, 64)
	b, err2 := strconv.ParseInt(last, 10, 64)
	if !ok || err1 != nil || err2 != nil || a < 0 || b < a || whole >= 0 && b >= whole {
		return 0, 0, false
	}
	return a, whole, true
}
