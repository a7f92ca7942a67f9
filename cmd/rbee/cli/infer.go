package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// generation holds the user's parameters of an answer. The worker decides those that are unset.
type generation struct {
	system      string
	maxTokens   int
	temperature float64
	seed        int64
	stop        []string
	sampling    openai.Sampling
}

// flags adds the flags of a generation to a command.
func (g *generation) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&g.system, "system", "", "system message")
	f.IntVar(&g.maxTokens, "max-tokens", 0, "longest answer in tokens (default: until the model ends or the context is full)")
	f.Float64Var(&g.temperature, "temperature", 0, "0 to 2; 0 always takes the likeliest token (default: the worker's)")
	f.Int64Var(&g.seed, "seed", 0, "seed of the random choice (default: another one each time)")
	f.StringArrayVar(&g.stop, "stop", nil, "`TEXT` that ends the answer; may be repeated")
}

// read takes over the flags that were given.
func (g *generation) read(cmd *cobra.Command) error {
	f := cmd.Flags()
	if f.Changed("max-tokens") {
		if g.maxTokens < 1 {
			return usagef("--max-tokens must be 1 or more, not %d", g.maxTokens)
		}
		g.sampling.MaxTokens = new(openai.Int(g.maxTokens))
	}
	if f.Changed("temperature") {
		if !(g.temperature >= 0 && g.temperature <= 2) {
			return usagef("--temperature must be between 0 and 2, not %v", g.temperature)
		}
		g.sampling.Temperature = &g.temperature
	}
	if f.Changed("seed") {
		g.sampling.Seed = new(openai.Int(g.seed))
	}
	if slices.Contains(g.stop, "") {
		return usagef("--stop must not be empty")
	}
	g.sampling.Stop = g.stop
	return nil
}

// messages returns a conversation with one question.
func (g *generation) messages(prompt string) []openai.Message {
	var m []openai.Message
	if g.system != "" {
		m = append(m, openai.Message{Role: "system", Content: openai.TextContent(g.system)})
	}
	return append(m, openai.Message{Role: "user", Content: openai.TextContent(prompt)})
}

func inferCommand(a *app) *cobra.Command {
	var (
		g             generation
		model, prompt string
		noStream, raw bool
	)
	cmd := &cobra.Command{
		Use:   "infer --model MODEL --prompt PROMPT",
		Short: "Ask a model and show its answer",
		Long: `Ask a model and show its answer on stdout as it is generated.

What is missing is started, with progress on stderr: an agent on this machine (only when neither --addr nor RBEE_ADDR names one),
the worker's engine, the model, a worker. Without --prompt, or with "--prompt -", the prompt is read from stdin.
--format json shows the whole response of the OpenAI API instead.

Exit code 1 when the answer could not be completed, 130 when ^C stopped it.`,
		Example: `  rbee infer --model rbee-tiny --prompt "What is a queen?"
  rbee infer --model rbee-tiny --temperature 0 < question.txt`,
		Args: cobra.ArbitraryArgs,
		RunE: do(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			if model == "" {
				return usageHint("\"rbee ls\" lists the models; rbee-tiny is always there.", "--model is missing")
			}
			if err := g.read(cmd); err != nil {
				return err
			}
			if len(args) > 0 {
				if cmd.Flags().Changed("prompt") {
					return usageHint("Put the prompt in quotes.", "one argument too many: %q", args[0])
				}
				prompt = strings.Join(args, " ")
			}
			if prompt == "" || prompt == "-" {
				if cmd.Flags().Changed("prompt") && prompt == "" {
					return usagef("the prompt is empty")
				}
				if a.stdinTerminal && prompt == "" {
					return usageHint("Say --prompt TEXT, or pipe it in; \"rbee chat "+model+"\" is for conversations.", "no prompt")
				}
				text, err := readPrompt(ctx, a)
				if err != nil {
					return err
				}
				if prompt = strings.TrimRight(text, "\n"); prompt == "" {
					return usageHint("Say --prompt TEXT, or pipe it in.", "the prompt on stdin is empty")
				}
			}
			if raw && g.system != "" {
				return usagef("--raw has no system message")
			}
			return answerPrompt(ctx, a, model, prompt, &g, noStream, raw)
		}),
	}
	f := cmd.Flags()
	f.StringVarP(&model, "model", "m", "", "`MODEL` to ask: id, alias or catalog reference")
	f.StringVarP(&prompt, "prompt", "p", "", "`TEXT` of the prompt; - reads stdin")
	f.BoolVar(&noStream, "no-stream", false, "show the answer once it is whole")
	f.BoolVar(&raw, "raw", false, "let the model go on from the prompt, without its chat template")
	g.flags(cmd)
	_ = cmd.RegisterFlagCompletionFunc("model", a.names(modelsToUse))
	_ = cmd.RegisterFlagCompletionFunc("prompt", cobra.NoFileCompletions)
	return cmd
}

func runCommand(a *app) *cobra.Command {
	var g generation
	cmd := &cobra.Command{
		Use:   "run MODEL [PROMPT]",
		Short: "Ask a model, or chat with it when there is no prompt",
		Long: `Ask a model, or chat with it when there is no prompt and stdin is a terminal.

What is piped or redirected to stdin stands in front of the prompt. What is missing is started, as "rbee infer" does; the worker stays
loaded ("rbee ps" shows it, "rbee stop MODEL" ends it).`,
		Example: `  rbee run rbee-tiny "What is a queen?"
  rbee run rbee-tiny
  rbee run rbee-tiny "Repeat this" < notes.txt`,
		Args:              atLeast("MODEL"),
		ValidArgsFunction: first(a.names(modelsToUse)),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := g.read(cmd); err != nil {
				return err
			}
			model, prompt := args[0], strings.Join(args[1:], " ")
			if !a.stdinTerminal && (prompt == "" || isPiped(a.stdin)) {
				text, err := readPrompt(cmd.Context(), a)
				if err != nil {
					return err
				}
				prompt = strings.TrimSpace(strings.TrimRight(text, "\n") + "\n\n" + prompt)
			}
			if prompt == "" {
				if !a.stdinTerminal {
					return usageHint("Say it behind the model's name, or pipe it in.", "no prompt")
				}
				return startChat(a, cmd, model, &g)
			}
			return do(func(ctx context.Context, _ *cobra.Command, _ []string) error {
				return answerPrompt(ctx, a, model, prompt, &g, false, false)
			})(cmd, args)
		},
	}
	g.flags(cmd)
	return cmd
}

// maxPromptBytes is the most that an agent accepts in one request.
const maxPromptBytes = 32 << 20

// readPrompt reads stdin to its end.
func readPrompt(ctx context.Context, a *app) (string, error) {
	text, err := a.reading(ctx, func() (string, error) {
		b, err := io.ReadAll(io.LimitReader(a.stdin, maxPromptBytes+1))
		return string(b), err
	})
	switch {
	case err != nil && ctx.Err() == nil:
		return "", fmt.Errorf("read the prompt from stdin: %w", err)
	case len(text) > maxPromptBytes:
		return "", core.Errorf(core.TooLarge, "the prompt on stdin is larger than %s", term.Size(maxPromptBytes)).Hint("No model reads that much at once: split it.")
	}
	return text, err
}

// isPiped reports whether stdin is a pipe or a regular file. /dev/null and terminals are neither.
func isPiped(r io.Reader) bool {
	f, ok := r.(*os.File)
	if !ok {
		return true
	}
	info, err := f.Stat()
	return err == nil && (info.Mode().IsRegular() || info.Mode()&os.ModeNamedPipe != 0)
}

// answerPrompt asks model once and writes the answer to stdout.
func answerPrompt(ctx context.Context, a *app, model, prompt string, g *generation, noStream, raw bool) error {
	c, err := a.connectOrStart(ctx)
	if err != nil {
		return err
	}
	if model, err = ensureWorker(ctx, a, c, model); err != nil {
		return a.explainUnreachable(ctx, c, err)
	}
	if raw {
		err = completeRaw(ctx, a, c, openai.CompletionRequest{Model: model, Prompt: openai.TextPrompt(prompt), Sampling: g.sampling}, noStream)
	} else {
		err = completeChat(ctx, a, c, openai.ChatRequest{Model: model, Messages: g.messages(prompt), Sampling: g.sampling}, noStream)
	}
	return a.explainUnreachable(ctx, c, err)
}

func completeChat(ctx context.Context, a *app, c *client.Client, r openai.ChatRequest, noStream bool) error {
	if !noStream && !a.wantJSON() {
		_, err := streamChat(ctx, a, c, r)
		return err
	}
	resp, _, err := c.Chat(ctx, r)
	if err != nil {
		return err
	}
	return a.show(resp, func(w io.Writer) error {
		out := a.textWriter(w)
		for _, choice := range resp.Choices {
			if choice.Message.Content != nil {
				out.write(*choice.Message.Content)
			}
		}
		return out.end()
	})
}

// streamChat writes the answer to stdout as it arrives, and returns the text received so far.
func streamChat(ctx context.Context, a *app, c *client.Client, r openai.ChatRequest) (string, error) {
	r.Stream = true
	out := a.textWriter(a.stdout)
	m := term.NewMeter(a.stderr, a.stderrTerminal, a.now)
	defer m.Close()
	var text strings.Builder
	err := c.ChatStream(ctx, r, func(chunk openai.ChatChunk) error {
		for _, choice := range chunk.Choices {
			if choice.Delta.Content != nil {
				m.Close()
				text.WriteString(*choice.Delta.Content)
				out.write(*choice.Delta.Content)
			}
		}
		return out.err
	}, client.OnComment(func(comment string) { showWaiting(a, m, comment) }))
	return text.String(), errors.Join(err, out.end())
}

func completeRaw(ctx context.Context, a *app, c *client.Client, r openai.CompletionRequest, noStream bool) error {
	if r.MaxTokens == nil {
		r.MaxTokens = new(openai.Int(defaultRawTokens)) // the API's own default is 16
	}
	if noStream || a.wantJSON() {
		resp, _, err := c.Complete(ctx, r)
		if err != nil {
			return err
		}
		return a.show(resp, func(w io.Writer) error {
			out := a.textWriter(w)
			for _, choice := range resp.Choices {
				out.write(choice.Text)
			}
			return out.end()
		})
	}
	r.Stream = true
	out := a.textWriter(a.stdout)
	m := term.NewMeter(a.stderr, a.stderrTerminal, a.now)
	defer m.Close()
	err := c.CompleteStream(ctx, r, func(chunk openai.CompletionResponse) error {
		for _, choice := range chunk.Choices {
			m.Close()
			out.write(choice.Text)
		}
		return out.err
	}, client.OnComment(func(comment string) { showWaiting(a, m, comment) }))
	return errors.Join(err, out.end())
}

// defaultRawTokens bounds the text of --raw without --max-tokens.
const defaultRawTokens = 512

// showWaiting shows the progress that a queen sends in a comment of a stream while it starts a
// worker.
func showWaiting(a *app, m *term.Meter, comment string) {
	if comment = strings.TrimSpace(comment); comment != "" {
		m.Show(core.Progress{Phase: comment})
	}
}
