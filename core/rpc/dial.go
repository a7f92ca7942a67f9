package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"time"

	"github.com/rbee-project/rbee/core"
)

// connectTimeout bounds one attempt at TCP and TLS.
const connectTimeout = 3 * time.Second

// dialer connects to other nodes of the cluster.
type dialer struct {
	identity Identity
	revoked  func(string) bool
	// declined is called when another node refuses this one's certificate; may be nil.
	declined func(address string)
	dial     func(ctx context.Context, address string) (net.Conn, error)
}

// tcp returns a dial function whose idle connections detect a dead peer after about deadAfter.
func tcp(deadAfter time.Duration) func(ctx context.Context, address string) (net.Conn, error) {
	third := max(deadAfter/3, time.Second)
	d := net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: third, Interval: third, Count: 2}}
	return func(ctx context.Context, address string) (net.Conn, error) { return d.DialContext(ctx, "tcp", address) }
}

// unlessBarred wraps dial so that it fails at once with the error of barred while barred returns
// one.
func unlessBarred(barred func() error, dial func(context.Context, string) (net.Conn, error)) func(context.Context, string) (net.Conn, error) {
	if barred == nil {
		return dial
	}
	return func(ctx context.Context, address string) (net.Conn, error) {
		if err := barred(); err != nil {
			return nil, err
		}
		return dial(ctx, address)
	}
}

// config returns the TLS configuration for a handshake with another node. nodeID may be empty for
// any node.
func (d *dialer) config(protocol string, role core.Role, nodeID string) *tls.Config {
	c := d.identity.ClientConfig(protocol, role, nodeID).Clone()
	// Run the identity's own checks first: they tell whether the certificate belongs to the cluster
	// at all.
	own := c.VerifyConnection
	if own == nil {
		own = func(tls.ConnectionState) error { return nil }
	}
	c.VerifyConnection = both(own, func(s tls.ConnectionState) error {
		_, _, err := verify(&s, role, nodeID, d.revoked)
		return err
	})
	return c
}

// connect dials and runs the handshake. Errors: Unavailable, Forbidden, DeadlineExceeded,
// Cancelled.
func (d *dialer) connect(ctx context.Context, address string, config *tls.Config) (*Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	raw, err := d.dial(ctx, address)
	if err != nil {
		return nil, dialError("connect", address, err)
	}
	c, err := d.shake(ctx, raw, address, config)
	if err != nil {
		_ = raw.Close()
		return nil, dialError("connect", address, err)
	}
	return c, nil
}

// shake runs the handshake of a client. It does not close raw.
func (d *dialer) shake(ctx context.Context, raw net.Conn, address string, config *tls.Config) (*Conn, error) {
	c, err := shake(ctx, raw, config)
	if d.declined == nil {
		return c, err
	}
	if err != nil {
		if isAlert(err) {
			d.declined(address)
		}
		return c, err
	}
	// In TLS 1.3 the other side checks the certificate only after this side's handshake is
	// complete.
	c.declined = func() { d.declined(address) }
	return c, nil
}

// isAlert reports whether the other end closed the connection with a TLS alert.
func isAlert(err error) bool {
	op, ok := errors.AsType[*net.OpError](err)
	return ok && op.Op == "remote error"
}

// shake runs the handshake of a client. It does not close raw.
func shake(ctx context.Context, raw net.Conn, config *tls.Config) (*Conn, error) {
	w := &wire{Conn: raw}
	c := &Conn{Conn: tls.Client(w, config), wire: w, since: time.Now()}
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	c.state = c.ConnectionState()
	c.protocol = c.state.NegotiatedProtocol
	var err error
	c.node, c.known, err = verify(&c.state, "", "", nil)
	return c, err
}
