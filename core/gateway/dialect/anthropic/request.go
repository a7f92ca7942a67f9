// Package anthropic translates Anthropic's Messages API: POST /v1/messages, as its public reference
// describes it for version 2023-06-01.
package anthropic

import (
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Messages is POST /v1/messages, CountTokens POST /v1/messages/count_tokens.
var (
	Messages    = dialect.Dialect{Decode: decode, Fail: Fail}
	CountTokens = dialect.Dialect{Decode: decodeCount, Fail: Fail}
)

// StatusOverloaded is Anthropic's own status for an overloaded server.
const StatusOverloaded = 529

// errorTypes maps statuses to error types. Other statuses are api_error.
var errorTypes = map[int]string{
	http.StatusBadRequest:            "invalid_request_error",
	http.StatusUnauthorized:          "authentication_error",
	http.StatusForbidden:             "permission_error",
	http.StatusNotFound:              "not_found_error",
	http.StatusMethodNotAllowed:      "invalid_request_error",
	http.StatusConflict:              "invalid_request_error",
	http.StatusRequestEntityTooLarge: "request_too_large",
	http.StatusUnsupportedMediaType:  "invalid_request_error",
	http.StatusTooManyRequests:       "rate_limit_error",
	http.StatusGatewayTimeout:        "timeout_error",
	StatusOverloaded:                 "overloaded_error",
}

type failure struct {
	Type      string     `json:"type"` // "error"
	Error     failureWhy `json:"error"`
	RequestID string     `json:"request_id,omitempty"`
}

type failureWhy struct {
	Type    string `json:"type"`
	Message string `json:"message"`
}

func failureOf(e *openai.Error, about dialect.About) (int, failure) {
	status := e.Status
	if status == http.StatusServiceUnavailable && e.Code != nil && *e.Code == openai.CodeOverloaded {
		status = StatusOverloaded
	}
	typ, ok := errorTypes[status]
	if !ok {
		typ = "api_error"
	}
	text := e.Error()
	if e.Hint != "" {
		text += ". " + e.Hint
	}
	return status, failure{Type: "error", Error: failureWhy{Type: typ, Message: text}, RequestID: about.Request}
}

// Fail returns an error in the form of Anthropic's API.
func Fail(e *openai.Error, about dialect.About) (status int, body []byte) {
	status, f := failureOf(e, about)
	b, _ := dialect.Marshal(f) // strings can always be marshalled
	return status, append(b, '\n')
}

type request struct {
	Model         string          `json:"model"`
	MaxTokens     *int64          `json:"max_tokens"`
	Messages      []message       `json:"messages"`
	System        content         `json:"system"`
	StopSequences []string        `json:"stop_sequences"`
	Stream        bool            `json:"stream"`
	Temperature   json.RawMessage `json:"temperature"`
	TopP          json.RawMessage `json:"top_p"`
	TopK          json.RawMessage `json:"top_k"`
	Tools         []tool          `json:"tools"`
	ToolChoice    *toolChoice     `json:"tool_choice"`
	Thinking      *thinking       `json:"thinking"`
	OutputConfig  outputConfig    `json:"output_config"`
	OutputFormat  *outputFormat   `json:"output_format"` // the field that output_config replaced
	Metadata      struct {
		UserID string `json:"user_id"`
	} `json:"metadata"`
}

type tool struct {
	Type        string          `json:"type"` // "custom" or empty; other types run on Anthropic's servers
	Name        string          `json:"name"`
	Description string          `json:"description"`
	InputSchema json.RawMessage `json:"input_schema"`
	Strict      *bool           `json:"strict"`
}

type toolChoice struct {
	Type            string `json:"type"` // "auto", "any", "tool" or "none"
	Name            string `json:"name"`
	DisableParallel bool   `json:"disable_parallel_tool_use"`
}

// outputConfig describes the form of the answer. Its effort is a hint for models that think.
type outputConfig struct {
	Format *outputFormat `json:"format"`
	Effort string        `json:"effort"`
}

type outputFormat struct {
	Type   string          `json:"type"` // "json_schema"
	Schema json.RawMessage `json:"schema"`
}

type thinking struct {
	Type string `json:"type"` // "enabled", "adaptive" or "disabled"
}

type message struct {
	Role    string  `json:"role"`
	Content content `json:"content"`
}

// content is a string or a list of blocks. A string becomes one block of text.
type content []block

func (c *content) UnmarshalJSON(b []byte) error {
	*c = nil
	switch b[0] {
	case 'n':
		return nil
	case '"':
		var text string
		if err := json.Unmarshal(b, &text); err != nil {
			return err
		}
		*c = content{{Type: "text", Text: text}}
		return nil
	}
	var list []block
	if err := json.Unmarshal(b, &list); err != nil {
		return err
	}
	*c = list
	return nil
}

type block struct {
	Type      string          `json:"type"`
	Text      string          `json:"text"`
	Thinking  string          `json:"thinking"`
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Input     json.RawMessage `json:"input"`
	ToolUseID string          `json:"tool_use_id"`
	IsError   bool            `json:"is_error"`
	Content   json.RawMessage `json:"content"` // of a tool's result; raw, as each level of decoders would read all levels below it
	Source    *source         `json:"source"`
}

type source struct {
	Type      string `json:"type"` // "base64", "url" or "text"
	MediaType string `json:"media_type"`
	Data      string `json:"data"`
	URL       string `json:"url"`
}

func decode(body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
	var in request
	if err := dialect.Unmarshal(body, &in); err != nil {
		return dialect.Request{}, nil, err
	}
	out, err := in.chat()
	if err != nil {
		return dialect.Request{}, nil, err
	}
	r, err := out.Encode(dialect.PathChat, in.Stream)
	return r, &encoder{model: in.Model, id: "msg_" + about.ID, about: about, thinks: in.thinks()}, err
}

// decodeCount decodes a message whose size alone is wanted: it needs no max_tokens.
func decodeCount(body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
	var in request
	if err := dialect.Unmarshal(body, &in); err != nil {
		return dialect.Request{}, nil, err
	}
	if in.MaxTokens == nil {
		in.MaxTokens = new(int64)
		*in.MaxTokens = 1
	}
	out, err := in.chat()
	if err != nil {
		return dialect.Request{}, nil, err
	}
	r, err := out.Encode(dialect.PathInputTokens, false)
	return r, dialect.Count{Fail: Fail, About: about}, err
}

func (in *request) thinks() bool { return in.Thinking != nil && in.Thinking.Type != "disabled" }

// chat translates the request.
func (in *request) chat() (*dialect.Chat, error) {
	switch {
	case in.MaxTokens == nil:
		return nil, dialect.Invalid("max_tokens", "max_tokens is missing")
	case *in.MaxTokens < 1:
		return nil, dialect.Invalid("max_tokens", "max_tokens must be 1 or more")
	case len(in.Messages) == 0:
		return nil, dialect.Invalid("messages", "messages must have at least one message")
	}
	out := &dialect.Chat{
		Model: in.Model, MaxTokens: in.MaxTokens, Temperature: in.Temperature, TopP: in.TopP, TopK: in.TopK, User: in.Metadata.UserID,
		// Models that can think do so only if asked, as Anthropic's own do.
		TemplateKwargs: map[string]any{"enable_thinking": in.thinks()},
	}
	if stops := slices.DeleteFunc(slices.Clone(in.StopSequences), func(s string) bool { return s == "" }); len(stops) > 0 {
		b, err := dialect.Marshal(stops)
		if err != nil {
			return nil, dialect.Invalid("stop_sequences", "stop_sequences must be strings")
		}
		out.Stop = b
	}
	if err := in.form(out); err != nil {
		return nil, err
	}
	system, err := in.System.text("system")
	if err != nil {
		return nil, err
	}
	if system != "" {
		out.Messages = append(out.Messages, dialect.Message{Role: "system", Content: system})
	}
	for i, m := range in.Messages {
		list, err := m.messages(fmt.Sprintf("messages[%d]", i))
		if err != nil {
			return nil, err
		}
		out.Messages = append(out.Messages, list...)
	}
	last := out.Messages[len(out.Messages)-1]
	if text, ok := last.Content.(string); ok && last.Role == "assistant" && len(last.ToolCalls) == 0 && strings.TrimSpace(text) != "" {
		out.ContinueFinalMessage, out.AddGenerationPrompt = true, new(false) // as in Anthropic's API
	}
	return out, in.tools(out)
}

// form translates the required form of the answer.
func (in *request) form(out *dialect.Chat) error {
	if in.thinks() && slices.Contains(openai.Efforts, in.OutputConfig.Effort) {
		out.ReasoningEffort = in.OutputConfig.Effort
	}
	f, where := in.OutputConfig.Format, "output_config.format"
	if f == nil {
		f, where = in.OutputFormat, "output_format"
	}
	if f == nil {
		return nil
	}
	if f.Type != "json_schema" {
		return openai.NotSupported(where+".type", `%s of type %q is not supported; use "json_schema"`, where, f.Type)
	}
	if len(f.Schema) == 0 || f.Schema[0] != '{' {
		return dialect.Invalid(where+".schema", "%s.schema must be a JSON schema", where)
	}
	b, err := dialect.Marshal(map[string]any{"type": f.Type, f.Type: map[string]any{"name": "answer", "strict": true, "schema": f.Schema}})
	if err != nil {
		return dialect.Invalid(where, "%s holds a value that is not JSON", where)
	}
	out.ResponseFormat = b
	return nil
}

func (in *request) tools(out *dialect.Chat) error {
	var list []any
	for i, t := range in.Tools {
		if t.Type != "" && t.Type != "custom" {
			return openai.NotSupported(fmt.Sprintf("tools[%d].type", i), "tools of type %q run on Anthropic's servers; only tools of your own are supported", t.Type)
		}
		list = append(list, dialect.Tool(t.Name, t.Description, t.InputSchema, t.Strict))
	}
	if len(list) == 0 {
		return nil
	}
	b, err := dialect.Marshal(list)
	if err != nil {
		return dialect.Invalid("tools", "tools hold a value that is not JSON")
	}
	out.Tools = b
	c := in.ToolChoice
	if c == nil {
		return nil
	}
	switch c.Type {
	case "auto", "none":
		out.ToolChoice = json.RawMessage(`"` + c.Type + `"`)
	case "any":
		out.ToolChoice = json.RawMessage(`"required"`)
	case "tool":
		name, err := dialect.Marshal(c.Name)
		if err != nil || c.Name == "" {
			return dialect.Invalid("tool_choice.name", "tool_choice of type tool needs the tool's name")
		}
		out.ToolChoice = json.RawMessage(`{"type":"function","function":{"name":` + string(name) + `}}`)
	default:
		return dialect.Invalid("tool_choice.type", "tool_choice.type must be auto, any, tool or none")
	}
	if c.DisableParallel {
		no := false
		out.ParallelCalls = &no
	}
	return nil
}

// text joins blocks that must all be text.
func (c content) text(where string) (string, error) {
	var b strings.Builder
	for i, x := range c {
		if x.Type != "text" {
			return "", dialect.Invalid(fmt.Sprintf("%s[%d].type", where, i), "%s may only hold text here, not %q", where, x.Type)
		}
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(x.Text)
	}
	return b.String(), nil
}

// messages translates one message. Tool results become separate messages, before the user's own
// text.
func (m *message) messages(where string) ([]dialect.Message, error) {
	switch m.Role {
	case "user":
		return m.user(where)
	case "assistant":
		return m.assistant(where)
	case "system":
		text, err := m.Content.text(where + ".content")
		return []dialect.Message{{Role: "system", Content: text}}, err
	}
	return nil, dialect.Invalid(where+".role", "%s.role must be user or assistant", where)
}

func (m *message) user(where string) ([]dialect.Message, error) {
	var out []dialect.Message
	var parts []dialect.Part
	for i, b := range m.Content {
		at := fmt.Sprintf("%s.content[%d]", where, i)
		switch b.Type {
		case "text":
			parts = append(parts, dialect.Part{Type: "text", Text: b.Text})
		case "image", "document":
			p, err := b.part(at)
			if err != nil {
				return nil, err
			}
			parts = append(parts, p)
		case "tool_result":
			text, err := b.result(at)
			if err != nil {
				return nil, err
			}
			out = append(out, dialect.Message{Role: "tool", ToolCallID: b.ToolUseID, Content: text})
		default:
			return nil, openai.NotSupported(at+".type", "blocks of type %q are not supported in a message of the user", b.Type)
		}
	}
	if len(parts) > 0 {
		out = append(out, dialect.Message{Role: "user", Content: plain(parts)})
	}
	if len(out) == 0 {
		return nil, dialect.Invalid(where+".content", "%s has no content", where)
	}
	return out, nil
}

// plain returns the bare text if there is nothing else, as every template accepts that.
func plain(parts []dialect.Part) any {
	var texts []string
	for _, p := range parts {
		if p.Type != "text" {
			return parts
		}
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "\n")
}

func (b *block) part(at string) (dialect.Part, error) {
	switch s := b.Source; {
	case s == nil:
		return dialect.Part{}, dialect.Invalid(at+".source", "%s has no source", at)
	case s.Type == "text":
		return dialect.Part{Type: "text", Text: s.Data}, nil
	case b.Type == "document":
		return dialect.Part{}, openai.NotSupported(at+".source", "documents are supported as text only; send what they say")
	case s.Type == "base64":
		return dialect.Part{Type: "image_url", ImageURL: dialect.Data(s.MediaType, s.Data)}, nil
	case s.Type == "url":
		return dialect.Part{Type: "image_url", ImageURL: &dialect.ImageURL{URL: s.URL}}, nil
	}
	return dialect.Part{}, openai.NotSupported(at+".source.type", "sources of type %q are not supported", b.Source.Type)
}

func (b *block) result(at string) (string, error) {
	if b.ToolUseID == "" {
		return "", dialect.Invalid(at+".tool_use_id", "%s has no tool_use_id", at)
	}
	var in content
	if len(b.Content) > 0 {
		if err := json.Unmarshal(b.Content, &in); err != nil {
			return "", dialect.Invalid(at+".content", "%s.content must be a string or a list of blocks", at)
		}
	}
	text, err := in.text(at + ".content")
	if b.IsError {
		text = "Error: " + text
	}
	return text, err
}

func (m *message) assistant(where string) ([]dialect.Message, error) {
	out := dialect.Message{Role: "assistant"}
	var texts, thoughts []string
	for i, b := range m.Content {
		at := fmt.Sprintf("%s.content[%d]", where, i)
		switch b.Type {
		case "text":
			texts = append(texts, b.Text)
		case "thinking":
			thoughts = append(thoughts, b.Thinking)
		case "redacted_thinking": // only its author can read it
		case "tool_use":
			if b.ID == "" || b.Name == "" {
				return nil, dialect.Invalid(at, "%s needs an id and a name", at)
			}
			out.ToolCalls = append(out.ToolCalls, dialect.NewCall(b.ID, b.Name, string(dialect.Object(string(b.Input)))))
		default:
			return nil, openai.NotSupported(at+".type", "blocks of type %q are not supported in a message of the assistant", b.Type)
		}
	}
	if len(texts) > 0 || len(out.ToolCalls) == 0 {
		out.Content = strings.Join(texts, "\n")
	}
	out.Reasoning = strings.Join(thoughts, "\n")
	return []dialect.Message{out}, nil
}
