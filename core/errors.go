package core

import (
	"context"
	"errors"
	"fmt"
)

// Kind classifies an error by what can be done about it. It is decided once, where the error is
// born, and survives gRPC and HTTP.
type Kind string

// The kinds. They are names on the wire: never rename or reuse one.
const (
	Internal         Kind = "internal"          // a defect or an unclassified failure
	Invalid          Kind = "invalid"           // the request or the configuration is wrong
	NotFound         Kind = "not_found"         // no such thing
	Conflict         Kind = "conflict"          // it exists already, or changed meanwhile
	InUse            Kind = "in_use"            // refused because something needs it
	Unavailable      Kind = "unavailable"       // not now: try again
	Overloaded       Kind = "overloaded"        // too many requests: try again later
	TooLarge         Kind = "too_large"         // does not fit: in memory, on disk, or within a limit
	Integrity        Kind = "integrity"         // bytes are not what they should be
	Unsupported      Kind = "unsupported"       // this machine, build or backend cannot do it
	Unauthenticated  Kind = "unauthenticated"   // who are you
	Forbidden        Kind = "forbidden"         // you may not
	Cancelled        Kind = "cancelled"         // the caller gave up
	DeadlineExceeded Kind = "deadline_exceeded" // it took too long
	WorkerLost       Kind = "worker_lost"       // the worker died with the request in its hands
)

// Error is an error with a Kind and a hint for people. Create it with E.
type Error struct {
	Op   string // what was being done, such as "spawn worker"; may be empty
	Kind Kind
	Hint string // what to do next, a full sentence; may be empty
	Err  error  // never nil
}

// E classifies err. A nil err gives nil. An err that is already classified keeps its hint unless a
// new one is set.
func E(op string, kind Kind, err error) error {
	if err == nil {
		return nil
	}
	return &Error{Op: op, Kind: kind, Err: err}
}

// Errorf is E with a formatted message; %w wraps.
func Errorf(op string, kind Kind, format string, args ...any) error {
	return &Error{Op: op, Kind: kind, Err: fmt.Errorf(format, args...)}
}

// WithHint adds what to do next to err and keeps its kind. A nil err gives nil.
func WithHint(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &Error{Kind: KindOf(err), Hint: fmt.Sprintf(format, args...), Err: err}
}

func (e *Error) Error() string {
	if e.Op == "" {
		return e.Err.Error()
	}
	return e.Op + ": " + e.Err.Error()
}

// Unwrap returns the wrapped error.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of the outermost classified error in err's chain. Context errors are
// classified; any other error is Internal. A nil err has the empty kind.
func KindOf(err error) Kind {
	if err == nil {
		return ""
	}
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
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
		if e.Hint != "" {
			return e.Hint
		}
		err = e.Err
	}
	return ""
}
