package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/peer"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// JoinConn connects a machine without a certificate to a queen of the cluster whose CA certificate
// has the fingerprint. The connection may call the methods that are open to all. The caller closes
// it. Errors: Unauthenticated if another cluster answers, Unavailable, DeadlineExceeded, Cancelled.
func JoinConn(ctx context.Context, address, fingerprint string) (*grpc.ClientConn, error) {
	cc, _, err := BoundConn(ctx, address, fingerprint)
	return cc, err
}

// bindingLabel is the exporter label that Binding uses.
const bindingLabel = "EXPORTER-rbee-standing"

// bindingOf returns a secret that only the two ends of a TLS connection know.
func bindingOf(s *tls.ConnectionState) ([]byte, error) {
	b, err := s.ExportKeyingMaterial(bindingLabel, nil, 32)
	return b, core.Wrap(err, core.Internal, "bind to a connection")
}

// Binding returns a secret that only the two ends of the call's connection know. Errors:
// Unsupported for a call within the process.
func Binding(ctx context.Context) ([]byte, error) {
	from, ok := peer.FromContext(ctx)
	if ok {
		if info, ok := from.AuthInfo.(fromNode); ok {
			return bindingOf(&info.State)
		}
	}
	return nil, core.Errorf(core.Unsupported, "a call within the process is bound to no connection")
}

// BoundConn is like JoinConn; binding is what Binding returns at the other end.
func BoundConn(ctx context.Context, address, fingerprint string) (cc *grpc.ClientConn, binding []byte, err error) {
	d := dialer{dial: tcp(hiveDeadAfter)}
	config := pki.JoinConfig(ProtocolGRPC, fingerprint)
	// Make the first connection here: its error tells more than grpc's.
	first, err := d.connect(ctx, address, config)
	if err != nil {
		return nil, nil, core.WithHint(err, "%s", joinHint(err))
	}
	if binding, err = bindingOf(&first.state); err != nil {
		_ = first.Close()
		return nil, nil, err
	}
	var mu sync.Mutex
	cc, err = grpc.NewClient("passthrough:///"+address, append(RemoteOptions(),
		grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
			mu.Lock()
			c := first
			first = nil
			mu.Unlock()
			if c != nil {
				return c, nil
			}
			return d.dial(ctx, address)
		}),
		grpc.WithTransportCredentials(shaking{shake: func(ctx context.Context, raw net.Conn) (*Conn, error) {
			if c, ok := raw.(*Conn); ok {
				return c, nil
			}
			return shake(ctx, raw, config)
		}}))...)
	if err != nil {
		_ = first.Close()
		return nil, nil, core.Wrap(err, core.Invalid, "connect")
	}
	cc.Connect()
	return cc, binding, nil
}

// protocolHTTP is a protocol that only the port of the HTTP API offers.
const protocolHTTP = "http/1.1"

// WrongPort explains why a call over JoinConn failed if a queen's HTTP API, which has the same
// certificate and protocols, listens at the address: Invalid. Otherwise it returns err.
func WrongPort(ctx context.Context, address, fingerprint string, err error) error {
	switch core.KindOf(err) {
	case core.Internal, core.Unavailable, core.Unsupported:
	default:
		return err
	}
	d := dialer{dial: tcp(hiveDeadAfter)}
	c, connErr := d.connect(ctx, address, pki.JoinConfig(protocolHTTP, fingerprint))
	if connErr != nil {
		return err
	}
	_ = c.Close()
	if c.protocol != protocolHTTP {
		return err
	}
	return core.Errorf(core.Invalid, "%s is the port of that queen's HTTP API", address).Hint(
		"Machines talk to each other at another port, 7834 unless bind.rpc_port says otherwise: leave the port out, or name that one.")
}

func joinHint(err error) string {
	if hint := core.HintOf(err); hint != "" {
		return hint
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return "What answers there speaks no TLS: an rbee that is in no cluster, or another program. Name a queen of the cluster, without a port, or with its RPC port (7834 unless configured otherwise)."
	}
	return "Check that a queen runs at that address and that its RPC port (7834 unless configured otherwise) can be reached from here."
}
