package origin

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
)

const (
	// MaxReplyBytes is the most bytes that a reply of Get may have after decompression.
	MaxReplyBytes = 8 << 20
	// maxRatio bounds the compression ratio of large replies. JSON reaches 50.
	maxRatio       = 200
	ratioFromBytes = 256 << 10
	maxAttempts    = 4
	replyTimeout   = time.Minute // for one attempt: header and body
)

// Reply is an origin's reply.
type Reply struct {
	URL    *url.URL // final address, after redirects
	Status int      // 2xx or 304
	Header http.Header
	Body   []byte
}

// Get requests metadata, such as JSON, with header, which the package comment describes. It tries
// up to 4 times if the origin has trouble, and waits as long as the origin asks, up to
// MaxRetryAfter. Errors: *StatusError for a status that is neither 2xx nor 304, ErrTooLarge for a
// reply larger than MaxReplyBytes or with an absurd compression ratio, and those of Explain.
func (c *Client) Get(ctx context.Context, address string, header http.Header) (Reply, error) {
	u, err := url.Parse(address)
	if err != nil {
		// the error's text may hold a secret
		return Reply{}, fmt.Errorf("an address cannot be read: %w", sdk.ErrInvalid)
	}
	for attempt := 1; ; attempt++ {
		r, err := c.get(ctx, u, header)
		if err == nil {
			return r, nil
		}
		if attempt == maxAttempts || !again(ctx, c.o.Backoff, attempt, err) {
			return Reply{}, c.Explain(ctx, u, err)
		}
	}
}

func (c *Client) get(ctx context.Context, u *url.URL, header http.Header) (Reply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, replyTimeout, fmt.Errorf("no whole reply within %s", replyTimeout))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return Reply{}, fmt.Errorf("an address cannot be used: %w", sdk.ErrInvalid)
	}
	maps.Copy(req.Header, header)
	req.Header.Set("Accept-Encoding", "gzip")
	resp, err := c.http.Do(req)
	if err != nil {
		return Reply{}, cause(ctx, err)
	}
	defer resp.Body.Close()
	good := resp.StatusCode/100 == 2 || resp.StatusCode == http.StatusNotModified
	body, err := readReply(resp)
	switch {
	case !good:
		return Reply{}, NewStatusError(resp, body, time.Now())
	case err != nil:
		return Reply{}, cause(ctx, err)
	}
	return Reply{URL: resp.Request.URL, Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

// readReply reads and decompresses a body within its bounds.
func readReply(resp *http.Response) ([]byte, error) {
	if resp.ContentLength > MaxReplyBytes {
		return nil, tooLarge(resp)
	}
	packed := &counter{r: io.LimitReader(resp.Body, MaxReplyBytes+1)}
	var r io.Reader = packed
	switch encoding := strings.ToLower(resp.Header.Get("Content-Encoding")); encoding {
	case "", "identity":
	case "gzip":
		z, err := gzip.NewReader(packed)
		if errors.Is(err, io.EOF) {
			return nil, nil // no body
		}
		if err != nil {
			return nil, fmt.Errorf("%s sends no gzip: %w", resp.Request.URL.Host, sdk.ErrIntegrity)
		}
		r = z
	default:
		return nil, fmt.Errorf("%s packs its reply as %q, which was not asked for: %w", resp.Request.URL.Host, encoding, sdk.ErrIntegrity)
	}
	var out bytes.Buffer
	for {
		n, err := io.CopyN(&out, r, 64<<10)
		if out.Len() > MaxReplyBytes || out.Len() > ratioFromBytes && int64(out.Len()) > maxRatio*packed.n {
			return nil, tooLarge(resp)
		}
		if errors.Is(err, io.EOF) || err == nil && n == 0 {
			return out.Bytes(), nil
		}
		if err != nil && packed.n > MaxReplyBytes {
			return nil, tooLarge(resp)
		}
		if err != nil {
			return out.Bytes(), err
		}
	}
}

func tooLarge(resp *http.Response) error {
	return fmt.Errorf("%s sends a reply that is larger, or packed tighter, than any real one: %w", Redact(resp.Request.URL), sdk.ErrTooLarge)
}

type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}

// again reports whether to retry a failed attempt, after waiting for the backoff. attempt counts
// from 1.
func again(ctx context.Context, backoff time.Duration, attempt int, err error) bool {
	if !Temporary(err) {
		return false
	}
	wait := backoff << (attempt - 1)
	wait += rand.N(wait/2 + 1)
	if s, ok := errors.AsType[*StatusError](err); ok {
		wait = max(wait, s.RetryAfter)
	}
	select {
	case <-ctx.Done():
		return false
	case <-time.After(wait):
		return true
	}
}

// cause returns why a request's own context ended, if that is what made the request fail.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); c != nil && !errors.Is(c, context.Canceled) {
		return c
	}
	return err
}
