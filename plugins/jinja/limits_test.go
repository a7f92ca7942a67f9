package jinja_test

import (
	"context"
	"runtime"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/plugins/jinja"
)

// hostile maps an attack to its template source. Each ends in an error.
var hostile = map[string]string{
	"endless macro":           "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
	"two endless macros":      "{% macro f() %}{{ g() }}{% endmacro %}{% macro g() %}{{ f() }}{% endmacro %}{{ f() }}",
	"macro that forks":        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
	"huge range":              "{% for i in range(100000000) %}a{% endfor %}",
	"nested ranges":           "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}",
	"doubled text":            "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
	"doubled by plus":         "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
	"doubled list":            "{% set n = namespace(s=[1]) %}{% for i in range(99) %}{% set n.s = n.s + n.s %}{% endfor %}",
	"doubled set block":       "{% set n = namespace(s='a') %}{% for i in range(99) %}{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
	"repeated text":           "{{ 'a' * 1000000000000 }}",
	"repeated twice":          "{{ 'a' * 9999999 * 9999999 }}",
	"repeated list":           "{{ [1] * 1000000000000 }}",
	"nested lists printed":    "{% set n = namespace(s=[]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
	"nested lists as JSON":    "{% set n = namespace(s=[]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s | tojson }}",
	"nested lists compared":   "{% set n = namespace(s=[], t=[]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.s == n.t }}",
	"nested lists ordered":    "{% set n = namespace(s=[1], t=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% set n.t = [n.t, n.t] %}{% endfor %}{{ n.s < n.t }}",
	"nested tuple as key":     "{% set n = namespace(s=()) %}{% for i in range(60) %}{% set n.s = (n.s, n.s) %}{% endfor %}{{ {n.s: 1} }}",
	"deep list printed":       "{% set n = namespace(s=[]) %}{% for i in range(9999) %}{% set n.s = [n.s] %}{% endfor %}{{ n.s }}",
	"namespace in itself":     "{% set n = namespace() %}{% set n.n = n %}{{ n }}",
	"huge power":              "{{ 9 ** 99999999 }}",
	"big numbers multiplied":  "{% set n = namespace(s=9) %}{% for i in range(9999) %}{% set n.s = n.s * n.s %}{% endfor %}{{ n.s }}",
	"wide format":             "{{ '%1000000000d' % 1 }}",
	"wide format method":      "{{ '{:>1000000000}'.format(1) }}",
	"wide precision":          "{{ '%.1000000000f' % 1 }}",
	"wide center":             "{{ 'a' | center(1000000000) }}",
	"wide ljust":              "{{ 'a'.ljust(1000000000) }}",
	"wide zfill":              "{{ 'a'.zfill(1000000000) }}",
	"wide tabs":               "{{ '\t'.expandtabs(1000000000) }}",
	"wide indent":             "{{ 'a\nb' | indent(1000000000) }}",
	"wide JSON indent":        "{{ [1] | tojson(indent=1000000000) }}",
	"filled batch":            "{{ [1] | batch(1000000000, 'a') | list }}",
	"many slices":             "{{ [1] | slice(1000000000) | list }}",
	"replace of nothing":      "{% set n = namespace(s='aaaa') %}{% for i in range(99) %}{% set n.s = n.s | replace('', n.s) %}{% endfor %}",
	"replace by itself":       "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s | replace('a', n.s) %}{% endfor %}",
	"join by itself":          "{% set n = namespace(s='aa') %}{% for i in range(99) %}{% set n.s = n.s | join(n.s) %}{% endfor %}",
	"long text searched":      "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{% if 'b' in s %}{% endif %}{% endfor %}",
	"long text compared":      "{% set s = 'a' * 1000000 %}{% set t = 'a' * 1000000 %}{% for i in range(99999) %}{% if t == s %}{% endif %}{% endfor %}",
	"long text measured":      "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{% if s | length == 1 %}{% endif %}{% endfor %}",
	"long text indexed":       "{% set s = 'ä' * 1000000 %}{% for i in range(99999) %}{% if s[-1] == 1 %}{% endif %}{% endfor %}",
	"long text tested":        "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{% if s.isalpha() and s is lower %}{% endif %}{% endfor %}",
	"long text trimmed":       "{% set s = ' ' * 1000000 %}{% for i in range(99999) %}{% if s | trim %}{% endif %}{% endfor %}",
	"long text stripped":      "{% set s = ' ' * 1000000 %}{% for i in range(99999) %}{% if s.strip() %}{% endif %}{% endfor %}",
	"long list searched":      "{% set s = range(99999) %}{% for i in range(99999) %}{% if 'b' in s %}{% endif %}{% endfor %}",
	"long list sorted":        "{% set s = range(99999) | list %}{% for i in range(99999) %}{% if s | sort(reverse=true) == 1 %}{% endif %}{% endfor %}",
	"recursive loop":          "{% for a in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
	"deep parentheses":        strings.Repeat("{{ ", 1) + strings.Repeat("(", 20_000) + "1" + strings.Repeat(")", 20_000) + " }}",
	"deep lists":              "{{ " + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + " }}",
	"deep minus":              "{{ " + strings.Repeat("-", 20_000) + "1 }}",
	"deep not":                "{{ " + strings.Repeat("not ", 20_000) + "1 }}",
	"deep if":                 strings.Repeat("{% if 1 %}", 10_000) + strings.Repeat("{% endif %}", 10_000),
	"deep elif":               "{% if 0 %}" + strings.Repeat("{% elif 0 %}", 10_000) + "{% endif %}",
	"deep attributes":         "{{ a" + strings.Repeat(".a", 20_000) + " }}",
	"deep filters":            "{{ a" + strings.Repeat("|e", 20_000) + " }}",
	"long sum":                "{{ 1" + strings.Repeat("+1", 20_000) + " }}",
	"long or":                 "{{ 0" + strings.Repeat(" or 0", 20_000) + " }}",
	"deep conditional":        "{{ " + strings.Repeat("1 if 0 else ", 50_000) + "1 }}",
	"deep targets":            "{% set " + strings.Repeat("(", 50_000) + "a" + strings.Repeat(")", 50_000) + " = 1 %}",
	"long source":             strings.Repeat("a", 2<<20),
	"range by huge steps":     "{{ range(-9223372036854775807, 9223372036854775807, 1) }}",
	"join of many by itself":  "{% set s = 'a' * 60000 %}{{ s | join(s) }}",
	"many tokens":             "{{ " + strings.Repeat("a,", 60_000) + "a }}",
	"many groups":             "{% for i in range(500) %}{% set x = range(9999) | groupby('real') %}{% endfor %}",
	"many unique":             "{% for i in range(500) %}{% set x = range(9999) | unique | list | sort %}{% endfor %}",
	"many formats":            "{% for i in range(99999) %}{% set x = '%s %s %s' % ('a' * 9999, 'b' * 9999, i) %}{% endfor %}",
	"named formats":           "{{ '{0:>{1}}'.format('a', 1000000000) }}",
	"filled format":           "{{ '{:0<999999999}'.format(5) }}",
	"star width":              "{{ '%*d' % (1000000000, 1) }}",
	"big left shift":          "{{ 2 ** 99999 ** 9 }}",
	"power of a negative":     "{{ (-3) ** 1000000000 }}",
	"power in a loop":         "{% set n = namespace(s=3) %}{% for i in range(999) %}{% set n.s = n.s ** 3 %}{% endfor %}",
	"replace makes long":      "{{ ('a' * 100000) | replace('a', 'b' * 100000) }}",
	"replace method":          "{{ ('a' * 100000).replace('a', 'b' * 100000) }}",
	"doubled upper":           "{% set n = namespace(s='ß') %}{% for i in range(99) %}{% set n.s = (n.s ~ n.s) | upper %}{% endfor %}",
	"escaped again":           "{% set n = namespace(s='&&') %}{% for i in range(99) %}{% set n.s = n.s | forceescape | string %}{% set n.s = n.s ~ n.s %}{% endfor %}",
	"endless call block":      "{% macro f() %}{{ caller() }}{% call f() %}{{ f() }}{% endcall %}{% endmacro %}{% call f() %}a{% endcall %}",
	"lists of lists added":    "{% set n = namespace(s=[[1]]) %}{% for i in range(99) %}{% set n.s = [n.s, n.s] | sum(start=[]) %}{% endfor %}",
	"wordwrap of long":        "{% set s = 'a ' * 200000 %}{% for i in range(99999) %}{% set x = s | wordwrap(1) %}{% endfor %}",
	"split again":             "{% set s = 'a ' * 200000 %}{% for i in range(99999) %}{% set x = s.split() %}{% endfor %}",
	"JSON again":              "{% set s = range(50000) | list %}{% for i in range(99999) %}{% set x = s | tojson %}{% endfor %}",
	"map again":               "{% set s = range(50000) | list %}{% for i in range(99999) %}{% set x = s | map('string') | join %}{% endfor %}",
	"sorted by attribute":     "{% set s = [{'a': 1}] * 50000 %}{% for i in range(999) %}{% set x = s | sort(attribute='a') %}{% endfor %}",
	"many lines":              `{% set s = '\n' * 5000000 %}{{ s.splitlines() }}`,
	"many lines indented":     `{% set s = '\n' * 5000000 %}{{ s | indent }}`,
	"many lines wrapped":      `{% set s = '\n' * 5000000 %}{{ s | wordwrap(1) }}`,
	"long text reversed":      "{% set s = 'a' * 5000000 %}{{ s | reverse }}",
	"every other character":   "{% set s = 'a' * 5000000 %}{{ s[::2] }}",
	"many words folded":       "{% set s = 'a ' * 2500000 %}{{ s | striptags }}",
	"many words counted":      "{% set s = 'a ' * 2500000 %}{{ s | wordcount }}",
	"long text encoded":       "{% set s = '[' * 5000000 %}{{ s | urlencode }}",
	"long text escaped":       "{% set s = '<a>' * 2500000 %}{{ s | e }}",
	"long text as a number":   "{% set s = '&lt;' * 250000 %}{% for i in range(99999) %}{% set x = s | float %}{% endfor %}",
	"long text as an integer": `{% set s = '\n' * 1000000 %}{% for i in range(99999) %}{% set x = s | int %}{% endfor %}`,
	"long set stripped":       "{{ ('a' * 1000000).strip('b' * 1000000 ~ 'a') }}",
	"long keys":               "{% set s = 'a' * 1000000 %}{% for i in range(99999) %}{% set d = {s: 1} %}{% endfor %}",
	"list as arguments":       "{% macro f() %}{{ varargs | length }}{% endmacro %}{% for i in range(99999) %}{{ f(*range(99999)) }}{% endfor %}",
}

// maxHostileBytes bounds all memory allocated by compiling and rendering, including garbage.
const maxHostileBytes = 40 << 20

func TestHostile(t *testing.T) { // not parallel: it measures the memory of the process
	for name, source := range hostile {
		t.Run(name, func(t *testing.T) {
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			tmpl, err := jinja.Compile(source)
			if err == nil {
				_, err = tmpl.Render(t.Context(), nil, jinja.Limits{})
			}
			runtime.ReadMemStats(&after)
			must.Error(t, err)
			made := after.TotalAlloc - before.TotalAlloc
			t.Logf("%v; %d KiB", err, made>>10)
			must.Less(t, maxHostileBytes, made)
		})
	}
}

func TestRenderCancelled(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tmpl, err := jinja.Compile("{% for i in range(5000) %}{{ i }}{% endfor %}")
	must.NoError(t, err)
	_, err = tmpl.Render(ctx, nil, jinja.Limits{})
	must.ErrorIs(t, err, context.Canceled)
}

func TestLimitError(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		template string
		limits   jinja.Limits
	}{
		"steps": {"{% for i in range(100) %}{% endfor %}", jinja.Limits{Steps: 50}},
		"bytes": {"{{ 'a' * 100 }}", jinja.Limits{Bytes: 50}},
		"depth": {"{{ ((((1))))|abs|abs|abs }}", jinja.Limits{Depth: 2}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			tmpl, err := jinja.Compile(c.template)
			must.NoError(t, err)
			_, err = tmpl.Render(t.Context(), nil, c.limits)
			must.True(t, jinja.IsLimit(err), must.Sprint(err))
			_, err = tmpl.Render(t.Context(), nil, jinja.Limits{})
			must.NoError(t, err)
		})
	}
}

func TestRaised(t *testing.T) {
	t.Parallel()
	_, err := render(t, "\n{{ raise_exception('roles must alternate') }}", "")
	message, ok := jinja.Raised(err)
	must.True(t, ok)
	must.Eq(t, "roles must alternate", message)
	must.EqError(t, err, "line 2: roles must alternate")
	_, ok = jinja.Raised(context.Canceled)
	must.False(t, ok)
}

// FuzzRender looks for panics and for unbounded work.
func FuzzRender(f *testing.F) {
	for _, source := range hostile {
		if len(source) < 300 {
			f.Add(source)
		}
	}
	f.Add("{%- for m in messages %}{{ m.role ~ m['content'] | trim }}{% endfor %}{{ {'a': [1, 2.5, none]} | tojson(indent=2) }}")
	f.Fuzz(func(t *testing.T, source string) {
		tmpl, err := jinja.Compile(source)
		if err != nil {
			return
		}
		messages := []any{map[string]any{"role": "user", "content": jinja.ClientText("hi")}}
		_, _ = tmpl.Render(context.Background(), map[string]any{"messages": messages}, jinja.Limits{Steps: 20_000, Bytes: 1 << 20})
	})
}

// FuzzParseJSON looks for panics, and for documents that change when written back.
func FuzzParseJSON(f *testing.F) {
	f.Add([]byte(`{"b": [1, 2.5, -0, 1e400, "\u00e9\ud83c\udf26"], "a": null}`))
	tmpl, err := jinja.Compile("{{ x | tojson }}")
	must.NoError(f, err)
	f.Fuzz(func(t *testing.T, data []byte) {
		v, err := jinja.ParseJSON(data, true)
		if err != nil {
			return
		}
		once, err := tmpl.Render(context.Background(), map[string]any{"x": v}, jinja.Limits{})
		if err != nil || strings.Contains(once.String(), "Infinity") {
			return
		}
		again, err := jinja.ParseJSON([]byte(once.String()), true)
		must.NoError(t, err)
		twice, err := tmpl.Render(context.Background(), map[string]any{"x": again}, jinja.Limits{})
		must.NoError(t, err)
		must.Eq(t, once.String(), twice.String())
	})
}
