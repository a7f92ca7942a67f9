package gateway

import (
	"compress/gzip"
	"context"
	"io"
	"net/http"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// The memory that decompression uses besides the body, in bytes.
const (
	gzipMemory = 64 << 10
	zstdWindow = 8 << 20 // the size that RFC 8878 recommends decoders to support
)

// encodingZstd is the Content-Encoding that is decompressed only after the whole body has arrived:
// its window is large.
const encodingZstd = "zstd"

func encodingOf(r *http.Request) string {
	return strings.ToLower(strings.TrimSpace(strings.Join(r.Header.Values("Content-Encoding"), ", ")))
}

// decoded returns a reader of a body with its Content-Encoding removed, unless that is
// encodingZstd, and a function to call after reading. The reader returns at most limit bytes, then
// a *http.MaxBytesError. Errors: Unsupported for an unknown encoding, Overloaded.
func decoded(ctx context.Context, from io.Reader, r *http.Request, held *heldBody, limit int64) (io.Reader, func(), error) {
	encoding := encodingOf(r)
	switch encoding {
	case "", "identity", encodingZstd:
		return from, func() {}, nil
	case "gzip", "x-gzip":
		if err := held.grow(ctx, gzipMemory); err != nil {
			return nil, nil, err
		}
		return &bounded{r: &lateGzip{from: from}, left: limit, limit: limit}, func() { held.shrink(gzipMemory) }, nil
	}
	return nil, nil, &apiError{
		status: http.StatusUnsupportedMediaType, code: "unsupported_encoding",
		err: core.Errorf(core.Invalid, "the request's body has the encoding %q", clip(encoding, 40)).Hint("Send it as it is, or with gzip or zstd."),
	}
}

// lateGzip reads the gzip header on the first Read, as that may wait for the client.
type lateGzip struct {
	from io.Reader
	in   *gzip.Reader
}

func (l *lateGzip) Read(b []byte) (int, error) {
	if l.in == nil {
		in, err := gzip.NewReader(l.from)
		if err != nil {
			return 0, err
		}
		l.in = in
	}
	return l.in.Read(b)
}

// bounded fails once more than limit bytes arrive.
type bounded struct {
	r           io.Reader
	left, limit int64
}

func (b *bounded) Read(p []byte) (int, error) {
	if int64(len(p)) > b.left+1 {
		p = p[:b.left+1]
	}
	n, err := b.r.Read(p)
	if int64(n) > b.left {
		n, err = int(b.left), &http.MaxBytesError{Limit: b.limit}
	}
	b.left -= int64(n)
	return n, err
}
