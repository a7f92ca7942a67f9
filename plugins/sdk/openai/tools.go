package openai

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// Bounds of the tools of a request.
const (
	MaxTools     = 128
	MaxToolName  = 128     // bytes of a name
	MaxToolBytes = 1 << 20 // bytes of all names, descriptions and schemas
	MaxToolCalls = 256     // calls in one message
)

// Tool is a tool that a model may call.
type Tool struct {
	Type     string   `json:"type"` // "function"
	Function Function `json:"function"`
}

// Function is the function of a Tool.
type Function struct {
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	// a JSON Schema; omitted: no arguments
	Parameters json.RawMessage `json:"parameters,omitempty"`
	Strict     *bool           `json:"strict,omitempty"`
}

// The modes of a ToolChoice.
const (
	ToolsAuto     = "auto"     // the model decides
	ToolsNone     = "none"     // it must not call a tool
	ToolsRequired = "required" // it must call a tool
)

// ToolChoice is which tools the model may or must call. On the wire it is a mode, or an object that
// names a function or lists the allowed ones.
type ToolChoice struct {
	Mode string // one of the modes; empty: omitted
	// Names lists the tools that may be called; nil: all of them.
	Names []string
}

// UnmarshalJSON reads every form of tool_choice and of function_call.
func (c *ToolChoice) UnmarshalJSON(b []byte) error {
	*c = ToolChoice{}
	switch b[0] {
	case 'n':
		return nil
	case '"':
		return json.Unmarshal(b, &c.Mode)
	case '{':
	default:
		return typeError[ToolChoice](jsonKind(b))
	}
	type named struct {
		Name     string `json:"name"`
		Function struct {
			Name string `json:"name"`
		} `json:"function"`
	}
	var v struct {
		named
		Type    string `json:"type"`
		Allowed *struct {
			Mode  string  `json:"mode"`
			Tools []named `json:"tools"`
		} `json:"allowed_tools"`
	}
	if json.Unmarshal(b, &v) != nil {
		return typeError[ToolChoice]("object of another form")
	}
	name := func(n named) string {
		if n.Function.Name != "" {
			return n.Function.Name
		}
		return n.Name
	}
	switch {
	case v.Allowed != nil:
		c.Mode, c.Names = v.Allowed.Mode, []string{}
		for _, n := range v.Allowed.Tools {
			c.Names = append(c.Names, name(n))
		}
	case v.Type == ToolsAuto || v.Type == ToolsNone || v.Type == ToolsRequired:
		c.Mode = v.Type
	case (v.Type == "function" || v.Type == "") && name(v.named) != "":
		c.Mode, c.Names = ToolsRequired, []string{name(v.named)}
	default:
		return typeError[ToolChoice]("object without a function's name")
	}
	return nil
}

// MarshalJSON writes the simplest form that fits.
func (c ToolChoice) MarshalJSON() ([]byte, error) {
	type function struct {
		Name string `json:"name"`
	}
	type tool struct {
		Type     string   `json:"type"`
		Function function `json:"function"`
	}
	switch {
	case c.Mode == "":
		return []byte("null"), nil
	case c.Names == nil:
		return json.Marshal(c.Mode)
	case len(c.Names) == 1 && c.Mode == ToolsRequired:
		return json.Marshal(tool{"function", function{c.Names[0]}})
	}
	tools := make([]tool, len(c.Names))
	for i, n := range c.Names {
		tools[i] = tool{"function", function{n}}
	}
	return json.Marshal(map[string]any{"type": "allowed_tools", "allowed_tools": map[string]any{"mode": c.Mode, "tools": tools}})
}

// UnmarshalJSON reads a call whose arguments are text, as OpenAI writes them, or an object, as
// others do.
func (f *ToolFunction) UnmarshalJSON(b []byte) error {
	var v struct {
		Name      string          `json:"name"`
		Arguments json.RawMessage `json:"arguments"`
	}
	if err := json.Unmarshal(b, &v); err != nil {
		return err
	}
	f.Name, f.Arguments = v.Name, ""
	switch {
	case len(v.Arguments) == 0 || v.Arguments[0] == 'n':
	case v.Arguments[0] == '"':
		return json.Unmarshal(v.Arguments, &f.Arguments)
	case v.Arguments[0] == '{':
		f.Arguments = string(v.Arguments)
	default:
		return typeError[string](jsonKind(v.Arguments))
	}
	return nil
}

// OldFunctions reports whether the client uses functions, the predecessor of tools in OpenAI's API,
// and so expects a function_call in the answer.
func (r *ChatRequest) OldFunctions() bool { return len(r.Functions) > 0 }

// Offered returns the functions that the model may call, in the client's order; none if tool_choice
// is "none".
func (r *ChatRequest) Offered() []Function {
	choice := r.Choice()
	if choice.Mode == ToolsNone {
		return nil
	}
	list := r.Functions
	if list == nil {
		list = make([]Function, len(r.Tools))
		for i, t := range r.Tools {
			list[i] = t.Function
		}
	}
	if choice.Names == nil {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), func(f Function) bool { return !slices.Contains(choice.Names, f.Name) })
}

// Choice returns tool_choice, or function_call, with its default filled in.
func (r *ChatRequest) Choice() ToolChoice {
	c := r.ToolChoice
	if r.OldFunctions() {
		c = r.FunctionCall
	}
	if c.Mode == "" {
		c.Mode = ToolsAuto
	}
	return c
}

// Parallel reports whether an answer may hold several tool calls.
func (r *ChatRequest) Parallel() bool {
	return !r.OldFunctions() && (r.ParallelToolCalls == nil || *r.ParallelToolCalls)
}

func (r *ChatRequest) validateTools() error {
	if len(r.Tools) > 0 && len(r.Functions) > 0 {
		return Invalid("functions", "functions and tools exclude each other; leave functions out")
	}
	if len(r.Tools) > MaxTools || len(r.Functions) > MaxTools {
		return Invalid("tools", "%d tools were sent; at most %d are taken", max(len(r.Tools), len(r.Functions)), MaxTools)
	}
	size := 0
	seen := map[string]bool{}
	for i, t := range r.Tools {
		at := fmt.Sprintf("tools[%d]", i)
		if t.Type != "function" && t.Type != "" {
			return NotSupported(at+".type", "%s.type %q is not supported; only function is", at, t.Type)
		}
		if err := t.Function.validate(at+".function", seen, &size); err != nil {
			return err
		}
	}
	for i, f := range r.Functions {
		if err := f.validate(fmt.Sprintf("functions[%d]", i), seen, &size); err != nil {
			return err
		}
	}
	param, choice := "tool_choice", r.ToolChoice
	if r.OldFunctions() {
		param, choice = "function_call", r.FunctionCall
	}
	switch choice.Mode {
	case "", ToolsAuto, ToolsNone:
	case ToolsRequired:
		if len(seen) == 0 {
			return Invalid(param, "%s needs tools to choose from", param)
		}
	default:
		return Invalid(param, "%s %q is unknown; it is one of auto, none, required, or names a function", param, choice.Mode)
	}
	for _, n := range choice.Names {
		if !seen[n] {
			return Invalid(param, "%s names the function %q, which is not among the tools", param, n)
		}
	}
	if choice.Names != nil && len(choice.Names) == 0 {
		return Invalid(param, "%s allows no tool; use none", param)
	}
	return nil
}

func (f *Function) validate(at string, seen map[string]bool, size *int) error {
	switch {
	case f.Name == "":
		return Invalid(at+".name", "%s.name is missing", at)
	case len(f.Name) > MaxToolName:
		return Invalid(at+".name", "%s.name has %d bytes; at most %d are taken", at, len(f.Name), MaxToolName)
	case strings.Trim(f.Name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/") != "":
		return Invalid(at+".name", "%s.name %q has characters other than letters, digits and _-.:/", at, f.Name)
	case seen[f.Name]:
		return Invalid(at+".name", "%s.name %q appears twice", at, f.Name)
	}
	seen[f.Name] = true
	f.Parameters = bytes.TrimSpace(f.Parameters)
	if string(f.Parameters) == "null" {
		f.Parameters = nil
	}
	if len(f.Parameters) > 0 && f.Parameters[0] != '{' {
		return Invalid(at+".parameters", "%s.parameters must be a JSON Schema, an object, not %s", at, withArticle(jsonKind(f.Parameters)))
	}
	if *size += len(f.Name) + len(f.Description) + len(f.Parameters); *size > MaxToolBytes {
		return Invalid("tools", "tools have more than %d bytes; send fewer, or shorter ones", MaxToolBytes)
	}
	return nil
}

// validateMessage checks the message at index i and converts older and sloppier forms into the
// current one.
func (r *ChatRequest) validateMessage(i int) error {
	m := &r.Messages[i]
	at := fmt.Sprintf("messages[%d]", i)
	switch m.Role {
	case "system", "developer", "user", "assistant", "tool":
	case "function": // old form of "tool": its message answers that function's last call
		m.Role = "tool"
		if m.ToolCallID == "" {
			m.ToolCallID = lastCall(r.Messages[:i], m.Name)
		}
	case "":
		return Invalid(at+".role", "%s.role is missing; it is one of system, developer, user, assistant, tool", at)
	default:
		return Invalid(at+".role", "%s.role %q is unknown; it is one of system, developer, user, assistant, tool", at, m.Role)
	}
	if m.Role == "tool" && m.ToolCallID == "" {
		return Invalid(at+".tool_call_id", "%s.tool_call_id is missing; it names the call that the message answers", at)
	}
	if m.ReasoningContent == "" {
		m.ReasoningContent = m.Reasoning
	}
	m.Reasoning = ""
	if m.FunctionCall != nil {
		if len(m.ToolCalls) == 0 {
			m.ToolCalls = []ToolCall{{ID: "call_" + strconv.Itoa(i), Function: *m.FunctionCall}}
		}
		m.FunctionCall = nil
	}
	if len(m.ToolCalls) > 0 && m.Role != "assistant" {
		return Invalid(at+".tool_calls", "%s.tool_calls: only messages of the assistant have calls", at)
	}
	if len(m.ToolCalls) > MaxToolCalls {
		return Invalid(at+".tool_calls", "%s.tool_calls has %d calls; at most %d are taken", at, len(m.ToolCalls), MaxToolCalls)
	}
	for j := range m.ToolCalls {
		c := &m.ToolCalls[j]
		c.Index = nil
		switch {
		case c.Type != "" && c.Type != "function":
			return NotSupported(fmt.Sprintf("%s.tool_calls[%d].type", at, j), "%s.tool_calls[%d].type %q is not supported; only function is", at, j, c.Type)
		case c.Function.Name == "":
			return Invalid(fmt.Sprintf("%s.tool_calls[%d].function.name", at, j), "%s.tool_calls[%d].function.name is missing", at, j)
		case len(c.Function.Name) > MaxToolName:
			return Invalid(fmt.Sprintf("%s.tool_calls[%d].function.name", at, j), "%s.tool_calls[%d].function.name has %d bytes; at most %d are taken", at, j, len(c.Function.Name), MaxToolName)
		}
		c.Type = "function"
	}
	return m.validateContent(at)
}

// lastCall returns the id of the last call of a function; empty: it was not called.
func lastCall(messages []Message, name string) string {
	for _, m := range slices.Backward(messages) {
		for _, c := range slices.Backward(m.ToolCalls) {
			if c.Function.Name == name {
				return c.ID
			}
		}
	}
	return ""
}

func (m *Message) validateContent(at string) error {
	for j := range m.Content.Parts {
		p := &m.Content.Parts[j]
		switch {
		case p.Type == "" && p.Text != "", p.Type == "input_text", p.Type == "output_text":
			p.Type = "text"
		case p.Type == "":
			return Invalid(fmt.Sprintf("%s.content[%d]", at, j), "%s.content[%d] is neither text nor anything else that is known; a part has a type, and one of text a text", at, j)
		}
	}
	if m.Content.Text != "" || len(m.Content.Parts) > 0 {
		return nil
	}
	empty := m.Content.Parts == nil && m.Content.Given
	switch m.Role {
	case "assistant":
		if empty || len(m.ToolCalls) > 0 || m.ReasoningContent != "" {
			return nil
		}
	default:
		if empty {
			return nil
		}
	}
	return Invalid(at+".content", "%s.content is missing", at)
}
