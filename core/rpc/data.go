package rpc

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/core"
)

const (
	// maxConnectBytes bounds a queen's request before the worker's bytes, and the head of the
	// hive's answer.
	maxConnectBytes = 1 << 10
	// maxFailureBytes bounds the reason for a refusal.
	maxFailureBytes = 64 << 10
	maxWorkerID     = 128
	connectOK       = "HTTP/1.1 200 OK\r\n\r\n"
)

var headEnd = []byte("\r\n\r\n")

// DialData connects to a worker's data socket through its hive. The connection carries the worker's
// bytes: CloseWrite ends one direction, a cut is io.ErrUnexpectedEOF, and Close reaches the worker
// at once. The hive's errors keep their kind. Further errors: Unavailable, Unauthenticated or
// Forbidden if the two nodes do not accept each other's certificates, Cancelled, DeadlineExceeded.
func (p *Pool) DialData(ctx context.Context, nodeID, address, workerID string) (net.Conn, error) {
	const op = "connect to the worker's hive"
	if !validWorker(workerID) {
		return nil, core.Errorf(core.Invalid, "%s: %q is not a worker id", op, workerID)
	}
	config := p.config(ProtocolData, core.RoleHive, nodeID)
	config.ClientSessionCache = p.session(nodeID, address)
	c, err := p.track(ctx, op, nodeID, address, config)
	if err != nil {
		return nil, err
	}
	// When ctx ends, cut the connection: its data is no longer wanted.
	stop := context.AfterFunc(ctx, c.Abort)
	rest, err := connectWorker(c, workerID)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		c.Abort()
		if ctx.Err() != nil {
			return nil, core.Wrap(fmt.Errorf("%s: %w", address, ctx.Err()), core.KindOf(ctx.Err()), op)
		}
		if _, ok := errors.AsType[*core.Error](err); ok {
			return nil, err // the hive's own error
		}
		return nil, dialError(op, address, err)
	}
	if len(rest) > 0 {
		return &early{Conn: c, rest: rest}, nil
	}
	return c, nil
}

// DialBlob connects to a hive's files. The protocol is HTTP/1.1; see core/swarm. The connection is
// cut when the node is revoked. Errors: Unavailable, Unauthenticated or Forbidden if the two nodes
// do not accept each other's certificates, Cancelled, DeadlineExceeded.
func (p *Pool) DialBlob(ctx context.Context, nodeID, address string) (net.Conn, error) {
	c, err := p.track(ctx, "connect to the hive", nodeID, address, p.config(ProtocolBlob, core.RoleHive, nodeID))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// track connects to a node and tracks the connection until it is closed, so that it can be cut when
// the node is revoked.
func (p *Pool) track(ctx context.Context, op, nodeID, address string, config *tls.Config) (*Conn, error) {
	if p.revoked != nil && p.revoked(nodeID) {
		return nil, dialError(op, address, refuse(ReasonRevoked, "node %s was revoked", nodeID))
	}
	c, err := p.connect(ctx, address, config)
	if err != nil {
		return nil, err
	}
	c.forget = p.forgetData
	p.mu.Lock()
	closed := p.closed
	p.data[c] = struct{}{}
	p.mu.Unlock()
	if closed {
		c.Abort()
		return nil, core.Errorf(core.Unavailable, "%s: the agent is shutting down", op)
	}
	// check again after the handshake: CloseRevoked may have run before this connection was tracked
	if p.revoked != nil && p.revoked(nodeID) {
		c.Abort()
		return nil, dialError(op, address, refuse(ReasonRevoked, "node %s was revoked", nodeID))
	}
	return c, nil
}

func (p *Pool) forgetData(c *Conn) {
	p.mu.Lock()
	delete(p.data, c)
	p.mu.Unlock()
}

// session returns the cache of TLS sessions that makes the next data connection to a node cheaper.
func (p *Pool) session(nodeID, address string) tls.ClientSessionCache {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := nodeID + " " + address
	s, ok := p.sessions[key]
	if !ok {
		for old := range p.sessions { // a node has one address
			if strings.HasPrefix(old, nodeID+" ") {
				delete(p.sessions, old)
			}
		}
		s = tls.NewLRUClientSessionCache(1)
		p.sessions[key] = s
	}
	return s
}

// early is a connection with bytes already read from its other end.
type early struct {
	*Conn
	rest []byte
}

func (e *early) Read(p []byte) (int, error) {
	if len(e.rest) > 0 {
		n := copy(p, e.rest)
		e.rest = e.rest[n:]
		return n, nil
	}
	return e.Conn.Read(p)
}

// connectWorker asks a hive for a worker. It also returns the bytes read after the answer.
func connectWorker(c io.ReadWriter, workerID string) (rest []byte, err error) {
	if _, err := io.WriteString(c, "CONNECT "+workerID+" HTTP/1.1\r\nHost: "+workerID+"\r\n\r\n"); err != nil {
		return nil, err
	}
	head, rest, err := readHead(c)
	if err != nil {
		return nil, err
	}
	line, fields, _ := strings.Cut(head, "\r\n")
	proto, status, _ := strings.Cut(line, " ")
	code, _, _ := strings.Cut(status, " ")
	if proto != "HTTP/1.1" || len(code) != 3 {
		return nil, core.Errorf(core.Unavailable, "malformed reply from hive")
	}
	if code == "200" {
		return rest, nil
	}
	var length int64 = -1
	for field := range strings.SplitSeq(fields, "\r\n") {
		if name, value, _ := strings.Cut(field, ":"); strings.EqualFold(name, "Content-Length") {
			if length, err = strconv.ParseInt(strings.TrimSpace(value), 10, 64); err != nil {
				length = -1
			}
		}
	}
	var f core.Failure
	if length >= 0 && length <= maxFailureBytes {
		body, err := io.ReadAll(io.LimitReader(io.MultiReader(bytes.NewReader(rest), c), length))
		if err == nil && json.Unmarshal(body, &f) == nil && f.Kind != "" {
			return nil, f.Err()
		}
	}
	return nil, core.Errorf(core.Unavailable, "the hive answers %s", strconv.Quote(code))
}

// readHead reads up to an empty line. It also returns the bytes read after it.
func readHead(r io.Reader) (head string, rest []byte, err error) {
	buf := make([]byte, 0, maxConnectBytes)
	for {
		n, err := r.Read(buf[len(buf):cap(buf)])
		from := max(len(buf)-len(headEnd)+1, 0)
		buf = buf[:len(buf)+n]
		if i := bytes.Index(buf[from:], headEnd); i >= 0 {
			end := from + i
			return string(buf[:end]), buf[end+len(headEnd):], nil
		}
		switch {
		case len(buf) == cap(buf):
			return "", nil, core.Errorf(core.Invalid, "more than %d bytes without an empty line", maxConnectBytes)
		case errors.Is(err, io.EOF) && len(buf) > 0:
			return "", nil, io.ErrUnexpectedEOF
		case err != nil:
			return "", nil, err
		}
	}
}

// ReadConnect reads the start of a queen's data connection and returns the requested worker, and
// the bytes for it that were already read. The caller sets a deadline. Errors: Invalid, or those of
// r.
func ReadConnect(r io.Reader) (workerID string, rest []byte, err error) {
	head, rest, err := readHead(r)
	if err != nil {
		return "", nil, err
	}
	workerID, err = parseConnect(head)
	return workerID, rest, err
}

func parseConnect(head string) (workerID string, err error) {
	line, fields, _ := strings.Cut(head, "\r\n")
	after, ok := strings.CutPrefix(line, "CONNECT ")
	workerID, ok2 := strings.CutSuffix(after, " HTTP/1.1")
	if !ok || !ok2 || !validWorker(workerID) {
		return "", core.Errorf(core.Invalid, "not a CONNECT to a worker").Hint("Only queens speak on this connection.")
	}
	for field := range strings.SplitSeq(fields, "\r\n") {
		name, value, _ := strings.Cut(field, ":")
		if strings.EqualFold(name, "Host") && strings.TrimSpace(value) != workerID {
			return "", core.Errorf(core.Invalid, "CONNECT to one worker and Host of another")
		}
	}
	return workerID, nil
}

// validWorker reports whether the text can be a worker's id, which is safe within the request line.
func validWorker(id string) bool {
	if id == "" || len(id) > maxWorkerID {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == ':':
		default:
			return false
		}
	}
	return true
}

// AnswerConnect tells the queen that the worker's bytes follow, or why the request failed.
func AnswerConnect(c net.Conn, failure error) error {
	if failure == nil {
		_, err := io.WriteString(c, connectOK)
		return err
	}
	body, err := json.Marshal(core.FailureOf(failure))
	if err != nil || len(body) > maxFailureBytes {
		// only strings, so it cannot fail
		body, _ = json.Marshal(core.Failure{Kind: core.KindOf(failure), Message: "the hive cannot say why"})
	}
	_, err = fmt.Fprintf(c, "HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", statusOf(core.KindOf(failure)), len(body), body)
	return err
}

// statusOf returns an HTTP status for people who read the traffic; queens read the kind.
func statusOf(k core.Kind) string {
	switch k {
	case core.Invalid:
		return "400 Bad Request"
	case core.NotFound:
		return "404 Not Found"
	case core.Forbidden:
		return "403 Forbidden"
	}
	return "503 Service Unavailable"
}
