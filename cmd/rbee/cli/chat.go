package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	xterm "golang.org/x/term"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

const chatHelp = `/bye      end (so does ^D)
/clear    forget the conversation
/help     this
"""       begin and end a message of several lines
^C        stop the answer that is being given
`

func chatCommand(a *app) *cobra.Command {
	var (
		g     generation
		model string
	)
	cmd := &cobra.Command{
		Use:   "chat MODEL",
		Short: "Talk with a model",
		Long: `Talk with a model: every message is answered with the conversation so far in mind.

` + chatHelp + `
When stdin is no terminal, each of its lines is a message. What is missing is started, as "rbee infer" does.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 && model != "" {
				return nil
			}
			return exactly("MODEL")(cmd, args)
		},
		ValidArgsFunction: first(a.names(modelsToUse)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := g.read(cmd); err != nil {
				return err
			}
			if len(args) > 0 {
				model = args[0]
			}
			return startChat(a, cmd, model, &g)
		},
	}
	cmd.Flags().StringVarP(&model, "model", "m", "", "`MODEL` to talk with, instead of the argument")
	_ = cmd.RegisterFlagCompletionFunc("model", a.names(modelsToUse))
	g.flags(cmd)
	return cmd
}

// errInterrupted is returned by a prompter when ^C was typed.
var errInterrupted = errors.New("interrupted")

// prompter reads messages: io.EOF at the end, errInterrupted after ^C.
type prompter interface {
	read(prompt string) (string, error)
}

// conversation is one chat.
type conversation struct {
	a        *app
	c        *client.Client
	model    string
	g        *generation
	messages []openai.Message
}

func startChat(a *app, cmd *cobra.Command, model string, g *generation) error {
	if a.wantJSON() {
		return usageHint("\"rbee infer --format json\" gives an answer as JSON.", "chat cannot be shown as JSON")
	}
	conv := &conversation{a: a, model: model, g: g}
	prepare := do(func(ctx context.Context, _ *cobra.Command, _ []string) (err error) {
		if conv.c, err = a.connectOrStart(ctx); err != nil {
			return err
		}
		conv.model, err = ensureWorker(ctx, a, conv.c, model)
		return a.explainUnreachable(ctx, conv.c, err)
	})
	if err := prepare(cmd, nil); err != nil {
		return err
	}
	conv.clear()
	in, isTerminal := a.stdin.(*os.File)
	if isTerminal && a.stdinTerminal && a.stdoutTerminal {
		fmt.Fprintf(a.stderr, "Talking with %s. /help shows what can be typed, /bye ends.\n", term.Line(conv.model))
		return conv.loop(cmd.Context(), newLineEditor(in, a.stdout), true)
	}
	return conv.loop(cmd.Context(), &lineReader{r: bufio.NewReader(a.stdin)}, false)
}

// clear forgets the conversation except for the system message.
func (v *conversation) clear() {
	v.messages = v.g.messages("")
	v.messages = v.messages[:len(v.messages)-1]
}

// loop reads and answers messages until the user quits. Without a person at the terminal, an error
// ends it.
func (v *conversation) loop(ctx context.Context, p prompter, person bool) error {
	for {
		text, err := v.message(p)
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case errors.Is(err, errInterrupted):
			fmt.Fprintln(v.a.stderr, "(/bye or ^D ends)")
			continue
		case err != nil:
			return fmt.Errorf("read a message: %w", err)
		}
		switch command := strings.ToLower(strings.TrimSpace(text)); {
		case command == "":
			continue
		case command == "/bye", command == "/exit", command == "/quit":
			return nil
		case command == "/clear":
			v.clear()
			fmt.Fprintln(v.a.stderr, "The conversation is forgotten.")
			continue
		case command == "/help", command == "/?":
			fmt.Fprint(v.a.stderr, chatHelp)
			continue
		case strings.HasPrefix(command, "/") && !strings.ContainsAny(command, " \n") && strings.Count(command, "/") == 1:
			fmt.Fprintf(v.a.stderr, "Unknown command %s.\n%s", term.Line(command), chatHelp)
			continue
		}
		if err := v.answer(ctx, text, person); err != nil {
			return err
		}
	}
}

// message reads one message, which spans several lines if it begins with """.
func (v *conversation) message(p prompter) (string, error) {
	const quotes = `"""`
	line, err := p.read(">>> ")
	if err != nil {
		return "", err
	}
	rest, multi := strings.CutPrefix(strings.TrimSpace(line), quotes)
	if !multi {
		return line, nil
	}
	for !strings.HasSuffix(strings.TrimRight(rest, " \t"), quotes) {
		line, err := p.read("... ")
		if err != nil {
			return "", err
		}
		rest += "\n" + line
	}
	return strings.Trim(strings.TrimSuffix(strings.TrimRight(rest, " \t"), quotes), "\n"), nil
}

// answer makes the model answer text. ^C stops the answer; the part received stays in the
// conversation.
func (v *conversation) answer(parent context.Context, text string, person bool) error {
	ctx, stop := interruptible(parent)
	defer stop()
	v.messages = append(v.messages, openai.Message{Role: "user", Content: openai.TextContent(text)})
	answer, err := streamChat(ctx, v.a, v.c, openai.ChatRequest{Model: v.model, Messages: v.messages, Sampling: v.g.sampling})
	signalled, interrupted := errors.AsType[interruptError](context.Cause(ctx))
	if err == nil || (interrupted && answer != "") {
		v.messages = append(v.messages, openai.Message{Role: "assistant", Content: openai.TextContent(answer)})
	} else {
		v.messages = v.messages[:len(v.messages)-1]
	}
	switch {
	case err == nil:
		return nil
	case interrupted && (!person || signalled.signal != syscall.SIGINT):
		return &interruptedError{signal: signalled.signal, err: context.Canceled}
	case interrupted:
		fmt.Fprintln(v.a.stderr, "(stopped)")
		return nil
	}
	err = v.a.explainUnreachable(ctx, v.c, err)
	if !person {
		return err
	}
	fmt.Fprintf(v.a.stderr, "rbee: %s\n", term.Text(err.Error()))
	if hint := core.HintOf(err); hint != "" {
		fmt.Fprintf(v.a.stderr, "      %s\n", term.Text(hint))
	}
	return nil
}

// lineReader reads messages from a pipe or a file, one a line.
type lineReader struct{ r *bufio.Reader }

func (l *lineReader) read(string) (string, error) {
	line, err := l.r.ReadString('\n')
	if err != nil && (line == "" || !errors.Is(err, io.EOF)) {
		return "", err
	}
	return strings.TrimRight(line, "\r\n"), nil
}

// lineEditor reads messages from a terminal with editing, history and paste. The terminal is raw
// only while a line is edited, so that ^C is a signal while an answer is generated.
type lineEditor struct {
	in      *os.File
	out     io.Writer
	keys    *keyReader
	history xterm.History
	edit    *xterm.Terminal
}

func newLineEditor(in *os.File, out io.Writer) *lineEditor {
	return &lineEditor{in: in, out: out, keys: &keyReader{r: in}}
}

// keyReader records whether ^C was the last key, which the editor does not distinguish from the end
// of the input.
type keyReader struct {
	r       io.Reader
	pending []byte
	ctrlC   bool
}

func (k *keyReader) Read(p []byte) (int, error) {
	if len(k.pending) == 0 {
		buf := make([]byte, 256)
		n, err := k.r.Read(buf)
		if n == 0 {
			return 0, err
		}
		k.pending = buf[:n]
	}
	// Return one key at a time up to a ^C, so that what was typed after it is not lost with the
	// editor's buffer.
	n := min(len(p), len(k.pending))
	for i, b := range k.pending[:n] {
		if b == 3 {
			if i == 0 {
				n = 1
				k.ctrlC = true
			} else {
				n = i
			}
			break
		}
	}
	copy(p, k.pending[:n])
	k.pending = k.pending[n:]
	return n, nil
}

func (e *lineEditor) read(prompt string) (string, error) {
	fd := int(e.in.Fd())
	old, err := xterm.MakeRaw(fd)
	if err != nil {
		return "", err
	}
	// A terminal that stays raw is useless to the shell: restore it before a signal ends the
	// program.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGHUP)
	done, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		select {
		case s := <-signals:
			_ = xterm.Restore(fd, old)
			sig, _ := s.(syscall.Signal)
			os.Exit(exitInterrupted + int(sig))
		case <-done:
		}
	}()
	defer func() {
		signal.Stop(signals)
		close(done)
		<-stopped
		_ = xterm.Restore(fd, old)
	}()
	if e.edit == nil {
		e.edit = xterm.NewTerminal(struct {
			io.Reader
			io.Writer
		}{e.keys, e.out}, prompt)
		if e.history != nil {
			e.edit.History = e.history
		}
		e.history = e.edit.History
	}
	e.edit.SetPrompt(prompt)
	if width, height, err := xterm.GetSize(fd); err == nil && width > 0 {
		_ = e.edit.SetSize(width, height)
	}
	e.edit.SetBracketedPasteMode(true)
	defer e.edit.SetBracketedPasteMode(false)
	var pasted []string
	for {
		e.keys.ctrlC = false
		line, err := e.edit.ReadLine()
		switch {
		case errors.Is(err, xterm.ErrPasteIndicator):
			pasted = append(pasted, line)
			continue
		case err == io.EOF && e.keys.ctrlC: //nolint:errorlint // returned as it is
			fmt.Fprint(e.out, "^C\r\n")
			e.edit = nil // the editor keeps the line: start over
			return "", errInterrupted
		case err == io.EOF: //nolint:errorlint // returned as it is
			fmt.Fprint(e.out, "\r\n")
			return "", err
		case err != nil:
			return "", err
		}
		return strings.Join(append(pasted, line), "\n"), nil
	}
}
