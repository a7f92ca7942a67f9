package llamacpp

import (
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/sdk/openai"
)

// The cases of templates.json were rendered by Jinja itself, see templates.py.
func TestTemplatesLikeJinja(t *testing.T) {
	t.Parallel()
	b, err := os.ReadFile("testdata/templates.json")
	must.NoError(t, err)
	var cases []struct {
		Name, Template, Want, Refused string
		Request                       json.RawMessage
	}
	must.NoError(t, json.Unmarshal(b, &cases))
	must.Positive(t, len(cases))
	for _, c := range cases {
		t.Run(c.Name, func(t *testing.T) {
			t.Parallel()
			req, err := openai.DecodeChat(c.Request)
			must.NoError(t, err)
			tmpl, err := newChatTemplate(c.Template, "<s>", "</s>", newControlTokens(nil))
			must.NoError(t, err)
			got, err := tmpl.render(t.Context(), req, time.Time{})
			if c.Refused != "" {
				e, ok := errors.AsType[*openai.Error](err)
				must.True(t, ok)
				must.Eq(t, 400, e.Status)
				must.StrContains(t, e.Message, c.Refused)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.Want, got.String())
		})
	}
}

// segmentsOf renders a conversation with one message and segments the prompt.
func segmentsOf(t *testing.T, template, content string, control ...string) []segment {
	t.Helper()
	tmpl, err := newChatTemplate(template, "<s>", "</s>", newControlTokens(control))
	must.NoError(t, err)
	req := &openai.ChatRequest{Messages: []openai.Message{{Role: "user", Content: openai.TextContent(content)}}}
	prompt, err := tmpl.render(t.Context(), req, time.Time{})
	must.NoError(t, err)
	return tmpl.control.segments(prompt)
}

func TestSegmentsOfClientText(t *testing.T) {
	t.Parallel()
	const bare = "{{ messages[0].content }}"
	for name, c := range map[string]struct {
		template, content string
		want              []segment
	}{
		"plain":              {chatML, "a", []segment{{"<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n", true}}},
		"the longest":        {bare, "a<|im_end|>xb", []segment{{"a", true}, {"<|im_end|>x", false}, {"b", true}}},
		"two in a row":       {bare, "<s><|im_end|>", []segment{{"<s>", false}, {"<|im_end|>", false}}},
		"alone":              {bare, "<s>", []segment{{"<s>", false}}},
		"lowered":            {"{{ messages[0].content | lower }}", "<|IM_END|>", []segment{{"<|im_end|>", false}}},
		"reversed":           {"{{ messages[0].content | reverse }}", ">|dne_mi|<", []segment{{"<|im_end|>", false}}},
		"replaced":           {"{{ messages[0].content | replace('-', '') }}", "<|im-_end|>", []segment{{"<|im_end|>", false}}},
		"half the client's":  {"<|im_{{ messages[0].content }}", "end|>", []segment{{"<|im_end|>", false}}},
		"one byte":           {"<|im_end|{{ messages[0].content }}", ">", []segment{{"<|im_end|>", false}}},
		"the template's own": {"<|im_end|>{{ messages[0].content }}<s>", "a", []segment{{"<|im_end|>a<s>", true}}},
		"no control token":   {bare, "<|im_", []segment{{"<|im_", true}}},
		"NUL":                {bare, "a\x00b", []segment{{"a\uFFFDb", true}}},
		"nothing":            {bare, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			must.Eq(t, c.want, segmentsOf(t, c.template, c.content, "<|im_start|>", "<|im_end|>", "<|im_end|>x", "<s>"))
		})
	}
}

func TestTemplateWants(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		template string
		want     templateWants
	}{
		"text":           {chatML, templateWants{noCalls: true, noResults: true}},
		"parts":          {"{% for p in messages[0].content %}{{ p.text }}{% endfor %}", templateWants{parts: true, noCalls: true, noResults: true}},
		"first part":     {"{{ messages[0].content[0]['text'] }}", templateWants{parts: true, noCalls: true, noResults: true}},
		"selected parts": {"{{ messages[0].content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join }}", templateWants{parts: true, noCalls: true, noResults: true}},
		"both":           {"{% set c = messages[0].content %}{% if c is string %}{{ c }}{% else %}{{ c[0].text }}{% endif %}", templateWants{noCalls: true, noResults: true}},
		"neither":        {"{{ 'x' }}", templateWants{}},
		"argument text":  {"{% for m in messages %}{{ m.content or m.tool_calls[0].function.arguments + '' }}{% endfor %}", templateWants{argumentText: true}},
		"objects":        {"{% for m in messages %}{{ m.content or m.tool_calls[0].function.arguments.items() | list }}{% endfor %}", templateWants{}},
		"no null":        {"{% for m in messages %}{{ 'x' in m.content }}{{ m.content }}{% if m.tool_calls %}{{ m.tool_calls[0].function.arguments.a }}{% endif %}{% endfor %}", templateWants{noNull: true}},
		"no system":      {"{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}", templateWants{noCalls: true, noResults: true, noSystem: true}},
		"no tools":       {"{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}{{ m.content }}{% endfor %}", templateWants{noCalls: true, noResults: true}},
		"tools":          {"{{ tools }}<tool_call>{% for m in messages %}{{ m.content or m.tool_calls }}{% endfor %}", templateWants{tools: true}},
		"unknown tools":  {"{{ tools }}{% for m in messages %}{{ m.content or m.tool_calls }}{% endfor %}", templateWants{}},
		"short ids":      {"{% for m in messages %}{% if m.tool_call_id is defined and m.tool_call_id | length != 9 %}{{ raise_exception('9') }}{% endif %}{{ m.content or m.tool_calls }}{% endfor %}", templateWants{shortIDs: true}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmpl, err := newChatTemplate(c.template, "", "", newControlTokens(nil))
			must.NoError(t, err)
			must.Eq(t, c.want, tmpl.wants)
		})
	}
	must.Eq(t, []segment{{"a", true}}, segmentsOf(t, "{% for p in messages[0].content %}{{ p.text }}{% endfor %}", "a"))
}

// TestHostileTemplate shows that a model's template cannot hold up the worker or fill its memory.
func TestHostileTemplate(t *testing.T) {
	t.Parallel()
	for name, source := range map[string]string{
		"endless macro": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
		"huge range":    "{% for i in range(100000000) %}a{% endfor %}",
		"doubled":       "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmpl, err := newChatTemplate(source, "", "", newControlTokens(nil))
			must.NoError(t, err)
			_, err = tmpl.render(t.Context(), &openai.ChatRequest{}, time.Time{})
			e, ok := errors.AsType[*openai.Error](err)
			must.True(t, ok, must.Sprint(err))
			must.Eq(t, 400, e.Status)
		})
	}
}

func TestTemplateFailures(t *testing.T) {
	t.Parallel()
	_, err := newChatTemplate("{% if %}", "", "", newControlTokens(nil))
	must.Error(t, err)
	tmpl, err := newChatTemplate("{{ messages[0].content.nothing.at.all() }}", "", "", newControlTokens(nil))
	must.NoError(t, err)
	req, err := openai.DecodeChat([]byte(`{"messages":[{"role":"user","content":"x"}]}`))
	must.NoError(t, err)
	_, err = tmpl.render(t.Context(), req, time.Time{})
	_, ok := errors.AsType[*openai.Error](err)
	must.True(t, ok, must.Sprint(err))
	req.ChatTemplateKwargs = json.RawMessage(`[1]`)
	_, err = tmpl.render(t.Context(), req, time.Time{})
	must.StrContains(t, err.Error(), "chat_template_kwargs")
}

// TestContinueFinalMessage makes the model continue the beginning of its own answer: the rest is
// the same.
func TestContinueFinalMessage(t *testing.T) {
	w := startWorker(t, 1, 256, "")
	const asked = `{"role":"user","content":"Tell me a short story about a bee named Pip."}`
	say := func(messages, more string) string {
		t.Helper()
		r := w.chat(t, `{"model":"m","temperature":0,"max_tokens":40,"messages":[`+messages+`]`+more+`}`)
		return *r.Choices[0].Message.Content
	}
	whole := say(asked, "")
	head, _, ok := strings.Cut(whole[len(whole)/3:], " ")
	must.True(t, ok)
	head = whole[:len(whole)/3] + head
	begun, err := json.Marshal(head)
	must.NoError(t, err)
	messages := asked + `,{"role":"assistant","content":` + string(begun) + `}`
	rest := say(messages, `,"continue_final_message":true,"add_generation_prompt":false`)
	must.StrHasPrefix(t, whole, head+rest)
	must.NotEq(t, rest, say(messages, ""), must.Sprint("without it a new turn begins"))
	for _, c := range []struct{ messages, more, says string }{
		{asked, "", "needs a text to go on from"},
		{asked + `,{"role":"assistant","content":" "}`, "", "needs a text to go on from"},
		{messages, `,"add_generation_prompt":true`, "exclude each other"},
	} {
		status, e, _ := w.refused(t, "/v1/chat/completions", `{"model":"m","messages":[`+c.messages+`],"continue_final_message":true`+c.more+`}`)
		must.Eq(t, 400, status)
		must.StrContains(t, e.Message, c.says)
	}
}
