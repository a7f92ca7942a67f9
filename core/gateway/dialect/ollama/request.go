// Package ollama translates Ollama's API: /api/chat and /api/generate, and the formats in which it
// lists models. It follows Ollama's own documentation (docs/api.md of the project).
package ollama

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/gateway/dialect"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// Chat is POST /api/chat, Generate POST /api/generate.
var (
	Chat     = dialect.Dialect{Decode: decodeChat, Fail: Fail}
	Generate = dialect.Dialect{Decode: decodeGenerate, Fail: Fail}
)

// Fail returns an error in Ollama's form.
func Fail(e *openai.Error, _ dialect.About) (status int, body []byte) {
	text := e.Message
	if e.Hint != "" {
		text += ". " + e.Hint
	}
	b, _ := dialect.Marshal(map[string]string{"error": text}) // strings can always be marshalled
	return e.Status, append(b, '\n')
}

// common are the fields that both routes have.
type common struct {
	Model     string          `json:"model"`
	Stream    *bool           `json:"stream"` // nil: yes
	Format    json.RawMessage `json:"format"` // "json", a JSON schema, or absent
	Options   options         `json:"options"`
	Think     json.RawMessage `json:"think"` // true, false, or an effort
	KeepAlive json.RawMessage `json:"keep_alive"`
}

// options are Ollama's names for top-level fields of OpenAI's request. Options about loading a
// model (num_ctx, num_gpu, num_thread, …) are ignored: a request does not control them here.
type options struct {
	NumPredict       json.RawMessage `json:"num_predict"`
	Temperature      json.RawMessage `json:"temperature"`
	TopK             json.RawMessage `json:"top_k"`
	TopP             json.RawMessage `json:"top_p"`
	MinP             json.RawMessage `json:"min_p"`
	TypicalP         json.RawMessage `json:"typical_p"`
	Seed             json.RawMessage `json:"seed"`
	Stop             json.RawMessage `json:"stop"`
	RepeatPenalty    json.RawMessage `json:"repeat_penalty"`
	RepeatLastN      json.RawMessage `json:"repeat_last_n"`
	PresencePenalty  json.RawMessage `json:"presence_penalty"`
	FrequencyPenalty json.RawMessage `json:"frequency_penalty"`
}

func (c *common) stream() bool { return c.Stream == nil || *c.Stream }

// into fills in what both routes share.
func (c *common) into(out *dialect.Chat) error {
	out.Model, out.KeepAlive = Name(c.Model), c.KeepAlive
	o := c.Options
	if s := string(o.NumPredict); s != "" && s != "null" {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil || n != float64(int64(n)) {
			return dialect.Invalid("options.num_predict", "options.num_predict must be a whole number")
		}
		if n > 0 { // -1 and -2 mean as many as fit
			limit := int64(n)
			out.MaxTokens = &limit
		}
	}
	out.Temperature, out.TopK, out.TopP, out.MinP, out.TypicalP = o.Temperature, o.TopK, o.TopP, o.MinP, o.TypicalP
	out.Seed, out.Stop, out.RepeatPenalty, out.RepeatLastN = o.Seed, o.Stop, o.RepeatPenalty, o.RepeatLastN
	out.PresencePenalty, out.FrequencyPenalty = o.PresencePenalty, o.FrequencyPenalty
	if err := think(c.Think, out); err != nil {
		return err
	}
	format, err := responseFormat(c.Format)
	out.ResponseFormat = format
	return err
}

func think(raw json.RawMessage, out *dialect.Chat) error {
	switch s := string(raw); {
	case s == "" || s == "null":
	case s == "true" || s == "false":
		out.TemplateKwargs = map[string]any{"enable_thinking": s == "true"}
	case s[0] == '"':
		if err := json.Unmarshal(raw, &out.ReasoningEffort); err != nil {
			return dialect.Invalid("think", "think is not a valid string")
		}
	default:
		return dialect.Invalid("think", `think must be true, false, "low", "medium" or "high"`)
	}
	return nil
}

func responseFormat(raw json.RawMessage) (json.RawMessage, error) {
	switch s := string(raw); {
	case s == "" || s == "null" || s == `""`:
		return nil, nil
	case s == `"json"`:
		return json.RawMessage(`{"type":"json_object"}`), nil
	case s[0] == '{':
		return json.RawMessage(`{"type":"json_schema","json_schema":{"name":"answer","strict":true,"schema":` + s + `}}`), nil
	}
	return nil, dialect.Invalid("format", `format must be "json" or a JSON schema`)
}

// Name returns a model's name without the tag that Ollama adds to models without one.
func Name(s string) string { return strings.TrimSuffix(s, ":latest") }

type chatRequest struct {
	common
	Messages []message       `json:"messages"`
	Tools    json.RawMessage `json:"tools"`
}

type message struct {
	Role      string   `json:"role"`
	Content   string   `json:"content"`
	Thinking  string   `json:"thinking"`
	Images    []string `json:"images"` // base64
	ToolName  string   `json:"tool_name"`
	ToolCalls []struct {
		Function struct {
			Name      string          `json:"name"`
			Arguments json.RawMessage `json:"arguments"` // an object
		} `json:"function"`
	} `json:"tool_calls"`
}

func decodeChat(body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
	var in chatRequest
	if err := dialect.Unmarshal(body, &in); err != nil {
		return dialect.Request{}, nil, err
	}
	var out dialect.Chat
	if err := in.into(&out); err != nil {
		return dialect.Request{}, nil, err
	}
	if string(in.Tools) != "null" && string(in.Tools) != "[]" {
		out.Tools = in.Tools
	}
	if len(in.Messages) == 0 {
		return load(&out, in.stream(), newEncoder(in.Model, about, true))
	}
	var err error
	if out.Messages, err = messages(in.Messages); err != nil {
		return dialect.Request{}, nil, err
	}
	r, err := out.Encode(dialect.PathChat, in.stream())
	return r, newEncoder(in.Model, about, true), err
}

// messages assigns calls and results the ids that OpenAI's messages need: a result belongs to the
// first call of its name that has no result yet, or to the first such call of any name if it has no
// name.
func messages(in []message) ([]dialect.Message, error) {
	type open struct{ id, name string }
	var waiting []open
	var out []dialect.Message
	made := 0
	for i, m := range in {
		to := dialect.Message{Role: m.Role, Content: m.Content, Reasoning: m.Thinking}
		if len(m.Images) > 0 {
			parts, err := withImages(m)
			if err != nil {
				return nil, dialect.Invalid(fmt.Sprintf("messages[%d].images", i), "messages[%d] has an image that is not base64", i)
			}
			to.Content = parts
		}
		for _, c := range m.ToolCalls {
			made++
			id := "call_" + strconv.Itoa(made)
			waiting = append(waiting, open{id, c.Function.Name})
			to.ToolCalls = append(to.ToolCalls, dialect.NewCall(id, c.Function.Name, string(dialect.Object(string(c.Function.Arguments)))))
		}
		if m.Role == "tool" {
			at := -1
			for j, w := range waiting {
				if m.ToolName == "" || w.name == m.ToolName {
					at = j
					break
				}
			}
			if at < 0 {
				return nil, dialect.Invalid(fmt.Sprintf("messages[%d]", i), "messages[%d] is the result of a tool call that no message before it has", i)
			}
			to.ToolCallID = waiting[at].id
			waiting = append(waiting[:at], waiting[at+1:]...)
		}
		out = append(out, to)
	}
	return out, nil
}

func withImages(m message) ([]dialect.Part, error) {
	var parts []dialect.Part
	if m.Content != "" {
		parts = append(parts, dialect.Part{Type: "text", Text: m.Content})
	}
	for _, image := range m.Images {
		head, err := base64.StdEncoding.DecodeString(image)
		if err != nil {
			return nil, err
		}
		parts = append(parts, dialect.Part{Type: "image_url", ImageURL: dialect.Data(http.DetectContentType(head), image)})
	}
	return parts, nil
}

type generateRequest struct {
	common
	Prompt string   `json:"prompt"`
	Suffix string   `json:"suffix"`
	System string   `json:"system"`
	Raw    bool     `json:"raw"`
	Images []string `json:"images"`

	Template string          `json:"template"`
	Context  json.RawMessage `json:"context"`
}

func decodeGenerate(body []byte, about dialect.About) (dialect.Request, dialect.Encoder, error) {
	var in generateRequest
	if err := dialect.Unmarshal(body, &in); err != nil {
		return dialect.Request{}, nil, err
	}
	if in.Template != "" {
		return dialect.Request{}, nil, openai.NotSupported("template", "a template of the request's own is not supported: the model's is used; leave it out, or set raw")
	}
	if c := string(in.Context); c != "" && c != "null" && c != "[]" {
		return dialect.Request{}, nil, openai.NotSupported("context", "context is not supported; use /api/chat with the messages so far")
	}
	var out dialect.Chat
	if err := in.into(&out); err != nil {
		return dialect.Request{}, nil, err
	}
	enc := newEncoder(in.Model, about, false)
	switch {
	case in.Prompt == "" && len(in.Images) == 0:
		return load(&out, in.stream(), enc)
	case in.Raw || in.Suffix != "":
		out.Prompt, out.Suffix = &in.Prompt, in.Suffix
		if out.MaxTokens == nil { // OpenAI's own default is 16
			all := int64(-1)
			out.MaxTokens = &all
		}
		r, err := out.Encode(dialect.PathCompletion, in.stream())
		return r, enc, err
	}
	if in.System != "" {
		out.Messages = append(out.Messages, dialect.Message{Role: "system", Content: in.System})
	}
	rest, err := messages([]message{{Role: "user", Content: in.Prompt, Images: in.Images}})
	if err != nil {
		return dialect.Request{}, nil, err
	}
	out.Messages = append(out.Messages, rest...)
	r, err := out.Encode(dialect.PathChat, in.stream())
	return r, enc, err
}

// load asks for one token, to load the model, and discards it: that is what a request without a
// prompt means.
func load(out *dialect.Chat, stream bool, enc *encoder) (dialect.Request, dialect.Encoder, error) {
	one, text := int64(1), "."
	*out = dialect.Chat{Model: out.Model, KeepAlive: out.KeepAlive, MaxTokens: &one, Prompt: &text}
	enc.loadOnly = true
	if keep, set, err := core.ReadKeepAlive(out.KeepAlive); err == nil && set && keep == 0 {
		enc.unloads = true
	}
	r, err := out.Encode(dialect.PathCompletion, stream)
	return r, enc, err
}
