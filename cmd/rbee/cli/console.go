package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	xterm "golang.org/x/term"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
)

// console is where commands read and write, and in which format.
type console struct {
	stdin  io.Reader
	stdout io.Writer
	stderr io.Writer
	now    func() time.Time

	// These report whether each is a terminal with a person at it.
	stdinTerminal  bool
	stdoutTerminal bool
	stdoutClosed   bool // since before this program began
	stderrTerminal bool

	format string // --format, "table" or "json"
	json   bool   // --json, the same as --format json
}

func newConsole() console {
	dumb := os.Getenv("TERM") == "dumb"
	return console{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr, now: time.Now,
		stdinTerminal:  xterm.IsTerminal(int(os.Stdin.Fd())),
		stdoutTerminal: xterm.IsTerminal(int(os.Stdout.Fd())),
		stderrTerminal: xterm.IsTerminal(int(os.Stderr.Fd())) && !dumb,
	}
}

// wantJSON reports whether the user asked for JSON.
func (con *console) wantJSON() bool { return con.json || con.format == formatJSON }

// show writes v as JSON, or calls text, whichever the user asked for.
func (con *console) show(v any, text func(w io.Writer) error) error {
	if con.wantJSON() {
		return writeJSON(con.stdout, v)
	}
	return text(con.stdout)
}

// list returns a slice that is never null in JSON.
func list[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

// ago returns how long before now t was: "5m ago". It is empty for a zero t.
func (con *console) ago(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	d := con.now().Sub(t)
	if d < time.Second {
		return "now"
	}
	return term.Duration(d) + " ago"
}

// since returns the time since t without "ago".
func (con *console) since(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return term.Duration(max(0, con.now().Sub(t)))
}

// confirm asks a person whether to continue. Without a terminal, --yes is required.
func (con *console) confirm(ctx context.Context, yes bool, question string) error {
	if yes {
		return nil
	}
	if !con.stdinTerminal || !con.stderrTerminal {
		return usageHint("Say --yes to do it, or --dry-run to see what would be done.", "%s: nobody to ask", term.Line(question))
	}
	fmt.Fprintf(con.stderr, "%s [y/N] ", term.Line(question))
	line, err := con.readLine(ctx)
	if err != nil {
		return err
	}
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return nil
	}
	return core.Errorf(core.Cancelled, "nothing was done")
}

// readLine reads a line of stdin.
func (con *console) readLine(ctx context.Context) (string, error) {
	line, err := con.reading(ctx, func() (string, error) {
		line, err := bufio.NewReader(con.stdin).ReadString('\n')
		if errors.Is(err, io.EOF) {
			err = nil
		}
		return line, err
	})
	if ctx.Err() != nil {
		fmt.Fprintln(con.stderr)
	}
	return line, err
}

// reading runs a read of stdin, which cannot be interrupted: if ctx ends first, its goroutine ends
// with the program.
func (con *console) reading(ctx context.Context, read func() (string, error)) (string, error) {
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		text, err := read()
		answers <- answer{text, err}
	}()
	select {
	case got := <-answers:
		return got.text, got.err
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// textWriter writes generated text. On a terminal it drops control characters: a model must not
// move the cursor or set a title.
type textWriter struct {
	w        io.Writer
	terminal bool
	any      bool
	last     byte
	err      error
}

func (con *console) textWriter(w io.Writer) *textWriter {
	return &textWriter{w: w, terminal: con.stdoutTerminal}
}

func (t *textWriter) write(s string) {
	if t.terminal {
		s = strings.Map(func(r rune) rune {
			if r == '\n' || r == '\t' || (r >= ' ' && r != 0x7f && (r < 0x80 || r > 0x9f)) {
				return r
			}
			return -1
		}, s)
	}
	if s == "" || t.err != nil {
		return
	}
	_, t.err = io.WriteString(t.w, s)
	t.any, t.last = true, s[len(s)-1]
}

// end ends the last line.
func (t *textWriter) end() error {
	if t.err == nil && t.any && t.last != '\n' {
		_, t.err = io.WriteString(t.w, "\n")
	}
	return t.err
}
