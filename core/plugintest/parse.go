package plugintest

import (
	"bufio"
	"errors"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk/sdktest"
)

const (
	maxOutputLines = 40        // kept per test
	maxLineBytes   = 1 << 10   // kept per line
	maxLongestLine = 256 << 10 // longer lines are split
	maxResults     = 1000
)

// framework marks the test framework's own lines in the machine-readable form of "go test -v": they
// begin with a ^V.
const framework = "\x16"

var (
	startLine = regexp.MustCompile(`^=== (?:RUN|CONT|NAME) +(\S+)$`)
	ruleLine  = regexp.MustCompile(`^\S+\.go:\d+: ` + sdktest.RulePrefix + `([a-z0-9-]+): `)
	endLine   = regexp.MustCompile(`^ *--- (PASS|FAIL|SKIP): (\S+) \((\d+\.\d+)s\)$`)
)

// parser reads the suite's output.
type parser struct {
	emit    func(core.TestResult)
	results []core.TestResult
	running string              // the test that last printed something
	output  map[string][]string // of running tests
	tail    []string            // the last lines outside of any test
}

func (p *parser) read(r io.Reader) {
	p.output = map[string][]string{}
	br := bufio.NewReaderSize(r, maxLongestLine)
	for {
		line, err := br.ReadSlice('\n')
		if len(line) > 0 {
			p.line(strings.TrimRight(string(line), "\r\n"))
		}
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
	}
}

func (p *parser) line(text string) {
	if i := strings.LastIndex(text, framework); i >= 0 {
		text = text[i+len(framework):]
		if m := startLine.FindStringSubmatch(text); m != nil {
			p.running = m[1]
			return
		}
		if m := endLine.FindStringSubmatch(text); m != nil {
			p.end(m[1], m[2], m[3])
			return
		}
	}
	if text = strings.TrimSpace(clean(text)); text == "" {
		return
	}
	if p.running == "" {
		p.tail = appendBounded(p.tail, text)
		return
	}
	if len(p.output) < maxResults || p.output[p.running] != nil {
		p.output[p.running] = appendBounded(p.output[p.running], text)
	}
	p.tail = appendBounded(p.tail, text)
}

func (p *parser) end(outcome, name, seconds string) {
	output := p.output[name]
	delete(p.output, name)
	if _, sub, ok := strings.Cut(name, "/"); ok && len(p.results) < maxResults {
		r := core.TestResult{Name: strings.ReplaceAll(sub, "_", " "), Outcome: map[string]core.TestOutcome{"PASS": core.TestPassed, "FAIL": core.TestFailed, "SKIP": core.TestSkipped}[outcome]}
		r.Seconds, _ = strconv.ParseFloat(seconds, 64) // the expression matches only numbers
		if r.Outcome != core.TestPassed {
			r.Output = output
		}
		if r.Outcome == core.TestFailed {
			r.Rules = rulesIn(output)
		}
		p.results = append(p.results, r)
		if p.emit != nil {
			p.emit(r)
		}
	}
}

// rulesIn returns the rules named in a test's output, each once.
func rulesIn(output []string) []core.Rule {
	var list []core.Rule
	for _, line := range output {
		m := ruleLine.FindStringSubmatch(line)
		if m == nil {
			continue
		}
		rule, ok := sdktest.RuleNamed(m[1])
		if ok && !slices.Contains(list, core.Rule(rule)) {
			list = append(list, core.Rule(rule))
		}
	}
	return list
}

func appendBounded(lines []string, line string) []string {
	lines = append(lines, line)
	return lines[max(len(lines)-maxOutputLines, 0):]
}

// clean shortens a line and removes characters that could control a terminal.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "\uFFFD"))
	if len(s) > maxLineBytes {
		s = strings.ToValidUTF8(s[:maxLineBytes], "") + "…"
	}
	return s
}
