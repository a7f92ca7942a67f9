package core

// TestOutcome is the outcome of a test of a plugin.
type TestOutcome string

// The outcomes.
const (
	TestPassed  TestOutcome = "passed"
	TestFailed  TestOutcome = "failed"
	TestSkipped TestOutcome = "skipped"
)

// TestResult is the result of one test of the plugin conformance suite.
type TestResult struct {
	Name    string      `json:"name"` // "life", "configure"; the name of a nested test has its parent's name and a slash before it
	Outcome TestOutcome `json:"outcome"`
	Seconds float64     `json:"seconds"`
	Output  []string    `json:"output,omitempty"` // the last lines of a test that did not pass, oldest first
	Rules   []Rule      `json:"rules,omitempty"`  // rules that a failed test found broken
}

// Rule is something that a host relies on in a plugin.
type Rule struct {
	Name string `json:"name"` // short, such as "slot-limit"
	Text string `json:"text"` // one sentence
}

// PluginReport is the conformance suite's report on a plugin.
type PluginReport struct {
	Executable string       `json:"executable"`
	Passed     bool         `json:"passed"` // no test failed
	Results    []TestResult `json:"results"`
}
