package ssh

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	gossh "golang.org/x/crypto/ssh"

	"github.com/rbee-project/rbee/core"
)

// Bounds of a command's output: the rest is dropped.
const (
	maxStdout = 1 << 20
	maxStderr = 16 << 10
)

// Conn is a connection to a machine. It is safe for concurrent use.
type Conn struct {
	User    string
	Address string // host:port

	clients []*gossh.Client // the jump hosts, then the machine
}

func (c *Conn) last() *gossh.Client {
	if len(c.clients) == 0 {
		return nil
	}
	return c.clients[len(c.clients)-1]
}

// Close ends the connection and everything that still runs over it.
func (c *Conn) Close() {
	for _, client := range slices.Backward(c.clients) {
		client.Close()
	}
}

// ExitError reports a command that exited with a nonzero status.
type ExitError struct {
	Status int    // -1: ended by a signal or a broken connection
	Stderr string // its last lines, without control characters
}

func (e *ExitError) Error() string {
	text := fmt.Sprintf("exit status %d", e.Status)
	if e.Status < 0 {
		text = "it was ended"
	}
	if e.Stderr != "" {
		text = e.Stderr + " (" + text + ")"
	}
	return text
}

// Run runs a command line (see Command) with stdin, which may be nil, and returns its stdout. When
// ctx ends, the connection closes and can run nothing more. Errors: *ExitError, Unavailable for a
// broken connection, TooLarge for an answer beyond 1 MiB.
func (c *Conn) Run(ctx context.Context, command string, stdin io.Reader) (string, error) {
	stop := context.AfterFunc(ctx, c.Close)
	defer stop()
	session, err := c.last().NewSession()
	if err != nil {
		return "", broken(ctx, err)
	}
	defer session.Close()
	out, talk := &bounded{max: maxStdout}, &bounded{max: maxStderr}
	session.Stdin, session.Stdout, session.Stderr = stdin, out, talk
	err = session.Run(command)
	switch exit, ok := errors.AsType[*gossh.ExitError](err); {
	case ok && ctx.Err() == nil:
		status := exit.ExitStatus()
		if exit.Signal() != "" {
			status = -1
		}
		return out.String(), &ExitError{status, Clean(talk.String())}
	case err != nil:
		return "", broken(ctx, err)
	case out.cut:
		return "", core.Errorf(core.TooLarge, "the machine answered more than %d bytes", maxStdout)
	}
	return out.String(), nil
}

func broken(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return core.FromContext(ctx)
	}
	return core.Errorf(core.Unavailable, "the connection broke: %w", err).Hint("Try again: what is there already is not sent again.")
}

// Clean makes another machine's output fit for an error or a log: its last lines, joined into one,
// without control characters.
func Clean(text string) string {
	const most = 600
	text = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(text, "?"))), " ")
	if len(text) > most {
		text = "…" + strings.ToValidUTF8(text[len(text)-most:], "")
	}
	return text
}

// bounded keeps the first max bytes and discards the rest, so that the command does not block.
type bounded struct {
	buf bytes.Buffer
	max int
	cut bool
}

func (b *bounded) Write(p []byte) (int, error) {
	keep := p
	if room := b.max - b.buf.Len(); len(keep) > room {
		b.cut, keep = true, keep[:room]
	}
	b.buf.Write(keep)
	return len(p), nil
}

func (b *bounded) String() string { return b.buf.String() }
