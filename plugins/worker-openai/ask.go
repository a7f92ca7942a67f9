package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

const (
	firstPause = 50 * time.Millisecond // between polls of a loading server
	mostPause  = time.Second
	trialTime  = 2 * time.Minute // per request of a trial
	answerMax  = 1 << 20         // bytes read of the server's answers to the worker itself

	watchEvery = 10 * time.Second
	// deafTimes is the number of failed polls in a row after which a server counts as hung.
	deafTimes = 6
)

// facts are what a server reports about itself and its model, and what trials found.
type facts struct {
	capabilities  []worker.Capability
	contextTokens int
}

func (s *settings) localURL(port int) *url.URL {
	return &url.URL{Scheme: "http", Host: "127.0.0.1:" + strconv.Itoa(port)}
}

func usesSocket(template []string) bool {
	return slices.ContainsFunc(template, func(a string) bool { return strings.Contains(a, "${socket}") })
}

// notYet is the reason why a server is not usable yet.
type notYet struct{ error }

// await returns what the server can do, once it has answered a real request.
func (r *running) await(ctx context.Context, s settings, spec worker.StartSpec, progress func(worker.Progress) error) (facts, error) {
	if err := progress(worker.Progress{Phase: "waiting for the server"}); err != nil {
		return facts{}, err
	}
	var ended <-chan struct{}
	if r.server != nil {
		ended = r.server.Done()
	}
	for pause := firstPause; ; pause = min(2*pause, mostPause) {
		f, err := r.look(ctx, s, spec)
		if _, wait := errors.AsType[notYet](err); !wait {
			return f, err
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
			continue
		case <-ended:
			if err = r.server.Err(); err == nil {
				err = errStopped
			}
			err = fmt.Errorf("%w: %w", err, sdk.ErrUnavailable)
		case <-ctx.Done():
		}
		timer.Stop()
		return facts{}, err
	}
}

// look queries the server once. It returns notYet if the server may still come up.
func (r *running) look(ctx context.Context, s settings, spec worker.StartSpec) (facts, error) {
	status, body, err := r.ask(ctx, http.MethodGet, s.healthPath(), nil)
	if err != nil || status != http.StatusOK {
		return facts{}, notYet{fmt.Errorf("GET %s: status %d (%w)", s.healthPath(), status, err)}
	}
	if s.healthPath() != "/v1/models" {
		if status, body, err = r.ask(ctx, http.MethodGet, "/v1/models", nil); err != nil || status != http.StatusOK {
			body = nil // not all servers support it
		}
	}
	list := parseModels(body)
	name, err := s.nameThere(spec.ModelID, list)
	if err != nil {
		return facts{}, err
	}
	f := facts{contextTokens: spec.ContextTokens}
	for _, m := range list {
		if m.ID == name && m.context() > 0 {
			f.contextTokens = m.context()
		}
	}
	p := r.props(ctx)
	if p.Settings.Context > 0 {
		f.contextTokens = p.Settings.Context
	}
	switch {
	case len(s.Capabilities) > 0:
		f.capabilities = slices.Compact(slices.Sorted(slices.Values(s.Capabilities)))
		return f, nil
	case len(s.preset.can) > 0:
		f.capabilities = s.preset.can
		return f, nil
	}
	f.capabilities, err = r.try(ctx, name, p)
	return f, err
}

// nameThere returns the server's name of the model. If the server lists no models, the name is used
// as it is.
func (s *settings) nameThere(id string, list []model) (string, error) {
	name := s.Model
	if name == "" {
		name = id
	}
	if len(list) == 0 || slices.ContainsFunc(list, func(m model) bool { return m.ID == name || m.ID == name+":latest" || slices.Contains(m.Aliases, name) }) {
		return name, nil
	}
	var names []string
	for _, m := range list[:min(len(list), 10)] {
		names = append(names, m.ID)
	}
	return "", fmt.Errorf("the server has no model %q, it has: %s; name one with the setting model: %w", name, strings.Join(names, ", "), sdk.ErrNotFound)
}

// model is an entry of /v1/models.
type model struct {
	ID      string   `json:"id"`
	Aliases []string `json:"aliases"`
	MaxLen  int      `json:"max_model_len"` // vLLM's
	Meta    struct {
		Context int `json:"n_ctx"` // llama-server's, of a slot
	} `json:"meta"`
}

func (m model) context() int {
	if m.MaxLen > 0 {
		return m.MaxLen
	}
	return max(m.Meta.Context, 0)
}

// parseModels parses an answer to /v1/models, leniently.
func parseModels(body []byte) []model {
	var list struct {
		Data []model `json:"data"`
	}
	if json.Unmarshal(body, &list) != nil {
		return nil
	}
	return list.Data[:min(len(list.Data), maxNames)]
}

// props is what llama-server reports about its model.
type props struct {
	Settings struct {
		Context int `json:"n_ctx"`
	} `json:"default_generation_settings"`
	Modalities *struct {
		Vision bool `json:"vision"`
		Audio  bool `json:"audio"`
	} `json:"modalities"`
	Template *struct {
		Tools bool `json:"supports_tools"`
	} `json:"chat_template_caps"`
}

func (r *running) props(ctx context.Context) (p props) {
	status, body, err := r.ask(ctx, http.MethodGet, "/props", nil)
	if err != nil || status != http.StatusOK || json.Unmarshal(body, &p) != nil {
		return props{} // not llama-server
	}
	return p
}

func (r *running) ask(ctx context.Context, method, path string, body any) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, trialTime)
	defer cancel()
	text := ""
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return 0, nil, err
		}
		text = string(b)
	}
	return r.forward.Ask(ctx, 0, method, path, text, answerMax)
}

type fields = map[string]any

// try sends small requests and returns what the server can do. A server that ignores unknown fields
// answers 200 all the same, so where possible try checks the answer as well.
func (r *running) try(ctx context.Context, name string, p props) ([]worker.Capability, error) {
	var can []worker.Capability
	var refusal error
	chat := func(more fields) fields {
		f := fields{"model": name, "max_tokens": 1, "temperature": 0, "messages": []any{fields{"role": "user", "content": "Say hello."}}}
		maps.Copy(f, more)
		return f
	}
	for _, trial := range []struct {
		name, path string
		body       fields
		shows      func([]byte) bool // checks the answer; nil: any answer will do
	}{
		{worker.CapabilityChat, "/v1/chat/completions", chat(nil), nil},
		{worker.CapabilityCompletions, "/v1/completions", fields{"model": name, "prompt": "Hello", "max_tokens": 1, "temperature": 0}, nil},
		{worker.CapabilityEmbeddings, "/v1/embeddings", fields{"model": name, "input": "Hello"}, hasEmbedding},
		{worker.CapabilityRerank, "/v1/rerank", fields{"model": name, "query": "a", "documents": []string{"b"}}, hasResults},
	} {
		ok, err := r.trial(ctx, trial.path, trial.body, trial.shows)
		if _, wait := errors.AsType[notYet](err); wait {
			return nil, err
		}
		if err != nil && refusal == nil {
			refusal = err
		}
		if ok {
			can = append(can, trial.name)
		}
	}
	if p.Settings.Context > 0 { // llama-server
		for _, trial := range []struct {
			name, path string
			body       fields
			shows      func([]byte) bool
		}{
			{worker.CapabilityTokenize, "/tokenize", fields{"content": "Hello"}, hasTokens},
			{worker.CapabilityInfill, "/infill", fields{"input_prefix": "a", "input_suffix": "b", "n_predict": 1}, nil},
		} {
			if ok, err := r.trial(ctx, trial.path, trial.body, trial.shows); err != nil && ctx.Err() != nil {
				return nil, err
			} else if ok {
				can = append(can, trial.name)
			}
		}
	}
	if len(can) == 0 {
		return nil, fmt.Errorf("the server refused all trial requests; the first: %w", refusal)
	}
	if !slices.Contains(can, worker.CapabilityChat) {
		slices.Sort(can)
		return can, nil
	}
	tool := []any{fields{"type": "function", "function": fields{"name": "look_up", "description": "Looks a word up.", "parameters": wordSchema()}}}
	format := fields{"type": "json_schema", "json_schema": fields{"name": "word", "strict": true, "schema": wordSchema()}}
	image := []any{fields{"role": "user", "content": []any{
		fields{"type": "text", "text": "Hello"}, fields{"type": "image_url", "image_url": fields{"url": "data:image/png;base64," + dot}},
	}}}
	for _, trial := range []struct {
		name  string
		said  *bool // the server's own statement; nil: none
		more  fields
		shows func([]byte) bool
	}{
		{worker.CapabilityTools, p.tools(), fields{"tools": tool, "tool_choice": "auto"}, nil},
		{worker.CapabilityJSONSchema, nil, fields{"response_format": format, "max_tokens": 24}, hasObject},
		{worker.CapabilityLogprobs, nil, fields{"logprobs": true, "top_logprobs": 1}, hasLogprobs},
		{worker.CapabilityVision, p.vision(), fields{"messages": image}, nil},
	} {
		ok := trial.said != nil && *trial.said
		if trial.said == nil {
			var err error
			if ok, err = r.trial(ctx, "/v1/chat/completions", chat(trial.more), trial.shows); err != nil && ctx.Err() != nil {
				return nil, err
			}
		}
		if ok {
			can = append(can, trial.name)
		}
	}
	if p.Modalities != nil && p.Modalities.Audio {
		can = append(can, worker.CapabilityAudio)
	}
	slices.Sort(can)
	return can, nil
}

func (p props) tools() *bool {
	if p.Template == nil {
		return nil
	}
	return &p.Template.Tools
}

func (p props) vision() *bool {
	if p.Modalities == nil {
		return nil
	}
	return &p.Modalities.Vision
}

// trial reports whether the server answers a request. It returns notYet while the server loads,
// otherwise the reason of the refusal.
func (r *running) trial(ctx context.Context, path string, body fields, shows func([]byte) bool) (bool, error) {
	status, answer, err := r.ask(ctx, http.MethodPost, path, body)
	switch {
	case err != nil:
		return false, notYet{err}
	case status == http.StatusServiceUnavailable, status == http.StatusTooManyRequests:
		return false, notYet{openai.DecodeError(status, answer)}
	case status == http.StatusUnauthorized, status == http.StatusForbidden:
		return false, fmt.Errorf("the server refuses the key (status %d): %w", status, sdk.ErrUnauthenticated)
	case status != http.StatusOK || !json.Valid(answer) || openai.ErrorIn(answer) != nil:
		return false, fmt.Errorf("POST %s: status %d: %w", path, status, openai.DecodeError(status, answer))
	}
	return shows == nil || shows(answer), nil
}

func wordSchema() fields {
	return fields{"type": "object", "properties": fields{"word": fields{"type": "string"}}, "required": []string{"word"}, "additionalProperties": false}
}

// dot is a one-pixel PNG.
const dot = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

func hasEmbedding(b []byte) bool {
	var r struct {
		Data []struct {
			Embedding []float64 `json:"embedding"`
		} `json:"data"`
	}
	return json.Unmarshal(b, &r) == nil && len(r.Data) == 1 && len(r.Data[0].Embedding) > 0
}

func hasTokens(b []byte) bool {
	var r struct {
		Tokens []int `json:"tokens"`
	}
	return json.Unmarshal(b, &r) == nil && len(r.Tokens) > 0
}

func hasResults(b []byte) bool {
	var r struct {
		Results []struct {
			Index int `json:"index"`
		} `json:"results"`
	}
	return json.Unmarshal(b, &r) == nil && len(r.Results) == 1
}

// answerIn returns the first choice of a chat's answer, and whether it has log probabilities.
func answerIn(b []byte) (text string, logprobs bool) {
	var r struct {
		Choices []struct {
			Message struct {
				Content   string `json:"content"`
				Reasoning string `json:"reasoning_content"`
			} `json:"message"`
			LogProbs *struct {
				Content []json.RawMessage `json:"content"`
			} `json:"logprobs"`
		} `json:"choices"`
	}
	if json.Unmarshal(b, &r) != nil || len(r.Choices) == 0 {
		return "", false
	}
	c := r.Choices[0]
	return c.Message.Content, c.LogProbs != nil && len(c.LogProbs.Content) > 0
}

// hasObject reports whether an answer begins as the schema's object does, which is unlikely without
// a constraint. A weak model may stop within the whitespace before it.
func hasObject(b []byte) bool {
	const beginning = `{"word":`
	said, _ := answerIn(b)
	text := strings.Join(strings.Fields(said), "")
	text = text[:min(len(text), len(beginning))]
	return said != "" && text == beginning[:len(text)]
}

func hasLogprobs(b []byte) bool {
	_, ok := answerIn(b)
	return ok
}

// watch marks the worker as failed when the server exits or hangs, until ctx ends. It does not
// watch a server that the worker did not start, as that may come back.
func (b *backend) watch(ctx context.Context, r *running, s settings) {
	if r.server == nil {
		return
	}
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for deaf := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-r.server.Done():
			b.fail(r.server.Err())
			return
		case <-tick.C:
		}
		if time.Since(r.forward.Spoke()) < watchEvery {
			deaf = 0
			continue
		}
		look, cancel := context.WithTimeout(ctx, watchEvery)
		_, _, err := r.forward.Ask(look, 0, http.MethodGet, s.healthPath(), "", answerMax)
		cancel()
		if deaf++; err == nil {
			deaf = 0
		}
		if deaf == deafTimes {
			b.fail(fmt.Errorf("the server has not answered for %s: %w", deafTimes*watchEvery, err))
			return
		}
	}
}

// fail marks the worker as failed. Its host ends it.
func (b *backend) fail(err error) {
	if err == nil {
		return // ended on purpose
	}
	b.log.Error("server lost", "error", err)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.failed = err.Error()
}
