package llamacpp

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/plugins/jinja"
	"github.com/rbee-project/rbee/plugins/llamacpp/internal/dialogue"
	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// chatTemplate renders a conversation to a prompt.
type chatTemplate struct {
	compiled *jinja.Template
	source   string
	bos, eos string
	control  *controlTokens
	wants    templateWants
	dialogue *dialogue.Format // how to interpret the model's text
}

// templateWants is the input that a template expects, found by probing it.
type templateWants struct {
	parts        bool // the content of a message as a list of parts instead of text
	argumentText bool // the arguments of a tool call as text instead of an object
	noNull       bool // the content of a message with only calls as an empty text instead of null
	tools        bool // accepts a list of tools
	noCalls      bool // rejects calls in assistant messages
	noResults    bool // rejects tool messages
	noSystem     bool // rejects system messages
	shortIDs     bool // call ids of nine letters and digits
}

// chatML is the template for models without one whose vocabulary has its markers.
const chatML = `{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}` +
	`{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}`

// newChatTemplate compiles a template and probes it.
func newChatTemplate(source, bos, eos string, control *controlTokens) (*chatTemplate, error) {
	compiled, err := jinja.Compile(source)
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	t := &chatTemplate{compiled: compiled, source: source, bos: bos, eos: eos, control: control, dialogue: &dialogue.Format{TakesTools: true}}
	t.probe()
	t.dialogue = dialogue.Recognise(source, t.wants.tools, func(text string) bool { return t.control.texts[text] })
	t.wants.tools = t.wants.tools && t.dialogue.TakesTools
	return t, nil
}

// probe renders its own conversations to find out the form in which the template expects a user's
// text and a call's arguments.
func (t *chatTemplate) probe() {
	const mark = "rbee-probe-text"
	arrives := func(messages ...openai.Message) bool {
		text, err := t.render(context.Background(), &openai.ChatRequest{Messages: messages}, time.Time{})
		return err == nil && strings.Contains(text.String(), mark)
	}
	user := openai.Message{Role: "user", Content: openai.TextContent(mark)}
	if !arrives(user) {
		t.wants.parts = true
		if t.wants.parts = arrives(user); !t.wants.parts {
			return // nothing to learn from
		}
	}
	t.wants.noSystem = !arrives(openai.Message{Role: "system", Content: openai.TextContent(mark)}, openai.Message{Role: "user", Content: openai.TextContent("x")})
	history := func(id, argument, result string) []openai.Message {
		call := openai.ToolCall{ID: id, Type: "function", Function: openai.ToolFunction{Name: "f", Arguments: `{"a":"` + argument + `"}`}}
		list := []openai.Message{{Role: "user", Content: openai.TextContent("x")}, {Role: "assistant", ToolCalls: []openai.ToolCall{call}}}
		if result != "" {
			list = append(list, openai.Message{Role: "tool", ToolCallID: id, Content: openai.TextContent(result)})
		}
		return list
	}
	const short = "call00001"
	for _, try := range []struct{ argumentText, noNull bool }{{false, false}, {true, false}, {false, true}, {true, true}} {
		t.wants.noCalls, t.wants.argumentText, t.wants.noNull = false, try.argumentText, try.noNull
		if arrives(history(short, mark, "")...) {
			break
		}
		t.wants.noCalls, t.wants.argumentText, t.wants.noNull = true, false, false
	}
	t.wants.noResults = t.wants.noCalls || !arrives(history(short, "x", mark)...)
	t.wants.shortIDs = !t.wants.noResults && !arrives(history("call_0123456789abcdef", "x", mark)...)
	offer := &openai.ChatRequest{Messages: []openai.Message{{Role: "user", Content: openai.TextContent("x")}}, Tools: []openai.Tool{{Function: openai.Function{Name: mark}}}}
	t.wants.tools = true
	text, err := t.render(context.Background(), offer, time.Time{})
	t.wants.tools = err == nil && strings.Contains(text.String(), mark)
}

// render renders the prompt of a conversation. now is the time that the template sees. Errors are
// the context's, or an *openai.Error for the client when the template refuses its input.
func (t *chatTemplate) render(ctx context.Context, req *openai.ChatRequest, now time.Time) (jinja.Text, error) {
	list := t.conversation(req)
	messages := make([]any, len(list))
	for i, m := range list {
		text, other := m.Content.PlainText()
		if other != "" {
			return jinja.Text{}, openai.NotSupported("messages", "messages[%d] has a part of type %q; this model takes text only", i, other)
		}
		messages[i] = t.message(m, text)
	}
	data := map[string]any{
		"messages":              messages,
		"add_generation_prompt": !req.ContinueFinalMessage && (req.AddGenerationPrompt == nil || *req.AddGenerationPrompt),
		"bos_token":             t.bos,
		"eos_token":             t.eos,
		"tools":                 t.tools(req.Offered()),
		"documents":             nil,
	}
	if err := addKwargs(data, req.ChatTemplateKwargs); err != nil {
		return jinja.Text{}, err
	}
	addEffort(data, req.ReasoningEffort)
	prompt, err := t.compiled.Render(ctx, data, jinja.Limits{Now: now})
	switch {
	case err == nil && req.ContinueFinalMessage:
		return continued(prompt, list[len(list)-1])
	case err == nil:
		return prompt, nil
	case ctx.Err() != nil:
		return jinja.Text{}, ctx.Err()
	}
	return jinja.Text{}, openai.Invalid("messages", "the model's chat template refuses the conversation: %v", err)
}

// continued returns a prompt up to the end of the text of its last message.
func continued(prompt jinja.Text, last openai.Message) (jinja.Text, error) {
	text, _ := last.Content.PlainText()
	for _, said := range []string{text, strings.TrimSpace(text)} { // many templates trim it
		if at := strings.LastIndex(prompt.String(), said); at >= 0 {
			return prompt.Head(at + len(said)), nil
		}
	}
	return jinja.Text{}, openai.NotSupported("continue_final_message", "this model's chat template does not write the last message as it is, so that it cannot be continued")
}

// message returns a message in the form that a template expects. Its role is from a fixed list, so
// it is not marked as the client's text.
func (t *chatTemplate) message(m openai.Message, text string) []jinja.Entry {
	var content any = clientText(text)
	switch {
	case text == "" && len(m.ToolCalls) > 0 && !t.wants.noNull:
		content = nil
	case t.wants.parts:
		content = []any{[]jinja.Entry{{Key: "type", Value: "text"}, {Key: "text", Value: content}}}
	}
	out := []jinja.Entry{{Key: "role", Value: m.Role}, {Key: "content", Value: content}}
	if m.Name != "" {
		out = append(out, jinja.Entry{Key: "name", Value: clientText(m.Name)})
	}
	if m.ToolCallID != "" {
		out = append(out, jinja.Entry{Key: "tool_call_id", Value: clientText(t.callID(m.ToolCallID))})
	}
	if m.ReasoningContent != "" {
		out = append(out, jinja.Entry{Key: "reasoning_content", Value: clientText(m.ReasoningContent)}, jinja.Entry{Key: "thinking", Value: clientText(m.ReasoningContent)})
	}
	if len(m.ToolCalls) > 0 {
		out = append(out, jinja.Entry{Key: "tool_calls", Value: t.toolCalls(m.ToolCalls)})
	}
	return out
}

// clientText marks text that a client wrote. The engine takes C strings: a NUL would end the text.
func clientText(s string) jinja.Text {
	return jinja.ClientText(strings.ReplaceAll(s, "\x00", "\uFFFD"))
}

// addKwargs adds the client's variables; they never replace the worker's own.
func addKwargs(data map[string]any, raw []byte) error {
	if len(raw) == 0 || string(raw) == "null" {
		return nil
	}
	extra, err := jinja.ParseObject(raw, true)
	if err != nil {
		return openai.Invalid("chat_template_kwargs", "chat_template_kwargs must be an object")
	}
	for _, e := range extra {
		if _, own := data[e.Key]; !own {
			data[e.Key] = e.Value
		}
	}
	return nil
}

func (t *chatTemplate) toolCalls(calls []openai.ToolCall) []any {
	list := make([]any, len(calls))
	for i, c := range calls {
		var arguments any = clientText(c.Function.Arguments)
		if v, err := jinja.ParseJSON([]byte(c.Function.Arguments), true); err == nil && !t.wants.argumentText {
			arguments = v
		}
		list[i] = []jinja.Entry{
			{Key: "id", Value: clientText(t.callID(c.ID))},
			{Key: "type", Value: "function"},
			{Key: "function", Value: []jinja.Entry{
				{Key: "name", Value: clientText(c.Function.Name)},
				{Key: "arguments", Value: arguments},
			}},
		}
	}
	return list
}

// controlTokens finds the texts of control tokens.
type controlTokens struct {
	texts   map[string]bool
	lengths []int // lengths of the texts, the longest first
	first   [256]bool
}

func newControlTokens(texts []string) *controlTokens {
	c := &controlTokens{texts: map[string]bool{}}
	for _, text := range texts {
		if text == "" {
			continue
		}
		c.texts[text], c.first[text[0]] = true, true
		if !slices.Contains(c.lengths, len(text)) {
			c.lengths = append(c.lengths, len(text))
		}
	}
	slices.Sort(c.lengths)
	slices.Reverse(c.lengths)
	return c
}

// at returns the length of the longest control token that begins at byte i, or 0.
func (c *controlTokens) at(s string, i int) int {
	if !c.first[s[i]] {
		return 0
	}
	for _, n := range c.lengths {
		if i+n <= len(s) && c.texts[s[i:i+n]] {
			return n
		}
	}
	return 0
}

// segment is a part of a prompt. Control tokens are real only in trusted text.
type segment struct {
	text    string
	trusted bool
}

// segments cuts a prompt where the text of a control token contains bytes of a client, and nowhere
// else: cutting can change the tokens of a text.
func (c *controlTokens) segments(prompt jinja.Text) []segment {
	var out []segment
	s, from := prompt.String(), 0
	for i := 0; i < len(s); {
		n := c.at(s, i)
		switch {
		case n == 0:
			i++
			continue
		case prompt.HasClient(i, i+n):
			if from < i {
				out = append(out, segment{s[from:i], true})
			}
			out = append(out, segment{s[i : i+n], false})
			from = i + n
		}
		i += n
	}
	if from < len(s) {
		out = append(out, segment{s[from:], true})
	}
	return out
}
