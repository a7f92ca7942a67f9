package agent

import (
	"context"
	"fmt"
	"net"
	"syscall"
)

type peerKey struct{}

// withPeer stores the identity of a unix socket's peer in the context.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return ctx
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return ctx
	}
	var cred *syscall.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = syscall.GetsockoptUcred(int(fd), syscall.SOL_SOCKET, syscall.SO_PEERCRED)
	}); err != nil || credErr != nil {
		return ctx
	}
	return context.WithValue(ctx, peerKey{}, fmt.Sprintf("user %d, process %d", cred.Uid, cred.Pid))
}

// peerOf describes the peer, for the log.
func peerOf(ctx context.Context) string {
	if by, ok := ctx.Value(peerKey{}).(string); ok {
		return by
	}
	return "somebody who may read the data folder"
}
