package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/rbee-project/rbee/plugins/sdk/catalog"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

// transfer writes a file from offset to its end, size bytes in all (0: unknown). It has no time
// limit as long as bytes arrive.
func (c *client) transfer(ctx context.Context, u *url.URL, size, offset int64, w io.Writer) error {
	t := &origin.Transfer{Name: u.Redacted(), SizeBytes: size, Stall: c.stall, Backoff: c.backoff, Ask: func(ctx context.Context, h http.Header) (*http.Response, error) {
		resp, err := c.do(ctx, http.MethodGet, u, h)
		if errors.Is(err, errPrivate) {
			err = fmt.Errorf("%w: %w", err, catalog.ErrForbidden) // not worth a retry
		}
		return resp, err
	}}
	err := t.Run(ctx, offset, w)
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[origin.WriteError](err); ok {
		return e.Err
	}
	if s, ok := errors.AsType[*origin.StatusError](err); ok {
		err = &failure{url: u, status: s.Status, retryAfter: s.RetryAfter}
	}
	return c.explain(ctx, u, err)
}
