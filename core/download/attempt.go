package download

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

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/origin"
)

// run is one call of Fetch.
type run struct {
	o      *Origin
	at     int64 // offset of the next byte
	to     int64 // -1: the end
	w      io.Writer
	done   bool  // the file's end has been reached
	failed error // error of w
}

// errStalled is the cause of an attempt that ended because no bytes arrived.
var errStalled = errors.New("nothing has come for too long")

// attempt requests the missing bytes once and writes what arrives.
func (r *run) attempt(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	timer := time.AfterFunc(r.o.o.Stall, func() { cancel(fmt.Errorf("%w (%s)", errStalled, r.o.o.Stall)) })
	defer timer.Stop()
	resp, err := r.ask(ctx)
	if err != nil {
		return cause(ctx, err)
	}
	defer resp.Body.Close()
	n, skip, err := r.judge(resp)
	if err != nil || r.done {
		return err
	}
	return r.copy(ctx, resp.Body, timer, n, skip)
}

// ask sends the request to the end of the known redirects, or else to the file's address.
func (r *run) ask(ctx context.Context) (*http.Response, error) {
	for {
		u, direct := r.o.target()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			// its text may contain a secret
			return nil, core.Errorf(core.Invalid, "the file's address cannot be used")
		}
		if origin.SameOrigin(u, r.o.u) {
			maps.Copy(req.Header, r.o.header)
		}
		// some origins send the bytes only with this header
		if req.Header.Get("Accept") == "" {
			req.Header.Set("Accept", "*/*")
		}
		req.Header.Set("Accept-Encoding", "identity") // the digest covers the file as it is
		if r.ranged() {
			last := ""
			if r.to >= 0 {
				last = strconv.FormatInt(r.to-1, 10)
			}
			req.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", r.at, last))
			r.o.mu.Lock()
			strong := r.o.version.strong()
			r.o.mu.Unlock()
			if strong != "" {
				req.Header.Set("If-Range", strong)
			}
		}
		resp, err := r.o.o.Client.HTTP().Do(req)
		if err != nil { // the body of a refused redirect is closed by now
			return nil, err
		}
		if direct && resp.StatusCode >= 400 && resp.StatusCode < 500 && resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusRequestedRangeNotSatisfiable {
			_ = resp.Body.Close()
			r.o.setDirect(nil) // its signature has expired, for example
			continue
		}
		return resp, nil
	}
}

// ranged reports whether the request asks for less than the whole file.
func (r *run) ranged() bool { return r.at > 0 || r.to >= 0 && r.to != r.o.f.SizeBytes }

// judge checks that a reply is what was requested: after the bytes to skip, its next n bytes
// (negative: all) are the file's from r.at on.
func (r *run) judge(resp *http.Response) (n, skip int64, err error) {
	o := r.o
	switch resp.StatusCode {
	case http.StatusOK, http.StatusPartialContent, http.StatusRequestedRangeNotSatisfiable:
	default:
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 4<<10)) // only for the message
		return 0, 0, origin.NewStatusError(resp, body, time.Now())
	}
	if e := resp.Header.Get("Content-Encoding"); e != "" && !strings.EqualFold(e, "identity") {
		return 0, 0, core.Errorf(core.Unsupported, "%s sends the file encoded (%.40q)", o.u.Host, e).Hint("The server must send files as they are: choose another one.")
	}
	size := o.f.SizeBytes
	if resp.StatusCode == http.StatusRequestedRangeNotSatisfiable {
		_, _, total, ok := parseContentRange(resp.Header.Get("Content-Range"))
		if ok && total == r.at && (size <= 0 || size == total) {
			r.done = true
			return 0, 0, nil
		}
		return 0, 0, o.changed("it does not have the bytes from %d on", r.at)
	}
	same, known := o.take(resp.Header)
	if !same {
		return 0, 0, o.changed("it is another version than before")
	}
	if u := resp.Request.URL; u.String() != o.u.String() {
		o.setDirect(u)
	}
	if resp.StatusCode == http.StatusPartialContent {
		n, err := r.judgePart(resp)
		return n, 0, err
	}
	if resp.ContentLength >= 0 && size > 0 && resp.ContentLength != size {
		return 0, 0, o.changed("it has %d bytes and should have %d", resp.ContentLength, size)
	}
	if r.ranged() {
		o.mu.Lock()
		o.noRanges = true
		o.mu.Unlock()
		if r.at > 0 && !known && !o.f.Digested {
			return 0, 0, o.changed("it is unknown whether it is the same as before")
		}
	}
	whole := resp.ContentLength
	if size > 0 {
		whole = size
	}
	return whole - r.at, r.at, nil // negative if unknown
}

// judgePart checks the header of a partial reply.
func (r *run) judgePart(resp *http.Response) (n int64, err error) {
	text := resp.Header.Get("Content-Range")
	first, last, total, ok := parseContentRange(text)
	switch size := r.o.f.SizeBytes; {
	case !r.ranged(), !ok, last < 0:
		return 0, r.o.changed("it answers with the part %.60q", text)
	case first != r.at, r.to >= 0 && last >= r.to:
		return 0, r.o.changed("it answers with the part %.60q instead of that from %d to %d", text, r.at, r.to-1)
	case size > 0 && total >= 0 && total != size, size > 0 && last >= size:
		return 0, r.o.changed("its part %.60q is of a file that should have %d bytes", text, size)
	case resp.ContentLength >= 0 && resp.ContentLength != last-first+1:
		return 0, r.o.changed("its part %.60q has %d bytes", text, resp.ContentLength)
	}
	return last - first + 1, nil
}

// copy skips bytes of a reply, then writes n of them (negative: all).
func (r *run) copy(ctx context.Context, body io.Reader, timer *time.Timer, n, skip int64) error {
	buf := make([]byte, r.o.o.Limit.piece(readBytes))
	for {
		timer.Reset(r.o.o.Stall)
		m, err := body.Read(buf)
		timer.Stop()
		b := buf[:m]
		drop := min(skip, int64(m))
		skip -= drop
		b = b[drop:]
		if n >= 0 && int64(len(b)) > n {
			return r.o.changed("it sends more than it announced")
		}
		if m > 0 {
			if err := r.o.o.Limit.wait(ctx, m); err != nil {
				return err
			}
		}
		if len(b) > 0 {
			written, err := r.w.Write(b)
			r.at += int64(written)
			if err != nil {
				r.failed = err
				return err
			}
			n -= int64(len(b)) // if negative, it stays negative
		}
		switch {
		case errors.Is(err, io.EOF) && (n > 0 || skip > 0):
			return io.ErrUnexpectedEOF
		case errors.Is(err, io.EOF):
			r.done = r.to < 0 || r.at >= r.o.f.SizeBytes && r.o.f.SizeBytes > 0
			return nil
		case err != nil:
			return cause(ctx, err)
		}
	}
}

// cause returns why a request was cancelled, if it was.
func cause(ctx context.Context, err error) error {
	if c := context.Cause(ctx); errors.Is(c, errStalled) {
		return c
	}
	return err
}

// explain describes an error and how to fix it.
func (o *Origin) explain(ctx context.Context, err error) error {
	if _, ok := errors.AsType[*core.Error](err); ok {
		return err
	}
	u, _ := url.Parse(origin.Redact(o.u)) // it was parsed before
	return kinds(o.o.Client.Explain(ctx, u, err))
}

// parseContentRange reads "bytes 5-9/10" as 5, 9, 10, and "bytes */10" as 0, -1, 10. An unknown
// total is -1.
func parseContentRange(text string) (first, last, total int64, ok bool) {
	rest, ok := strings.CutPrefix(text, "bytes ")
	if !ok {
		return 0, 0, 0, false
	}
	span, all, ok := strings.Cut(rest, "/")
	if !ok {
		return 0, 0, 0, false
	}
	if total, ok = number(all); !ok && all != "*" {
		return 0, 0, 0, false
	} else if !ok {
		total = -1
	}
	if span == "*" {
		return 0, -1, total, true
	}
	a, b, ok := strings.Cut(span, "-")
	if !ok {
		return 0, 0, 0, false
	}
	first, ok1 := number(a)
	last, ok2 := number(b)
	if !ok1 || !ok2 || last < first || total >= 0 && last >= total {
		return 0, 0, 0, false
	}
	return first, last, total, true
}

// number parses decimal digits only.
func number(s string) (int64, bool) {
	if s == "" || strings.ContainsFunc(s, func(r rune) bool { return r < '0' || r > '9' }) {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
