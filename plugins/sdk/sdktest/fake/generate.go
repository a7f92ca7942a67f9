package fake

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/api"
)

// served returns the options of the API that a started worker serves.
func (w *Worker) served(spec worker.StartSpec) api.Options {
	return api.Options{ModelID: spec.ModelID, Gate: worker.NewGate(spec.Slots), Model: w}
}

// awaitFile waits until the file exists. With an empty name it returns at once.
func awaitFile(ctx context.Context, name string) error {
	for name != "" {
		if _, err := os.Stat(name); err == nil {
			return nil
		}
		if err := sleep(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// Generate answers with the words of the last message, with the configured delays and failures.
func (w *Worker) Generate(ctx context.Context, r api.Request, emit func(string) error) error {
	text := r.Prompt
	for _, m := range r.Messages {
		if m.Role == "user" {
			text, _ = m.Content.PlainText()
		}
	}
	words := strings.Fields(text)
	c := w.knobs()
	if c.Tokens > 0 {
		words = make([]string, c.Tokens)
		for i := range words {
			words[i] = fmt.Sprintf("token%d", i)
		}
	}
	if r.MaxTokens > 0 && len(words) > r.MaxTokens {
		words = words[:r.MaxTokens]
	}
	for i, word := range words {
		if err := sleep(ctx, c.tokenDelay); err != nil {
			return err
		}
		if i == len(words)-1 {
			if err := awaitFile(ctx, c.LastToken); err != nil {
				return err
			}
		}
		if c.FailAfterTokens > 0 && i == c.FailAfterTokens {
			return openai.NewError(http.StatusInternalServerError, openai.TypeServer, "", "", "failed after %d tokens, as configured", i)
		}
		if c.CrashAfterTokens > 0 && i == c.CrashAfterTokens {
			os.Exit(3)
		}
		if i == len(words)/2 {
			if err := w.hang(ctx, "stream"); err != nil {
				return err
			}
		}
		if c.Print {
			fmt.Println("printed to standard output")
			fmt.Fprintln(os.Stderr, "printed to standard error")
		}
		if i > 0 {
			word = " " + word
		}
		if err := emit(word); err != nil {
			return err
		}
	}
	return nil
}
