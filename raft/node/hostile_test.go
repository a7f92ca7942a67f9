package node_test

import (
	"encoding/binary"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/raft/node"
)

// plainStream is a stream layer without TLS: a peer that gets through to raft has shown a queen's
// certificate (core/rpc's mux refuses all others).
type plainStream struct{ net.Listener }

func (plainStream) Dial(a raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(a), timeout)
}

// What a queen sends on raft's connections is bounded: no announced length is trusted before its
// bytes have arrived, and a malformed message ends the connection.
func TestHostileQueen(t *testing.T) { // not parallel: it measures the process
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must.NoError(t, err)
	trans, ok := node.NetworkTransport(plainStream{l}, hclog.NewNullLogger()).(*raft.NetworkTransport)
	must.True(t, ok)
	defer trans.Close()
	field := func(name string, value ...byte) []byte { // MessagePack: {name: value}
		return append(append([]byte{0x81, 0xa0 | byte(len(name))}, name...), value...)
	}
	size := func(kind byte, n uint32) []byte { return binary.BigEndian.AppendUint32([]byte{kind}, n) }
	const appendEntries, requestVote, installSnapshot = 0, 1, 2
	for name, sent := range map[string][]byte{
		"unknown type":        {200},
		"noise":               {appendEntries, 0xc1, 0xc1, 0xc1},
		"4 billion entries":   append([]byte{appendEntries}, field("Entries", size(0xdd, 1<<32-1)...)...),
		"4 billion fields":    append([]byte{requestVote}, size(0xdf, 1<<32-1)...),
		"4 GiB of an address": append([]byte{requestVote}, field("Candidate", size(0xc6, 1<<32-1)...)...),
		"4 GiB of a name":     append([]byte{requestVote, 0x81}, size(0xdb, 1<<32-1)...),
		"4 GiB of peers":      append([]byte{installSnapshot}, field("Configuration", size(0xc6, 1<<32-1)...)...),
	} {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			c, err := net.Dial("tcp", l.Addr().String())
			must.NoError(t, err)
			defer c.Close()
			_, err = c.Write(sent)
			must.NoError(t, err)
			must.NoError(t, c.(*net.TCPConn).CloseWrite()) // in the middle of the message
			must.NoError(t, c.SetReadDeadline(time.Now().Add(20*time.Second)))
			_, err = io.Copy(io.Discard, c) // until the other end closes it
			ne, timeout := err.(net.Error)  //nolint:errorlint // of this connection
			must.False(t, timeout && ne.Timeout())
			runtime.ReadMemStats(&after)
			must.Less(t, 8<<20, int(after.TotalAlloc-before.TotalAlloc)) // raft's buffers are some hundred KiB
		})
	}
}
