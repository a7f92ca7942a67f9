package openai

import (
	"encoding/json"
	"net/http"
	"reflect"
)

// ChatRequest is the body of POST /v1/chat/completions.
type ChatRequest struct {
	Model    string    `json:"model"`
	Messages []Message `json:"messages"`
	Sampling
	Structure

	// wins over MaxTokens
	MaxCompletionTokens *Int            `json:"max_completion_tokens,omitempty"`
	LogProbs            *bool           `json:"logprobs,omitempty"`
	TopLogProbs         *Int            `json:"top_logprobs,omitempty"` // 0 to 20, needs LogProbs
	ResponseFormat      *ResponseFormat `json:"response_format,omitempty"`
	Tools               []Tool          `json:"tools,omitempty"`
	ToolChoice          ToolChoice      `json:"tool_choice,omitzero"`
	ParallelToolCalls   *bool           `json:"parallel_tool_calls,omitempty"`
	// the old form of Tools
	Functions []Function `json:"functions,omitempty"`
	// the old form of ToolChoice
	FunctionCall    ToolChoice `json:"function_call,omitzero"`
	ReasoningEffort string     `json:"reasoning_effort,omitempty"` // one of Efforts
	// budget of thinking tokens, -1: unlimited; not OpenAI's
	ThinkingBudget *Int `json:"thinking_budget,omitempty"`
	// an object, passed to the template as variables
	ChatTemplateKwargs json.RawMessage `json:"chat_template_kwargs,omitempty"`
	// the answer continues the last message, which is the assistant's; vLLM's
	ContinueFinalMessage bool `json:"continue_final_message,omitempty"`
	// false: the prompt does not open a new turn of the model; nil: the opposite of
	// ContinueFinalMessage
	AddGenerationPrompt *bool           `json:"add_generation_prompt,omitempty"`
	Metadata            json.RawMessage `json:"metadata,omitempty"`
	Store               *bool           `json:"store,omitempty"`
}

// MaxOutput returns the maximum number of tokens to generate; 0: as many as fit.
func (r *ChatRequest) MaxOutput() int {
	return maxOutput(r.MaxCompletionTokens, r.MaxTokens, r.NPredict)
}

// NoOutput reports whether the client asks for no tokens, in which case the worker only evaluates
// the prompt.
func (r *ChatRequest) NoOutput() bool {
	return noOutput(r.MaxCompletionTokens, r.MaxTokens, r.NPredict)
}

// CompletionRequest is the body of the legacy POST /v1/completions.
type CompletionRequest struct {
	Model  string `json:"model"`
	Prompt Prompt `json:"prompt"`
	Sampling
	Structure

	ResponseFormat *ResponseFormat `json:"response_format,omitempty"` // not OpenAI's

	LogProbs *Int   `json:"logprobs,omitempty"` // 0 to 20
	Echo     *bool  `json:"echo,omitempty"`
	Suffix   string `json:"suffix,omitempty"`
	BestOf   *Int   `json:"best_of,omitempty"`
}

// DefaultCompletionTokens is OpenAI's documented default of max_tokens in POST /v1/completions.
const DefaultCompletionTokens = 16

// MaxOutput returns the maximum number of tokens to generate; 0: as many as fit.
func (r *CompletionRequest) MaxOutput() int {
	if r.MaxTokens == nil && r.NPredict == nil {
		return DefaultCompletionTokens
	}
	return maxOutput(r.MaxTokens, r.NPredict)
}

// NoOutput reports whether the client asks for no tokens, in which case the worker only evaluates
// the prompt.
func (r *CompletionRequest) NoOutput() bool { return noOutput(r.MaxTokens, r.NPredict) }

// IncludeUsage reports whether a stream should end with a usage chunk.
func (s *Sampling) IncludeUsage() bool {
	return s.StreamOptions != nil && s.StreamOptions.IncludeUsage
}

// StreamOptions is the object of stream_options.
type StreamOptions struct {
	IncludeUsage bool `json:"include_usage,omitempty"`
}

// ResponseFormat is the object of response_format.
type ResponseFormat struct {
	Type       string          `json:"type"` // "text", "json_object" or "json_schema"
	JSONSchema json.RawMessage `json:"json_schema,omitempty"`
	Schema     json.RawMessage `json:"schema,omitempty"` // where llama.cpp puts the schema
}

// Message is one message of a conversation.
type Message struct {
	// "system", "developer", "user", "assistant" or "tool"; "function" is the old form of "tool"
	Role       string     `json:"role"`
	Content    Content    `json:"content"`
	Name       string     `json:"name,omitempty"`
	ToolCalls  []ToolCall `json:"tool_calls,omitempty"`
	ToolCallID string     `json:"tool_call_id,omitempty"`

	// the assistant's thoughts
	ReasoningContent string `json:"reasoning_content,omitempty"`
	// another name for ReasoningContent
	Reasoning    string        `json:"reasoning,omitempty"`
	FunctionCall *ToolFunction `json:"function_call,omitempty"` // the old form of ToolCalls
}

// ToolCall is a model's request to call a function.
type ToolCall struct {
	Index    *int         `json:"index,omitempty"` // streamed chunks only
	ID       string       `json:"id,omitempty"`
	Type     string       `json:"type,omitempty"` // "function"
	Function ToolFunction `json:"function"`
}

// ToolFunction is the function of a ToolCall.
type ToolFunction struct {
	Name      string `json:"name,omitempty"`
	Arguments string `json:"arguments"` // JSON text
}

// Content is the content of a message: a string or an array of parts. On the wire null is the same
// as an empty string.
type Content struct {
	Text  string // used if Parts is nil
	Parts []Part // nil if the content was a string
	Given bool   // the wire held a string, even an empty one
}

// Part is one part of a Content that is an array.
type Part struct {
	Type string `json:"type"` // "text", "image_url", …
	Text string `json:"text,omitempty"`
}

// UnmarshalJSON reads a part. A text part without a text is left empty and without a type.
func (p *Part) UnmarshalJSON(b []byte) error {
	var v struct {
		Type string  `json:"type"`
		Text *string `json:"text"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	*p = Part{Type: v.Type}
	switch {
	case v.Text != nil:
		p.Text = *v.Text
		if v.Type == "" {
			p.Type = "text"
		}
	case v.Type == "text" || v.Type == "input_text":
		p.Type = ""
	}
	return nil
}

// TextContent returns a Content with one string.
func TextContent(s string) Content { return Content{Text: s, Given: true} }

// PlainText returns the content as one string, with the parts joined unchanged. If a part is not
// text, it returns the type of the first such part.
func (c Content) PlainText() (text, otherType string) {
	if c.Parts == nil {
		return c.Text, ""
	}
	if len(c.Parts) == 1 && c.Parts[0].Type == "text" {
		return c.Parts[0].Text, ""
	}
	var b []byte
	for _, p := range c.Parts {
		if p.Type != "text" {
			return "", p.Type
		}
		b = append(b, p.Text...)
	}
	return string(b), ""
}

// MarshalJSON writes a string, or an array if Parts is not nil.
func (c Content) MarshalJSON() ([]byte, error) {
	if c.Parts != nil {
		return json.Marshal(c.Parts)
	}
	return json.Marshal(c.Text)
}

// UnmarshalJSON reads a string, an array of parts, or null.
func (c *Content) UnmarshalJSON(b []byte) error {
	*c = Content{}
	switch b[0] {
	case 'n':
		return nil
	case '"':
		c.Given = true
		return json.Unmarshal(b, &c.Text)
	case '[':
		if err := json.Unmarshal(b, &c.Parts); err != nil {
			return typeError[[]Part](jsonKind(b) + " with something else than parts")
		}
		if c.Parts == nil {
			c.Parts = []Part{}
		}
		return nil
	}
	return typeError[Content](jsonKind(b))
}

// Stop is a list of strings that end a generation. On the wire it may be one string, a list, or
// null.
type Stop []string

// UnmarshalJSON reads a string, a list of strings, or null.
func (s *Stop) UnmarshalJSON(b []byte) error {
	*s = nil
	switch b[0] {
	case 'n':
		return nil
	case '"':
		var one string
		err := json.Unmarshal(b, &one)
		*s = Stop{one}
		return err
	case '[':
		var list []string
		if err := json.Unmarshal(b, &list); err != nil {
			return typeError[Stop]("array with something else than strings")
		}
		*s = list
		return nil
	}
	return typeError[Stop](jsonKind(b))
}

// Prompt is the prompt of a legacy completion: one text, several, or token ids. Exactly one of the
// two is set.
type Prompt struct {
	Texts  []string
	Tokens [][]int32
}

// TextPrompt returns a Prompt with one text.
func TextPrompt(s string) Prompt { return Prompt{Texts: []string{s}} }

// MarshalJSON writes the simplest form that fits.
func (p Prompt) MarshalJSON() ([]byte, error) {
	switch {
	case len(p.Texts) == 1:
		return json.Marshal(p.Texts[0])
	case p.Texts != nil:
		return json.Marshal(p.Texts)
	case len(p.Tokens) == 1 && len(p.Tokens[0]) > 0: // [] stands for no texts
		return json.Marshal(p.Tokens[0])
	}
	return json.Marshal(p.Tokens)
}

// UnmarshalJSON reads a string, a list of strings, a list of token ids, a list of such lists, or
// null. It decodes an array once: its first element decides the type, and its length the size to
// allocate, so that a token takes four bytes. Errors: *Error for more than MaxInputs texts or
// lists.
func (p *Prompt) UnmarshalJSON(b []byte) error {
	*p = Prompt{}
	switch b[0] {
	case 'n':
		return nil
	case '"':
		p.Texts = make([]string, 1)
		return json.Unmarshal(b, &p.Texts[0])
	case '[':
	default:
		return typeError[Prompt](jsonKind(b))
	}
	n, err := Elements(b), error(nil)
	switch first := firstElement(b); {
	case first == 0:
		p.Texts = []string{}
	case first == '-' || first >= '0' && first <= '9':
		ids := make([]int32, 0, n)
		err = json.Unmarshal(b, &ids)
		p.Tokens = [][]int32{ids}
	case first != '"' && first != '[':
		err = typeError[Prompt]("")
	case n > MaxInputs:
		return NewError(http.StatusRequestEntityTooLarge, TypeInvalidRequest, "", CodeTooLarge, "the request has a list of %d texts, and at most %d are taken; send several requests", n, MaxInputs)
	case first == '"':
		p.Texts = make([]string, 0, n)
		err = json.Unmarshal(b, &p.Texts)
	default:
		var lists []tokenList
		if err = json.Unmarshal(b, &lists); err == nil {
			p.Tokens = make([][]int32, len(lists))
			for i, l := range lists {
				p.Tokens[i] = l
			}
		}
	}
	if err != nil {
		*p = Prompt{}
		return typeError[Prompt]("array with something else than strings or token ids")
	}
	return nil
}

// tokenList is a list of token ids that allocates no more than it needs.
type tokenList []int32

// UnmarshalJSON reads a list of token ids.
func (l *tokenList) UnmarshalJSON(b []byte) error {
	if b[0] != '[' {
		return typeError[Prompt](jsonKind(b))
	}
	ids := make([]int32, 0, Elements(b))
	err := json.Unmarshal(b, &ids)
	*l = ids
	return err
}

// Elements counts the elements of a JSON array without decoding it.
func Elements(array []byte) int {
	if first := firstElement(array); first == 0 {
		return 0
	}
	n, depth := 1, 0
	for i := 0; i < len(array); i++ {
		switch array[i] {
		case '"':
			for i++; i < len(array) && array[i] != '"'; i++ {
				if array[i] == '\\' {
					i++
				}
			}
		case '[', '{':
			depth++
		case ']', '}':
			depth--
		case ',':
			if depth == 1 {
				n++
			}
		}
	}
	return n
}

// firstElement returns the first byte of a JSON array's first element; 0: the array is empty.
func firstElement(array []byte) byte {
	for _, c := range array[min(1, len(array)):] {
		switch c {
		case ' ', '\t', '\r', '\n':
		case ']':
			return 0
		default:
			return c
		}
	}
	return 0
}

// typeError returns the error of a value of the wrong type. The Go type identifies it when the
// message is written; encoding/json adds the field's path.
func typeError[T any](value string) error {
	return &json.UnmarshalTypeError{Value: value, Type: reflect.TypeFor[T]()}
}

func jsonKind(b []byte) string {
	switch b[0] {
	case '"':
		return "string"
	case '{':
		return "object"
	case '[':
		return "array"
	case 't', 'f':
		return "bool"
	case 'n':
		return "null"
	}
	return "number"
}
