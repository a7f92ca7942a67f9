// Package download fetches ranges of one file by HTTP: it resumes after a cut, fetches several
// ranges at once, and never mixes two versions.
package download

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

const (
	attempts   = 6 // consecutive attempts without any bytes
	maxBackoff = 15 * time.Second
	readBytes  = 256 << 10
)

// File is the file to fetch.
type File struct {
	URL string // http or https
	// sent only to the URL's own origin; may contain a credential, which is never written anywhere
	Header    map[string]string
	SizeBytes int64 // 0: unknown
	// Digested reports that the caller will verify the digest of the whole: parts may be combined
	// although the server does not name versions.
	Digested bool
}

// Options configure how to fetch a file.
type Options struct {
	Client      *origin.Client
	Connections int      // concurrent, 1 or more
	Limit       *Limiter // nil: none
	// Stall is how long a connection may deliver no bytes before it is dropped; 0: 30 s.
	Stall time.Duration
	// Backoff is the pause before the second attempt, doubled for each later one; 0: 500 ms.
	Backoff time.Duration
}

// Origin is one file at its HTTP server. It is a source of core/store. It is safe for concurrent
// use.
type Origin struct {
	f      File
	o      Options
	u      *url.URL
	header http.Header

	mu       sync.Mutex // guards below
	version  validator  // version of the file, if known
	noRanges bool
	direct   *url.URL // where the URL's redirects end; nil: unknown
}

// New prepares a file without connecting. Errors: core.Invalid for an unusable address.
func New(f File, o Options) (*Origin, error) {
	u, err := url.Parse(f.URL)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		// its text may contain a secret
		return nil, core.Errorf(core.Invalid, "the file's address is not an http or https URL")
	}
	o.Connections = max(o.Connections, 1)
	o.Stall = cmp.Or(o.Stall, 30*time.Second)
	o.Backoff = cmp.Or(o.Backoff, 500*time.Millisecond)
	h := http.Header{}
	for name, value := range f.Header {
		h.Set(name, value)
	}
	return &Origin{f: f, o: o, u: u, header: h}, nil
}

// Name returns the server's host.
func (o *Origin) Name() string { return o.u.Host }

// Origin returns the address without parts that may be secret.
func (o *Origin) Origin() string {
	sum := sha256.Sum256([]byte(origin.Redact(o.u)))
	return hex.EncodeToString(sum[:8])
}

// Connections returns how many parallel ranges help: 1 if the server has shown that it does not
// support ranges.
func (o *Origin) Connections() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.noRanges || o.version.empty() && !o.f.Digested {
		return 1
	}
	return o.o.Connections
}

// Version returns the server's name for the file's version; empty if it has none, or if it is not
// known yet.
func (o *Origin) Version() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.version.String()
}

// Expect makes Fetch fail with core.Conflict for any other version.
func (o *Origin) Expect(version string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.version = parseValidator(version)
}

// Fetch writes the bytes from offset from on into w, at least those before to (-1: to the end). It
// reconnects after a break as long as bytes arrive between two breaks. If the server ignores
// ranges, it continues to write past to. Errors: core.Conflict if the file has another version or
// size than before, or if the server contradicts itself about the file; w's own, unchanged; those
// of origin.Client.Explain.
func (o *Origin) Fetch(ctx context.Context, from, to int64, w io.Writer) error {
	r := &run{o: o, at: from, to: to, w: w}
	failures := 0
	for {
		before := r.at
		err := r.attempt(ctx)
		if r.at > before {
			failures = 0
		}
		switch {
		case err == nil && (r.done || to >= 0 && r.at >= to):
			return nil
		case err == nil:
			continue // the server sent less than requested
		case r.failed != nil:
			return r.failed
		case ctx.Err() != nil:
			return ctx.Err()
		case core.KindOf(err) == core.Conflict:
			o.forget()
			return err
		}
		failures++
		pause, again := o.again(err, failures)
		if !again {
			return o.explain(ctx, err)
		}
		if err := sleep(ctx, pause); err != nil {
			return err
		}
	}
}

// again reports whether and when to try again.
func (o *Origin) again(err error, failures int) (time.Duration, bool) {
	if failures >= attempts {
		return 0, false
	}
	// Wait between half the pause and the whole, so that many hives do not retry at the same time.
	pause := min(o.o.Backoff<<(failures-1), maxBackoff)
	pause = pause/2 + rand.N(pause/2+1)
	if s, ok := errors.AsType[*origin.StatusError](err); ok {
		if !s.Temporary() || s.RetryAfter > origin.MaxRetryAfter {
			return 0, false
		}
		return max(pause, s.RetryAfter), true
	}
	_, refused := errors.AsType[*core.Error](err)
	return pause, !refused && origin.Temporary(err)
}

// forget makes the next Fetch accept whatever version exists then.
func (o *Origin) forget() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.version, o.direct = validator{}, nil
}

// target returns the address to ask, and reports whether it is the end of the redirects.
func (o *Origin) target() (*url.URL, bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.direct != nil {
		return o.direct, true
	}
	return o.u, false
}

func (o *Origin) setDirect(u *url.URL) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.direct = u
}

// validator is a server's name for a version of a file.
type validator struct{ etag, modified string }

func (v validator) empty() bool { return v == validator{} }

func (v validator) String() string {
	if v.etag != "" {
		return "etag " + v.etag
	}
	if v.modified != "" {
		return "modified " + v.modified
	}
	return ""
}

func parseValidator(text string) (v validator) {
	if e, ok := strings.CutPrefix(text, "etag "); ok {
		v.etag = e
	} else if m, ok := strings.CutPrefix(text, "modified "); ok {
		v.modified = m
	}
	return v
}

// plain returns the form that is compared: a weak ETag names the same version as a strong one.
func (v validator) plain() validator {
	v.etag = strings.TrimPrefix(v.etag, "W/")
	return v
}

// strong returns the value for If-Range; empty if no validator is strong enough.
func (v validator) strong() string {
	if v.etag != "" && !strings.HasPrefix(v.etag, "W/") {
		return v.etag
	}
	if v.etag == "" {
		return v.modified
	}
	return ""
}

// take compares the version of a reply with the known one, and records it. same is false for
// another version.
func (o *Origin) take(h http.Header) (same, known bool) {
	got := validator{etag: h.Get("ETag")}
	if got.etag == "" {
		got.modified = h.Get("Last-Modified")
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.version.empty() {
		o.version = got
		return true, !got.empty()
	}
	return got.plain() == o.version.plain(), true
}

func (o *Origin) changed(format string, args ...any) error {
	err := core.Errorf(core.Conflict, "%s at %s has changed: %s", fileName(o.u), o.u.Host, fmt.Sprintf(format, args...))
	return core.WithHint(err, "Try again: the file was replaced while it was fetched.")
}

func fileName(u *url.URL) string {
	if name := u.Path[strings.LastIndex(u.Path, "/")+1:]; name != "" {
		return name
	}
	return "the file"
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}
