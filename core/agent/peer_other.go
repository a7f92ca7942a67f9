//go:build !linux

package agent

import (
	"context"
	"net"
)

func withPeer(ctx context.Context, _ net.Conn) context.Context { return ctx }

// peerOf describes the peer, for the log.
func peerOf(context.Context) string { return "somebody who may read the data folder" }
