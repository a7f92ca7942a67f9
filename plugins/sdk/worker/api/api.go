// Package api serves OpenAI's HTTP API for a model that runs in the worker's process: an author
// only provides what the model can do.
package api

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// Model generates text. Its method is called by as many goroutines as the worker has slots.
type Model interface {
	// Generate calls emit with the text of one token after the other, and returns nil at the end of
	// the answer. A token may hold part of a character. An error of emit means that no more text is
	// wanted: a stop string, MaxTokens or the client ended the answer, and Generate returns with
	// any error. ctx ends when the client disconnects or the worker stops.
	//
	// An *openai.Error is sent to the client; any other error is logged, and the client learns only
	// that the model failed.
	Generate(ctx context.Context, r Request, emit func(token string) error) error
}

// Request is what a Model must answer.
type Request struct {
	// Prompt is the prompt of a completion, or the conversation of a chat as text: see Transcript.
	Prompt   string
	Messages []openai.Message // the conversation of a chat; nil for a completion
	// MaxTokens bounds the answer; 0: the model's own bound. It is enforced whatever Generate does.
	MaxTokens int
	// Sampling is how to choose tokens, as the client sent it. Reject settings that matter but
	// cannot be honoured with openai.NotSupported.
	Sampling openai.Sampling
}

// Embedder turns texts into vectors. Its method is called by as many goroutines as the worker has
// slots.
type Embedder interface {
	// Embed returns one vector for each text, all of the same length. Its errors are treated like
	// those of Generate.
	Embed(ctx context.Context, texts []string) ([][]float32, error)
}

// Tokenizer converts between a model's texts and tokens. It is safe for concurrent use. Its errors
// are treated like those of Generate.
type Tokenizer interface {
	Tokenize(text string) ([]int32, error)
	Detokenize(tokens []int32) (string, error)
}

// Options describe what is served. At least one of Model and Embedder is set.
type Options struct {
	ModelID   string       // the name that clients use
	Gate      *worker.Gate // provides the slots
	Model     Model        // nil: the worker generates no text
	Embedder  Embedder     // nil: it has no embeddings
	Tokenizer Tokenizer    // nil: the words of a prompt are counted as its tokens
	Log       *slog.Logger // receives errors that clients do not see; nil: none are logged
}

// Capabilities returns what a worker with these options can do, for its Status.
func (o *Options) Capabilities() []worker.Capability {
	var list []worker.Capability
	if o.Model != nil {
		list = append(list, worker.CapabilityChat, worker.CapabilityCompletions)
	}
	if o.Embedder != nil {
		list = append(list, worker.CapabilityEmbeddings)
	}
	if o.Model != nil && o.Tokenizer != nil {
		list = append(list, worker.CapabilityTokenize)
	}
	return list
}

// maxBody bounds a request's body, in bytes. The longest existing context takes less.
const maxBody = 16 << 20

// server answers requests.
type server struct {
	o   Options
	can []worker.Capability
}

// New returns the worker's handler. Valid requests wait for a slot of the Gate.
func New(o Options) http.Handler {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	s := &server{o: o, can: o.Capabilities()}
	routes := []struct {
		capability, method, path string
		handle                   http.HandlerFunc
	}{
		{worker.CapabilityChat, http.MethodPost, "/v1/chat/completions", s.chat},
		{worker.CapabilityCompletions, http.MethodPost, "/v1/completions", s.completion},
		{worker.CapabilityEmbeddings, http.MethodPost, "/v1/embeddings", s.embeddings},
		{worker.CapabilityTokenize, http.MethodPost, "/tokenize", plain(s, openai.DecodeTokenize, s.tokenize)},
		{worker.CapabilityTokenize, http.MethodPost, "/detokenize", plain(s, openai.DecodeDetokenize, s.detokenize)},
		{worker.CapabilityTokenize, http.MethodPost, "/apply-template", plain(s, openai.DecodeChat, s.template)},
		{worker.CapabilityTokenize, http.MethodPost, "/v1/chat/completions/input_tokens", plain(s, openai.DecodeChat, s.inputTokens)},
		{"", http.MethodGet, "/v1/models", s.models},
		{"", http.MethodGet, "/health", func(w http.ResponseWriter, _ *http.Request) { s.write(w, map[string]string{"status": "ok"}) }},
	}
	mux := http.NewServeMux()
	var paths []string
	for _, r := range routes {
		if r.capability == "" || slices.Contains(s.can, r.capability) {
			mux.HandleFunc(r.method+" "+r.path, r.handle)
			paths = append(paths, r.path)
		}
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if slices.Contains(paths, r.URL.Path) {
			openai.WriteError(w, http.StatusMethodNotAllowed, openai.NewError(0, openai.TypeInvalidRequest, "", "method_not_allowed", "%s is not answered here", r.Method))
			return
		}
		openai.WriteError(w, http.StatusNotFound, openai.NewError(0, openai.TypeNotFound, "", "unknown_url", "there is no %s here; this worker answers %s", r.URL.Path, strings.Join(paths, ", ")))
	})
	return mux
}

// decoded reads and decodes the body of a request; nil: it was rejected, and the response is
// written.
func decoded[T any](s *server, w http.ResponseWriter, r *http.Request, decode func([]byte) (*T, error)) *T {
	body, err := openai.ReadBody(r.Body, maxBody)
	var req *T
	if err == nil {
		req, err = decode(body)
	}
	if err != nil {
		s.refuse(w, err)
		return nil
	}
	return req
}

// refuse responds with an error. It logs errors that are not meant for clients.
func (s *server) refuse(w http.ResponseWriter, err error) { openai.WriteError(w, 0, s.shown(err)) }

// shown returns the form of an error that the client sees.
func (s *server) shown(err error) *openai.Error {
	if e, ok := errors.AsType[*openai.Error](err); ok {
		return e
	}
	s.o.Log.Error("the model failed", "error", err)
	return openai.NewError(http.StatusInternalServerError, openai.TypeServer, "", "", "the model failed; the worker's log says why")
}

func (s *server) write(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil { // such as a vector that contains NaN
		s.refuse(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // an error means that the client disconnected
}

func (s *server) models(w http.ResponseWriter, _ *http.Request) {
	s.write(w, openai.ModelList{Object: openai.ObjectList, Data: []openai.Model{{ID: s.o.ModelID, Object: openai.ObjectModel, OwnedBy: "rbee"}}})
}

func (s *server) chat(w http.ResponseWriter, r *http.Request) {
	req := decoded(s, w, r, openai.DecodeChat)
	if req == nil {
		return
	}
	if err := req.CheckAbility(s.can); err != nil {
		s.refuse(w, err)
		return
	}
	prompt, err := Transcript(req.Messages)
	if err == nil {
		err = single(&req.Sampling)
	}
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.answer(w, r, &answer{
		format: newChatFormat(s.o.ModelID), stream: req.Stream, usage: req.IncludeUsage(), none: req.NoOutput(),
		request: Request{Prompt: prompt, Messages: req.Messages, MaxTokens: req.MaxOutput(), Sampling: req.Sampling},
	})
}

func (s *server) completion(w http.ResponseWriter, r *http.Request) {
	req := decoded(s, w, r, openai.DecodeCompletion)
	if req == nil {
		return
	}
	prompt, err := s.promptOf(req)
	if err != nil {
		s.refuse(w, err)
		return
	}
	s.answer(w, r, &answer{
		format: newTextFormat(s.o.ModelID), stream: req.Stream, usage: req.IncludeUsage(), none: req.NoOutput(),
		request: Request{Prompt: prompt, MaxTokens: req.MaxOutput(), Sampling: req.Sampling},
	})
}

// promptOf returns the single prompt of a completion, and rejects features that the Model interface
// does not cover.
func (s *server) promptOf(req *openai.CompletionRequest) (string, error) {
	if err := req.CheckAbility(s.can); err != nil {
		return "", err
	}
	if err := single(&req.Sampling); err != nil {
		return "", err
	}
	switch {
	case req.BestOf != nil && *req.BestOf > 1:
		return "", openai.NotSupported("best_of", "best_of is not supported by this worker; leave it out")
	case req.Echo != nil && *req.Echo:
		return "", openai.NotSupported("echo", "echo is not supported by this worker; leave it out")
	case req.Suffix != "":
		return "", openai.NotSupported("suffix", "suffix is not supported by this worker; leave it out")
	case len(req.Prompt.Texts) == 1:
		return req.Prompt.Texts[0], nil
	case len(req.Prompt.Tokens) == 1 && s.o.Tokenizer != nil:
		return s.o.Tokenizer.Detokenize(req.Prompt.Tokens[0])
	}
	return "", openai.NotSupported("prompt", "this worker answers one text at a time; send a request for each")
}

// single rejects requests for more than one answer.
func single(p *openai.Sampling) error {
	if p.N != nil && *p.N != 1 {
		return openai.NotSupported("n", "this worker gives one answer at a time; leave n out")
	}
	return nil
}

// Transcript returns a conversation as text: the text of the only message, or each message's text
// after its role, followed by the word assistant: for the model to continue. Its error is an
// *openai.Error, for a part that is not text.
func Transcript(messages []openai.Message) (string, error) {
	var b strings.Builder
	for i, m := range messages {
		text, other := m.Content.PlainText()
		if other != "" {
			return "", openai.NotSupported("messages", "parts of type %s are not supported by this worker; send text", other)
		}
		if len(messages) == 1 {
			return text, nil
		}
		if i > 0 {
			b.WriteString("\n")
		}
		b.WriteString(m.Role + ": " + text)
	}
	b.WriteString("\nassistant:")
	return b.String(), nil
}

// countTokens returns the number of tokens of a text.
func (s *server) countTokens(text string) (int, error) {
	if s.o.Tokenizer == nil {
		return len(strings.Fields(text)), nil
	}
	tokens, err := s.o.Tokenizer.Tokenize(text)
	return len(tokens), err
}

// newID returns a unique id.
func newID(prefix string) string {
	b := make([]byte, 12)
	_, _ = rand.Read(b) // never fails
	return prefix + hex.EncodeToString(b)
}

func now() int64 { return time.Now().Unix() }
