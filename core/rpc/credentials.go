package rpc

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/rbee-project/rbee/core"
)

// shaken implements the credentials of servers: their connections arrive from a Mux, after its
// handshake, or from a Pipe of this process.
type shaken struct {
	budget *budget // bounds what other nodes' connections hold; nil: not counted
}

// inProcess marks a caller in the server's own process.
type inProcess struct{ credentials.CommonAuthInfo }

// AuthType implements credentials.AuthInfo.
func (inProcess) AuthType() string { return "in-process" }

// fromNode holds what a server knows of any other caller.
type fromNode struct {
	credentials.TLSInfo
	conn *Conn
}

func private() credentials.CommonAuthInfo {
	return credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}
}

func (s shaken) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	switch c := raw.(type) {
	case *Conn:
		var conn net.Conn = c
		if s.budget != nil {
			conn = newMeter(c, s.budget)
		}
		return conn, fromNode{TLSInfo: credentials.TLSInfo{State: c.state, CommonAuthInfo: private()}, conn: c}, nil
	case pipeConn:
		return c, inProcess{private()}, nil
	}
	return nil, nil, core.Errorf(core.Internal, "the server takes connections of a Mux or a Pipe only, not a %T", raw)
}

func (shaken) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, core.Errorf(core.Internal, "these are a server's credentials")
}

func (shaken) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (s shaken) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials. There is no name to override.
func (shaken) OverrideServerName(string) error { return nil }

// shaking implements the credentials of clients: shake makes a connection secure.
type shaking struct {
	shake func(ctx context.Context, raw net.Conn) (*Conn, error)
}

func (s shaking) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, err := s.shake(ctx, raw)
	if err != nil {
		return nil, nil, err
	}
	return c, credentials.TLSInfo{State: c.state, CommonAuthInfo: private()}, nil
}

func (shaking) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, core.Errorf(core.Internal, "these are a client's credentials")
}

func (shaking) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "tls"}
}
func (s shaking) Clone() credentials.TransportCredentials { return s }

// OverrideServerName implements credentials.TransportCredentials. There is no name to override.
func (shaking) OverrideServerName(string) error { return nil }
