// Package responses translates OpenAI's Responses API: POST /v1/responses, as its public reference
// describes it.
package responses

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"strings"

	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// New returns POST /v1/responses. store keeps answers for previous_response_id.
func New(store *Store) dialect.Dialect {
	return dialect.Dialect{
		Decode: func(body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
			return decode(store, body, about)
		},
		Fail:     Fail,
		Name:     ID,
		Previous: previous,
	}
}

// previous returns the previous_response_id of a request.
func previous(body []byte) string {
	if !bytes.Contains(body, []byte(`"previous_response_id"`)) {
		return ""
	}
	var in struct {
		ID string `json:"previous_response_id"`
	}
	_ = json.Unmarshal(body, &in) // decoded again later, which reports the error
	return in.ID
}

// ID returns the id of the answer being generated.
func ID(about dialect.About) string { return "resp_" + about.ID }

// CountTokens returns POST /v1/responses/input_tokens: the token count of the same request to New's
// route.
func CountTokens(store *Store) dialect.Dialect {
	return dialect.Dialect{
		Decode: func(body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
			var in request
			out, _, err := in.decode(store, body, about)
			if err != nil {
				return dialect.Request{}, nil, err
			}
			r, err := out.Encode(dialect.PathInputTokens, false)
			return r, dialect.Count{Object: openai.ObjectInputTokens, Fail: Fail, About: about}, err
		},
		Fail:     Fail,
		Previous: previous,
	}
}

// Fail returns an error in OpenAI's envelope.
func Fail(e *openai.Error, _ dialect.About) (status int, body []byte) {
	b, _ := dialect.Marshal(map[string]any{"error": e}) // strings can always be marshalled
	return e.Status, append(b, '\n')
}

type request struct {
	Model              string          `json:"model"`
	Input              json.RawMessage `json:"input"` // a string or a list of items
	Instructions       *string         `json:"instructions"`
	MaxOutputTokens    *int64          `json:"max_output_tokens"`
	Temperature        json.RawMessage `json:"temperature"`
	TopP               json.RawMessage `json:"top_p"`
	Stream             bool            `json:"stream"`
	Store              *bool           `json:"store"` // nil: yes
	PreviousResponseID *string         `json:"previous_response_id"`
	ParallelToolCalls  *bool           `json:"parallel_tool_calls"`
	Tools              []tool          `json:"tools"`
	ToolChoice         json.RawMessage `json:"tool_choice"`
	Text               text            `json:"text"`
	Reasoning          *reasoning      `json:"reasoning"`
	Metadata           json.RawMessage `json:"metadata"`
	Truncation         *string         `json:"truncation"`
	User               string          `json:"user"`
	Background         bool            `json:"background"`
	Conversation       json.RawMessage `json:"conversation"`
	Prompt             json.RawMessage `json:"prompt"`
}

type text struct {
	Format    *format `json:"format,omitempty"`
	Verbosity string  `json:"verbosity,omitempty"`
}

type format struct {
	Type        string          `json:"type"` // "text", "json_object" or "json_schema"
	Name        string          `json:"name,omitempty"`
	Description string          `json:"description,omitempty"`
	Schema      json.RawMessage `json:"schema,omitempty"`
	Strict      *bool           `json:"strict,omitempty"`
}

type reasoning struct {
	Effort  *string `json:"effort"`
	Summary *string `json:"summary"`
}

type tool struct {
	Type        string          `json:"type"` // "function"
	Name        string          `json:"name"`
	Description string          `json:"description,omitempty"`
	Parameters  json.RawMessage `json:"parameters,omitempty"`
	Strict      *bool           `json:"strict,omitempty"`
}

// item is one item of the input, of all types.
type item struct {
	Type      string          `json:"type,omitempty"` // empty: "message"
	ID        string          `json:"id,omitempty"`
	Role      string          `json:"role,omitempty"`
	Content   json.RawMessage `json:"content,omitempty"` // a string or parts
	CallID    string          `json:"call_id,omitempty"`
	Name      string          `json:"name,omitempty"`
	Arguments string          `json:"arguments,omitempty"`
	Output    json.RawMessage `json:"output,omitempty"` // a string or parts
	Summary   []part          `json:"summary,omitempty"`
}

type part struct {
	Type     string `json:"type"`
	Text     string `json:"text,omitempty"`
	ImageURL string `json:"image_url,omitempty"`
}

func decode(store *Store, body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
	var in request
	out, items, err := in.decode(store, body, about)
	if err != nil {
		return dialect.Request{}, nil, err
	}
	in.Input = nil // the items contain it
	r, err := out.Encode(dialect.PathChat, in.Stream)
	r.Kept = int64(sizeOf(items) + len(body))
	return r, newEncoder(store, &in, items, about), err
}

// decode reads and translates the request, and returns the items that precede its answer.
func (in *request) decode(store *Store, body []byte, about dialect.About) (*dialect.Chat, []item, error) {
	if err := dialect.Unmarshal(body, in); err != nil {
		return nil, nil, err
	}
	if err := in.unsupported(); err != nil {
		return nil, nil, err
	}
	items, err := in.items()
	if err != nil {
		return nil, nil, err
	}
	if in.PreviousResponseID != nil && *in.PreviousResponseID != "" {
		before, ok := store.get(*in.PreviousResponseID, about.Key)
		if !ok {
			return nil, nil, openai.NewError(http.StatusNotFound, openai.TypeInvalidRequest, "previous_response_id", "previous_response_not_found",
				"the response %s is not kept: the queen that gave it has it in memory for a while, unless store was false; send the whole conversation as input", clip(*in.PreviousResponseID))
		}
		items = append(slices.Clip(before.Items), items...)
	}
	out, err := in.chat(items)
	return out, items, err
}

func clip(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

func (in *request) unsupported() error {
	given := func(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }
	switch {
	case in.Background:
		return openai.NotSupported("background", "background responses are not supported; leave background out and wait for the answer")
	case given(in.Conversation):
		return openai.NotSupported("conversation", "conversations are not kept on the server; send the messages as input")
	case given(in.Prompt):
		return openai.NotSupported("prompt", "stored prompts are not supported; send instructions and input")
	}
	return in.forced()
}

// forced refuses a request that forces the model to use a tool of OpenAI's servers. If the model is
// free to choose, such tools are dropped: it has one tool less. Codex sends them with every
// request.
func (in *request) forced() error {
	hosted := slices.IndexFunc(in.Tools, func(t tool) bool { return t.Type != typeFunction })
	if hosted < 0 || len(in.ToolChoice) == 0 {
		return nil
	}
	if in.ToolChoice[0] == '{' {
		_, err := toolChoice(in.ToolChoice)
		return err
	}
	functions := slices.ContainsFunc(in.Tools, func(t tool) bool { return t.Type == typeFunction })
	if string(in.ToolChoice) == `"required"` && !functions {
		return openai.NotSupported(fmt.Sprintf("tools[%d].type", hosted), "tools of type %q run on OpenAI's servers; only functions are supported", clip(in.Tools[hosted].Type))
	}
	return nil
}

// typeFunction is the type of the tools that the client runs.
const typeFunction = "function"

// items returns the input as a list.
func (in *request) items() ([]item, error) {
	if len(in.Input) == 0 || string(in.Input) == "null" {
		return nil, dialect.Invalid("input", "input is missing")
	}
	if in.Input[0] == '"' {
		return []item{{Type: "message", Role: "user", Content: in.Input}}, nil
	}
	var list []item
	if err := json.Unmarshal(in.Input, &list); err != nil {
		return nil, dialect.Invalid("input", "input must be a string or a list of items")
	}
	if len(list) == 0 {
		return nil, dialect.Invalid("input", "input has no items")
	}
	return list, nil
}

// chat translates the request.
func (in *request) chat(items []item) (*dialect.Chat, error) {
	out := &dialect.Chat{Model: in.Model, MaxTokens: in.MaxOutputTokens, Temperature: in.Temperature, TopP: in.TopP, ParallelCalls: in.ParallelToolCalls, User: in.User}
	if in.Reasoning != nil && in.Reasoning.Effort != nil {
		out.ReasoningEffort = *in.Reasoning.Effort
	}
	if in.Instructions != nil && *in.Instructions != "" {
		out.Messages = append(out.Messages, dialect.Message{Role: "system", Content: *in.Instructions})
	}
	for i, it := range items {
		if err := add(out, it, fmt.Sprintf("input[%d]", i)); err != nil {
			return nil, err
		}
	}
	if f := in.Text.Format; f != nil && f.Type != "text" {
		v := map[string]any{"type": f.Type}
		if f.Type == "json_schema" {
			v["json_schema"] = map[string]any{"name": f.Name, "schema": f.Schema, "strict": f.Strict}
		}
		b, err := dialect.Marshal(v)
		if err != nil {
			return nil, dialect.Invalid("text.format", "text.format holds a value that is not JSON")
		}
		out.ResponseFormat = b
	}
	var list []any
	for _, t := range in.Tools {
		if t.Type == typeFunction {
			list = append(list, dialect.Tool(t.Name, t.Description, t.Parameters, t.Strict))
		}
	}
	if len(list) > 0 {
		b, err := dialect.Marshal(list)
		if err != nil {
			return nil, dialect.Invalid("tools", "tools hold a value that is not JSON")
		}
		out.Tools = b
		choice, err := toolChoice(in.ToolChoice)
		if err != nil {
			return nil, err
		}
		out.ToolChoice = choice
	}
	return out, nil
}

func toolChoice(raw json.RawMessage) (json.RawMessage, error) {
	if len(raw) == 0 || raw[0] != '{' {
		return raw, nil // a mode, which chats support as well
	}
	var c struct {
		Type string `json:"type"`
		Name string `json:"name"`
	}
	if err := json.Unmarshal(raw, &c); err != nil || c.Type != typeFunction || c.Name == "" {
		return nil, openai.NotSupported("tool_choice", `tool_choice must be "auto", "none", "required", or a function by its name`)
	}
	b, err := dialect.Marshal(map[string]any{"type": "function", "function": map[string]string{"name": c.Name}})
	return b, err
}

// add translates one item. Calls and reasoning join the assistant's current message.
func add(out *dialect.Chat, it item, where string) error {
	switch it.Type {
	case "", "message":
		content, err := contentOf(it.Content, where+".content")
		if err != nil {
			return err
		}
		if it.Role == "" {
			return dialect.Invalid(where+".role", "%s has no role", where)
		}
		if last := speaking(out); it.Role == "assistant" && last != nil && last.Content == nil && len(last.ToolCalls) == 0 {
			last.Content = content
			return nil
		}
		out.Messages = append(out.Messages, dialect.Message{Role: it.Role, Content: content})
	case "function_call":
		if it.CallID == "" || it.Name == "" {
			return dialect.Invalid(where, "%s needs a call_id and a name", where)
		}
		last := speaking(out)
		if last == nil {
			out.Messages = append(out.Messages, dialect.Message{Role: "assistant"})
			last = &out.Messages[len(out.Messages)-1]
		}
		last.ToolCalls = append(last.ToolCalls, dialect.NewCall(it.CallID, it.Name, it.Arguments))
	case "function_call_output":
		if it.CallID == "" {
			return dialect.Invalid(where+".call_id", "%s has no call_id", where)
		}
		content, err := contentOf(it.Output, where+".output")
		if err != nil {
			return err
		}
		out.Messages = append(out.Messages, dialect.Message{Role: "tool", ToolCallID: it.CallID, Content: content})
	case "reasoning":
		if text := it.thoughts(); text != "" {
			out.Messages = append(out.Messages, dialect.Message{Role: "assistant", Reasoning: text})
		}
	case "item_reference":
		return openai.NotSupported(where, "references to kept items are not supported; send the item itself")
	default:
		return openai.NotSupported(where+".type", "items of type %q are not supported", clip(it.Type))
	}
	return nil
}

// speaking returns the assistant's current message, or nil.
func speaking(out *dialect.Chat) *dialect.Message {
	if n := len(out.Messages); n > 0 && out.Messages[n-1].Role == "assistant" {
		return &out.Messages[n-1]
	}
	return nil
}

// thoughts returns the text of a reasoning item: its content if present, otherwise its summary.
func (it *item) thoughts() string {
	list := it.Summary
	var content []part
	if json.Unmarshal(it.Content, &content) == nil && len(content) > 0 {
		list = content
	}
	var texts []string
	for _, p := range list {
		texts = append(texts, p.Text)
	}
	return strings.Join(texts, "\n")
}

// contentOf translates a string or a list of parts. A single text becomes a string.
func contentOf(raw json.RawMessage, where string) (any, error) {
	switch {
	case len(raw) == 0 || string(raw) == "null":
		return "", nil
	case raw[0] == '"':
		var s string
		err := json.Unmarshal(raw, &s)
		return s, err
	}
	var list []part
	if err := json.Unmarshal(raw, &list); err != nil {
		return nil, dialect.Invalid(where, "%s must be a string or a list of parts", where)
	}
	var parts []dialect.Part
	var texts []string
	for i, p := range list {
		switch p.Type {
		case "input_text", "output_text", "text", "summary_text", "reasoning_text":
			texts = append(texts, p.Text)
			parts = append(parts, dialect.Part{Type: "text", Text: p.Text})
		case "refusal":
		case "input_image":
			parts = append(parts, dialect.Part{Type: "image_url", ImageURL: &dialect.ImageURL{URL: p.ImageURL}})
		default:
			return nil, openai.NotSupported(fmt.Sprintf("%s[%d].type", where, i), "parts of type %q are not supported", clip(p.Type))
		}
	}
	if len(texts) == len(parts) {
		return strings.Join(texts, "\n"), nil
	}
	return parts, nil
}
