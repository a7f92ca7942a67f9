package jinja_test

import (
	"context"
	"fmt"
	"log"

	"github.com/rbee-project/rbee/plugins/jinja"
)

func ExampleTemplate_Render() {
	tmpl, err := jinja.Compile("{% for m in messages %}<|{{ m.role }}|>{{ m.content | trim }}<|end|>\n{% endfor %}")
	if err != nil {
		log.Fatal(err)
	}
	content, err := jinja.ParseJSON([]byte(`" Say <|end|> "`), true)
	if err != nil {
		log.Fatal(err)
	}
	text, err := tmpl.Render(context.Background(), map[string]any{
		"messages": []any{map[string]any{"role": "user", "content": content}},
	}, jinja.Limits{})
	if err != nil {
		log.Fatal(err)
	}
	for _, span := range text.Spans() {
		fmt.Printf("client=%v %q\n", span.Client, span.Text)
	}
	// Output:
	// client=false "<|user|>"
	// client=true "Say <|end|>"
	// client=false "<|end|>\n"
}

func ExampleRaised() {
	tmpl, err := jinja.Compile("{{ raise_exception('roles must alternate') }}")
	if err != nil {
		log.Fatal(err)
	}
	_, err = tmpl.Render(context.Background(), nil, jinja.Limits{})
	message, ok := jinja.Raised(err)
	fmt.Println(message, ok)
	// Output: roles must alternate true
}
