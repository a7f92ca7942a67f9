package rpc

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rbee-project/rbee/core"
)

const (
	// errorDomain marks the status details that hold a core.Kind.
	errorDomain = "rbee"
	hintKey     = "hint"
	// maxTextBytes bounds the message and the hint of an error on the wire, which travel in HTTP/2
	// headers.
	maxTextBytes = 16 << 10
)

// CodeOf returns the gRPC code for a kind. Several kinds share a code; ToStatus adds what
// distinguishes them.
func CodeOf(k core.Kind) codes.Code {
	switch k {
	case "":
		return codes.OK
	case core.Invalid:
		return codes.InvalidArgument
	case core.NotFound:
		return codes.NotFound
	case core.Conflict, core.InUse:
		return codes.FailedPrecondition
	case core.Unavailable, core.WorkerLost:
		return codes.Unavailable
	case core.Overloaded:
		return codes.ResourceExhausted
	case core.TooLarge:
		return codes.OutOfRange
	case core.Integrity:
		return codes.DataLoss
	case core.Unsupported:
		return codes.Unimplemented
	case core.Unauthenticated:
		return codes.Unauthenticated
	case core.Forbidden:
		return codes.PermissionDenied
	case core.Cancelled:
		return codes.Canceled
	case core.DeadlineExceeded:
		return codes.DeadlineExceeded
	}
	return codes.Internal
}

// KindOfCode returns the kind for a gRPC code from elsewhere: a plugin, gRPC itself, a third party.
func KindOfCode(c codes.Code) core.Kind {
	switch c {
	case codes.OK:
		return ""
	case codes.Canceled:
		return core.Cancelled
	case codes.InvalidArgument:
		return core.Invalid
	case codes.DeadlineExceeded:
		return core.DeadlineExceeded
	case codes.NotFound:
		return core.NotFound
	case codes.AlreadyExists, codes.FailedPrecondition, codes.Aborted:
		return core.Conflict
	case codes.PermissionDenied:
		return core.Forbidden
	case codes.ResourceExhausted:
		return core.Overloaded
	case codes.OutOfRange:
		return core.TooLarge
	case codes.Unimplemented:
		return core.Unsupported
	case codes.Unavailable:
		return core.Unavailable
	case codes.DataLoss:
		return core.Integrity
	case codes.Unauthenticated:
		return core.Unauthenticated
	}
	return core.Internal
}

// ToStatus returns err as a gRPC status error that carries its kind, message and hint; nil for nil.
// KindOfCode classifies a status error without a kind, such as a plugin's.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*core.Error](err); !ok {
		err = FromStatus(err)
	}
	kind := core.KindOf(err)
	st := status.New(CodeOf(kind), text(err.Error()))
	info := &errdetails.ErrorInfo{Reason: text(string(kind)), Domain: errorDomain}
	if hint := core.HintOf(err); hint != "" {
		info.Metadata = map[string]string{hintKey: text(hint)}
	}
	if detailed, detailErr := st.WithDetails(info); detailErr == nil {
		st = detailed
	}
	return st.Err()
}

// FromStatus converts a gRPC error into a classified one: the error given to ToStatus, or for a
// status from elsewhere its message, classified by KindOfCode. core.KindOf classifies an error
// without a status. It returns nil for nil.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*core.Error](err); ok {
		return err
	}
	inner, ok := errors.AsType[statusError](err)
	if !ok || inner.GRPCStatus().Code() == codes.OK {
		return core.WithKind(err, core.KindOf(err))
	}
	st := inner.GRPCStatus()
	// Keep what others wrapped around the status, but drop gRPC's own "rpc error: code = …".
	f := core.Failure{Kind: KindOfCode(st.Code()), Message: strings.Replace(err.Error(), inner.Error(), st.Message(), 1)}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == errorDomain && info.GetReason() != "" {
			f.Kind, f.Hint = core.Kind(info.GetReason()), info.GetMetadata()[hintKey]
		}
	}
	switch {
	case f.Message != "":
	case f.Kind == core.Cancelled:
		f.Message = context.Canceled.Error()
	case f.Kind == core.DeadlineExceeded:
		f.Message = context.DeadlineExceeded.Error()
	default:
		f.Message = st.Code().String()
	}
	return f.Err()
}

// statusError is an error that has a gRPC status.
type statusError interface {
	error
	GRPCStatus() *status.Status
}

// text makes a string fit for the wire: valid UTF-8 and bounded.
func text(s string) string {
	if len(s) > maxTextBytes {
		s = s[:maxTextBytes] + "…"
	}
	return strings.ToValidUTF8(s, "�")
}
