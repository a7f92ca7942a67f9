package llamacpp

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/llamacpp/internal/constraint"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// maxBody bounds a request's body. The longest supported context needs less.
const maxBody = 16 << 20

// server answers OpenAI's HTTP API with one engine.
type server struct {
	engine   *engine   // nil for a model that cannot generate
	embedder *embedder // nil for a model without embeddings and scores
	model    *model
	adapters adapters
	modelID  string
	started  int64 // seconds since 1970
	gate     *gate
	now      func() time.Time

	grammars *constraint.Compiler
	toolbox  *toolbox
	spelling chan struct{} // its capacity bounds the requests that only count tokens
}

// routes returns the whole API.
func (s *server) routes() []route {
	return []route{
		{http.MethodPost, "/v1/chat/completions", s.writes(s.chat)},
		{http.MethodPost, "/v1/chat/completions/input_tokens", s.plain(s.inputTokens)},
		{http.MethodPost, "/v1/completions", s.writes(s.completion)},
		{http.MethodPost, "/completion", s.writes(s.native)},
		{http.MethodPost, "/infill", s.writes(s.infill)},
		{http.MethodPost, "/v1/embeddings", s.plain(s.embeddings)},
		{http.MethodPost, "/v1/rerank", s.plain(s.rerank)},
		{http.MethodPost, "/tokenize", s.plain(s.tokenize)},
		{http.MethodPost, "/detokenize", s.plain(s.detokenize)},
		{http.MethodPost, "/apply-template", s.plain(s.applyTemplate)},
		{http.MethodGet, "/lora-adapters", func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, s.listAdapters()) }},
		{http.MethodGet, "/v1/models", s.models},
		{http.MethodGet, "/props", s.props},
		{http.MethodGet, "/slots", s.slots},
		{http.MethodGet, "/health", s.health},
	}
}

// route is a method and a path.
type route struct {
	method, path string
	handle       http.HandlerFunc
}

func (s *server) handler() http.Handler {
	mux := http.NewServeMux()
	methods, paths := map[string]string{}, []string{}
	for _, r := range s.routes() {
		mux.HandleFunc(r.method+" "+r.path, r.handle)
		methods[r.path], paths = r.method, append(paths, r.path)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		switch methods[r.URL.Path] {
		case http.MethodPost:
			w.Header().Set("Allow", http.MethodPost)
		case http.MethodGet:
			w.Header().Set("Allow", "GET, HEAD")
		default:
			openai.WriteError(w, http.StatusNotFound, openai.NewError(0, openai.TypeNotFound, "", "unknown_url", "there is no %s here; a worker answers %s", r.URL.Path, strings.Join(paths, ", ")))
			return
		}
		openai.WriteError(w, http.StatusMethodNotAllowed, openai.NewError(0, openai.TypeInvalidRequest, "", "method_not_allowed", "%s is not answered here; use %s", r.Method, w.Header().Get("Allow")))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Request-Id", requestID(r))
		mux.ServeHTTP(w, r)
	})
}

// requestID returns the client's request ID if it is acceptable, else a new one.
func requestID(r *http.Request) string {
	id := r.Header.Get("X-Request-Id")
	if id != "" && len(id) <= 128 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.:") == "" {
		return id
	}
	return "req-" + randomHex(12)
}

func randomHex(n int) string {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return hex.EncodeToString(b)
}

func writeJSON(w http.ResponseWriter, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		openai.WriteError(w, http.StatusInternalServerError, openai.NewError(0, openai.TypeServer, "", "", "the answer could not be written: %v", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(b, '\n')) // the client may have disconnected
}

func (s *server) models(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, openai.ModelList{Object: openai.ObjectList, Data: []openai.Model{{ID: s.modelID, Object: openai.ObjectModel, Created: s.started, OwnedBy: "rbee"}}})
}

func (s *server) health(w http.ResponseWriter, _ *http.Request) {
	if s.engine != nil {
		if _, _, failure := s.engine.load(); failure != "" {
			openai.WriteError(w, http.StatusServiceUnavailable, engineFailed(failure))
			return
		}
	}
	writeJSON(w, map[string]string{"status": "ok"})
}

// writes wraps a handler and refuses requests when the model cannot generate.
func (s *server) writes(h http.HandlerFunc) http.HandlerFunc {
	if s.engine != nil {
		return h
	}
	return s.plain(func(context.Context, []byte) (any, error) {
		return nil, openai.NotSupported("model", "%s; use /v1/embeddings or /v1/rerank", s.model.noChat)
	})
}

func (s *server) chat(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, func(body []byte) (*ask, error) {
		req, err := openai.DecodeChat(body)
		if err != nil {
			return nil, err
		}
		out := newRequest()
		a := &ask{request: out, sampling: &req.Sampling}
		if a.count, a.best, err = s.count(&req.Sampling, nil, 1); err != nil {
			return nil, err
		}
		var t *speech
		if out.prompt, t, err = s.model.chatPrompt(r.Context(), req, s.engine.limit, s.now()); err != nil {
			return nil, err
		}
		if err := checkPrompt(out.prompt, s.engine.limit); err != nil {
			return nil, err
		}
		a.prompts = [][]token{out.prompt}
		out.pieces = s.model.marked(len(t.tools) > 0)
		out.thinking = t.thinking()
		if out.shape, err = req.Shape(); err != nil {
			return nil, err
		}
		if out.guard, err = s.guard(r.Context(), req, t, &out.shape); err != nil {
			return nil, err
		}
		out.maxTokens, out.noOutput = req.MaxOutput(), req.NoOutput()
		if req.LogProbs != nil && *req.LogProbs {
			out.logprobs = 0
			if req.TopLogProbs != nil {
				out.logprobs = int(*req.TopLogProbs)
			}
		}
		a.format = newChatFormat("chatcmpl-"+randomHex(12), s.now().Unix(), s.modelID, s.model, t)
		return a, nil
	})
}

func (s *server) completion(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, func(body []byte) (*ask, error) {
		req, err := openai.DecodeCompletion(body)
		if err != nil {
			return nil, err
		}
		if err := unsupportedCompletion(req); err != nil {
			return nil, err
		}
		a, err := s.text(req, req.MaxOutput())
		if err != nil {
			return nil, err
		}
		if req.LogProbs != nil {
			a.request.logprobs = int(*req.LogProbs)
		}
		f := newTextFormat("cmpl-"+randomHex(12), s.now().Unix(), s.modelID, s.model)
		if req.Echo != nil && *req.Echo {
			f.echo, f.each = s.model.echoes(req.Prompt), a.count
		}
		a.format = f
		return a, nil
	})
}

// text returns what a completion asks for, except its format.
func (s *server) text(req *openai.CompletionRequest, maxTokens int) (*ask, error) {
	out := newRequest()
	a := &ask{request: out, sampling: &req.Sampling}
	var err error
	if a.count, a.best, err = s.count(&req.Sampling, req.BestOf, len(req.Prompt.Texts)+len(req.Prompt.Tokens)); err != nil {
		return nil, err
	}
	if req.Suffix == "" {
		a.prompts, err = s.model.textPrompts(req.Prompt, s.engine.limit)
	} else {
		a.prompts, err = s.model.gapPrompts(req.Prompt, req.Suffix, s.engine.limit)
	}
	if err != nil {
		return nil, err
	}
	out.maxTokens, out.noOutput = maxTokens, req.NoOutput()
	out.shape, err = req.Shape()
	return a, err
}

// capabilities returns what requests for the model may use, sorted.
func (m *model) capabilities() []worker.Capability {
	if m.native.Reads() {
		return []worker.Capability{worker.CapabilityTokenize}
	}
	list := []worker.Capability{worker.CapabilityCompletions, worker.CapabilityLogprobs, worker.CapabilityTokenize}
	if m.gaps.Can() {
		list = append(list, worker.CapabilityInfill)
	}
	if m.template != nil {
		list = append(list, worker.CapabilityChat, worker.CapabilityJSONSchema, worker.CapabilityTools)
		if m.template.dialogue.Thinks() {
			list = append(list, worker.CapabilityReasoning)
		}
	}
	slices.Sort(list)
	return list
}

// unsupportedCompletion rejects fields that would otherwise be silently ignored.
func unsupportedCompletion(r *openai.CompletionRequest) error {
	if r.Echo != nil && *r.Echo && r.LogProbs != nil {
		return openai.NotSupported("echo", "echo together with logprobs is not supported by this worker, as a prompt has no probabilities here; leave one of them out")
	}
	return nil
}

// body admits a request and reads its body. When it returns false, it has answered the request.
// Otherwise the caller must call leave.
func (s *server) body(w http.ResponseWriter, r *http.Request) (body []byte, ok bool) {
	// Enter before touching the model: it is freed once the gate is closed and empty.
	if !s.gate.enter() {
		w.Header().Set("Retry-After", "1")
		openai.WriteError(w, http.StatusServiceUnavailable, openai.NewError(0, openai.TypeUnavailable, "", "draining", "this worker takes no new requests; send it again, to another worker"))
		return nil, false
	}
	body, err := openai.ReadBody(r.Body, maxBody)
	if err != nil {
		s.gate.leave()
		writeError(w, err)
		return nil, false
	}
	return body, true
}

// plain returns the handler of a route that answers with one value, unstreamed.
func (s *server) plain(answer func(ctx context.Context, body []byte) (any, error)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, ok := s.body(w, r)
		if !ok {
			return
		}
		defer s.gate.leave()
		v, err := answer(r.Context(), body)
		switch {
		case err == nil:
			writeJSON(w, v)
		case r.Context().Err() == nil: // else the client disconnected
			writeError(w, err)
		}
	}
}

// answer reads a request and answers it.
func (s *server) answer(w http.ResponseWriter, r *http.Request, read func(body []byte) (*ask, error)) {
	body, ok := s.body(w, r)
	if !ok {
		return
	}
	defer s.gate.leave()
	a, err := read(body)
	if err != nil {
		writeError(w, err)
		return
	}
	req, sampling := a.request, a.sampling
	if req.rule, err = s.rule(r.Context(), req.shape); err != nil {
		writeError(w, err)
		return
	}
	if req.rule != nil {
		req.rule.thinking = req.thinking
	}
	sampling.IgnoreEOS = sampling.IgnoreEOS && req.rule == nil && req.guard == nil // a constrained answer has an end
	if req.sampling, err = s.model.choose(sampling); err != nil {
		writeError(w, err)
		return
	}
	if req.noOutput {
		req.maxTokens = 1 // the step that evaluates the end of the prompt yields it
	}
	req.stops = sampling.Stop
	if req.adapters, err = s.adapters.chosen(sampling.LoRA); err != nil {
		writeError(w, err)
		return
	}
	s.generate(w, r, a, a.answers())
}

// generate queues the answers of a request and sends their events.
func (s *server) generate(w http.ResponseWriter, r *http.Request, a *ask, list []*answer) {
	requests := make([]*request, len(list))
	for i, x := range list {
		requests[i] = x.request
	}
	if e := s.engine.submit(requests...); e != nil {
		writeError(w, e)
		return
	}
	// The engine drops them between two steps once the client disconnects or one of them fails.
	cancel := func() {
		for _, x := range requests {
			s.engine.cancel(x)
		}
	}
	defer cancel()
	unhook := context.AfterFunc(r.Context(), cancel)
	defer unhook()
	if a.sampling.Stream {
		s.stream(w, r, a, list)
	} else {
		s.whole(w, r, a, list)
	}
}

func writeError(w http.ResponseWriter, err error) {
	e, ok := errors.AsType[*openai.Error](err)
	if !ok {
		e = openai.NewError(http.StatusInternalServerError, openai.TypeServer, "", "", "%v", err)
	}
	if e.Status == http.StatusServiceUnavailable {
		w.Header().Set("Retry-After", "1")
	}
	openai.WriteError(w, 0, e)
}

// stream sends each token as it arrives. Status and headers are sent with the first one, so that an
// earlier failure gets its own status.
func (s *server) stream(w http.ResponseWriter, r *http.Request, a *ask, list []*answer) {
	out := openai.NewEventWriter(w)
	var events []event
	for left := len(list); ; {
		select {
		case <-a.request.out.ready:
		case <-r.Context().Done():
			return
		}
		events = a.request.out.take(events)
		for _, e := range events {
			if e.err != nil && !out.Started() {
				writeError(w, e.err)
				return
			}
			x := list[e.number]
			last := e.finish != "" && left == 1
			x.end = e
			if a.sampling.TimingsPerToken {
				x.format.timings(a.timings([]*answer{x}))
			}
			var times *openai.Timings // for the last chunk
			if last && !a.sampling.IncludeUsage() {
				times = a.timings(list)
			}
			if err := s.send(out, x, e, times); err != nil || e.err != nil {
				return
			}
			if e.finish == "" {
				continue
			}
			if left--; left == 0 {
				_ = s.sendEnd(out, a, list) // the client may have disconnected
				return
			}
		}
		clear(events)
	}
}

// send sends the event of an answer. times goes into the chunk that ends the answer.
func (s *server) send(out *openai.EventWriter, x *answer, e event, times *openai.Timings) error {
	if e.err != nil {
		return out.Error(e.err) // and no [DONE]
	}
	if !x.began {
		x.began = true
		if first := x.format.first(); first != nil {
			if err := out.JSON(first); err != nil {
				return err
			}
		}
	}
	if shown := x.tokens.take(e, x.shownPieces(s.model)); len(shown) > 0 {
		x.format.tokens(shown)
	}
	if e.text != "" {
		if err := x.format.text(e.text, out.Data); err != nil {
			return err
		}
	}
	if e.finish == "" {
		return nil
	}
	x.closing(s.model)
	if times != nil {
		x.format.timings(times)
	}
	for _, chunk := range x.format.finish(e.finish) {
		if err := out.JSON(chunk); err != nil {
			return err
		}
	}
	return nil
}

// sendEnd ends a stream after all its answers have ended.
func (s *server) sendEnd(out *openai.EventWriter, a *ask, list []*answer) error {
	if a.sampling.IncludeUsage() {
		a.format.timings(a.timings(list))
		if err := out.JSON(a.format.usage(a.usage(list))); err != nil {
			return err
		}
	}
	return out.Done()
}

// whole sends the answers unstreamed.
func (s *server) whole(w http.ResponseWriter, r *http.Request, a *ask, list []*answer) {
	var events []event
	for left := len(list); left > 0; {
		select {
		case <-a.request.out.ready:
		case <-r.Context().Done():
			return
		}
		events = a.request.out.take(events)
		for _, e := range events {
			if e.err != nil {
				writeError(w, e.err)
				return
			}
			list[e.number].take(e, s.model)
			if e.finish != "" {
				left--
			}
		}
		clear(events)
	}
	var parts []any
	u := a.usage(list)
	for _, x := range a.chosen(list) {
		if x.logprobs >= 0 {
			x.format.tokens(x.shown)
		}
		x.closing(s.model)
		if len(parts) == 0 {
			x.format.timings(a.timings(list))
		}
		parts = append(parts, x.format.whole(x.text.String(), x.end.finish, u))
	}
	writeJSON(w, joined(parts))
}
