package core

import (
	"context"
	"errors"
	"fmt"
)

// Kind classifies an error by what can be done about it. It is set once, where the error
// originates, and survives gRPC and HTTP.
type Kind string

// The kinds. They are names on the wire: never rename or reuse one.
const (
	Internal         Kind = "internal"          // a defect or an unclassified failure
	Invalid          Kind = "invalid"           // the request or the configuration is wrong
	NotFound         Kind = "not_found"         // no such thing
	Conflict         Kind = "conflict"          // it exists already, or has changed in the meantime
	InUse            Kind = "in_use"            // refused because something needs it
	Unavailable      Kind = "unavailable"       // temporarily: try again
	Overloaded       Kind = "overloaded"        // too many requests: try again later
	TooLarge         Kind = "too_large"         // does not fit: in memory, on disk, or within a limit
	Integrity        Kind = "integrity"         // bytes are not what they should be
	Unsupported      Kind = "unsupported"       // this machine, build or backend cannot do it
	Unauthenticated  Kind = "unauthenticated"   // missing or invalid credentials
	Forbidden        Kind = "forbidden"         // not allowed
	Cancelled        Kind = "cancelled"         // the caller cancelled
	DeadlineExceeded Kind = "deadline_exceeded" // it took too long
	WorkerLost       Kind = "worker_lost"       // the worker died during the request
)

// Error is an error with a kind and a hint for people. Errorf, Wrap, WithKind, WithHint and
// FromContext make one. It is immutable.
type Error struct {
	kind Kind
	hint string // what to do next, a full sentence; may be empty
	err  error  // never nil
}

// Errorf returns an error of the given kind with a formatted message; %w wraps.
func Errorf(kind Kind, format string, args ...any) *Error {
	return &Error{kind: kind, err: fmt.Errorf(format, args...)}
}

// Hint returns e with a hint that tells what to do next.
func (e *Error) Hint(format string, args ...any) *Error {
	return &Error{kind: e.kind, hint: fmt.Sprintf(format, args...), err: e.err}
}

// Wrap classifies err and prefixes it with what failed: "what: err". A nil err returns nil. The
// hint of err stays.
func Wrap(err error, kind Kind, what string) error {
	if err == nil {
		return nil
	}
	return &Error{kind: kind, err: fmt.Errorf("%s: %w", what, err)}
}

// Prefix prefixes err with what failed, "what: err", and keeps its kind and hint. A nil err returns
// nil.
func Prefix(err error, what string) error { return Wrap(err, KindOf(err), what) }

// WithKind classifies err and keeps its text and hint. A nil err returns nil.
func WithKind(err error, kind Kind) error {
	if err == nil {
		return nil
	}
	return &Error{kind: kind, err: err}
}

// WithHint adds a hint that tells what to do next and keeps the kind of err. A nil err returns nil.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{kind: KindOf(err), hint: fmt.Sprintf(format, args...), err: err}
}

// FromContext returns why ctx ended, as Cancelled or DeadlineExceeded, or nil if it has not ended.
func FromContext(ctx context.Context) error {
	return WithKind(context.Cause(ctx), KindOf(ctx.Err()))
}

func (e *Error) Error() string { return e.err.Error() }

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.err }

// KindOf returns the kind of the outermost classified error in err's chain. Context errors are
// classified; any other error is Internal. A nil err has the empty kind.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.kind
	}
	switch {
	case errors.Is(err, context.Canceled):
		return Cancelled
	case errors.Is(err, context.DeadlineExceeded):
		return DeadlineExceeded
	}
	return Internal
}

// HintOf returns the outermost hint in err's chain, or the empty string.
func HintOf(err error) string {
	for err != nil {
		e, ok := errors.AsType[*Error](err)
		if !ok {
			return ""
		}
		if e.hint != "" {
			return e.hint
		}
		err = e.err
	}
	return ""
}
