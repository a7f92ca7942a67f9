package core

// TestOutcome says how a test of a plugin ended.
type TestOutcome string

// The outcomes.
const (
	TestPassed  TestOutcome = "passed"
	TestFailed  TestOutcome = "failed"
	TestSkipped TestOutcome = "skipped"
)

// TestResult is one test of the conformance suite of plugins.
type TestResult struct {
	Name    string      `json:"name"` // "life", "configure"; a test within another one has its name before a slash
	Outcome TestOutcome `json:"outcome"`
	Seconds float64     `json:"seconds"`
	Output  []string    `json:"output,omitempty"` // the last lines of a test that did not pass, oldest first
	Rules   []Rule      `json:"rules,omitempty"`  // that a failed test found broken
}

// Rule is something that a host relies on in a plugin.
type Rule struct {
	Name string `json:"name"` // short, such as "slot-limit"
	Text string `json:"text"` // one sentence
}

// PluginReport is what the conformance suite says of a plugin.
type PluginReport struct {
	Executable string       `json:"executable"`
	Passed     bool         `json:"passed"` // no test failed
	Results    []TestResult `json:"results"`
}
