package jinja_test

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/jinja"
)

// chatML is the shape of most templates: a loop with a condition for each role.
const chatML = `{%- if messages[0].role != 'system' %}{{- '<|im_start|>system\nYou are helpful.<|im_end|>\n' }}{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'assistant' and message.content is string %}
        {{- '<|im_start|>assistant\n' + message.content.split('</think>')[-1].lstrip('\n') + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\n' + message.content | trim + '<|im_end|>\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}`

func BenchmarkRender(b *testing.B) {
	tmpl, err := jinja.Compile(chatML)
	must.NoError(b, err)
	var messages []any
	for range 10 {
		messages = append(messages,
			map[string]any{"role": "user", "content": jinja.ClientText(strings.Repeat("a question ", 50))},
			map[string]any{"role": "assistant", "content": jinja.ClientText(strings.Repeat("an answer ", 100))})
	}
	variables := map[string]any{"messages": messages, "add_generation_prompt": true}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := tmpl.Render(b.Context(), variables, jinja.Limits{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	b.ReportAllocs()
	b.SetBytes(int64(len(chatML)))
	for b.Loop() {
		if _, err := jinja.Compile(chatML); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkHostile measures how long the worst templates take until their limit ends them.
func BenchmarkHostile(b *testing.B) {
	for name, source := range hostile {
		b.Run(strings.ReplaceAll(name, " ", "-"), func(b *testing.B) {
			for b.Loop() {
				if tmpl, err := jinja.Compile(source); err == nil {
					_, _ = tmpl.Render(b.Context(), nil, jinja.Limits{})
				}
			}
		})
	}
}
