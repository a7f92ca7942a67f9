package llamacpp

import (
	"errors"
	"sort"
	"strings"

	"github.com/ardanlabs/jinja"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// chatTemplate turns a conversation into a prompt.
type chatTemplate struct {
	compiled *jinja.Template
	bos, eos string
	guard    *strings.Replacer
}

// A client's text is put between these two where it looks like a control token. They are noncharacters, which no text has a right to contain.
const (
	markOpen  = "\uFDD0"
	markClose = "\uFDD1"
)

// chatML is the template of models that have its markers in their vocabulary and bring no template.
const chatML = `{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}` +
	`{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}`

// newChatTemplate compiles a template. control are the texts of the vocabulary's control tokens.
func newChatTemplate(source, bos, eos string, control []string) (*chatTemplate, error) {
	compiled, err := compileTemplate(source)
	if err != nil {
		return nil, err
	}
	return &chatTemplate{compiled: compiled, bos: bos, eos: eos, guard: newGuard(control)}, nil
}

// newGuard makes what marks the control tokens in a client's text, so that they are not taken for real ones. The longest wins.
func newGuard(control []string) *strings.Replacer {
	control = append([]string(nil), control...)
	sort.Slice(control, func(i, j int) bool {
		if len(control[i]) != len(control[j]) {
			return len(control[i]) > len(control[j])
		}
		return control[i] < control[j]
	})
	pairs := []string{markOpen, "", markClose, "", "\x00", "\uFFFD"}
	for _, c := range control {
		if c != "" {
			pairs = append(pairs, c, markOpen+c+markClose)
		}
	}
	return strings.NewReplacer(pairs...)
}

// render makes the prompt of a conversation. An error is the client's: the template refuses what it was given.
func (t *chatTemplate) render(req *openai.ChatRequest) (string, error) {
	messages := make([]jinja.Value, len(req.Messages))
	for i, m := range req.Messages {
		text, other := m.Content.PlainText()
		if other != "" {
			return "", openai.NotSupported("messages", "messages[%d] has a part of type %q; this model takes text only", i, other)
		}
		v := jinja.NewDict()
		d := v.AsDict()
		role := m.Role
		if role == "developer" { // the newer name of the same thing
			role = "system"
		}
		d.Set("role", jinja.NewString(role))
		d.Set("content", jinja.NewString(t.guard.Replace(text)))
		if m.Name != "" {
			d.Set("name", jinja.NewString(t.guard.Replace(m.Name)))
		}
		if m.ToolCallID != "" {
			d.Set("tool_call_id", jinja.NewString(t.guard.Replace(m.ToolCallID)))
		}
		if len(m.ToolCalls) > 0 {
			d.Set("tool_calls", t.toolCalls(m.ToolCalls))
		}
		messages[i] = v
	}
	data := map[string]jinja.Value{
		"messages":              jinja.NewList(messages),
		"add_generation_prompt": jinja.NewBool(true),
		"bos_token":             jinja.NewString(t.bos),
		"eos_token":             jinja.NewString(t.eos),
		"tools":                 jinja.None(),
		"documents":             jinja.None(),
		filterToJSON:            jinja.NewCallable(filterToJSON, toJSON),
	}
	if len(req.ChatTemplateKwargs) > 0 {
		extra, err := jsonValue(req.ChatTemplateKwargs, t.guard.Replace)
		if err != nil || !extra.IsDict() && !extra.IsNone() {
			return "", openai.Invalid("chat_template_kwargs", "chat_template_kwargs must be an object")
		}
		if extra.IsDict() {
			for _, k := range extra.AsDict().OrderedKeys() {
				if _, own := data[k]; !own {
					data[k], _ = extra.AsDict().Get(k)
				}
			}
		}
	}
	prompt, err := safeRender(t.compiled, data)
	if err != nil {
		return "", openai.Invalid("messages", "the model's chat template refuses the conversation: %v", err)
	}
	return prompt, nil
}

// safeRender keeps a defect of the template library, met by a strange template, from ending the worker.
func safeRender(t *jinja.Template, data map[string]jinja.Value) (out string, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = errors.New("the template cannot be evaluated with these messages")
		}
	}()
	return t.RenderValues(data)
}

func (t *chatTemplate) toolCalls(calls []openai.ToolCall) jinja.Value {
	list := make([]jinja.Value, len(calls))
	for i, c := range calls {
		arguments, err := jsonValue([]byte(c.Function.Arguments), t.guard.Replace)
		if err != nil { // templates that want the text get it
			arguments = jinja.NewString(t.guard.Replace(c.Function.Arguments))
		}
		f := jinja.NewDict()
		f.AsDict().Set("name", jinja.NewString(t.guard.Replace(c.Function.Name)))
		f.AsDict().Set("arguments", arguments)
		v := jinja.NewDict()
		v.AsDict().Set("id", jinja.NewString(t.guard.Replace(c.ID)))
		v.AsDict().Set("type", jinja.NewString("function"))
		v.AsDict().Set("function", f)
		list[i] = v
	}
	return jinja.NewList(list)
}

// segment is a part of a prompt. Only in trusted text are control tokens real.
type segment struct {
	text    string
	trusted bool
}

// segments splits a rendered prompt where a client's text looks like a control token.
func segments(prompt string) []segment {
	if !strings.Contains(prompt, markOpen) {
		return []segment{{prompt, true}}
	}
	var out []segment
	add := func(text string, trusted bool) {
		text = strings.NewReplacer(markOpen, "", markClose, "").Replace(text)
		if text != "" {
			out = append(out, segment{text, trusted})
		}
	}
	for {
		before, rest, found := strings.Cut(prompt, markOpen)
		add(before, true)
		if !found {
			return out
		}
		// A template that cut the text in two may have lost the end mark: then the rest of the line of thought is not trusted either.
		inside, after, _ := strings.Cut(rest, markClose)
		add(inside, false)
		prompt = after
	}
}
