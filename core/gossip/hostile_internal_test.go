package gossip

import (
	"bytes"
	"compress/lzw"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"
)

const testLabel = "0123456789abcdef"

var poolKey = bytes.Repeat([]byte{7}, 32)

// seal encrypts as memberlist does.
func seal(key, front, plain []byte) []byte {
	block, err := aes.NewCipher(key)
	if err != nil {
		panic(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		panic(err)
	}
	nonce := make([]byte, nonceBytes)
	_, _ = rand.Read(nonce)
	return gcm.Seal(append([]byte{1}, nonce...), nonce, plain, append(slices.Clone(front), testLabel...))
}

func head(n int) []byte { return binary.BigEndian.AppendUint32([]byte{typeEncrypted}, uint32(n)) }

// frameOf returns the message of a stream, without the label.
func frameOf(key, plain []byte) []byte {
	front := head(1 + nonceBytes + len(plain) + 16)
	return append(front, seal(key, front, plain)...)
}

func labelled(b []byte) []byte {
	return append(append([]byte{hasLabel, byte(len(testLabel))}, testLabel...), b...)
}

// bomb returns a compressed message of a few bytes that unpacks to 32 MiB.
func bomb() []byte {
	var packed bytes.Buffer
	w := lzw.NewWriter(&packed, lzw.LSB, 8)
	_, _ = w.Write(make([]byte, 32<<20))
	_ = w.Close()
	// MessagePack: {"Algo": 0, "Buf": …}
	out := append([]byte{typeCompress, 0x82, 0xa4}, "Algo"...)
	out = append(append(out, 0x00, 0xa3), "Buf"...)
	out = binary.BigEndian.AppendUint32(append(out, 0xc6), uint32(packed.Len()))
	return append(out, packed.Bytes()...)
}

// compound returns a message made of several.
func compound(parts ...[]byte) []byte {
	out := []byte{typeCompound, byte(len(parts))}
	for _, p := range parts {
		out = binary.BigEndian.AppendUint16(out, uint16(len(p)))
	}
	return append(out, bytes.Join(parts, nil)...)
}

func checksummed(b []byte) []byte { return append([]byte{typeChecksum, 1, 2, 3, 4}, b...) }

func hostileTransport(t *testing.T) *transport {
	t.Helper()
	tr, err := listen("127.0.0.1:0", "", testLabel, func() [][]byte { return [][]byte{bytes.Repeat([]byte{1}, 32), poolKey} }, hclog.NewNullLogger())
	must.NoError(t, err)
	must.NoError(t, tr.run(t.Context()))
	t.Cleanup(func() { _ = tr.Shutdown() })
	return tr
}

// On gossip's TCP port, only a whole message from a key holder reaches memberlist; all other
// connections are closed in time.
func TestHostileStreams(t *testing.T) {
	t.Parallel()
	other := bytes.Repeat([]byte{9}, 32)
	push := append([]byte{6}, make([]byte, 100)...)
	for name, tt := range map[string]struct {
		sent []byte
		slow bool // then sends byte by byte, or falls silent
		let  bool
	}{
		"a message":                  {sent: labelled(frameOf(poolKey, push)), let: true},
		"a large message":            {sent: labelled(frameOf(poolKey, append([]byte{6}, make([]byte, 8<<20)...))), let: true},
		"nothing":                    {slow: true},
		"half a label":               {sent: labelled(nil)[:5], slow: true},
		"no label":                   {sent: frameOf(poolKey, push)},
		"only the label":             {sent: labelled(nil), slow: true},
		"half a head":                {sent: labelled(head(100)[:3]), slow: true},
		"4 GiB stated":               {sent: labelled(head(1<<32 - 1))},
		"16 MiB and one stated":      {sent: labelled(head(maxFrameBytes + 1))},
		"16 MiB stated, a byte sent": {sent: labelled(append(head(maxFrameBytes), 1)), slow: true},
		"half a message":             {sent: labelled(frameOf(poolKey, push)[:60]), slow: true},
		"a short message":            {sent: labelled(append(head(5), 1, 2, 3, 4, 5))},
		"an empty message":           {sent: labelled(head(0))},
		"in clear":                   {sent: labelled(push)},
		"another key":                {sent: labelled(frameOf(other, push))},
		"a changed byte":             {sent: labelled(append(frameOf(poolKey, push)[:40], append([]byte{255}, frameOf(poolKey, push)[41:]...)...))},
		"a bomb":                     {sent: labelled(frameOf(poolKey, bomb()))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := hostileTransport(t)
			c, err := net.Dial("tcp", tr.address())
			must.NoError(t, err)
			defer c.Close()
			go func() {
				_, err := c.Write(tt.sent)
				for tick := time.NewTicker(100 * time.Millisecond); tt.slow && err == nil; <-tick.C {
					_, err = c.Write([]byte{0})
				}
			}()
			if tt.let {
				got := <-tr.streams
				b := make([]byte, len(tt.sent))
				_, err := io.ReadFull(got, b)
				must.NoError(t, err)
				must.True(t, bytes.Equal(tt.sent, b))
				must.NoError(t, got.Close())
				_ = got.Close() // memberlist may close it as well
			} else {
				must.NoError(t, c.SetReadDeadline(time.Now().Add(headerTimeout+20*time.Second)))
				_, err := c.Read(make([]byte, 1))
				ne, timeout := err.(net.Error) //nolint:errorlint // of this connection
				must.False(t, timeout && ne.Timeout(), must.Sprint("the connection stays open"))
				select {
				case <-tr.streams:
					t.Error("memberlist has got it")
				default:
				}
			}
			must.NoError(t, tr.Shutdown())
			must.Eq(t, 0, tr.frames.held)
			must.Eq(t, 0, len(tr.handed))
		})
	}
}

// The memory for all streams is bounded, whatever they send and however many they are.
func TestHostileStreamsMemory(t *testing.T) {
	t.Parallel()
	tr := hostileTransport(t)
	sent := labelled(append(head(maxFrameBytes), make([]byte, maxFrameBytes-1)...)) // a byte short
	var wg sync.WaitGroup
	for range 10 {
		wg.Go(func() {
			c, err := net.Dial("tcp", tr.address())
			if err != nil {
				return
			}
			defer c.Close()
			_, _ = c.Write(sent)
			_ = c.SetReadDeadline(time.Now().Add(headerTimeout + 20*time.Second))
			_, _ = c.Read(make([]byte, 1))
		})
	}
	done, most := make(chan struct{}), 0
	go func() { wg.Wait(); close(done) }()
	for tick := time.NewTicker(5 * time.Millisecond); ; {
		select {
		case <-tick.C:
			tr.frames.mu.Lock()
			most = max(most, tr.frames.held)
			tr.frames.mu.Unlock()
			continue
		case <-done:
		}
		break
	}
	must.Greater(t, 16<<20, most)
	must.LessEq(t, heldFrameBytes, most)
	must.NoError(t, tr.Shutdown())
	must.Eq(t, 0, tr.frames.held)
}

// memberlist handles only a few messages at a time.
func TestHandedStreams(t *testing.T) {
	t.Parallel()
	tr := hostileTransport(t)
	got := make(chan net.Conn)
	go func() {
		for c := range tr.streams {
			got <- c
		}
	}()
	for range 2 * maxHanded {
		c, err := net.Dial("tcp", tr.address())
		must.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		_, err = c.Write(labelled(frameOf(poolKey, []byte{6})))
		must.NoError(t, err)
	}
	var have []net.Conn
	for range maxHanded {
		have = append(have, <-got)
	}
	select {
	case <-got:
		t.Fatal("one more was handed over")
	case <-time.After(50 * time.Millisecond):
	}
	for range maxHanded {
		must.NoError(t, have[0].Close())
		have = append(have[1:], <-got)
	}
	for _, c := range have {
		must.NoError(t, c.Close())
	}
}

// Packets without a key, and packets that would unpack, are dropped.
func TestHostilePackets(t *testing.T) {
	t.Parallel()
	ping := []byte{0, 0x80}
	deep := ping
	for range maxNested + 1 {
		deep = checksummed(deep)
	}
	for name, tt := range map[string]struct {
		packet []byte
		let    bool
	}{
		"a message":         {labelled(seal(poolKey, nil, ping)), true},
		"several":           {labelled(seal(poolKey, nil, checksummed(compound(ping, ping)))), true},
		"in clear":          {labelled(ping), false},
		"no label":          {seal(poolKey, nil, ping), false},
		"another key":       {labelled(seal(bytes.Repeat([]byte{9}, 32), nil, ping)), false},
		"short":             {labelled([]byte{1, 2, 3}), false},
		"a bomb":            {labelled(seal(poolKey, nil, bomb())), false},
		"a bomb among some": {labelled(seal(poolKey, nil, checksummed(compound(ping, compound(ping, bomb()))))), false},
		"nested":            {labelled(seal(poolKey, nil, deep)), false},
		"a compound's head": {labelled(seal(poolKey, nil, []byte{typeCompound, 200, 0})), true}, // memberlist refuses it
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tr := hostileTransport(t)
			c, err := net.Dial("udp", tr.udp.LocalAddr().String())
			must.NoError(t, err)
			defer c.Close()
			last := labelled(seal(poolKey, nil, []byte{0}))
			for _, b := range [][]byte{tt.packet, last} {
				_, err = c.Write(b)
				must.NoError(t, err)
			}
			first := <-tr.packets
			must.Eq(t, tt.let, !bytes.Equal(first.Buf, last))
		})
	}
}

func FuzzUnpacks(f *testing.F) {
	f.Add(compound([]byte{0}, checksummed([]byte{typeCompress})))
	f.Add([]byte{typeCompound, 255, 0, 1})
	f.Add([]byte{typeChecksum})
	f.Fuzz(func(_ *testing.T, b []byte) { _ = unpacks(b, maxNested) })
}
