package origin

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// MaxRetryAfter is the longest Retry-After that is honoured. A longer one ends the request with an
// error that says when to try again.
const MaxRetryAfter = 30 * time.Second

// StatusError is a reply with an unexpected status. errors.Is matches the error of package sdk that
// fits the status.
type StatusError struct {
	URL        string // without its query
	Status     int
	Header     http.Header
	Body       []byte        // the beginning of the body, at most 4 KiB
	RetryAfter time.Duration // requested wait; 0: none
}

// NewStatusError returns the error of a reply, and reads the beginning of its body. now resolves a
// Retry-After given as a date.
func NewStatusError(resp *http.Response, body []byte, now time.Time) *StatusError {
	e := &StatusError{Status: resp.StatusCode, Header: resp.Header, Body: body[:min(len(body), 4<<10)]}
	if resp.Request != nil && resp.Request.URL != nil {
		e.URL = Redact(resp.Request.URL)
	}
	text := resp.Header.Get("Retry-After")
	if s, err := strconv.ParseInt(text, 10, 32); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	} else if at, err := http.ParseTime(text); err == nil {
		e.RetryAfter = max(at.Sub(now), 0)
	}
	return e
}

func (e *StatusError) Error() string {
	return fmt.Sprintf("%s answers %d %s", e.URL, e.Status, http.StatusText(e.Status))
}

// Unwrap returns the error of package sdk that fits the status.
func (e *StatusError) Unwrap() error {
	switch e.Status {
	case http.StatusUnauthorized, http.StatusProxyAuthRequired:
		return sdk.ErrUnauthenticated
	case http.StatusForbidden:
		return sdk.ErrForbidden
	case http.StatusNotFound, http.StatusGone:
		return sdk.ErrNotFound
	}
	return sdk.ErrUnavailable
}

// Temporary reports whether the same request may succeed a little later.
func (e *StatusError) Temporary() bool {
	return e.Status == http.StatusTooManyRequests || e.Status == http.StatusRequestTimeout || e.Status >= 500 && e.Status != http.StatusNotImplemented
}

// Temporary reports whether a request with this raw error is worth a retry.
func Temporary(err error) bool {
	if s, ok := errors.AsType[*StatusError](err); ok {
		return s.Temporary() && s.RetryAfter <= MaxRetryAfter
	}
	// The connection broke or could not be made. A classified error was refused on this side.
	return !classified(err) && !isCertificate(err)
}

func isCertificate(err error) bool {
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return true
	}
	_, ok := errors.AsType[tls.RecordHeaderError](err)
	return ok
}

func classified(err error) bool {
	for _, s := range []error{sdk.ErrInvalid, sdk.ErrNotFound, sdk.ErrUnavailable, sdk.ErrUnauthenticated, sdk.ErrForbidden, sdk.ErrUnsupported, sdk.ErrIntegrity, sdk.ErrTooLarge} {
		if errors.Is(err, s) {
			return true
		}
	}
	return false
}

// Explain classifies the error of a request to u with the errors of package sdk, and adds a hint
// for a person. It omits parts of an address that may be secret. A classified error keeps its class
// and its hint; nil returns nil.
func (c *Client) Explain(ctx context.Context, u *url.URL, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil && !classified(err) {
		return ctx.Err()
	}
	err = bare(err)
	if s, ok := errors.AsType[*StatusError](err); ok {
		return explainStatus(s, err)
	}
	switch {
	case classified(err):
		return err
	case isCertificate(err):
		return sdk.WithHint(fmt.Errorf("%s cannot be trusted: %w: %w", u.Host, err, sdk.ErrUnavailable),
			"If your network has certificates of its own, set SSL_CERT_FILE in the agent's environment to the file that holds them.")
	}
	via := ""
	if p, perr := c.rt.proxy(u); perr == nil && p != nil {
		via = " through the proxy " + p.Host
	}
	return sdk.WithHint(fmt.Errorf("%s cannot be reached%s: %w: %w", u.Host, via, err, sdk.ErrUnavailable),
		"Check the network. If it needs a proxy, set HTTPS_PROXY in the agent's environment.")
}

func explainStatus(s *StatusError, err error) error {
	switch {
	case sdk.HintOf(err) != "":
		return err
	case s.RetryAfter > MaxRetryAfter:
		return sdk.WithHint(err, "It asks to wait: try again in %s.", s.RetryAfter.Round(time.Second))
	case s.Temporary():
		return sdk.WithHint(err, "The origin has trouble or is too busy. Try again later.")
	case s.Status == http.StatusProxyAuthRequired:
		return sdk.WithHint(err, "The proxy wants credentials: write them into HTTPS_PROXY in the agent's environment.")
	}
	return err
}

// bare strips an error of the request's method and address, which may hold a signature.
func bare(err error) error {
	if e, ok := errors.AsType[*url.Error](err); ok {
		return e.Err
	}
	return err
}
