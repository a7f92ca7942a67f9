package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
)

// The exit codes.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitInterrupted = 128 // plus the number of the signal, as in shells: 130 for ^C
)

// usageError reports that the command line itself is wrong.
type usageError struct {
	err  error
	hint string // what to type instead; may be empty
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

// usagef returns a usage error without a specific hint.
func usagef(format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...)}
}

// usageHint returns a usage error with what to type instead.
func usageHint(hint, format string, args ...any) error {
	return &usageError{err: fmt.Errorf(format, args...), hint: hint}
}

// interruptedError is the error of a command that a signal ended.
type interruptedError struct {
	signal syscall.Signal
	err    error
}

func (e *interruptedError) Error() string { return e.err.Error() }
func (e *interruptedError) Unwrap() error { return e.err }

// errShown is returned by a command that has already printed the problem; it only sets the exit
// code.
var errShown = errors.New("failed")

// report prints err to stderr and returns the exit code. It is the only place that prints errors.
func (a *app) report(cmd *cobra.Command, args []string, err error) int {
	if errors.Is(err, errShown) {
		return exitFailed
	}
	if l, ok := errors.AsType[*launchedError](err); ok {
		return l.code
	}
	code := exitFailed
	failure := &core.Failure{Kind: core.KindOf(err), Message: err.Error(), Hint: core.HintOf(err)}
	if u, ok := errors.AsType[*usageError](err); ok {
		code = exitUsage
		failure.Kind = core.Invalid
		failure.Hint = u.hint
		if failure.Hint == "" {
			failure.Hint = fmt.Sprintf("%q shows how it is called.", cmd.CommandPath()+" --help")
		}
	}
	if i, ok := errors.AsType[*interruptedError](err); ok {
		code = exitInterrupted + int(i.signal)
		if failure.Kind == core.Cancelled || errors.Is(err, context.Canceled) {
			failure = &core.Failure{Kind: core.Cancelled, Message: "interrupted"}
		}
	}
	if _, ok := errors.AsType[*planError](err); ok && code < exitInterrupted {
		code = exitPlanFailed
	}
	// A wrong flag ends parsing before --format is known, so look at the arguments.
	if a.wantJSON() || asksJSON(args) {
		_ = writeJSON(a.stderr, map[string]*core.Failure{"error": failure})
		return code
	}
	fmt.Fprintf(a.stderr, "rbee: %s\n", term.Text(failure.Message))
	if failure.Hint != "" {
		fmt.Fprintf(a.stderr, "      %s\n", strings.ReplaceAll(term.Text(failure.Hint), "\n", "\n      "))
	}
	return code
}

// asksJSON looks for --format json in unparsed arguments.
func asksJSON(args []string) bool {
	for i, arg := range args {
		switch {
		case arg == "--":
			return false
		case arg == "--json", arg == "--format=json", arg == "--format" && i+1 < len(args) && args[i+1] == formatJSON:
			return true
		}
	}
	return false
}

// flagError turns an error of the flag parser into a usage error with the nearest flag's name.
func flagError(cmd *cobra.Command, err error) error {
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name := unknown.GetSpecifiedName()
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if !f.Hidden {
				names = append(names, f.Name)
			}
		})
		if n := nearest(name, names); n != "" && len(name) > 1 {
			return usageHint(fmt.Sprintf("Did you mean --%s? %q shows all flags.", n, cmd.CommandPath()+" --help"), "%w", err)
		}
	}
	return &usageError{err: err}
}

// nearest returns the candidate that name most likely misspells, or the empty string.
func nearest(name string, candidates []string) string {
	if near := core.Nearest(name, candidates); len(near) > 0 {
		return near[0]
	}
	return ""
}
