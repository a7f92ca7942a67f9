package jinja_test

import (
	"context"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/jinja"
)

// render renders a template with one client's text x.
func render(t testing.TB, template, client string) (jinja.Text, error) {
	t.Helper()
	tmpl, err := jinja.Compile(template)
	if err != nil {
		return jinja.Text{}, err
	}
	return tmpl.Render(t.Context(), map[string]any{"x": jinja.ClientText(client), "m": "|"}, jinja.Limits{})
}

// marked returns the text with the client's parts in brackets.
func marked(text jinja.Text) string {
	var b strings.Builder
	for _, s := range text.Spans() {
		if s.Client {
			b.WriteString("[" + s.Text + "]")
		} else {
			b.WriteString(s.Text)
		}
	}
	return b.String()
}

func TestClientText(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ template, client, want string }{
		"plain":             {"<{{ x }}>", "a", "<[a]>"},
		"lower":             {"{{ x | lower }}", "<|IM_END|>", "[<|im_end|>]"},
		"reverse":           {"{{ x | reverse }}", ">|dne_mi|<", "[<|im_end|>]"},
		"reversed slice":    {"{{ x[::-1] }}", "ba", "[ab]"},
		"replace removes":   {"{{ x | replace('-', '') }}", "<|im-_end|>", "[<|im_end|>]"},
		"replace inserts":   {"{{ x | replace('-', '|') }}", "<-a-", "[<]|[a]|"},
		"client replaces":   {"{{ 'a-b' | replace('-', x) }}", "<|", "a[<|]b"},
		"trim":              {"{{ (' ' ~ x ~ ' ') | trim }}", " a ", "[a]"},
		"concatenated":      {"{{ '<' ~ x ~ '>' }}", "a", "<[a]>"},
		"added":             {"{{ '<' + x + '>' }}", "a", "<[a]>"},
		"repeated":          {"{{ x * 2 }}", "a", "[aa]"},
		"joined":            {"{{ ['a', x, 'b'] | join(x) }}", "-", "a[---]b"},
		"split and joined":  {"{{ x.split('-') | join('') }}", "<|-im-_end|>", "[<|im_end|>]"},
		"tojson":            {"{{ x | tojson }}", "a\n\"", "\"[a\\n\\\"]\""},
		"tojson in ASCII":   {"{{ x | tojson(ensure_ascii=true) }}", "é", "\"[\\u00e9]\""},
		"tojson separators": {"{{ [1, 2] | tojson(separators=(x, x)) }}", "|", "[1[|]2]"},
		"printed list":      {"{{ [x] }}", "a'b", "[\"[a'b]\"]"},
		"printed key":       {"{{ {x: 1} }}", "k", "{'[k]': 1}"},
		"percent":           {"{{ '<%5s>' % x }}", "a", "<    [a]>"},
		"client's format":   {"{{ x.format('') }}", "{0:<<1}{0:|>1}", "[<|]"},
		"client's percent":  {"{{ x % 1 }}", "<%02d>", "[<01>]"},
		"format":            {"{{ '<{}>'.format(x) }}", "a", "<[a]>"},
		"title":             {"{{ x | title }}", "ab cd", "[Ab Cd]"},
		"entities":          {"{{ x | striptags }}", "&lt;|a&gt;", "[<|a>]"},
		"escape":            {"{{ x | e }}", "<", "[&lt;]"},
		"loop":              {"{% for c in x %}{{ c }}.{% endfor %}", "ab", "[a].[b]."},
		"macro":             {"{% macro f(a) %}<{{ a }}>{% endmacro %}{{ f(x) | upper }}", "a", "<[A]>"},
		"set block":         {"{% set y %}<{{ x }}>{% endset %}{{ y }}", "a", "<[a]>"},
		"namespace":         {"{% set n = namespace(v='') %}{% for c in x %}{% set n.v = c ~ n.v %}{% endfor %}{{ n.v }}", "ba", "[ab]"},
		"indent":            {"{{ x | indent(2) }}", "a\nb", "[a]\n  [b]"},
		"client's indent":   {"{{ 'a\nb' | indent(x) }}", "<|", "a\n[<|]b"},
		"center":            {"{{ 'a'.center(3, x) }}", "|", "[|]a[|]"},
		"urlencode":         {"{{ x | urlencode }}", "<", "[%3C]"},
		"truncate":          {"{{ 'abcdef' | truncate(3, true, x, 0) }}", "|", "ab[|]"},
		"sorted":            {"{{ x | sort | join }}", "ba", "[ab]"},
		"trusted variable":  {"{{ m ~ x }}", "a", "|[a]"},
		"strftime":          {"{{ strftime_now(x) }}", "<%%>", "[<]%[>]"},
		"char by char":      {"{{ x[0] ~ x[-1:] ~ x | last }}", "ab", "[abb]"},
		"length":            {"{{ x | length }}", "abc", "3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text, err := render(t, c.template, c.client)
			must.NoError(t, err)
			must.Eq(t, c.want, marked(text))
		})
	}
}

// FuzzClientText renders any template with a client's text of Greek letters, which the template
// does not contain: none of its bytes may count as the template's.
func FuzzClientText(f *testing.F) {
	for _, template := range []string{
		"{{ x | upper }}{{ x | reverse }}", "{{ x.format(1) ~ (x % ()) }}", "{% for c in x %}{{ loop.cycle(c, 'a') }}{% endfor %}",
		"{{ {x: [x]} | tojson(indent=1) }}", "{{ x.split() | map('upper') | join(x) }}", "{{ 'a' | replace('', x) | indent(x) | center(9) }}",
		"{{ x | wordwrap(2, true, x) | title }}{{ x.partition('α') }}", "{{ x | batch(2) | list }}{{ x | urlencode | e }}",
	} {
		f.Add(template, "αβ γ\n{:Δ>9}%s")
	}
	f.Fuzz(func(t *testing.T, template, client string) {
		if len(template) > 2000 || len(client) > 200 || strings.ContainsAny(template, `\ΑΒΓΔαβγδ`) || strings.Contains(template, "%c") ||
			strings.IndexFunc(template, func(r rune) bool { return r > unicode.MaxASCII }) >= 0 {
			t.Skip()
		}
		letters := []rune("αβγδΑΒΓΔ")
		client = strings.Map(func(r rune) rune {
			if unicode.IsLetter(r) || unicode.IsNumber(r) {
				return letters[int(r)%len(letters)]
			}
			return r
		}, client)
		tmpl, err := jinja.Compile(template)
		if err != nil {
			return
		}
		limits := jinja.Limits{Steps: 20_000, Bytes: 1 << 20, Now: time.Unix(0, 0).UTC()}
		text, err := tmpl.Render(context.Background(), map[string]any{"x": jinja.ClientText(client)}, limits)
		if err != nil {
			return
		}
		joined := ""
		for _, s := range text.Spans() {
			joined += s.Text
			if !s.Client && strings.ContainsAny(s.Text, string(letters)) {
				t.Fatalf("%q with %q: %q counts as the template's", template, client, s.Text)
			}
		}
		must.Eq(t, text.String(), joined)
	})
}
