package worker

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

// pipes is a listener of in-memory connections. After Close, Accept takes a while to return.
type pipes struct {
	c   chan net.Conn
	end chan struct{}
}

const acceptEnds = 50 * time.Millisecond

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.c:
		return c, nil
	case <-p.end:
		time.Sleep(acceptEnds)
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	close(p.end)
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{} }

// serveData runs an in-memory data server; dial connects to it.
func serveData(h http.Handler) (d *dataServer, dial func() net.Conn) {
	l := &pipes{c: make(chan net.Conn), end: make(chan struct{})}
	d = newDataServer(hclog.NewNullLogger())
	d.ready(h)
	d.serve(l)
	return d, func() net.Conn {
		ours, theirs := net.Pipe()
		l.c <- theirs
		return ours
	}
}

const request = "GET / HTTP/1.1\r\nHost: w\r\n\r\n"

// A request's head must arrive within ten seconds and fit in 64 KiB; an idle connection is closed
// after five minutes.
func TestDataBounds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		d, dial := serveData(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			time.Sleep(time.Hour) // a generation may take long
			_, _ = io.WriteString(w, "done")
		}))
		began := time.Now()
		slow := dial()
		_, err := io.WriteString(slow, request[:10])
		must.NoError(t, err)
		_, _ = io.Copy(io.Discard, slow)
		must.Eq(t, 10*time.Second, time.Since(began))

		c := dial()
		_, err = io.WriteString(c, request)
		must.NoError(t, err)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		must.NoError(t, err)
		text, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Eq(t, "done", string(text))
		began = time.Now()
		_, err = c.Read(make([]byte, 1))
		must.ErrorIs(t, err, io.EOF)
		must.Eq(t, 5*time.Minute, time.Since(began))

		c = dial()
		go func() { _, _ = io.WriteString(c, "GET / HTTP/1.1\r\nX: "+strings.Repeat("x", 80<<10)+"\r\n\r\n") }() // fails when the server refuses it
		resp, err = http.ReadResponse(bufio.NewReader(c), nil)
		must.NoError(t, err)
		must.Eq(t, http.StatusRequestHeaderFieldsTooLarge, resp.StatusCode)
		must.NoError(t, resp.Body.Close())
		must.NoError(t, c.Close())
		d.close()
	})
}

// close lets a finished answer reach a slow reader, cuts what does not end, and returns when all
// connections and goroutines have ended.
func TestDataClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		text := strings.Repeat("x", 1<<10)
		d, dial := serveData(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, text) }))
		c := dial()
		_, err := io.WriteString(c, request)
		must.NoError(t, err)
		synctest.Wait() // the handler has returned; its answer waits for the reader
		closed := make(chan struct{})
		go func() { d.close(); close(closed) }()
		time.Sleep(250 * time.Millisecond)
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		must.NoError(t, err)
		got, err := io.ReadAll(resp.Body)
		must.NoError(t, err)
		must.NoError(t, resp.Body.Close())
		must.Eq(t, text, string(got))
		<-closed

		began := time.Now()
		d, dial = serveData(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }))
		c = dial()
		_, err = io.WriteString(c, request)
		must.NoError(t, err)
		synctest.Wait()
		d.close()
		must.Between(t, 500*time.Millisecond, time.Since(began), time.Second)
		_, err = c.Read(make([]byte, 1))
		must.ErrorIs(t, err, io.EOF)

		began = time.Now()
		d, _ = serveData(http.NotFoundHandler())
		synctest.Wait()
		d.close()
		must.Eq(t, acceptEnds, time.Since(began)) // close waited for the accepting goroutine
	})
}
