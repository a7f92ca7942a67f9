package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
	"github.com/rbee-project/rbee/plugins/sdk/worker/forward"
)

// routes returns the routes that are passed on. Servers have others that are not for clients, such
// as for loading other models.
func routes() []string {
	return []string{
		"POST /v1/chat/completions", "POST /v1/completions", "POST /v1/embeddings", "POST /v1/rerank", "POST /v1/score", "POST /v1/responses", "POST /v1/messages",
		"POST /v1/audio/transcriptions", "POST /v1/audio/translations", "POST /v1/audio/speech", "POST /v1/images/generations",
		"POST /v1/images/edits", "POST /v1/images/variations", "POST /v1/moderations",
		"POST /tokenize", "POST /detokenize", "POST /apply-template", "POST /completion", "POST /infill", "GET /props", "GET /slots", // llama-server's
		"GET /v1/models",
	}
}

// handler passes requests on to next and refuses those that the server cannot serve.
func (f facts) handler(next http.Handler) http.Handler {
	mux := http.NewServeMux()
	for _, route := range routes() {
		mux.Handle(route, next)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		openai.WriteError(w, 0, openai.NewError(http.StatusNotFound, openai.TypeNotFound, "", "", "there is no %s %s here", r.Method, r.URL.Path))
	})
	if f.canAll() {
		return mux
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.URL.Path == "/v1/chat/completions" && !f.allowed(w, r) {
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// canAll reports whether the server can do everything that a chat could ask for.
func (f facts) canAll() bool {
	for _, c := range []worker.Capability{worker.CapabilityTools, worker.CapabilityJSONSchema, worker.CapabilityLogprobs, worker.CapabilityVision, worker.CapabilityAudio} {
		if !slices.Contains(f.capabilities, c) {
			return false
		}
	}
	return true
}

// allowed reports whether the server can do what a chat asks for; if not, it has answered the
// request. It leaves the body intact. Malformed bodies are left for the server to refuse.
func (f facts) allowed(w http.ResponseWriter, r *http.Request) bool {
	body, err := io.ReadAll(io.LimitReader(r.Body, forward.MaxBody+1))
	if err != nil {
		openai.WriteError(w, 0, openai.Invalid("", "the body cannot be read to its end"))
		return false
	}
	r.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(bytes.NewReader(body), r.Body), r.Body}
	var wish wish
	if json.Unmarshal(body, &wish) != nil {
		return true
	}
	if wish.Messages != nil && len(wish.Messages) == 0 { // some servers accept it
		openai.WriteError(w, 0, openai.Invalid("messages", "messages is empty"))
		return false
	}
	if err := wish.request().CheckAbility(f.capabilities); err != nil {
		e, ok := errors.AsType[*openai.Error](err)
		if !ok {
			e = openai.Invalid("", "%s", err)
		}
		openai.WriteError(w, 0, e)
		return false
	}
	return true
}

// wish is the part of a chat request that needs capabilities. Other fields may have any form.
type wish struct {
	Tools     []json.RawMessage      `json:"tools"`
	Functions []json.RawMessage      `json:"functions"`
	Format    *openai.ResponseFormat `json:"response_format"`
	LogProbs  *bool                  `json:"logprobs"`
	Messages  []struct {
		Content json.RawMessage `json:"content"`
	} `json:"messages"`
}

// request returns a chat request that needs the same capabilities.
func (w wish) request() *openai.ChatRequest {
	r := &openai.ChatRequest{
		Tools: make([]openai.Tool, len(w.Tools)), Functions: make([]openai.Function, len(w.Functions)), ResponseFormat: w.Format, LogProbs: w.LogProbs,
	}
	for _, m := range w.Messages {
		var parts []struct {
			Type string `json:"type"`
		}
		if json.Unmarshal(m.Content, &parts) != nil {
			continue // text
		}
		var c openai.Content
		for _, p := range parts {
			c.Parts = append(c.Parts, openai.Part{Type: p.Type})
		}
		r.Messages = append(r.Messages, openai.Message{Content: c})
	}
	return r
}
