// Package cli is the command line of rbee: a file for each noun (hive.go, worker.go, model.go), the
// output, and terminal support.
package cli

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
)

// app is passed to all commands: it connects to queens, and knows this machine and the terminal. A
// command is a function over it, in the file of its noun.
type app struct {
	connector
}

// Program holds what Main cannot find out by itself.
type Program struct {
	Version, Commit string // set by the linker; empty: taken from the Go toolchain
	StdoutClosed    bool   // before the Go runtime opened /dev/null in its place
}

// Main runs the command line args, without the program's name, and returns the exit code.
func Main(p Program, args []string) int {
	a := newApp(buildOf(p.Version, p.Commit))
	a.stdoutClosed = p.StdoutClosed
	return a.run(args)
}

func newApp(b build) *app {
	a := &app{}
	a.console = newConsole()
	a.env, a.environ, a.build = os.LookupEnv, os.Environ, b
	return a
}

// run executes the command line and returns the exit code.
func (a *app) run(args []string) int {
	out := &output{to: a.stdout, closed: a.stdoutClosed}
	a.stdout = out
	root := rootCommand(a)
	args = normalizeArgs(root, args)
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetErr(a.stderr)
	// This is the only place where a context begins: everything below receives it.
	cmd, err := root.ExecuteContextC(context.Background())
	if err == nil {
		err = out.err // cobra ignores errors when it writes help and completion scripts
	}
	if err == nil {
		return exitOK
	}
	return a.report(cmd, args, err)
}

// action is the body of a command. Its context ends at the first ^C, SIGTERM or SIGHUP; a second
// one ends the program at once.
type action func(ctx context.Context, cmd *cobra.Command, args []string) error

// do turns an action into a command's RunE.
func do(f action) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := interruptible(cmd.Context())
		defer stop()
		err := f(ctx, cmd, args)
		if err != nil {
			if i, ok := errors.AsType[interruptError](context.Cause(ctx)); ok {
				return &interruptedError{signal: i.signal, err: err}
			}
		}
		return err
	}
}

// interruptError is the cause of a context that a signal ended.
type interruptError struct{ signal syscall.Signal }

func (e interruptError) Error() string { return "interrupted by " + e.signal.String() }

// Unwrap makes it a cancellation wherever errors are classified.
func (e interruptError) Unwrap() error { return context.Canceled }

// interruptible returns a context that the first SIGINT, SIGTERM or SIGHUP cancels. From then on
// these signals have their usual effect. stop must be called; it waits for the watching goroutine.
func interruptible(parent context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(parent)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) { // respect nohup
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case s := <-signals:
			signal.Stop(signals)
			sig, _ := s.(syscall.Signal)
			cancel(interruptError{sig})
		case <-ctx.Done():
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		cancel(nil)
		<-done
	}
}
