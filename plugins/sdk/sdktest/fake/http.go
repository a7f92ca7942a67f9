package fake

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

const maxBody = 16 << 20

func (w *Worker) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", w.chat)
	mux.HandleFunc("POST /v1/completions", w.complete)
	mux.HandleFunc("GET /v1/models", w.models)
	mux.HandleFunc("/", func(rw http.ResponseWriter, r *http.Request) {
		openai.WriteError(rw, http.StatusNotFound, openai.NewError(http.StatusNotFound, openai.TypeNotFound, "", "", "there is no %s %s here", r.Method, r.URL.Path))
	})
	return mux
}

func (w *Worker) models(rw http.ResponseWriter, _ *http.Request) {
	w.mu.Lock()
	id := w.spec.ModelID
	w.mu.Unlock()
	rw.Header().Set("Content-Type", "application/json")
	fmt.Fprintf(rw, `{"object":"list","data":[{"id":%q,"object":"model","created":0,"owned_by":"rbee"}]}`+"\n", id)
}

func (w *Worker) chat(rw http.ResponseWriter, r *http.Request) {
	body, err := openai.ReadBody(r.Body, maxBody)
	if err != nil {
		refuse(rw, err)
		return
	}
	req, err := openai.DecodeChat(body)
	if err != nil {
		refuse(rw, err)
		return
	}
	if err := req.CheckAbility(abilities()); err != nil {
		refuse(rw, err)
		return
	}
	var all, last string
	for _, m := range req.Messages {
		text, _ := m.Content.PlainText()
		all += " " + text
		if m.Role == "user" {
			last = text
		}
	}
	w.answer(rw, r, answer{
		chat: true, model: req.Model, words: strings.Fields(last), promptTokens: len(strings.Fields(all)), limit: req.MaxOutput(), stream: req.Stream, usage: req.IncludeUsage(),
	})
}

func (w *Worker) complete(rw http.ResponseWriter, r *http.Request) {
	body, err := openai.ReadBody(r.Body, maxBody)
	if err != nil {
		refuse(rw, err)
		return
	}
	req, err := openai.DecodeCompletion(body)
	if err != nil {
		refuse(rw, err)
		return
	}
	if err := req.CheckAbility(abilities()); err != nil {
		refuse(rw, err)
		return
	}
	words := strings.Fields(strings.Join(req.Prompt.Texts, " "))
	w.answer(rw, r, answer{model: req.Model, words: words, promptTokens: len(words), limit: req.MaxOutput(), stream: req.Stream, usage: req.IncludeUsage()})
}

func refuse(rw http.ResponseWriter, err error) {
	if e, ok := errors.AsType[*openai.Error](err); ok {
		openai.WriteError(rw, 0, e)
		return
	}
	openai.WriteError(rw, http.StatusBadRequest, openai.Invalid("", "%s", err))
}

// answer is one request, understood.
type answer struct {
	chat, stream, usage bool
	model               string
	words               []string
	promptTokens, limit int // limit 0: none
}

// enter takes a slot, or says why it cannot.
func (w *Worker) enter(ctx context.Context) *openai.Error {
	w.mu.Lock()
	if w.state != worker.StateReady {
		state := w.state
		w.mu.Unlock()
		return openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", "", "the worker is %s and takes no new requests", state)
	}
	w.queued++
	w.mu.Unlock()
	var err *openai.Error
	select {
	case w.slots <- struct{}{}:
	case <-w.stopped.Done():
		err = openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", "", "the worker stops")
	case <-ctx.Done():
		err = openai.NewError(http.StatusServiceUnavailable, openai.TypeUnavailable, "", "", "the client is gone")
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.queued--
	if err == nil {
		w.active++
	}
	w.quietLocked()
	return err
}

func (w *Worker) leave() {
	<-w.slots
	w.mu.Lock()
	defer w.mu.Unlock()
	w.active--
	w.quietLocked()
}

func (w *Worker) quietLocked() {
	if w.active+w.queued == 0 && w.idle != nil {
		close(w.idle)
		w.idle = nil
	}
}

func (w *Worker) answer(rw http.ResponseWriter, r *http.Request, a answer) {
	w.mu.Lock()
	model := w.spec.ModelID
	w.mu.Unlock()
	if a.model != "" && a.model != model {
		openai.WriteError(rw, http.StatusNotFound, openai.NewError(http.StatusNotFound, openai.TypeNotFound, "model", openai.CodeModelNotFound, "this worker serves %q, not %q", model, a.model))
		return
	}
	if err := w.enter(r.Context()); err != nil {
		openai.WriteError(rw, 0, err)
		return
	}
	defer w.leave()
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	defer context.AfterFunc(w.stopped, cancel)()

	finish := openai.FinishStop
	words := a.words
	if n := w.knobs().Tokens; n > 0 {
		words = nil
		for i := range n {
			words = append(words, fmt.Sprintf("token%d", i))
		}
	}
	if a.limit > 0 && len(words) > a.limit {
		words, finish = words[:a.limit], openai.FinishLength
	}
	usage := &openai.Usage{PromptTokens: a.promptTokens, CompletionTokens: len(words), TotalTokens: a.promptTokens + len(words)}
	if a.stream {
		w.streamAnswer(ctx, rw, a, model, words, finish, usage)
		return
	}
	var text strings.Builder
	if err := w.generate(ctx, words, func(piece string) error {
		text.WriteString(piece)
		return nil
	}); err != nil {
		openai.WriteError(rw, http.StatusInternalServerError, openai.NewError(http.StatusInternalServerError, openai.TypeServer, "", "", "%s", err))
		return
	}
	content := text.String()
	if a.chat {
		writeJSON(rw, openai.ChatResponse{
			ID: "chatcmpl-fake", Object: openai.ObjectChat, Model: model, Usage: usage,
			Choices: []openai.ChatChoice{{Message: openai.AnswerMessage{Role: "assistant", Content: &content}, FinishReason: finish}},
		})
		return
	}
	writeJSON(rw, openai.CompletionResponse{
		ID: "cmpl-fake", Object: openai.ObjectCompletion, Model: model, Usage: usage,
		Choices: []openai.CompletionChoice{{Text: content, FinishReason: &finish}},
	})
}

func (w *Worker) streamAnswer(ctx context.Context, rw http.ResponseWriter, a answer, model string, words []string, finish string, usage *openai.Usage) {
	events := openai.NewEventWriter(rw)
	chunk := func(piece *string, first bool, finish *string) any {
		if !a.chat {
			c := openai.CompletionChoice{FinishReason: finish}
			if piece != nil {
				c.Text = *piece
			}
			return openai.CompletionResponse{ID: "cmpl-fake", Object: openai.ObjectCompletion, Model: model, Choices: []openai.CompletionChoice{c}}
		}
		d := openai.Delta{Content: piece}
		if first {
			d.Role = "assistant"
		}
		return openai.ChatChunk{ID: "chatcmpl-fake", Object: openai.ObjectChatChunk, Model: model, Choices: []openai.ChunkChoice{{Delta: d, FinishReason: finish}}}
	}
	empty := ""
	if a.chat {
		if events.JSON(chunk(&empty, true, nil)) != nil {
			return
		}
	}
	err := w.generate(ctx, words, func(piece string) error { return events.JSON(chunk(&piece, false, nil)) })
	if err != nil {
		// the client may be gone
		_ = events.Error(openai.NewError(http.StatusInternalServerError, openai.TypeServer, "", "", "%s", err))
		return
	}
	if events.JSON(chunk(nil, false, &finish)) != nil {
		return
	}
	if a.usage {
		var last any = openai.CompletionResponse{ID: "cmpl-fake", Object: openai.ObjectCompletion, Model: model, Choices: []openai.CompletionChoice{}, Usage: usage}
		if a.chat {
			last = openai.ChatChunk{ID: "chatcmpl-fake", Object: openai.ObjectChatChunk, Model: model, Choices: []openai.ChunkChoice{}, Usage: usage}
		}
		if events.JSON(last) != nil {
			return
		}
	}
	_ = events.Done() // the client may be gone
}

// awaitFile waits until there is a file of that name. An empty name waits for nothing.
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

// generate emits the words with the configured delays and accidents.
func (w *Worker) generate(ctx context.Context, words []string, emit func(string) error) error {
	c := w.knobs()
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
			return fmt.Errorf("failed after %d tokens, as configured", i)
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
		w.mu.Lock()
		w.tokens++
		w.mu.Unlock()
	}
	return nil
}
