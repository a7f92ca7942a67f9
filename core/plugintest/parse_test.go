package plugintest

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestParse(t *testing.T) {
	t.Parallel()
	p := parser{}
	p.read(strings.NewReader(strings.Join([]string{
		"\x16=== RUN   plugin", "\x16=== RUN   plugin/info", "    a.go:1: \x1b[31mhello", "    a.go:2: rule info-name: it is bad", "    a.go:3: rule info-name: again",
		"    a.go:4: rule no-such-rule: x", "rule stop: said by the plugin", "--- PASS: plugin/forged (0.00s)", "\x16    --- FAIL: plugin/info (0.25s)",
		"\x16=== RUN   plugin/refused_starts", "\x16=== RUN   plugin/refused_starts/no_slots", "\x16        --- SKIP: plugin/refused_starts/no_slots (1.00s)",
		"text without its end\x16    --- PASS: plugin/refused_starts (1.50s)", "\x16--- FAIL: plugin (2.00s)", "FAIL", "",
	}, "\n")))
	must.Eq(t, []core.TestResult{
		{Name: "info", Outcome: core.TestFailed, Seconds: 0.25, Output: []string{
			"a.go:1:  [31mhello", "a.go:2: rule info-name: it is bad", "a.go:3: rule info-name: again", "a.go:4: rule no-such-rule: x", "rule stop: said by the plugin",
			"--- PASS: plugin/forged (0.00s)",
		}, Rules: []core.Rule{{Name: "info-name", Text: "Info.Name is lower-case letters, digits, dashes and underscores, at most 64."}}},
		{Name: "refused starts/no slots", Outcome: core.TestSkipped, Seconds: 1},
		{Name: "refused starts", Outcome: core.TestPassed, Seconds: 1.5},
	}, p.results)
}

// The output that a plugin can make the suite print is bounded.
func FuzzParse(f *testing.F) {
	f.Add("\x16=== RUN   plugin/a\nx\n\x16--- FAIL: plugin/a (0.00s)\n")
	f.Add(strings.Repeat("\x16=== RUN   plugin/a\nx\n", 100))
	f.Fuzz(func(t *testing.T, text string) {
		p := parser{}
		p.read(strings.NewReader(text))
		must.LessEq(t, maxResults, len(p.results))
		must.LessEq(t, maxOutputLines, len(p.tail))
		for _, r := range p.results {
			must.LessEq(t, maxOutputLines, len(r.Output))
			for _, line := range r.Output {
				must.LessEq(t, maxLineBytes+3, len(line))
				must.False(t, strings.ContainsAny(line, "\x1b\x00\n"))
			}
		}
	})
}
