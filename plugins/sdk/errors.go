package sdk

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// The errors that a host distinguishes. A plugin wraps one of them with %w if it knows the cause;
// any other error counts as the plugin's own defect. They survive the wire: errors.Is matches on
// the host as well.
var (
	// the request or the reference is wrong
	ErrInvalid     = errors.New("invalid")
	ErrNotFound    = errors.New("not found")                  // no such thing
	ErrState       = errors.New("not possible in this state") // such as a second Start
	ErrUnavailable = errors.New("unavailable")                // not now: try again
	// too large for memory, for the disk, or for a limit
	ErrTooLarge = errors.New("does not fit")
	// bytes do not match what was announced
	ErrIntegrity = errors.New("damaged")
	// this machine, build or backend cannot do it
	ErrUnsupported = errors.New("not supported")
	// the origin requires credentials
	ErrUnauthenticated = errors.New("credentials missing or wrong")
	ErrForbidden       = errors.New("not allowed") // the origin refuses
)

// wireErrors pairs each error with its code on the wire. The first matching row wins.
func wireErrors() []struct {
	err  error
	code codes.Code
} {
	return []struct {
		err  error
		code codes.Code
	}{
		{ErrInvalid, codes.InvalidArgument},
		{ErrNotFound, codes.NotFound},
		{ErrState, codes.FailedPrecondition},
		{ErrUnavailable, codes.Unavailable},
		{ErrTooLarge, codes.ResourceExhausted},
		{ErrIntegrity, codes.DataLoss},
		{ErrUnsupported, codes.Unimplemented},
		{ErrUnauthenticated, codes.Unauthenticated},
		{ErrForbidden, codes.PermissionDenied},
		{context.Canceled, codes.Canceled},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
	}
}

// hinted is an error with a hint about what to do next.
type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// WithHint adds to err a full sentence about what a person can do next. A nil err returns nil.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &hinted{error: err, hint: fmt.Sprintf(format, args...)}
}

// HintOf returns the outermost hint in err's chain, on either side of the wire, or the empty
// string.
func HintOf(err error) string {
	if h, ok := errors.AsType[*hinted](err); ok {
		return h.hint
	}
	if r, ok := errors.AsType[*remoteError](err); ok {
		return r.hint
	}
	return ""
}

const hintDomain = "rbee.plugin"

// ToStatus converts a plugin's error into a gRPC status error with its code and hint. It returns a
// status error unchanged, and nil for nil.
func ToStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*remoteError](err); !ok {
		if _, ok := status.FromError(err); ok {
			return err
		}
	}
	code := codes.Internal
	for _, w := range wireErrors() {
		if errors.Is(err, w.err) {
			code = w.code
			break
		}
	}
	st := status.New(code, err.Error())
	if hint := HintOf(err); hint != "" {
		// WithDetails fails only for a status of code OK, which st never has.
		if with, detailErr := st.WithDetails(&errdetails.ErrorInfo{Domain: hintDomain, Metadata: map[string]string{"hint": hint}}); detailErr == nil {
			st = with
		}
	}
	return st.Err()
}

// remoteError is a plugin's error as the host sees it.
type remoteError struct {
	st   *status.Status
	is   error // one of wireErrors, or nil
	hint string
}

func (e *remoteError) Error() string              { return e.st.Message() }
func (e *remoteError) Unwrap() error              { return e.is }
func (e *remoteError) GRPCStatus() *status.Status { return e.st }

// FromStatus converts the error of a call to a plugin back into the plugin's error. It returns an
// error without a status unchanged, and nil for nil.
func FromStatus(err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	r := &remoteError{st: st}
	for _, w := range wireErrors() {
		if w.code == st.Code() {
			r.is = w.err
			break
		}
	}
	for _, d := range st.Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.GetDomain() == hintDomain {
			r.hint = info.GetMetadata()["hint"]
		}
	}
	return r
}
