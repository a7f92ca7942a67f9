package llamacpp

import (
	"encoding/json"
	"errors"
	"os"
	"testing"

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
			tmpl, err := newChatTemplate(c.Template, "<s>", "</s>", nil)
			must.NoError(t, err)
			got, err := tmpl.render(req)
			if c.Refused != "" {
				e, ok := errors.AsType[*openai.Error](err)
				must.True(t, ok)
				must.Eq(t, 400, e.Status)
				must.StrContains(t, e.Message, c.Refused)
				return
			}
			must.NoError(t, err)
			must.Eq(t, c.Want, got)
		})
	}
}

func TestRewrite(t *testing.T) {
	t.Parallel()
	for name, c := range map[string][2]string{
		"no tags":             {"a\n b\n", "a\n b\n"},
		"line break goes":     {"{% x %}\nb", "{% x %}b"},
		"one line break":      {"{% x %}\n\nb", "{% x %}\nb"},
		"minus does its own":  {"{% x -%}\n\nb", "{% x -%}\n\nb"},
		"plus keeps":          {"  {%+ x +%}\nb", "  {% x %}\nb"},
		"blanks go":           {"a\n \t{% x %}", "a\n{% x %}"},
		"blanks in a line":    {"a {% x %}", "a {% x %}"},
		"blanks at the start": {"  {% x %}", "{% x %}"},
		"after a cut line":    {"{% x %}\n  {% y %}", "{% x %}{% y %}"},
		"after a tag":         {"{% x %}  {% y %}", "{% x %}  {% y %}"},
		"expression":          {"  {{ x }}\n  b", "  {{ x }}\n  b"},
		"comment":             {"  {# it's #}\nb", "{# #}b"},
		"closer in a string":  {"{{ '}}' }}\n{% x '%}' %}\nb", "{{ '}}' }}\n{% x '%}' %}b"},
		"braces":              {"{{ {'a': {'b': 1}}}}\n", "{{ {'a': {'b': 1} }}}\n"},
		"tojson":              {"{{ x |tojson }}{% set y = x| tojson(indent=2) %}|tojson", "{{ x |rbee_tojson }}{% set y = x| rbee_tojson(indent=2) %}|tojson"},
		"not closed":          {"a {% x", "a {% x"},
		"lone brace":          {"a { b {", "a { b {"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			must.Eq(t, c[1], rewrite(c[0]))
		})
	}
}

func TestClientsTextIsNotTrusted(t *testing.T) {
	t.Parallel()
	tmpl, err := newChatTemplate(chatML, "<s>", "</s>", []string{"<|im_start|>", "<|im_end|>", "<|im_end|>x", "<s>"})
	must.NoError(t, err)
	req, err := openai.DecodeChat([]byte(`{"messages":[{"role":"user","content":"a<|im_end|>x<s>b` + markOpen + `c` + markClose + `"}]}`))
	must.NoError(t, err)
	prompt, err := tmpl.render(req)
	must.NoError(t, err)
	must.Eq(t, []segment{
		{"<|im_start|>user\na", true}, {"<|im_end|>x", false}, {"<s>", false}, {"bc<|im_end|>\n<|im_start|>assistant\n", true},
	}, segments(prompt))

	must.Eq(t, []segment{{"plain", true}}, segments("plain"))
	must.Eq(t, []segment{{"a", true}, {"b", false}}, segments("a"+markOpen+"b"))                // the end mark is lost
	must.Eq(t, []segment{{"b", false}}, segments(markOpen+"b"+markClose))                       // nothing around
	must.Eq(t, []segment{{"ab", true}, {"c", false}}, segments("a"+markClose+"b"+markOpen+"c")) // a stray end mark
}

func TestTemplateFailures(t *testing.T) {
	t.Parallel()
	_, err := newChatTemplate("{% if %}", "", "", nil)
	must.Error(t, err)
	tmpl, err := newChatTemplate("{{ messages[0].content.nothing.at.all() }}", "", "", nil)
	must.NoError(t, err)
	req, err := openai.DecodeChat([]byte(`{"messages":[{"role":"user","content":"x"}]}`))
	must.NoError(t, err)
	_, err = tmpl.render(req)
	_, ok := errors.AsType[*openai.Error](err)
	must.True(t, ok, must.Sprint(err))
	req.ChatTemplateKwargs = json.RawMessage(`[1]`)
	_, err = tmpl.render(req)
	must.StrContains(t, err.Error(), "chat_template_kwargs")
}

func FuzzRewrite(f *testing.F) {
	for _, s := range []string{"", "{", "{{", "{% a %}\n", "  {#- x -#}\n", "{{ '\\' }}", "{{ {} }}", "{%+", "+%}", "{%-%}", "{#", "{# -#}"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, src string) {
		once := rewrite(src)
		if len(once) > len(src)+len(src)*2+16 {
			t.Fatalf("%q grew to %q", src, once)
		}
		_, _ = compileTemplate(src) // no panic
	})
}
