package e2e

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/rpc"
	hivev1 "github.com/rbee-project/rbee/proto/hive/v1"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// nodeMethods returns the methods that nodes serve to each other.
func nodeMethods() []protoreflect.MethodDescriptor {
	var out []protoreflect.MethodDescriptor
	for _, f := range []protoreflect.FileDescriptor{hivev1.File_hive_v1_hive_proto, jobv1.File_job_v1_job_proto, queenv1.File_queen_v1_queen_proto} {
		for i := range f.Services().Len() {
			methods := f.Services().Get(i).Methods()
			for j := range methods.Len() {
				out = append(out, methods.Get(j))
			}
		}
	}
	return out
}

// hiveMethods returns those that a hive may call. Methods are added here by hand: whatever its
// rule, the test must know a new one.
func hiveMethods() []string {
	return []string{
		"/rbee.queen.v1.RegistryService/Link", "/rbee.queen.v1.BlobService/Claim", "/rbee.queen.v1.JoinService/Renew",
		"/rbee.queen.v1.JoinService/Join", "/rbee.queen.v1.JoinService/Standing",
	}
}

func nameOf(m protoreflect.MethodDescriptor) string {
	return fmt.Sprintf("/%s/%s", m.Parent().FullName(), m.Name())
}

// wholeMessage returns a message with every field set, as a serious caller would send it.
func wholeMessage(d protoreflect.MessageDescriptor, depth int) *dynamicpb.Message {
	m := dynamicpb.NewMessage(d)
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		switch {
		case f.IsMap():
		case f.Kind() == protoreflect.MessageKind && depth == 0:
		case f.IsList():
			list := m.Mutable(f).List()
			if f.Kind() == protoreflect.MessageKind {
				list.Append(protoreflect.ValueOfMessage(wholeMessage(f.Message(), depth-1)))
			} else {
				list.Append(something(f))
			}
		case f.Kind() == protoreflect.MessageKind:
			m.Set(f, protoreflect.ValueOfMessage(wholeMessage(f.Message(), depth-1)))
		default:
			m.Set(f, something(f))
		}
	}
	return m
}

func something(f protoreflect.FieldDescriptor) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(true)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.Int32Kind, protoreflect.Sint32Kind, protoreflect.Sfixed32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Int64Kind, protoreflect.Sint64Kind, protoreflect.Sfixed64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Uint32Kind, protoreflect.Fixed32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.Uint64Kind, protoreflect.Fixed64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.FloatKind:
		return protoreflect.ValueOfFloat32(1)
	case protoreflect.DoubleKind:
		return protoreflect.ValueOfFloat64(1)
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("0123456789abcdef"))
	}
	return protoreflect.ValueOfString("eeeeeeee")
}

// call makes a complete call and returns how it ended: it sends the message and reads the answer.
func call(ctx context.Context, address string, m protoreflect.MethodDescriptor, certificates ...tls.Certificate) error {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		InsecureSkipVerify: true, NextProtos: []string{rpc.ProtocolGRPC}, MinVersion: tls.VersionTLS13, //nolint:gosec // it is the server that is tested
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { // also one of a CA that the server does not name
			if len(certificates) == 0 {
				return &tls.Certificate{}, nil
			}
			return &certificates[0], nil
		},
	})))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	request, response := wholeMessage(m.Input(), 3), dynamicpb.NewMessage(m.Output())
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, nameOf(m))
	if err != nil {
		return err
	}
	// SendMsg's error only reports that the peer has ended the call; RecvMsg returns the reason.
	if err := stream.SendMsg(proto.Message(request)); err == nil {
		_ = stream.CloseSend()
	}
	if err := stream.RecvMsg(response); !errors.Is(err, io.EOF) {
		return err
	}
	return nil
}

// Each call between nodes, as a whole message, is refused to everybody who has no right to it, for
// the right reason.
func TestIntruderCalls(t *testing.T) {
	t.Parallel()
	c, first, in := withInsider(t)
	second := c.add("hive-2", false, true)
	second.start("-join", first.joinToken(second)+"@"+first.ip)
	c.await(func(s core.Status) error {
		if len(s.Hives) != 2 {
			return fmt.Errorf("%d hives, not 2", len(s.Hives))
		}
		return nil
	})
	member, err := pki.Load(second.dir)
	must.NoError(t, err)
	other, err := pki.NewCA("00112233445566ff", "other", time.Now())
	must.NoError(t, err)
	ports := map[string]string{"the queen": first.ip + ":7834", "a hive": second.ip + ":7834"}
	methods := nodeMethods()
	must.Greater(t, 15, len(methods)) // fewer: the listing is broken

	counted := func(reason rpc.Reason, before int) {
		t.Helper()
		coretest.Eventually(t, patience, func() error {
			if now := first.refusals()[string(reason)]; now <= before {
				return fmt.Errorf("%d refusals are counted as %s, as before", now, reason)
			}
			return nil
		})
	}
	for name, intruder := range map[string]struct {
		certificates []tls.Certificate
		codes        []codes.Code // any of them
		reason       rpc.Reason   // counted; empty: the method is refused, not the connection
		may          []string     // methods it may call
		headers      []string
	}{
		"anonymous":  {nil, []codes.Code{codes.Unauthenticated, codes.Unavailable}, rpc.ReasonNoCertificate, []string{"/rbee.queen.v1.JoinService/Join", "/rbee.queen.v1.JoinService/Standing"}, nil},
		"another CA": {[]tls.Certificate{signed(t, other, "eeeeeeee", time.Hour, core.RoleQueen)}, []codes.Code{codes.Unavailable}, rpc.ReasonWrongCA, nil, nil},
		"expired":    {[]tls.Certificate{in.certificate("eeeeeeee", -time.Hour, core.RoleQueen)}, []codes.Code{codes.Unavailable}, rpc.ReasonExpired, nil, nil},
		"a hive":     {[]tls.Certificate{*member.Certificate()}, []codes.Code{codes.PermissionDenied}, "", hiveMethods(), nil},
		"a hive that says it forwards": {
			[]tls.Certificate{*member.Certificate()}, []codes.Code{codes.PermissionDenied}, "", hiveMethods(), []string{"rbee-forwarded", "1", "rbee-caller", first.id()},
		},
	} {
		for port, address := range ports {
			before := 0
			if intruder.reason != "" {
				before = first.refusals()[string(intruder.reason)]
			}
			for _, m := range methods {
				if slices.Contains(intruder.may, nameOf(m)) {
					continue
				}
				err := call(metadata.AppendToOutgoingContext(t.Context(), intruder.headers...), address, m, intruder.certificates...)
				must.SliceContains(t, intruder.codes, status.Code(err), must.Sprintf("%s calls %s of %s: %v", name, nameOf(m), port, err))
			}
			if intruder.reason != "" && port == "the queen" {
				counted(intruder.reason, before)
			}
		}
	}

	// The two calls open to everybody demand a join token, and proof of a certificate's key.
	for _, name := range []string{"Join", "Standing"} {
		m := methods[slices.IndexFunc(methods, func(m protoreflect.MethodDescriptor) bool { return string(m.Name()) == name })]
		must.SliceContains(t, []codes.Code{codes.Unauthenticated, codes.InvalidArgument}, status.Code(call(t.Context(), ports["the queen"], m)), must.Sprint(name))
	}

	// A revoked hive cannot even make the calls that it could make before.
	first.must("tls", "revoke", "hive-2", "--yes")
	second.stop(9)
	before := first.refusals()[string(rpc.ReasonRevoked)]
	for _, m := range methods {
		err := call(t.Context(), ports["the queen"], m, *member.Certificate())
		must.SliceContains(t, []codes.Code{codes.Unavailable, codes.PermissionDenied}, status.Code(err), must.Sprintf("%s: %v", nameOf(m), err))
	}
	counted(rpc.ReasonRevoked, before)
	must.True(t, first.running())
}
