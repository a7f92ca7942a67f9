package jinja_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/jinja"
)

// foreign are bytes that random templates never write and values never print: in a text they must
// be a client's.
const foreign = "|qzQZζΖ"

// randomClient returns a text that contains control tokens, or can be turned into some.
func randomClient(rng *rand.Rand) string {
	pieces := []string{
		"<|", "|>", ">|", "|<", "q", "z", "Q", "ζ", "<|q_z|>", ">|z_q|<", "<|Q-z|>", "<|-q|>", " ", "  ", "\n", "\r\n", "\t", "-", ",", "_", "{", "}", "{0}", "{:q>9}", "{0:|<9}",
		"%s", "%5s", "%d", "%c", "%%", "&lt;", "&#124;", "&", "<b>", "</b>", "'", `"`, `\`, `\u007c`, "0", "7", "-3", "1.5", "q=z", "a", "é",
	}
	var b strings.Builder
	for range 1 + rng.IntN(6) {
		b.WriteString(pieces[rng.IntN(len(pieces))])
	}
	return b.String()
}

// randomTemplate writes templates with everything that Jinja has to change texts. Its own texts
// contain no foreign bytes.
type randomTemplate struct {
	rng *rand.Rand
}

func (r *randomTemplate) pick(of ...string) string { return of[r.rng.IntN(len(of))] }

func (r *randomTemplate) atom(depth int) string {
	switch k := r.rng.IntN(20); {
	case k < 9:
		return r.pick("x", "x", "y", "m.content", "m['content']", "v")
	case k < 12:
		return r.pick("''", "'a'", "'-'", "' '", "'a-b'", "'\\n'", "'%s'", "'{}'", "'{0}{1}'", "'{0!r:.3}'", "'%(k)s'", "'%5.2s'", "'%r'", "'%c'", "'_'")
	case k < 14:
		return r.pick("0", "1", "2", "(-1)", "9", "1.5", "none", "true", "m", "nothing")
	case depth > 0 && k < 16:
		return fmt.Sprintf("[%s, %s]", r.expr(depth-1), r.expr(depth-1))
	case depth > 0 && k < 17:
		return fmt.Sprintf("{'k': %s, %s: 1}", r.expr(depth-1), r.expr(depth-1))
	case depth > 0 && k < 18:
		return fmt.Sprintf("(%s, %s)", r.expr(depth-1), r.expr(depth-1))
	case depth > 0:
		return "(" + r.expr(depth-1) + ")"
	}
	return "x"
}

// fill puts an expression wherever form has an @.
func (r *randomTemplate) fill(form string, depth int) string {
	for strings.Contains(form, "@") {
		form = strings.Replace(form, "@", r.atom(depth-1), 1)
	}
	return form
}

func (r *randomTemplate) filter(depth int) string {
	return r.fill(r.pick(
		"upper", "lower", "title", "capitalize", "trim", "trim(@)", "reverse", "reverse | list", "replace(@, @)", "replace(@, @, 1)", "join", "join(@)", "join('-', attribute='k')",
		"first", "last", "list", "string", "safe", "e", "escape", "forceescape", "striptags", "urlencode", "tojson", "tojson(indent=1)", "tojson(ensure_ascii=true)",
		"tojson(separators=(@, @))", "tojson(indent=@)", "tojson(sort_keys=true)", "pprint", "indent", "indent(@)", "indent(@, true, true)", "center(9)", "wordwrap(3)", "wordwrap(2, true, @)", "wordwrap(2, false)",
		"truncate(3, true, @, 0)", "truncate(4)", "format(@)", "format(@, @)", "format(k=@)", "default(@)", "default(@, true)", "sort", "sort | join", "sort(reverse=true)", "unique | list", "unique | join", "map('upper') | join(@)",
		"map('reverse') | join", "map('replace', @, @) | list", "map('first') | join", "map('string') | join", "map(attribute=0) | list", "map(attribute='k', default=@) | list", "select | join", "reject('equalto', @) | join",
		"batch(2) | list", "batch(3, @) | list", "slice(2, @) | list", "slice(2) | join", "groupby(0) | list", "dictsort", "items | list", "min", "max", "sum(start='')", "sum(start=@)", "int", "float", "round", "abs", "length",
		"wordcount", "filesizeformat", "attr('k')", "attr('upper')()", "selectattr('k') | list", "rejectattr('k', 'equalto', @) | list", "center(@)",
	), depth)
}

func (r *randomTemplate) method(depth int) string {
	return r.fill(r.pick(
		"upper()", "lower()", "title()", "capitalize()", "swapcase()", "casefold()", "strip()", "strip(@)", "lstrip(@)", "rstrip(@)", "split()", "split(@)", "split(@, 1)", "rsplit(@, 1)", "splitlines()", "splitlines(true)",
		"partition(@)", "rpartition(@)", "replace(@, @)", "replace('', @)", "join(@)", "join([@, @])", "center(9, @)", "ljust(9, @)", "rjust(9, @)", "center(9)", "zfill(9)", "expandtabs(2)", "removeprefix(@)", "removesuffix(@)",
		"format(@)", "format(@, @)", "format(k=@)", "format_map({'k': @})", "get(@, @)", "get('k')", "items() | list", "keys() | list", "values() | list", "copy()", "find(@)", "count(@)", "index(@)", "startswith(@)", "k", "k.k",
	), depth)
}

func (r *randomTemplate) expr(depth int) string {
	if depth <= 0 {
		return r.atom(0)
	}
	switch k := r.rng.IntN(20); {
	case k < 5:
		return r.atom(depth-1) + " | " + r.filter(depth)
	case k < 7:
		return r.atom(depth-1) + " | " + r.filter(depth) + " | " + r.filter(depth)
	case k < 11:
		return r.atom(depth-1) + "." + r.method(depth)
	case k < 13:
		return r.atom(depth-1) + "[" + r.pick("0", "-1", "1:", ":-1", "::-1", "::2", "1:3", "-2::-1", "'k'", "9") + "]"
	case k < 16:
		return r.expr(depth-1) + r.pick(" ~ ", " ~ ", " + ", " % ", " * ", " or ", " and ", " in ", " == ") + r.expr(depth-1)
	case k < 17:
		return "(" + r.expr(depth-1) + " if " + r.atom(depth-1) + " else " + r.expr(depth-1) + ")"
	case k < 18:
		return "dict(k=" + r.atom(depth-1) + ")"
	case k < 19:
		return r.pick("f(@)", "f(@, @)", "cycler(@, @).next()", "joiner(@)()", "strftime_now(@)", "namespace(k=@).k", "raise(@)")
	}
	return r.atom(depth)
}

func (r *randomTemplate) body(depth int) string {
	var b strings.Builder
	for range 1 + r.rng.IntN(3) {
		b.WriteString(r.pick("", " ", "\n", "a", "\n  "))
		switch k := r.rng.IntN(12); {
		case depth <= 0 || k < 5:
			b.WriteString("{{ " + r.fill(r.expr(2), 1) + " }}")
		case k < 7:
			b.WriteString("{% for v in (" + r.fill(r.expr(1), 1) + ") %}" + r.body(depth-1) + r.pick("", "{{ loop.previtem }}", "{{ loop.nextitem }}", "{{ loop.cycle(x, v) }}", "{{ loop.changed(v) }}") + "{% endfor %}")
		case k < 8:
			b.WriteString("{% set v = " + r.fill(r.expr(2), 1) + " %}" + r.body(depth-1))
		case k < 9:
			b.WriteString("{% set v %}" + r.body(depth-1) + "{% endset %}{{ v | " + r.fill(r.filter(1), 1) + " }}")
		case k < 10:
			b.WriteString("{% filter " + r.fill(r.pick("upper", "replace(@, @)", "indent(1)", "tojson", "e", "trim", "reverse | list"), 1) + " %}" + r.body(depth-1) + "{% endfilter %}")
		case k < 11:
			b.WriteString("{% call f(" + r.fill("@", 1) + ") %}" + r.body(depth-1) + "{% endcall %}")
		default:
			b.WriteString("{% if " + r.fill(r.expr(1), 1) + " %}" + r.body(depth-1) + "{% else %}" + r.body(depth-1) + "{% endif %}")
		}
	}
	return b.String()
}

// TestOrigins renders random templates with texts of a client that contain control tokens: none of
// their bytes may count as the template's, whatever the template does to them. RBEE_JINJA_SECONDS
// sets the duration, RBEE_JINJA_SEED the first template.
func TestOrigins(t *testing.T) {
	t.Parallel()
	seconds, _ := strconv.ParseFloat(os.Getenv("RBEE_JINJA_SECONDS"), 64)
	seed, _ := strconv.ParseUint(os.Getenv("RBEE_JINJA_SEED"), 10, 64)
	end := time.Now().Add(time.Duration(seconds * float64(time.Second)))
	const least = 3000
	rendered, clients, n := 0, 0, 0
	for ; n < least || time.Now().Before(end); n++ {
		rng := rand.New(rand.NewPCG(seed+uint64(n), 7))
		r := randomTemplate{rng}
		source := "{% macro f(a, b='b') %}{{ a }}{{ b }}{% if caller %}{{ caller() }}{% endif %}{% endmacro %}" + r.body(2)
		tmpl, err := jinja.Compile(source)
		must.NoError(t, err, must.Sprint(seed+uint64(n), source))
		for range 2 {
			x, y := randomClient(rng), randomClient(rng)
			variables := map[string]any{
				"x": jinja.ClientText(x), "y": jinja.ClientText(y),
				"m": map[string]any{"role": "user", "content": jinja.ClientText(y + x)},
			}
			text, err := tmpl.Render(t.Context(), variables, jinja.Limits{Steps: 20_000, Bytes: 1 << 20, Now: time.Unix(0, 0).UTC()})
			if err != nil {
				continue
			}
			rendered++
			client := false
			for _, s := range text.Spans() {
				client = client || s.Client
				if !s.Client && strings.ContainsAny(s.Text, foreign) {
					t.Fatalf("seed %d: %s\nwith %q and %q: %q counts as the template's", seed+uint64(n), source, x, y, s.Text)
				}
			}
			if client {
				clients++
			}
		}
	}
	t.Logf("%d templates, %d renderings, %d of them with a client's text", n, rendered, clients)
	must.Greater(t, least/4, clients)
}
