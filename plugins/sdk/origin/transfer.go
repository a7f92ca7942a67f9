package origin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
)

const transferAttempts = 5 // in a row, without any progress

// Fetch writes the bytes of a file from offset to its end into w. After a broken connection it
// requests the rest; it has no time limit as long as bytes arrive. sizeBytes is the file's size, 0
// if unknown. Errors: w's own unchanged, ErrIntegrity for a file other than the expected one, and
// those of Explain.
func (c *Client) Fetch(ctx context.Context, address string, header http.Header, sizeBytes, offset int64, w io.Writer) error {
	u, err := url.Parse(address)
	if err != nil {
		// the error's text may hold a secret
		return fmt.Errorf("an address cannot be read: %w", sdk.ErrInvalid)
	}
	t := &Transfer{Name: Redact(u), SizeBytes: sizeBytes, Stall: c.o.Stall, Backoff: c.o.Backoff, Ask: func(ctx context.Context, extra http.Header) (*http.Response, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
		if err != nil {
			return nil, fmt.Errorf("an address cannot be used: %w", sdk.ErrInvalid)
		}
		maps.Copy(req.Header, extra)
		maps.Copy(req.Header, header) // may override Accept
		return c.http.Do(req)
	}}
	err = t.Run(ctx, offset, w)
	if e, ok := errors.AsType[WriteError](err); ok {
		return e.Err
	}
	return c.Explain(ctx, u, err)
}

// Transfer fetches one file from an origin. Use it once.
type Transfer struct {
	// Ask sends a request with these headers and returns the reply after redirects, whatever its
	// status. Its errors are retried unless they are classified.
	Ask            func(ctx context.Context, header http.Header) (*http.Response, error)
	Name           string // for messages; holds no secret
	SizeBytes      int64  // 0: unknown
	Stall, Backoff time.Duration

	w    io.Writer
	at   int64  // offset of the next byte to write
	from int64  // offset at which the transfer began
	etag string // ETag of the part already written
}

// WriteError wraps a failure of the writer.
type WriteError struct{ Err error }

func (e WriteError) Error() string { return e.Err.Error() }
func (e WriteError) Unwrap() error { return e.Err }

// Run writes the file from offset to its end. Its errors are raw: *StatusError, ErrIntegrity,
// ErrInvalid, those of Ask, and WriteError.
func (t *Transfer) Run(ctx context.Context, offset int64, w io.Writer) error {
	if offset < 0 || t.SizeBytes > 0 && offset > t.SizeBytes {
		return fmt.Errorf("%s has %d bytes and cannot be read from %d: %w", t.Name, t.SizeBytes, offset, sdk.ErrInvalid)
	}
	t.w, t.at, t.from = w, offset, offset
	for attempt := 1; ; attempt++ {
		before := t.at
		err := t.attempt(ctx)
		if _, ours := errors.AsType[WriteError](err); err == nil || ours {
			return err
		}
		if t.at > before {
			attempt = 1
		}
		if attempt >= transferAttempts || !again(ctx, t.Backoff, attempt, err) {
			return err
		}
	}
}

// errStalled is the cause of a transfer aborted because no bytes arrived.
var errStalled = errors.New("nothing has come for too long")

// attempt requests the missing bytes and writes what arrives.
func (t *Transfer) attempt(ctx context.Context) error {
	if t.SizeBytes > 0 && t.at == t.SizeBytes {
		return ctx.Err()
	}
	ctx, cancel := context.WithCancelCause(ctx)
	timer := time.AfterFunc(t.Stall, func() { cancel(fmt.Errorf("%w (%s)", errStalled, t.Stall)) })
	defer cancel(context.Canceled)
	defer timer.Stop()
	// The digest is that of the uncompressed file, so refuse compression.
	h := http.Header{"Accept-Encoding": {"identity"}, "Accept": {"*/*"}}
	if t.at > 0 {
		h.Set("Range", fmt.Sprintf("bytes=%d-", t.at))
		if t.etag != "" {
			h.Set("If-Range", t.etag)
		}
	}
	resp, err := t.Ask(ctx, h)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	timer.Reset(t.Stall)
	skip, total := int64(0), resp.ContentLength
	switch resp.StatusCode {
	case http.StatusOK:
		// The origin does not support ranges, or the file has changed.
		if err := t.same(resp); err != nil {
			return err
		}
		skip = t.at
	case http.StatusPartialContent:
		start, whole, ok := contentRange(resp.Header.Get("Content-Range"))
		if !ok || start != t.at {
			return fmt.Errorf("%s was asked for the bytes from %d and answers %q: %w", t.Name, t.at, resp.Header.Get("Content-Range"), sdk.ErrIntegrity)
		}
		if err := t.same(resp); err != nil {
			return err
		}
		total = whole
	case http.StatusRequestedRangeNotSatisfiable:
		if _, whole, ok := contentRange(resp.Header.Get("Content-Range")); ok && whole == t.at && (t.SizeBytes == 0 || t.SizeBytes == whole) {
			return nil // the file was already complete
		}
		return t.changed()
	default:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // only for the message
		return NewStatusError(resp, body, time.Now())
	}
	if total >= 0 && t.SizeBytes > 0 && total != t.SizeBytes {
		return t.changed()
	}
	if total < 0 && t.SizeBytes > 0 {
		total = t.SizeBytes
	}
	t.etag = strongETag(resp)
	r := &awake{r: resp.Body, timer: timer, stall: t.Stall}
	if skip > 0 {
		if _, err := io.CopyN(io.Discard, r, skip); err != nil {
			return cause(ctx, err)
		}
	}
	return t.copy(ctx, r, total)
}

// awake resets the stall timer on every read.
type awake struct {
	r     io.Reader
	timer *time.Timer
	stall time.Duration
}

func (a *awake) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	if n > 0 {
		a.timer.Reset(a.stall)
	}
	return n, err
}

// same rejects a reply that belongs to another file than the one being transferred.
func (t *Transfer) same(resp *http.Response) error {
	if tag := strongETag(resp); t.at > t.from && t.etag != "" && tag != "" && tag != t.etag {
		return t.changed()
	}
	return nil
}

func (t *Transfer) changed() error {
	return sdk.WithHint(fmt.Errorf("%s has changed since it was looked up: %w", t.Name, sdk.ErrIntegrity), "Try again: it is looked up and fetched anew.")
}

// copy writes what arrives, and fails if that is less than total (below 0: unknown).
func (t *Transfer) copy(ctx context.Context, r io.Reader, total int64) error {
	buf := make([]byte, 128<<10)
	for {
		n, err := r.Read(buf)
		if total >= 0 && int64(n) > total-t.at {
			return fmt.Errorf("%s sends more than the %d bytes that it announced: %w", t.Name, total, sdk.ErrIntegrity)
		}
		if n > 0 {
			written, err := t.w.Write(buf[:n])
			t.at += int64(written)
			if err != nil {
				return WriteError{err}
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

func strongETag(resp *http.Response) string {
	if tag := resp.Header.Get("ETag"); !strings.HasPrefix(tag, "W/") {
		return tag
	}
	return ""
}

// contentRange parses "bytes 5-9/10" as 5, 10 and "bytes */10" as 0, 10. An unknown size is -1.
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
