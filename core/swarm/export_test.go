package swarm

import (
	"context"
	"io"
	"net"
)

// For tests of what arrives over the wire.
var ParseRange = parseRange

const MaxUploads = maxUploads

// FetchFrom fetches a part of a file of size bytes from the hive that dial connects to.
func FetchFrom(ctx context.Context, dial func(ctx context.Context, hive, address string) (net.Conn, error), digest string, size, from, to int64, w io.Writer) error {
	l := newLink(Seeder{Hive: "h", Name: "h", Address: "h:1"}, digest, size, dial, func() bool { return false })
	return l.fetch(ctx, from, to, w)
}
