// Package dialect holds what the translations of other APIs share. Each supported API has its own
// package below: it decodes a request into one of OpenAI's, which workers answer, and encodes the
// worker's answer as its clients expect it. A translation is pure: it does no I/O and keeps nothing
// beyond one request.
package dialect

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// The routes of OpenAI's API that workers answer.
const (
	PathChat        = "/v1/chat/completions"
	PathInputTokens = "/v1/chat/completions/input_tokens" // llama.cpp's: counts the tokens of a chat's prompt
	PathCompletion  = "/v1/completions"
	PathEmbedding   = "/v1/embeddings"
)

// Dialect translates one route of an API. Its functions are safe for concurrent use.
type Dialect struct {
	// Decode translates the body of a request. Its error is an *openai.Error about the request.
	Decode func(body []byte, about About) (Request, Encoder, error)
	// Fail returns the status and body of an error answer. e has a status.
	Fail func(e *openai.Error, about About) (status int, body []byte)
	// Name returns the id by which a client can cancel a running answer; nil: it cannot.
	Name func(about About) string
	// Previous returns the id of the stored answer that a request continues; empty: none, or the
	// body cannot be read. nil: the dialect stores no answers.
	Previous func(body []byte) string
}

// About is what a translation needs to know besides the body.
type About struct {
	ID      string // of the answer: random, so that it cannot be guessed
	Request string // id of the request, for readers of logs
	Key     string // token id of the client; empty: unknown
	Now     func() time.Time
}

// Request is an inference request in OpenAI's form.
type Request struct {
	Path   string // one of the Path constants
	Body   []byte
	Stream bool // the client wants a stream; Body matches
	// KeepAlive is how long to keep the model after the request, as JSON in Ollama's form; nil: not
	// given.
	KeepAlive json.RawMessage
	// Kept is the approximate number of bytes that the encoder holds until the answer ends, besides
	// Body.
	Kept int64
}

// Encoder writes one answer. It is not safe for concurrent use.
type Encoder interface {
	// ContentType returns the content type of a stream.
	ContentType() string
	// Chunk appends the encoding of a chunk to dst. The result may be dst itself.
	Chunk(dst []byte, c Chunk) []byte
	// End appends what follows the last chunk of a complete stream.
	End(dst []byte) []byte
	// Error appends the error that ends a stream early.
	Error(dst []byte, e *openai.Error) []byte
	// Alive appends what keeps a silent stream open; nothing if the dialect has no such element.
	Alive(dst []byte) []byte
	// Whole returns the body of an answer that is not a stream.
	Whole(a Answer) ([]byte, error)
}

// Chunk is what one event of a worker's stream adds to the answer.
type Chunk struct {
	Text      string
	Reasoning string
	Calls     []CallPart
	Finish    string // OpenAI's finish reason; empty until the answer ends
	Usage     *openai.Usage
}

// CallPart is a part of a tool call. The first part carries the ID and Name.
type CallPart struct {
	Index     int
	ID, Name  string
	Arguments string // a piece of JSON
}

// Call is a whole tool call.
type Call struct {
	ID, Name  string
	Arguments string // JSON
}

// Answer is a worker's whole answer.
type Answer struct {
	Text      string
	Reasoning string
	Calls     []Call
	Finish    string
	Usage     *openai.Usage
	// Vectors are the embeddings of an embedding answer, each a JSON array.
	Vectors []json.RawMessage
	// InputTokens is the answer to a request for PathInputTokens; nil in other answers.
	InputTokens *int
}

// message is the message of an answer or the delta of a chunk, in OpenAI's form.
type message struct {
	Content   *string `json:"content"`
	Reasoning *string `json:"reasoning_content"`
	ToolCalls []struct {
		Index    int    `json:"index"`
		ID       string `json:"id"`
		Function struct {
			Name      string `json:"name"`
			Arguments string `json:"arguments"`
		} `json:"function"`
	} `json:"tool_calls"`
}

type choice struct {
	Index   int     `json:"index"`
	Delta   message `json:"delta"`
	Message message `json:"message"`
	Text    string  `json:"text"`
	Finish  *string `json:"finish_reason"`
}

type envelope struct {
	Choices     []choice      `json:"choices"`
	Usage       *openai.Usage `json:"usage"`
	Data        vectors       `json:"data"`
	InputTokens *int          `json:"input_tokens"`
}

type vector struct {
	Index     int             `json:"index"`
	Embedding json.RawMessage `json:"embedding"`
}

// vectors are the embeddings of an answer, at most as many as a request may have texts.
type vectors []vector

// UnmarshalJSON counts them before it allocates memory.
func (v *vectors) UnmarshalJSON(b []byte) error {
	if n := openai.Elements(b); n > openai.MaxInputs {
		return fmt.Errorf("the answer has %d embeddings, and at most %d are read", n, openai.MaxInputs)
	}
	return json.Unmarshal(b, (*[]vector)(v))
}

func (m message) text() string {
	if m.Content == nil {
		return ""
	}
	return *m.Content
}

func (m message) reasoning() string {
	if m.Reasoning == nil {
		return ""
	}
	return *m.Reasoning
}

// ParseChunk reads the data of one event of a chat or completion stream. Only the first choice
// counts: no dialect requests more.
func ParseChunk(data []byte) (Chunk, error) {
	var e envelope
	if _, err := openai.CheckValues(data); err != nil { // a worker's answer may not exhaust memory
		return Chunk{}, err
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return Chunk{}, err
	}
	c := Chunk{Usage: e.Usage}
	for _, ch := range e.Choices {
		if ch.Index != 0 {
			continue
		}
		c.Text += ch.Delta.text() + ch.Text
		c.Reasoning += ch.Delta.reasoning()
		for _, t := range ch.Delta.ToolCalls {
			c.Calls = append(c.Calls, CallPart{Index: t.Index, ID: t.ID, Name: t.Function.Name, Arguments: t.Function.Arguments})
		}
		if ch.Finish != nil {
			c.Finish = *ch.Finish
		}
	}
	return c, nil
}

// ParseAnswer reads the body of a whole chat or completion answer.
func ParseAnswer(body []byte) (Answer, error) {
	var e envelope
	if _, err := openai.CheckValues(body, "data"); err != nil { // embeddings consist of many numbers
		return Answer{}, err
	}
	if err := json.Unmarshal(body, &e); err != nil {
		return Answer{}, err
	}
	a := Answer{Usage: e.Usage, InputTokens: e.InputTokens}
	for i, d := range e.Data {
		if d.Index == i { // they arrive in order
			a.Vectors = append(a.Vectors, d.Embedding)
		}
	}
	for _, ch := range e.Choices {
		if ch.Index != 0 {
			continue
		}
		a.Text += ch.Message.text() + ch.Text
		a.Reasoning += ch.Message.reasoning()
		for _, t := range ch.Message.ToolCalls {
			a.Calls = append(a.Calls, Call{ID: t.ID, Name: t.Function.Name, Arguments: t.Function.Arguments})
		}
		if ch.Finish != nil {
			a.Finish = *ch.Finish
		}
	}
	return a, nil
}

// Calls joins the parts of tool calls as they arrive. The zero value is empty.
type Calls struct{ list []openCall }

// openCall is a call whose arguments are still arriving.
type openCall struct {
	id, name  string
	arguments []byte
}

// MaxCalls bounds the tool calls of one answer: a worker's index is untrusted.
const MaxCalls = 128

// Add adds parts.
func (c *Calls) Add(parts []CallPart) {
	for _, p := range parts {
		if p.Index < 0 || p.Index >= MaxCalls {
			continue
		}
		for len(c.list) <= p.Index {
			c.list = append(c.list, openCall{})
		}
		call := &c.list[p.Index]
		if p.ID != "" {
			call.id = p.ID
		}
		if p.Name != "" {
			call.name = p.Name
		}
		call.arguments = append(call.arguments, p.Arguments...)
	}
}

// List returns a copy of the calls so far.
func (c *Calls) List() []Call {
	var list []Call
	for _, call := range c.list {
		list = append(list, Call{ID: call.id, Name: call.name, Arguments: string(call.arguments)})
	}
	return list
}

// Invalid returns an error about a request that cannot be translated.
func Invalid(param, format string, args ...any) *openai.Error {
	return openai.Invalid(param, format, args...)
}

// Unmarshal reads a request's body into v. Errors name the field.
func Unmarshal(body []byte, v any) error {
	err := json.Unmarshal(body, v)
	if err == nil {
		return nil
	}
	if typeErr, ok := errors.AsType[*json.UnmarshalTypeError](err); ok && typeErr.Field != "" {
		return Invalid(typeErr.Field, "%s cannot be a %s", typeErr.Field, typeErr.Value)
	}
	return openai.NewError(http.StatusBadRequest, openai.TypeInvalidRequest, "", "", "the request's body is not valid JSON of this route")
}

// Marshal returns v as JSON without escaping HTML characters: what a model wrote must return to it
// unchanged in the next turn.
func Marshal(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n")), nil
}

// Object returns raw if it is a JSON object, and an empty object otherwise.
func Object(raw string) json.RawMessage {
	var m map[string]json.RawMessage
	if json.Unmarshal([]byte(raw), &m) != nil || m == nil {
		return json.RawMessage("{}")
	}
	return json.RawMessage(raw)
}

// Chat is an OpenAI chat request that a dialect fills in. Unset fields are omitted.
type Chat struct {
	Model    string    `json:"model"`
	Messages []Message `json:"messages,omitempty"`
	Stream   bool      `json:"stream,omitempty"`
	Options  *Stream   `json:"stream_options,omitempty"`

	KeepAlive json.RawMessage `json:"-"` // see Request

	MaxTokens        *int64          `json:"max_tokens,omitempty"`
	Temperature      json.RawMessage `json:"temperature,omitempty"`
	TopP             json.RawMessage `json:"top_p,omitempty"`
	TopK             json.RawMessage `json:"top_k,omitempty"`
	MinP             json.RawMessage `json:"min_p,omitempty"`
	TypicalP         json.RawMessage `json:"typical_p,omitempty"`
	Seed             json.RawMessage `json:"seed,omitempty"`
	Stop             json.RawMessage `json:"stop,omitempty"`
	RepeatPenalty    json.RawMessage `json:"repeat_penalty,omitempty"`
	RepeatLastN      json.RawMessage `json:"repeat_last_n,omitempty"`
	PresencePenalty  json.RawMessage `json:"presence_penalty,omitempty"`
	FrequencyPenalty json.RawMessage `json:"frequency_penalty,omitempty"`
	ResponseFormat   json.RawMessage `json:"response_format,omitempty"`
	Tools            json.RawMessage `json:"tools,omitempty"`
	ToolChoice       json.RawMessage `json:"tool_choice,omitempty"`
	ParallelCalls    *bool           `json:"parallel_tool_calls,omitempty"`
	ReasoningEffort  string          `json:"reasoning_effort,omitempty"`
	TemplateKwargs   map[string]any  `json:"chat_template_kwargs,omitempty"`
	User             string          `json:"user,omitempty"`

	ContinueFinalMessage bool  `json:"continue_final_message,omitempty"`
	AddGenerationPrompt  *bool `json:"add_generation_prompt,omitempty"`

	Prompt *string `json:"prompt,omitempty"` // of a completion, which has no messages
	Suffix string  `json:"suffix,omitempty"`
}

// Stream is OpenAI's stream_options.
type Stream struct {
	IncludeUsage bool `json:"include_usage"`
}

// Message is one message of a Chat.
type Message struct {
	Role       string     `json:"role"`
	Content    any        `json:"content"` // a string, []Part or nil
	Reasoning  string     `json:"reasoning_content,omitempty"`
	ToolCalls  []ToolCall `json:"tool_calls,omitempty"`
	ToolCallID string     `json:"tool_call_id,omitempty"`
}

// Part is one part of a message's content.
type Part struct {
	Type     string    `json:"type"` // "text" or "image_url"
	Text     string    `json:"text,omitempty"`
	ImageURL *ImageURL `json:"image_url,omitempty"`
}

// ImageURL is the image of a Part.
type ImageURL struct {
	URL string `json:"url"`
}

// ToolCall is a call in a message of the assistant.
type ToolCall struct {
	ID       string   `json:"id"`
	Type     string   `json:"type"` // "function"
	Function Function `json:"function"`
}

// Function is the function of a ToolCall.
type Function struct {
	Name      string `json:"name"`
	Arguments string `json:"arguments"`
}

// Tool returns a tool in OpenAI's form.
func Tool(name, description string, parameters json.RawMessage, strict *bool) map[string]any {
	f := map[string]any{"name": name}
	if description != "" {
		f["description"] = description
	}
	if len(parameters) > 0 {
		f["parameters"] = parameters
	}
	if strict != nil {
		f["strict"] = *strict
	}
	return map[string]any{"type": "function", "function": f}
}

// NewCall returns a ToolCall.
func NewCall(id, name, arguments string) ToolCall {
	return ToolCall{ID: id, Type: "function", Function: Function{Name: name, Arguments: arguments}}
}

// Encode returns the encoded request. stream reports whether the client wants a stream.
func (c *Chat) Encode(path string, stream bool) (Request, error) {
	c.Stream = stream
	if stream {
		c.Options = &Stream{IncludeUsage: true}
	}
	body, err := Marshal(c)
	if err != nil {
		return Request{}, Invalid("", "the request holds a value that is not JSON")
	}
	return Request{Path: path, Body: body, Stream: stream, KeepAlive: c.KeepAlive}, nil
}

// Data returns a data URL for an image given in base64.
func Data(mime, base64 string) *ImageURL { return &ImageURL{URL: "data:" + mime + ";base64," + base64} }
