package rpc

import (
	"context"
	"net"
	"slices"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/tap"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pki"
	optionsv1 "github.com/rbee-project/rbee/proto/options/v1"
)

// Metadata keys of a call that one queen forwards to another.
const (
	forwardedKey = "rbee-forwarded"
	// node id of the original caller; empty if it has no certificate
	callerKey = "rbee-caller"
	// callerAddressKey carries the host of the original call; empty: this process.
	callerAddressKey = "rbee-caller-address"
)

// RuleOf returns the rule of a method, such as "/rbee.queen.v1.JoinService/Join". A method without
// one refuses all calls.
func RuleOf(method string) (*optionsv1.Rule, bool) {
	d, ok := methodOf(method)
	if !ok {
		return nil, false
	}
	return ruleOf(d)
}

func ruleOf(d protoreflect.MethodDescriptor) (*optionsv1.Rule, bool) {
	if d.Options() == nil || !proto.HasExtension(d.Options(), optionsv1.E_Rule) {
		return nil, false
	}
	rule, ok := proto.GetExtension(d.Options(), optionsv1.E_Rule).(*optionsv1.Rule)
	return rule, ok && len(rule.GetCallers()) > 0
}

func methodOf(method string) (protoreflect.MethodDescriptor, bool) {
	service, name, ok := strings.Cut(strings.TrimPrefix(method, "/"), "/")
	if !ok {
		return nil, false
	}
	d, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service).Append(protoreflect.Name(name)))
	if err != nil {
		return nil, false
	}
	m, ok := d.(protoreflect.MethodDescriptor)
	return m, ok
}

// Peer returns the node at the other end of a call's connection; a call from this process counts as
// this node. It returns false without a certificate. It works in handlers of a server that
// NewNodeServer made. A forwarded call has the forwarding queen as its peer: see Caller.
func Peer(ctx context.Context) (pki.Node, bool) {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		return pki.Node{}, false
	}
	return c.peer, c.known
}

// Caller returns the id of the node that made the call, also if another queen forwarded it; empty
// without a certificate.
func Caller(ctx context.Context) string {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		return ""
	}
	return c.caller
}

// CallerHost returns the address, without a port, of the call's origin, even if another queen
// forwarded the call. It is empty for a call from this process.
func CallerHost(ctx context.Context) string {
	c, _ := ctx.Value(callKey{}).(*call)
	if c == nil {
		return ""
	}
	return c.host
}

type callKey struct{}

// call holds what the gate knows about a call.
type call struct {
	method    protoreflect.MethodDescriptor
	rule      *optionsv1.Rule
	peer      pki.Node
	known     bool
	forwarded bool // a queen forwarded it
	caller    string
	host      string
}

// gate decides which callers may call which methods.
type gate struct {
	self    pki.Node
	revoked func(string) bool
	refused *refusals
	methods sync.Map // full method → *call with method and rule only
}

// admit identifies the caller and checks that it is allowed. Errors: Unauthenticated, Forbidden.
func (g *gate) admit(ctx context.Context, method string) (context.Context, *call, error) {
	known, err := g.method(method)
	if err != nil {
		return nil, nil, err
	}
	c := *known
	from, ok := peer.FromContext(ctx)
	if !ok {
		return nil, nil, core.Errorf(core.Internal, "a call without a peer")
	}
	switch info := from.AuthInfo.(type) {
	case inProcess:
		c.peer, c.known = g.self, true
	case fromNode:
		c.peer, c.known = info.conn.Peer()
		if from.Addr != nil {
			if c.host, _, err = net.SplitHostPort(from.Addr.String()); err != nil {
				c.host = from.Addr.String()
			}
		}
	}
	if c.known {
		c.caller = c.peer.ID
	}
	if c.known && g.revoked != nil && g.revoked(c.peer.ID) {
		err = refuse(ReasonRevoked, "node %s was revoked", c.peer.ID)
		g.refused.note(ReasonRevoked, c.host, c.peer.ID, err)
		return nil, nil, core.WithKind(err, core.Forbidden)
	}
	if md, ok := metadata.FromIncomingContext(ctx); ok && first(md, forwardedKey) != "" && c.known && c.peer.Has(core.RoleQueen) {
		// The forwarding queen has checked the caller; no other node may name one.
		c.forwarded, c.caller, c.host = true, first(md, callerKey), first(md, callerAddressKey)
	}
	if err := g.allow(&c, method); err != nil {
		return nil, nil, err
	}
	return context.WithValue(ctx, callKey{}, &c), &c, nil
}

func first(md metadata.MD, key string) string {
	if v := md.Get(key); len(v) > 0 {
		return v[0]
	}
	return ""
}

func (g *gate) method(method string) (*call, error) {
	if known, ok := g.methods.Load(method); ok {
		if c, ok := known.(*call); ok {
			return c, nil
		}
	}
	d, ok := methodOf(method)
	if !ok {
		return nil, core.Errorf(core.Forbidden, "%s has no rule, so no caller may use it", method)
	}
	rule, ok := ruleOf(d)
	if !ok {
		return nil, core.Errorf(core.Forbidden, "%s has no rule, so no caller may use it", method)
	}
	c := &call{method: d, rule: rule}
	g.methods.Store(method, c) // bounded: only registered methods get here
	return c, nil
}

// allow applies the rule of the method.
func (g *gate) allow(c *call, method string) error {
	if c.forwarded && c.rule.GetLeader() {
		return nil
	}
	var wanted []string
	for _, r := range c.rule.GetCallers() {
		switch r {
		case optionsv1.Role_ROLE_ANYONE:
			return nil
		case optionsv1.Role_ROLE_HIVE:
			if c.known && c.peer.Has(core.RoleHive) {
				return nil
			}
			wanted = append(wanted, string(core.RoleHive))
		case optionsv1.Role_ROLE_QUEEN:
			if c.known && c.peer.Has(core.RoleQueen) {
				return nil
			}
			wanted = append(wanted, string(core.RoleQueen))
		}
	}
	slices.Sort(wanted)
	who := strings.Join(wanted, " or ")
	if !c.known {
		err := refuse(ReasonNoCertificate, "%s needs the certificate of a %s", method, who)
		g.refused.note(ReasonNoCertificate, c.host, "", err)
		return core.WithHint(core.WithKind(err, core.Unauthenticated), "Join the cluster first: \"rbee cluster join\".")
	}
	err := refuse(ReasonWrongRole, "%s is for a %s, and node %s is none", method, who, c.peer.ID)
	g.refused.note(ReasonWrongRole, c.host, c.peer.ID, err)
	return core.WithHint(core.WithKind(err, core.Forbidden), "A node has the roles that its join token allowed; join again with another token to change them.")
}

// tap admits a call when its headers have arrived, before any of its messages is read. Meanwhile
// the connection reads nothing else.
func (g *gate) tap(ctx context.Context, info *tap.Info) (context.Context, error) {
	ctx, _, err := g.admit(ctx, info.FullMethodName)
	if err != nil {
		return nil, ToStatus(err)
	}
	return ctx, nil
}

// streamOf is a stream with an extended context.
type streamOf struct {
	grpc.ServerStream
	ctx context.Context // what grpc asks for
}

// Context returns the stream's context.
func (s streamOf) Context() context.Context { return s.ctx }
