package llamacpp

import (
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"github.com/rbee-project/rbee/plugins/jinja"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/dialogue"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// toolsOf converts the functions that a request offers to dialogue's tools.
func toolsOf(offered []openai.Function) []dialogue.Tool {
	tools := make([]dialogue.Tool, len(offered))
	for i, f := range offered {
		tools[i] = dialogue.Tool{Name: f.Name, Description: f.Description, Parameters: f.Parameters, Strict: f.Strict != nil && *f.Strict}
	}
	return tools
}

// conversation returns the messages of a request in the form that the template accepts.
func (t *chatTemplate) conversation(req *openai.ChatRequest) []openai.Message {
	out := make([]openai.Message, 0, len(req.Messages)+1)
	if offered := req.Offered(); len(offered) > 0 && !t.dialogue.TakesTools {
		out = append(out, openai.Message{Role: "system", Content: openai.TextContent(dialogue.Describe(toolsOf(offered)))})
	}
	names := map[string]string{} // function names by call id
	for _, m := range req.Messages {
		if m.Role == "developer" { // the newer name of the same role
			m.Role = "system"
		}
		for _, c := range m.ToolCalls {
			names[c.ID] = c.Function.Name
		}
		if m.Role == "tool" && m.Name == "" { // templates require the name
			m.Name = names[m.ToolCallID]
		}
		switch {
		case len(m.ToolCalls) > 0 && t.wants.noCalls:
			m = writtenCalls(m)
		case m.Role == "tool" && t.wants.noResults:
			m = writtenResult(m)
			if n := len(out); n > 0 && out[n-1].Role == "user" {
				out[n-1].Content = join(out[n-1].Content, m.Content)
				continue
			}
		}
		if n := len(out); m.Role == "system" && n == 1 && out[0].Role == "system" { // after the description of the tools
			out[0].Content = join(m.Content, out[0].Content)
			continue
		}
		out = append(out, m)
	}
	if t.wants.noSystem {
		out = withoutSystem(out)
	}
	return out
}

// writtenCalls returns an assistant's message with its calls written as text.
func writtenCalls(m openai.Message) openai.Message {
	text := openai.Content{}
	for _, c := range m.ToolCalls {
		text = join(text, openai.TextContent(dialogue.WriteCall(c.Function.Name, c.Function.Arguments)))
	}
	m.Content, m.ToolCalls = join(m.Content, text), nil
	return m
}

// writtenResult returns the result of a call as a user message.
func writtenResult(m openai.Message) openai.Message {
	head := "Result:"
	if m.Name != "" {
		head = "Result of " + m.Name + ":"
	}
	return openai.Message{Role: "user", Content: join(openai.TextContent(head), m.Content)}
}

// withoutSystem moves the text of leading system messages to the start of the first user message.
func withoutSystem(list []openai.Message) []openai.Message {
	var system openai.Content
	for len(list) > 0 && list[0].Role == "system" {
		system = join(system, list[0].Content)
		list = list[1:]
	}
	if system.Text == "" && system.Parts == nil {
		return list
	}
	if len(list) == 0 || list[0].Role != "user" {
		return append([]openai.Message{{Role: "user", Content: system}}, list...)
	}
	list[0].Content = join(system, list[0].Content)
	return list
}

// join concatenates two contents, one below the other.
func join(a, b openai.Content) openai.Content {
	switch {
	case a.Text == "" && len(a.Parts) == 0:
		return b
	case b.Text == "" && len(b.Parts) == 0:
		return a
	case a.Parts == nil && b.Parts == nil:
		return openai.TextContent(a.Text + "\n" + b.Text)
	}
	parts := func(c openai.Content) []openai.Part {
		if c.Parts != nil {
			return c.Parts
		}
		return []openai.Part{{Type: "text", Text: c.Text}}
	}
	list := append([]openai.Part{}, parts(a)...)
	return openai.Content{Parts: append(append(list, openai.Part{Type: "text", Text: "\n"}), parts(b)...)}
}

// callID returns the id of a call in the form that the template accepts: some allow only nine
// letters and digits.
func (t *chatTemplate) callID(id string) string {
	if !t.wants.shortIDs || len(id) == 9 && strings.Trim(id, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789") == "" {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return base32.StdEncoding.EncodeToString(sum[:])[:9]
}

// tools returns functions in the form that templates accept; nil without any.
func (t *chatTemplate) tools(offered []openai.Function) any {
	if len(offered) == 0 || !t.wants.tools {
		return nil
	}
	list := make([]any, len(offered))
	for i, f := range offered {
		entries := []jinja.Entry{{Key: "name", Value: clientText(f.Name)}}
		if f.Description != "" {
			entries = append(entries, jinja.Entry{Key: "description", Value: clientText(f.Description)})
		}
		schema := []byte(`{"type":"object","properties":{}}`)
		if len(f.Parameters) > 0 {
			schema = f.Parameters
		}
		if v, err := jinja.ParseJSON(schema, true); err == nil {
			entries = append(entries, jinja.Entry{Key: "parameters", Value: v})
		}
		list[i] = []jinja.Entry{{Key: "type", Value: "function"}, {Key: "function", Value: entries}}
	}
	return list
}

// addEffort sets the reasoning effort in the variables of the model families. Variables set by the
// client take precedence.
func addEffort(data map[string]any, effort string) {
	if effort == "" {
		return
	}
	set := func(key string, value any) {
		if _, own := data[key]; !own {
			data[key] = value
		}
	}
	set("enable_thinking", effort != "none")
	set("thinking", effort != "none")
	switch effort {
	case "none":
		return
	case "minimal":
		effort = "low"
	case "xhigh":
		effort = "high"
	}
	set("reasoning_effort", effort)
}
