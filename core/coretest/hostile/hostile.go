// Package hostile holds malicious HTTP/2 clients: they send floods of frames that cost the server
// more than the client.
package hostile

import (
	"bytes"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Attack is one way to harm an HTTP/2 server.
type Attack struct {
	Name string
	// send writes frames until the server closes the connection or the client has sent enough.
	send func(c *client) error
	deaf bool // the client does not read the server's answers
}

// floodTime bounds each attack, and floodBytes what it writes.
const (
	floodTime  = 500 * time.Millisecond
	floodBytes = 64 << 20
)

// client writes frames.
type client struct {
	*http2.Framer
	headers []hpack.HeaderField
	next    uint32
	until   time.Time
	written int64
	w       io.Writer
}

// Write counts the written bytes, and ends the attack at the limit.
func (c *client) Write(b []byte) (int, error) {
	if c.written += int64(len(b)); c.written > floodBytes || time.Now().After(c.until) {
		return 0, io.EOF
	}
	return c.w.Write(b)
}

func (c *client) block(extra ...hpack.HeaderField) []byte {
	var b bytes.Buffer
	enc := hpack.NewEncoder(&b)
	for _, f := range append(c.headers, extra...) {
		_ = enc.WriteField(f) // never fails: it writes into a buffer
	}
	return b.Bytes()
}

func (c *client) open(endStream bool) (id uint32, err error) {
	id, c.next = c.next, c.next+2
	return id, c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: c.block(), EndHeaders: true, EndStream: endStream})
}

// Attacks returns all attacks.
func Attacks() []Attack {
	forever := func(send func(c *client) error) func(c *client) error {
		return func(c *client) error {
			for {
				if err := send(c); err != nil {
					return err
				}
			}
		}
	}
	return []Attack{
		{Name: "rapid reset", send: forever(func(c *client) error {
			id, err := c.open(false)
			if err != nil {
				return err
			}
			return c.WriteRSTStream(id, http2.ErrCodeCancel)
		})},
		{Name: "more streams than allowed", send: forever(func(c *client) error { _, err := c.open(false); return err })},
		{Name: "headers without end", send: func(c *client) error {
			err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block()})
			part := bytes.Repeat([]byte{0, 1, 'a', 1, 'b'}, 800) // a literal that is not indexed
			for err == nil {
				err = c.WriteContinuation(1, false, part)
			}
			return err
		}},
		{Name: "empty continuations", send: func(c *client) error {
			err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.block()})
			for err == nil {
				err = c.WriteContinuation(1, false, nil)
			}
			return err
		}},
		{Name: "compressed headers", send: func(c *client) error {
			// One field of 3 KiB enters the table, and each repetition costs the client one byte.
			c.AllowIllegalWrites = true
			for {
				block := c.block(hpack.HeaderField{Name: "x", Value: string(bytes.Repeat([]byte("y"), 3<<10))})
				block = append(block, bytes.Repeat([]byte{0x80 | 62}, 12<<10)...)
				id := c.next
				c.next += 2
				if err := c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndHeaders: true}); err != nil {
					return err
				}
			}
		}},
		{Name: "settings", deaf: true, send: forever(func(c *client) error { return c.WriteSettings() })},
		{Name: "pings", deaf: true, send: forever(func(c *client) error { return c.WritePing(false, [8]byte{}) })},
		{Name: "empty data", send: func(c *client) error {
			id, err := c.open(false)
			for err == nil {
				err = c.WriteData(id, false, nil)
			}
			return err
		}},
		{Name: "resets of streams that are not there", send: forever(func(c *client) error {
			return c.WriteRSTStream(1, http2.ErrCodeCancel)
		})},
		{Name: "answers that are not read", deaf: true, send: func(c *client) error {
			if err := c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}); err != nil {
				return err
			}
			for {
				id, err := c.open(true)
				if err != nil {
					return err
				}
				if err := c.WriteWindowUpdate(id, 1); err != nil {
					return err
				}
			}
		}},
	}
}

// Run attacks a server over a connection on which HTTP/2 was negotiated, with requests that have
// these header fields, and closes the connection.
func (a Attack) Run(conn net.Conn, headers ...hpack.HeaderField) {
	defer conn.Close()
	c := &client{headers: headers, next: 1, until: time.Now().Add(floodTime), w: conn}
	_ = conn.SetDeadline(c.until)
	c.Framer = http2.NewFramer(c, nil)
	read := make(chan struct{})
	go func() {
		defer close(read)
		if !a.deaf {
			_, _ = io.Copy(io.Discard, conn)
		}
	}()
	if _, err := io.WriteString(c, http2.ClientPreface); err == nil && c.WriteSettings() == nil {
		_ = a.send(c) // the server closes the connection or ignores the frames
	}
	_ = conn.Close()
	<-read
}

// Watch calls honest, which must not fail, again and again while attack runs, and checks that
// neither the heap nor the goroutines of the process grow beyond the bounds, during the attack and
// afterwards. No other test may run concurrently.
func Watch(t *testing.T, maxHeap uint64, maxGoroutines int, honest func() error, attack func()) {
	t.Helper()
	if err := honest(); err != nil {
		t.Fatalf("before the attack: %v", err)
	}
	before, goroutines := heap(), runtime.NumGoroutine()
	done := make(chan struct{})
	go func() { defer close(done); attack() }()
	var peak uint64
	most, served := 0, 0
	for running := true; running; {
		select {
		case <-done:
			running = false
		case <-time.After(50 * time.Millisecond):
		}
		start := time.Now()
		if err := honest(); err != nil {
			t.Errorf("an honest client failed: %v", err)
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("an honest client waited for %s", took)
		}
		served++
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		peak, most = max(peak, m.HeapAlloc), max(most, runtime.NumGoroutine())
	}
	after := heap()
	t.Logf("heap %d KiB before, at most %d KiB, %d KiB after; at most %d goroutines more; %d honest requests", before>>10, peak>>10, after>>10, most-goroutines, served)
	if peak > before+maxHeap {
		t.Errorf("the heap grew from %d to %d bytes", before, peak)
	}
	if most > goroutines+maxGoroutines {
		t.Errorf("there were %d goroutines, %d before", most, goroutines)
	}
	for until := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines+5; {
		if time.Now().After(until) {
			t.Fatalf("%d goroutines are left, %d were there before", runtime.NumGoroutine(), goroutines)
		}
		<-time.After(10 * time.Millisecond)
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}
