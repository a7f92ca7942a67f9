package rpc

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
)

// Reason tells why a connection was refused. The reasons are label values of a metric: never rename
// one.
type Reason string

// The reasons.
const (
	ReasonWrongCA Reason = "wrong_ca" // the certificate belongs to another cluster
	ReasonExpired Reason = "expired"  // the certificate is not valid now
	// the certificate does not allow this protocol or method
	ReasonWrongRole     Reason = "wrong_role"
	ReasonNoCertificate Reason = "no_certificate" // a certificate is required
	ReasonTLSVersion    Reason = "tls_version"    // older than 1.3
	ReasonRevoked       Reason = "revoked"        // the node was revoked
	// the node has more connections, or holds more bytes, than allowed
	ReasonTooMany Reason = "too_many"
	// anything else: not TLS, too slow, no common protocol
	ReasonHandshake Reason = "handshake"
)

// Reasons returns all reasons.
func Reasons() []Reason {
	return []Reason{ReasonWrongCA, ReasonExpired, ReasonWrongRole, ReasonNoCertificate, ReasonTLSVersion, ReasonRevoked, ReasonTooMany, ReasonHandshake}
}

// refusal is an error that knows its reason.
type refusal struct {
	reason Reason
	text   string
}

func (r *refusal) Error() string { return r.text }

func refuse(reason Reason, format string, args ...any) error {
	return &refusal{reason: reason, text: fmt.Sprintf(format, args...)}
}

// reasonOf classifies the error of a handshake.
func reasonOf(err error) Reason {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.reason
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return ReasonWrongCA
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch invalid.Reason {
		case x509.Expired:
			return ReasonExpired
		case x509.IncompatibleUsage, x509.CANotAuthorizedForThisName:
			return ReasonWrongRole
		}
		return ReasonWrongCA
	}
	if _, ok := errors.AsType[x509.HostnameError](err); ok {
		return ReasonWrongRole
	}
	// crypto/tls has no error values for these. The second is the alert of a peer that wants an
	// older version.
	if s := err.Error(); strings.Contains(s, "unsupported versions") || strings.Contains(s, "protocol version not supported") {
		return ReasonTLSVersion
	}
	return ReasonHandshake
}

// refusals counts and logs refusals.
type refusals struct {
	log   hclog.Logger
	count func(Reason) // may be nil

	mu    sync.Mutex // guards below
	last  time.Time  // time of the last log line
	quiet int        // refusals suppressed since the last line
}

const refusalEvery = time.Second

func newRefusals(log hclog.Logger, count func(Reason)) *refusals {
	if log == nil {
		log = hclog.NewNullLogger()
	}
	return &refusals{log: log, count: count}
}

func (r *refusals) note(reason Reason, from, node string, err error) {
	if r.count != nil {
		r.count(reason)
	}
	now := time.Now()
	r.mu.Lock()
	if !r.last.IsZero() && now.Sub(r.last) < refusalEvery {
		r.quiet++
		r.mu.Unlock()
		return
	}
	quiet := r.quiet
	r.last, r.quiet = now, 0
	r.mu.Unlock()
	r.log.Warn("refused a connection", "reason", string(reason), "from", from, "node", node, "error", err, "others", quiet)
}

// verify checks what a peer's certificate must fulfil beyond belonging to the cluster. An empty
// role means any. known is false without a certificate.
func verify(state *tls.ConnectionState, role core.Role, nodeID string, revoked func(string) bool) (n pki.Node, known bool, err error) {
	if len(state.PeerCertificates) == 0 {
		if role == "" && nodeID == "" {
			return pki.Node{}, false, nil
		}
		return pki.Node{}, false, refuse(ReasonNoCertificate, "%s needs a certificate of a %s", state.NegotiatedProtocol, role)
	}
	if n, err = pki.NodeOf(state.PeerCertificates[0]); err != nil {
		return n, false, &refusal{reason: ReasonWrongRole, text: err.Error()}
	}
	switch {
	case revoked != nil && revoked(n.ID):
		return n, true, refuse(ReasonRevoked, "node %s was revoked", n.ID)
	case role != "" && !n.Has(role):
		return n, true, refuse(ReasonWrongRole, "node %s is no %s", n.ID, role)
	case nodeID != "" && n.ID != nodeID:
		return n, true, refuse(ReasonWrongRole, "node %s was wanted, %s is there", nodeID, n.ID)
	}
	return n, true, nil
}

// dialError classifies why a connection to a node failed.
func dialError(op, address string, err error) error {
	if err == nil {
		return nil
	}
	wrapped := fmt.Errorf("%s: %w", address, err)
	if r, ok := errors.AsType[*refusal](err); ok {
		return core.WithHint(core.Wrap(wrapped, core.Forbidden, op), "%s", refusalHint(r.reason))
	}
	if _, ok := errors.AsType[*core.Error](err); ok {
		return core.Wrap(wrapped, core.KindOf(err), op)
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return core.WithHint(core.Wrap(wrapped, core.Unauthenticated, op), "%s", refusalHint(reasonOf(err)))
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return core.Wrap(wrapped, core.DeadlineExceeded, op)
	case strings.Contains(err.Error(), "no application protocol"):
		return core.WithHint(core.Wrap(wrapped, core.Unavailable, op), "That machine lacks the required role: only queens speak raft, and only hives serve workers.")
	case strings.Contains(err.Error(), "remote error: tls:"):
		// Only the other side knows why, and its log tells.
		return core.WithHint(core.Wrap(wrapped, core.Forbidden, op),
			"The other machine refuses this one's certificate: it may be revoked, expired, of another cluster or without the role. The log over there says which.")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return core.Wrap(wrapped, core.Unavailable, op)
	}
	if _, ok := errors.AsType[net.Error](err); ok {
		return core.Wrap(wrapped, core.Unavailable, op)
	}
	if kind := core.KindOf(err); kind != core.Internal {
		return core.Wrap(wrapped, kind, op)
	}
	return core.Wrap(wrapped, core.Unavailable, op)
}

func refusalHint(reason Reason) string {
	switch reason {
	case ReasonWrongCA:
		return "That machine is of another cluster, or something between has answered for it."
	case ReasonExpired:
		return "Check the clocks of both machines; a certificate that has expired is replaced by joining again."
	case ReasonRevoked:
		return "The node was thrown out of the cluster; it has to join again under a new id."
	case ReasonWrongRole:
		return "Another machine has that address now, or its certificate lacks the role; see \"rbee hive list\" and \"rbee queen list\"."
	}
	return "Check that the address is the RPC port of an rbee agent."
}
