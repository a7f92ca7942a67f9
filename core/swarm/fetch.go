package swarm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/rbee-project/rbee/core"
)

const (
	// answerWithin bounds how long a hive may take to start its answer.
	answerWithin = 15 * time.Second
	// quietFor is how long a hive may send nothing if the leader believes it has no more bytes,
	// silentFor in any case.
	quietFor       = 5 * time.Second
	silentFor      = 40 * time.Second
	maxFailureBody = 64 << 10
	fetchBuffer    = 256 << 10
)

var (
	errQuiet  = errors.New("it has no more bytes")
	errSilent = errors.New("it sends nothing")
)

// link is the connection to one hive's copy of a file. It is safe for concurrent use.
type link struct {
	seeder Seeder
	digest string
	size   int64
	tr     *http.Transport
	doubt  func() bool // the leader does not believe that this hive has more
}

func newLink(s Seeder, digest string, size int64, dial func(ctx context.Context, hive, address string) (net.Conn, error), doubt func() bool) *link {
	return &link{seeder: s, digest: digest, size: size, doubt: doubt, tr: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, s.Hive, s.Address) },
		// Each part gets its own connection: there are few parts, and unrequested bytes on an idle
		// connection would belong to no request.
		DisableKeepAlives: true, DisableCompression: true, MaxResponseHeaderBytes: maxHeader, ResponseHeaderTimeout: answerWithin,
	}}
}

// fetch writes the bytes [from, to) into w, as they arrive. It returns w's error unchanged. Errors:
// Overloaded if the hive serves too many others, NotFound, Unavailable; Cancelled when ctx has
// ended.
func (l *link) fetch(ctx context.Context, from, to int64, w io.Writer) error {
	const op = "fetch from a hive"
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://hive"+blobPath+l.digest, http.NoBody)
	if err != nil {
		return core.Wrap(err, core.Internal, op)
	}
	req.Header.Set("Range", fmt.Sprintf("bytes=%d-%d", from, to-1))
	resp, err := l.tr.RoundTrip(req)
	if err != nil {
		return l.explain(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusPartialContent {
		return l.refusal(resp)
	}
	if got, want := resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-%d/%d", from, to-1, l.size); got != want || resp.ContentLength != to-from {
		return core.Errorf(core.Unavailable, "%s: hive %s sent another range than requested", op, l.seeder.Name)
	}
	body := &watched{r: resp.Body}
	stop := body.watch(l.doubt, cancel)
	_, err = io.CopyBuffer(onlyWriter{w}, body, make([]byte, fetchBuffer))
	stop()
	if body.err != nil {
		return l.explain(ctx, body.err)
	}
	return err // w's error, or nil
}

// explain classifies the end of a connection.
func (l *link) explain(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errQuiet) || errors.Is(cause, errSilent) {
		err = cause
	} else if ctx.Err() != nil {
		return core.FromContext(ctx)
	}
	return core.Errorf(core.Unavailable, "%s: %w", "fetch from hive "+l.seeder.Name, err)
}

// refusal returns the hive's error answer.
func (l *link) refusal(resp *http.Response) error {
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxFailureBody))
	var f core.Failure
	if err != nil || json.Unmarshal(body, &f) != nil || f.Message == "" {
		f = core.Failure{Kind: core.Unavailable, Message: "it answers " + http.StatusText(resp.StatusCode)}
	}
	switch f.Kind {
	case core.Overloaded, core.NotFound:
	default: // another hive does not decide what an unexpected answer means here
		f.Kind = core.Unavailable
	}
	return core.Wrap(f.Err(), f.Kind, "fetch from hive "+l.seeder.Name)
}

// watched is a body that records when bytes arrived, and r's errors.
type watched struct {
	r   io.Reader
	err error // error of r; nil at its regular end

	mu   sync.Mutex // guards last
	last time.Time
}

func (b *watched) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	if n > 0 {
		b.mu.Lock()
		b.last = time.Now()
		b.mu.Unlock()
	}
	if err != nil && !errors.Is(err, io.EOF) {
		b.err = err
	}
	return n, err
}

// watch drops the body when nothing arrives, until stop is called.
func (b *watched) watch(doubt func() bool, giveUp func(error)) (stop func()) {
	b.last = time.Now()
	ended := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-ended:
				return
			case <-tick.C:
			}
			b.mu.Lock()
			silence := time.Since(b.last)
			b.mu.Unlock()
			switch {
			case silence >= silentFor:
				giveUp(errSilent)
			case silence >= quietFor && doubt():
				giveUp(errQuiet)
			}
		}
	})
	return func() { close(ended); wg.Wait() }
}

// onlyWriter restricts io.CopyBuffer to Write.
type onlyWriter struct{ io.Writer }
