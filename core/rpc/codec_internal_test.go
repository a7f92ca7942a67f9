package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"testing"

	"github.com/shoenig/test/must"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/rbee-project/rbee/core"
)

// A message may take exactly as much memory as is left, and not a byte more.
func TestCosts(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		m    proto.Message
		want int // beside the message itself
	}{
		{&wrapperspb.UInt64Value{Value: 7}, 8},
		{&wrapperspb.StringValue{Value: "abc"}, 2*sliceHeader + 3},
		{&wrapperspb.BytesValue{Value: []byte("abc")}, 2*sliceHeader + 3},
		{structpb.NewStringValue("abc"), 2*sliceHeader + 3},
		{&structpb.ListValue{Values: []*structpb.Value{structpb.NewBoolValue(true)}}, 2*8 + sizeOf(structpb.NewBoolValue(true).ProtoReflect().Descriptor()) + 8},
		{&wrapperspb.UInt64Value{}, 0},
	} {
		d := tt.m.ProtoReflect().Descriptor()
		b, err := proto.Marshal(tt.m)
		must.NoError(t, err)
		enough := costs{left: int64(sizeOf(d) + tt.want)}
		must.NoError(t, enough.message(d, b, 0), must.Sprint(tt.m))
		must.Zero(t, enough.left, must.Sprint(tt.m))
		less := costs{left: int64(sizeOf(d)+tt.want) - 1}
		must.ErrorContains(t, less.message(d, b, 0), "16 MiB", must.Sprint(tt.m))
	}
}

// A status without a message is described in words.
func TestSilentStatus(t *testing.T) {
	t.Parallel()
	for code, want := range map[codes.Code]error{codes.Canceled: context.Canceled, codes.DeadlineExceeded: context.DeadlineExceeded} {
		must.Eq(t, want.Error(), FromStatus(status.Error(code, "")).Error())
	}
	must.NotEq(t, "", FromStatus(status.Error(codes.Unavailable, "")).Error())
}

// The error of a call whose connection was dropped says so. A call that the caller cancelled is
// Cancelled, and other errors pass unchanged.
func TestGivenUp(t *testing.T) {
	t.Parallel()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	canceled, unavailable := status.Error(codes.Canceled, "x"), status.Error(codes.Unavailable, "y")
	for _, tt := range []struct {
		name   string
		ctx    context.Context
		err    error
		closed bool
		same   bool
	}{
		{"given up", t.Context(), canceled, true, false},
		{"given up as the caller cancelled", cancelled, canceled, true, true},
		{"cancelled by the peer", t.Context(), canceled, false, true},
		{"lost", t.Context(), unavailable, true, true},
		{"at its end", t.Context(), io.EOF, true, true},
		{"no error", t.Context(), nil, true, true},
	} {
		k := &kept{address: "192.0.2.1:1", closed: tt.closed}
		got := k.explain(tt.ctx, tt.err)
		if tt.same {
			must.True(t, errors.Is(got, tt.err), must.Sprint(tt.name, got))
			continue
		}
		must.Eq(t, codes.Unavailable, status.Code(got), must.Sprint(tt.name))
		must.StrContains(t, got.Error(), "was given up")
		must.Eq(t, core.Unavailable, core.KindOf(FromStatus(fmt.Errorf("ask: %w", got))))
	}
}
