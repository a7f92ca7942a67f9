package openai

import (
	"encoding/json"
	"errors"
	"io"
	"math"
	"net/http"
	"reflect"
	"slices"
	"strings"
)

// Bounds of a request, besides its total size, which the caller bounds.
const (
	MaxDepth     = 128     // nesting of arrays and objects
	MaxValues    = 1 << 17 // bound of CheckValues
	MaxMessages  = 8192    // messages of one conversation
	MaxStops     = 16      // stop strings
	MaxStopBytes = 512     // bytes of one stop string
	MaxLogitBias = 4096    // entries
	MaxBiasBytes = 256     // bytes of one text in logit_bias
	MaxBreakers  = 64      // dry_sequence_breakers
	MaxSamplers  = 32      // entries of samplers
)

// Head is what a router needs to know about a request before it passes the body on unchanged.
type Head struct {
	Model  string
	Stream bool
	// IncludeUsage holds stream_options.include_usage.
	IncludeUsage bool
	// Text is the prompt or the joined text of the messages, for prefix affinity; at most the
	// requested number of bytes.
	Text []byte
}

// ReadBody reads a request body of at most limit bytes. A longer one is an Error of status 413.
func ReadBody(r io.Reader, limit int64) ([]byte, error) {
	body, err := io.ReadAll(io.LimitReader(r, limit+1))
	if err != nil {
		if tooLarge, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, bodyTooLarge(tooLarge.Limit)
		}
		return nil, Invalid("", "the request's body could not be read: %v", err)
	}
	if int64(len(body)) > limit {
		return nil, bodyTooLarge(limit)
	}
	return body, nil
}

func bodyTooLarge(limit int64) *Error {
	return NewError(http.StatusRequestEntityTooLarge, TypeInvalidRequest, "", CodeTooLarge, "the request's body is larger than %d bytes; send a shorter prompt", limit)
}

// DecodeChat reads a ChatRequest from a body and validates it. Every error is an *Error that can be
// written to the client as it is. Unknown fields are ignored, because clients send them.
func DecodeChat(body []byte) (*ChatRequest, error) {
	r := new(ChatRequest)
	if err := decode(body, r); err != nil {
		return nil, err
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return r, nil
}

// DecodeCompletion is DecodeChat for a CompletionRequest.
func DecodeCompletion(body []byte) (*CompletionRequest, error) {
	r := new(CompletionRequest)
	if err := decode(body, r); err != nil {
		return nil, err
	}
	if err := r.Validate(); err != nil {
		return nil, err
	}
	return r, nil
}

// PeekHead reads the Head of a request of either kind. It checks only that the body is JSON with
// fields of the right type; textBytes bounds Head.Text, 0 omits it. Every error is an *Error that
// can be written to the client as it is.
func PeekHead(body []byte, textBytes int) (Head, error) {
	var v struct {
		Model         string         `json:"model"`
		Stream        bool           `json:"stream"`
		StreamOptions *StreamOptions `json:"stream_options"`
		Messages      []Message      `json:"messages"`
		Prompt        Prompt         `json:"prompt"`
	}
	if err := decode(body, &v); err != nil {
		return Head{}, err
	}
	h := Head{Model: v.Model, Stream: v.Stream, IncludeUsage: v.StreamOptions != nil && v.StreamOptions.IncludeUsage}
	add := func(s string) {
		h.Text = append(h.Text, s[:min(len(s), textBytes-len(h.Text))]...)
	}
	for _, m := range v.Messages {
		if len(h.Text) >= textBytes {
			return h, nil
		}
		text, _ := m.Content.PlainText()
		add(m.Role + "\n")
		add(text + "\n")
	}
	for _, t := range v.Prompt.Texts {
		add(t + "\n")
	}
	return h, nil
}

// embedded removes the names of embedded structs from a field's path.
var embedded = strings.NewReplacer("Sampling.", "", "Structure.", "", "CompletionRequest.", "")

func decode(body []byte, into any) error {
	if err := checkDepth(body); err != nil {
		return err
	}
	// these members hold lists of tokens, which do not count
	if _, err := CheckValues(body, "prompt", "input", "tokens", "logit_bias"); err != nil {
		return err
	}
	i := 0
	for i < len(body) && (body[i] == ' ' || body[i] == '\t' || body[i] == '\n' || body[i] == '\r') {
		i++
	}
	if i == len(body) {
		return Invalid("", "the request's body is empty; send a JSON object")
	}
	if body[i] != '{' {
		return Invalid("", "the request's body must be a JSON object")
	}
	err := json.Unmarshal(body, into)
	if err == nil {
		return nil
	}
	if told, ok := errors.AsType[*Error](err); ok {
		return told
	}
	if te, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		field := strings.TrimPrefix(embedded.Replace(te.Field), ".")
		if field == "" {
			field = "body"
		}
		return Invalid(field, "%s must be %s, not %s", field, wants(te.Type), withArticle(te.Value))
	}
	if se, ok := errors.AsType[*json.SyntaxError](err); ok {
		return Invalid("", "the request's body is not valid JSON at byte %d: %v", se.Offset, err)
	}
	return Invalid("", "the request's body is not valid JSON: %v", err)
}

// checkDepth rejects nesting deeper than any honest request's, before encoding/json recurses into
// it.
func checkDepth(body []byte) error {
	depth, inString, escaped := 0, false, false
	for _, c := range body {
		if inString {
			switch {
			case escaped:
				escaped = false
			case c == '\\':
				escaped = true
			case c == '"':
				inString = false
			}
			continue
		}
		switch c {
		case '"':
			inString = true
		case '[', '{':
			if depth++; depth > MaxDepth {
				return Invalid("", "the request's body is nested deeper than %d levels", MaxDepth)
			}
		case ']', '}':
			depth--
		}
	}
	return nil
}

// ValueBytes is roughly the most memory that one decoded value of a request takes: an empty object
// of two bytes becomes a whole message.
const ValueBytes = 512

// CheckValues counts the values of a body and rejects more than MaxValues of them, before they take
// memory. Members of the outermost object that are listed in free do not count.
func CheckValues(body []byte, free ...string) (int, error) {
	n, depth, counts := 1, 0, true
	var key []byte // the outermost object's last string
	for i := 0; i < len(body); i++ {
		switch body[i] {
		case '"':
			start := i + 1
			for i++; i < len(body) && body[i] != '"'; i++ {
				if body[i] == '\\' {
					i++
				}
			}
			if depth == 1 && i < len(body) {
				key = body[start:i]
			}
			continue
		case ':':
			if depth == 1 {
				counts = !slices.Contains(free, string(key))
			}
			continue
		case '[', '{':
			depth++
		case ']', '}':
			depth--
			continue
		case ',':
			counts = counts || depth == 1
		default:
			continue
		}
		if counts {
			n++
		}
	}
	if n > MaxValues {
		return n, NewError(http.StatusRequestEntityTooLarge, TypeInvalidRequest, "", CodeTooLarge, "the request has %d values, and at most %d are read; send fewer messages", n, MaxValues)
	}
	return n, nil
}

func wants(t reflect.Type) string {
	switch t {
	case reflect.TypeFor[Content]():
		return "a string or an array of parts"
	case reflect.TypeFor[ToolChoice]():
		return "auto, none, required or an object that names a function"
	case reflect.TypeFor[[]Part]():
		return `an array of objects with a "type"`
	case reflect.TypeFor[Stop]():
		return "a string or an array of strings"
	case reflect.TypeFor[Int]():
		return "an integer"
	case reflect.TypeFor[LogitBias]():
		return "an object from token ids to numbers, or an array of such pairs"
	case reflect.TypeFor[Samplers]():
		return "an array of names or a string of letters"
	case reflect.TypeFor[MixedText]():
		return "a string or an array of strings and token ids"
	case reflect.TypeFor[Document](), reflect.TypeFor[[]Document]():
		return "an array of strings or of objects with a text"
	case reflect.TypeFor[Prompt]():
		return "a string, an array of strings or an array of token ids"
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int, reflect.Int32, reflect.Int64:
		return "an integer"
	case reflect.Float64:
		return "a number"
	case reflect.Slice:
		return "an array"
	}
	return "an object"
}

func withArticle(kind string) string {
	if kind == "array" || kind == "object" || strings.HasPrefix(kind, "array ") {
		return "an " + kind
	}
	if n, ok := strings.CutPrefix(kind, "number "); ok {
		return n
	}
	return "a " + kind
}

// Efforts are the values of reasoning_effort.
var Efforts = []string{"none", "minimal", "low", "medium", "high", "xhigh"}

// Validate checks what the types cannot: required fields and ranges. It converts older and sloppier
// message forms into the current one. Its error is an *Error.
func (r *ChatRequest) Validate() error {
	if len(r.Messages) == 0 {
		return Invalid("messages", "messages must have at least one message")
	}
	if len(r.Messages) > MaxMessages {
		return Invalid("messages", "messages has %d messages; at most %d are taken", len(r.Messages), MaxMessages)
	}
	for i := range r.Messages {
		if err := r.validateMessage(i); err != nil {
			return err
		}
	}
	if err := r.validateTools(); err != nil {
		return err
	}
	if err := r.validateContinued(); err != nil {
		return err
	}
	if r.ReasoningEffort != "" && !slices.Contains(Efforts, r.ReasoningEffort) {
		return Invalid("reasoning_effort", "reasoning_effort %q is unknown; it is one of %s", r.ReasoningEffort, strings.Join(Efforts, ", "))
	}
	if err := intRange("thinking_budget", r.ThinkingBudget, -1, math.MaxInt64); err != nil {
		return err
	}
	if err := intRange("max_completion_tokens", r.MaxCompletionTokens, -1, math.MaxInt64); err != nil {
		return err
	}
	if err := intRange("top_logprobs", r.TopLogProbs, 0, 20); err != nil {
		return err
	}
	if r.TopLogProbs != nil && *r.TopLogProbs > 0 && (r.LogProbs == nil || !*r.LogProbs) {
		return Invalid("top_logprobs", "top_logprobs needs logprobs: true")
	}
	if err := r.ResponseFormat.validate(); err != nil {
		return err
	}
	if _, err := r.Shape(); err != nil {
		return err
	}
	return r.Sampling.validate()
}

// validateContinued checks that a request with continue_final_message ends with a text to continue.
func (r *ChatRequest) validateContinued() error {
	last := &r.Messages[len(r.Messages)-1]
	text, other := last.Content.PlainText()
	switch {
	case !r.ContinueFinalMessage:
		return nil
	case r.AddGenerationPrompt != nil && *r.AddGenerationPrompt:
		return Invalid("continue_final_message", "continue_final_message and add_generation_prompt exclude each other; leave one of them out")
	case last.Role != "assistant" || len(last.ToolCalls) > 0 || other != "" || strings.TrimSpace(text) == "":
		return Invalid("continue_final_message", "continue_final_message needs a text to go on from: a last message of the assistant with text and without calls")
	}
	return nil
}

// Validate checks what the types cannot: required fields and ranges. Its error is an *Error.
func (r *CompletionRequest) Validate() error {
	if r.Prompt.Texts == nil && r.Prompt.Tokens == nil {
		return Invalid("prompt", "prompt is missing")
	}
	if err := intRange("logprobs", r.LogProbs, 0, 20); err != nil {
		return err
	}
	if err := intRange("best_of", r.BestOf, 1, 20); err != nil {
		return err
	}
	if err := r.ResponseFormat.validate(); err != nil {
		return err
	}
	if _, err := r.Shape(); err != nil {
		return err
	}
	return r.Sampling.validate()
}

func (f *ResponseFormat) validate() error {
	if f == nil {
		return nil
	}
	switch f.Type {
	case "text", "json_object", "json_schema":
		return nil
	}
	return Invalid("response_format.type", "response_format.type %q is unknown; it is one of text, json_object, json_schema", f.Type)
}

func intRange(name string, v *Int, lo, hi int64) error {
	if v == nil || int64(*v) >= lo && int64(*v) <= hi {
		return nil
	}
	if hi >= math.MaxInt32 {
		return Invalid(name, "%s must be %d or more, not %d", name, lo, *v)
	}
	return Invalid(name, "%s must be between %d and %d, not %d", name, lo, hi, *v)
}
