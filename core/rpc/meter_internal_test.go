package rpc

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/shoenig/test/must"
	"golang.org/x/net/http2"

	"github.com/rbee-project/rbee/core/pki"
)

// metered returns a meter without a connection, and its budget.
func metered() (*meter, *budget) {
	b := newBudget(1<<40, 1<<40, func(string, int64, *Conn) {})
	return newMeter(&Conn{node: pki.Node{ID: "00000001"}}, b), b
}

func (m *meter) takes(p []byte) error {
	return m.note(func() error { return m.in.feed(p, m.began, m.came, m.ended) })
}

func TestMeterCountsUnfinished(t *testing.T) {
	t.Parallel()
	var wire bytes.Buffer
	wire.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&wire, nil)
	message := func(length, sent int) []byte {
		b := make([]byte, 5+sent)
		binary.BigEndian.PutUint32(b[1:], uint32(length))
		return b
	}
	must.NoError(t, f.WriteSettings())
	for _, stream := range []uint32{1, 3, 5} {
		must.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, EndHeaders: true}))
	}
	must.NoError(t, f.WriteData(1, false, message(100, 60)))
	must.NoError(t, f.WriteData(3, false, append(message(10, 10), message(20, 5)...)))
	must.NoError(t, f.WriteData(5, false, message(1000, 300)))
	must.NoError(t, f.WriteData(7, false, message(1000, 300))) // belongs to no call
	all := wire.Bytes()
	for _, step := range []int{1, 2, 7, len(all)} {
		m, b := metered()
		for rest := all; len(rest) > 0; {
			n := min(step, len(rest))
			must.NoError(t, m.takes(rest[:n]))
			rest = rest[n:]
		}
		must.Eq(t, 65+10+305, m.pending, must.Sprint(step))
		must.Eq(t, m.pending, b.used)

		wire.Reset()
		must.NoError(t, f.WriteRSTStream(5, http2.ErrCodeCancel))
		must.NoError(t, m.takes(wire.Bytes()))
		must.Eq(t, 65+10, m.pending)

		wire.Reset()
		// the server's answer
		must.NoError(t, f.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true, EndStream: true}))
		answer := bytes.Clone(wire.Bytes())
		must.NoError(t, m.note(func() error {
			return m.out.feed(answer, func() error { return nil }, func([]byte) {}, func() {
				if m.out.end {
					m.over(m.out.id)
				}
			})
		}))
		must.Eq(t, 10, m.pending)
		must.MapLen(t, 1, m.streams)
		must.Eq(t, 10, b.used)
	}
}

// Repeated headers on a stream do not reset what the stream holds.
func TestMeterHeadersAgain(t *testing.T) {
	t.Parallel()
	var wire bytes.Buffer
	wire.WriteString(http2.ClientPreface)
	f := http2.NewFramer(&wire, nil)
	must.NoError(t, f.WriteSettings())
	headers := http2.HeadersFrameParam{StreamID: 1, EndHeaders: true}
	must.NoError(t, f.WriteHeaders(headers))
	must.NoError(t, f.WriteData(1, false, []byte{0, 0, 0, 0, 100, 1, 2, 3}))
	must.NoError(t, f.WriteHeaders(headers))
	m, b := metered()
	must.NoError(t, m.takes(wire.Bytes()))
	must.Eq(t, 8, m.pending)
	wire.Reset()
	must.NoError(t, f.WriteRSTStream(1, http2.ErrCodeCancel))
	must.NoError(t, m.takes(wire.Bytes()))
	must.Eq(t, 0, m.pending)
	must.Eq(t, 0, b.used)
}

// For any input, in pieces of any size, the count is the same and never negative.
func FuzzMeter(f *testing.F) {
	var wire bytes.Buffer
	wire.WriteString(http2.ClientPreface)
	fr := http2.NewFramer(&wire, nil)
	_ = fr.WriteSettings()
	_ = fr.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, EndHeaders: true})
	_ = fr.WriteData(1, false, []byte{0, 0, 0, 0, 9, 1, 2})
	_ = fr.WriteData(1, true, []byte{3})
	f.Add(wire.Bytes(), byte(3))
	f.Add([]byte(http2.ClientPreface), byte(1))
	f.Fuzz(func(t *testing.T, p []byte, step byte) {
		whole, b := metered()
		err := whole.takes(p)
		must.GreaterEq(t, 0, whole.pending)
		must.LessEq(t, int64(len(p)), whole.pending)
		must.Eq(t, whole.pending, b.used)
		parts, _ := metered()
		var partsErr error
		for rest := p; len(rest) > 0 && partsErr == nil; {
			n := min(int(step)+1, len(rest))
			partsErr = parts.takes(rest[:n])
			rest = rest[n:]
		}
		must.Eq(t, err, partsErr)
		must.Eq(t, whole.pending, parts.pending)
		must.MapLen(t, len(whole.streams), parts.streams)
	})
}

// One host crowds out only itself.
func TestCrowdByHost(t *testing.T) {
	t.Parallel()
	c := newCrowd[string](4)
	_, _, evicted := c.enter("quiet", "q")
	must.False(t, evicted)
	var gone []string
	for _, v := range []string{"a", "b", "c", "d", "e"} {
		if _, out, evicted := c.enter("loud", v); evicted {
			gone = append(gone, out)
		}
	}
	must.Eq(t, []string{"a", "b"}, gone)
	_, out, _ := c.enter("other", "o")
	must.Eq(t, "c", out)
	must.MapEq(t, map[string]int{"quiet": 1, "loud": 2, "other": 1}, c.hosts)
}
