package rpc_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"golang.org/x/net/http2/hpack"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest/hostile"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

// Floods of HTTP/2 frames, from a stranger and from a hive, take little memory and few goroutines,
// and other callers are still served. Not parallel: it measures the process.
func TestHostileFrames(t *testing.T) {
	n, ca := queenNode(t)
	n.serve(t, rpc.ServerOptions{}, nil, registerAll)
	pool := rpc.NewPool(rpc.PoolOptions{Identity: identity(t, ca, "0000000a", core.RoleQueen)})
	t.Cleanup(func() { _ = pool.Close() })
	conn, err := pool.Conn(n.id.Node().ID, n.addr, core.RoleQueen)
	must.NoError(t, err)
	honest := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := jobv1.NewJobServiceClient(conn).Get(ctx, &jobv1.GetRequest{})
		// admitted, but not implemented
		if err = rpc.FromStatus(err); core.KindOf(err) != core.Unsupported {
			return fmt.Errorf("the call ended with %w", err)
		}
		return nil
	}
	for _, attack := range hostile.Attacks() {
		for name, id := range map[string]*pki.Identity{"stranger": nil, "hive": identity(t, ca, "00000002", core.RoleHive)} {
			t.Run(attack.Name+"/"+name, func(t *testing.T) {
				config := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13, NextProtos: []string{rpc.ProtocolGRPC}}
				method := joinMethod
				if id != nil {
					method = "/rbee.queen.v1.RegistryService/Link" // a stream that hives may open
					config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return id.Certificate(), nil }
				}
				hostile.Watch(t, 24<<20, 300, honest, func() {
					raw, err := net.Dial("tcp", n.addr)
					must.NoError(t, err)
					attack.Run(tls.Client(raw, config), hostileHeaders(method)...)
				})
			})
		}
	}
}

func hostileHeaders(method string) (list []hpack.HeaderField) {
	for _, f := range [][2]string{
		{":method", "POST"}, {":scheme", "https"}, {":path", method}, {":authority", "x"}, {"content-type", "application/grpc"}, {"te", "trailers"},
	} {
		list = append(list, hpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return list
}
