package swarm_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/download"
	"github.com/rbee-project/rbee/core/swarm"
)

// serveFile serves one file until the test ends, and returns a dialer for it.
func serveFile(t *testing.T, f *memFile, limit swarm.Limiter) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	return serveShelf(t, &memShelf{digest: testDigest, file: f}, limit)
}

func serveShelf(t *testing.T, shelf *memShelf, limit swarm.Limiter) func(context.Context, string, string) (net.Conn, error) {
	t.Helper()
	l := &pipeListener{conns: make(chan net.Conn), dead: make(chan struct{})}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { must.NoError(t, swarm.NewServer(shelf, limit, coretest.Logger(t)).Serve(ctx, l)) })
	t.Cleanup(func() { close(l.dead); cancel(); wg.Wait() })
	return func(context.Context, string, string) (net.Conn, error) {
		client, server := net.Pipe()
		l.conns <- server
		return client, nil
	}
}

func TestParts(t *testing.T) {
	t.Parallel()
	data := []byte("0123456789")
	shelf := &memShelf{digest: testDigest, file: wholeMemFile(data)}
	dial := serveShelf(t, shelf, nil)
	for _, tt := range []struct{ from, to int64 }{{0, 10}, {0, 1}, {9, 10}, {3, 7}} {
		var got bytes.Buffer
		must.NoError(t, swarm.FetchFrom(t.Context(), dial, testDigest, 10, tt.from, tt.to, &got))
		must.Eq(t, string(data[tt.from:tt.to]), got.String())
	}
	for name, err := range map[string]error{
		"another size":         swarm.FetchFrom(t.Context(), dial, testDigest, 11, 0, 10, io.Discard),
		"a part beyond":        swarm.FetchFrom(t.Context(), dial, testDigest, 20, 12, 15, io.Discard),
		"a digest of no file":  swarm.FetchFrom(t.Context(), dial, "sha256:"+strings.Repeat("00", 32), 10, 0, 10, io.Discard),
		"no digest":            swarm.FetchFrom(t.Context(), dial, "../../etc/passwd", 10, 0, 10, io.Discard),
		"more than there is":   swarm.FetchFrom(t.Context(), dial, testDigest, 20, 0, 20, io.Discard),
		"a digest of SHA-512":  swarm.FetchFrom(t.Context(), dial, "sha512:"+strings.Repeat("00", 64), 10, 0, 10, io.Discard),
		"capitals in a digest": swarm.FetchFrom(t.Context(), dial, strings.ToUpper(testDigest), 10, 0, 10, io.Discard),
	} {
		must.Error(t, err, must.Sprint(name))
		must.SliceContains(t, []core.Kind{core.Unavailable, core.NotFound}, core.KindOf(err), must.Sprintf("%s: %v", name, err))
	}
	must.SliceEmpty(t, shelf.odd)
	boom := errors.New("boom")
	must.ErrorIs(t, swarm.FetchFrom(t.Context(), dial, testDigest, 10, 0, 10, failing{boom}), boom)
}

type failing struct{ err error }

func (f failing) Write([]byte) (int, error) { return 0, f.err }

func TestParseRange(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		text     string
		from, to int64
		bad      bool
	}{
		{text: "", from: 0, to: 100},
		{text: "bytes=0-", from: 0, to: 100},
		{text: "bytes=99-", from: 99, to: 100},
		{text: "bytes=10-19", from: 10, to: 20},
		{text: "bytes=10-1000", from: 10, to: 100},
		{text: "bytes=10-9223372036854775807", from: 10, to: 100},
		{text: "bytes=100-", bad: true},
		{text: "bytes=20-10", bad: true},
		{text: "bytes=-5", bad: true},
		{text: "bytes=-1-5", bad: true},
		{text: "bytes=1-2,4-5", bad: true},
		{text: "bytes=99999999999999999999-", bad: true},
		{text: "lines=1-2", bad: true},
		{text: "bytes=", bad: true},
		{text: "bytes=a-b", bad: true},
	} {
		from, to, err := swarm.ParseRange(tt.text, 100)
		must.Eq(t, tt.bad, err != nil, must.Sprint(tt.text))
		must.Eq(t, []int64{tt.from, tt.to}, []int64{from, to}, must.Sprint(tt.text))
	}
}

func FuzzRange(f *testing.F) {
	f.Add("bytes=0-", int64(10))
	f.Add("bytes=3-4", int64(10))
	f.Add("bytes=10-9223372036854775807", int64(1))
	f.Fuzz(func(t *testing.T, text string, size int64) {
		if size <= 0 {
			return
		}
		from, to, err := swarm.ParseRange(text, size)
		if err == nil {
			must.True(t, 0 <= from && from < to && to <= size)
		}
	})
}

// A hive's answer yields the requested bytes or an error; never more bytes.
func FuzzAnswer(f *testing.F) {
	good := "HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 2-5/10\r\nContent-Length: 4\r\n\r\n2345"
	for _, s := range []string{
		good,
		strings.Replace(good, "4\r\n\r\n", "5\r\n\r\n", 1),
		strings.Replace(good, "2-5/10", "2-5/11", 1),
		strings.Replace(good, "Content-Length: 4", "Transfer-Encoding: chunked", 1),
		strings.Replace(good, "206", "200", 1),
		good[:len(good)-1],
		"HTTP/1.1 503 X\r\nContent-Length: 41\r\n\r\n{\"kind\":\"overloaded\",\"message\":\"too many\"}",
		"HTTP/1.1 302 X\r\nLocation: http://elsewhere/\r\nContent-Length: 0\r\n\r\n",
		"HTTP/1.1 101 Switching Protocols\r\n\r\n",
		"\r\n",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, answer []byte) {
		dial := func(context.Context, string, string) (net.Conn, error) {
			client, server := net.Pipe()
			go func() {
				_, _ = http.ReadRequest(bufio.NewReader(server))
				_, _ = server.Write(answer)
				_ = server.Close()
			}()
			return client, nil
		}
		var got bytes.Buffer
		err := swarm.FetchFrom(t.Context(), dial, testDigest, 10, 2, 6, &got)
		if err == nil {
			must.Eq(t, 4, got.Len())
		}
		must.LessEq(t, 4, got.Len())
		if err != nil {
			must.SliceContains(t, []core.Kind{core.Unavailable, core.NotFound, core.Overloaded}, core.KindOf(err), must.Sprint(err))
		}
	})
}

// Bytes that are still missing are sent as soon as they arrive, and the connection is cut if none
// follow.
func TestPartStillArriving(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newMemFile(10)
		dial := serveFile(t, f, nil)
		got := newMemFile(10)
		ended := make(chan error, 1)
		go func() { ended <- swarm.FetchFrom(t.Context(), dial, testDigest, 10, 0, 10, got) }()
		for i := range int64(5) {
			time.Sleep(time.Second)
			_, err := f.Write([]byte{byte('a' + i)})
			must.NoError(t, err)
			synctest.Wait()
			must.Eq(t, i+1, got.bytes())
		}
		f.change(func() { f.ended = true })
		must.Eq(t, core.Unavailable, core.KindOf(<-ended))
		must.Eq(t, "abcde", string(got.data[:got.bytes()]))
	})
}

// A hive serves a bounded number of uploads, whichever hives ask.
func TestUploadsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		f := newMemFile(10)
		dial := serveFile(t, f, nil)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for range swarm.MaxUploads {
			wg.Go(func() {
				must.Eq(t, core.Cancelled, core.KindOf(swarm.FetchFrom(ctx, dial, testDigest, 10, 0, 10, io.Discard)))
			})
		}
		synctest.Wait()
		must.Eq(t, core.Overloaded, core.KindOf(swarm.FetchFrom(t.Context(), dial, testDigest, 10, 0, 10, io.Discard)))
		cancel()
		wg.Wait()
		synctest.Wait()
		_, err := f.Write([]byte("0123456789"))
		must.NoError(t, err)
		// There is a free slot again.
		must.NoError(t, swarm.FetchFrom(t.Context(), dial, testDigest, 10, 0, 10, io.Discard))
	})
}

func TestUploadRate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		data := make([]byte, 8<<20)
		dial := serveFile(t, wholeMemFile(data), download.NewLimiter(1<<20))
		begin := time.Now()
		var wg sync.WaitGroup
		for range 2 { // concurrently
			wg.Go(func() { must.NoError(t, swarm.FetchFrom(t.Context(), dial, testDigest, 8<<20, 0, 8<<20, io.Discard)) })
		}
		wg.Wait()
		took := time.Since(begin)
		must.Between(t, 15*time.Second, took, 17*time.Second)
	})
}

// A client that does not read, or sends nothing, does not hold a slot forever.
func TestIdleHivesAreDropped(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dial := serveFile(t, wholeMemFile(make([]byte, 8<<20)), nil)
		silent, err := dial(t.Context(), "", "")
		must.NoError(t, err)
		deaf, err := dial(t.Context(), "", "")
		must.NoError(t, err)
		_, err = fmt.Fprintf(deaf, "GET /v1/blobs/%s HTTP/1.1\r\nHost: h\r\n\r\n", testDigest)
		must.NoError(t, err)
		for name, c := range map[string]net.Conn{"silent": silent, "deaf": deaf} {
			time.Sleep(2 * time.Minute)
			n, err := io.Copy(io.Discard, c)
			must.True(t, err == nil || errors.Is(err, io.EOF), must.Sprint(name, err))
			must.Less(t, 1<<20, n) // it was cut before the end
			_, err = c.Write([]byte("x"))
			must.Error(t, err, must.Sprint(name))
		}
	})
}
