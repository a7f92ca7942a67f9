package sdktest

import (
	"fmt"
	"slices"
	"testing"
)

// Rule is one behaviour that a host relies on. A failing test names the broken rules at the
// beginning of a line: "rule slot-limit: …".
type Rule struct {
	Name string // short, such as "slot-limit"
	Text string // one sentence
}

// RulePrefix begins a line about a broken rule. The rule's name and a colon follow it.
const RulePrefix = "rule "

// rules lists every rule, in the order of a plugin's life.
var rules = []Rule{
	{"launch", "The executable starts, prints the handshake line to standard output and serves gRPC where the line says."},
	{"stdout", "After the handshake line a plugin writes nothing to standard output, and goes on when nobody reads it."},
	{"stderr", "A worker goes on when nobody reads its standard error any more."},
	{"tether", "A plugin that was started with RBEE_PLUGIN_TETHER=1 ends when its standard input does."},

	{"info-stable", "Info answers, and always the same."},
	{"info-kind", "Info.Kind is the kind of plugin that the executable's name says."},
	{"info-name", "Info.Name is lower-case letters, digits, dashes and underscores, at most 64."},
	{"info-version", "Info.Version is there, without a leading v."},
	{"info-summary", "Info.Summary is one line."},
	{"info-capabilities", "Info.Capabilities are sorted."},
	{"info-engine", "An engine in Info has a reference and a version."},

	{"schema-stable", "Schema answers, and always the same."},
	{"schema-names", "Every attribute and block of the schema has a valid name of its own and a type."},
	{"schema-docs", "Every attribute and block of the schema has documentation."},
	{"schema-defaults", "A default of the schema is JSON, and a required attribute has none."},
	{"configure-defaults", "Configure takes the schema's own defaults, and a configuration that fits the schema."},
	{"configure-diagnostics", "Configure answers what the user did wrong with a diagnostic that has summary, detail and path."},

	{"search", "Search finds what is there with reference, name and kind, and nothing for nonsense."},
	{"search-limit", "Search gives no more items than the limit, and ends when they cannot be sent."},
	{"resolve", "Resolve gives reference, name, kind, files and one-line notes."},
	{"resolve-exact", "The exact reference of a manifest resolves to the same manifest."},
	{"resolve-missing", "Resolve of what does not exist is ErrNotFound."},
	{"file-path", "A file's path is relative and slash-separated, and leads nowhere outside."},
	{"file-digest", "A file's size and digest are those of its bytes."},
	{"file-url", "A file's URL is http or https without credentials, headers come with a URL only, and Info says the capability \"url\"."},
	{"fetch", "Fetch gives the bytes from the offset to the end, and an error for a file that does not exist."},
	{"fetch-ends", "Fetch ends with its context and when its bytes cannot be written."},

	{"fingerprint-first", "Fingerprint reports at once, without an engine."},
	{"fingerprint-devices", "Fingerprint reports devices with an id of their own, kind, name and sensible memory, or a problem."},
	{"fingerprint-ends", "Fingerprint goes on until its context ends, and returns then."},
	{"start", "Start loads a model that is there, on a device that Fingerprint reported."},
	{"start-refuses", "Start refuses no slots, no nonce, a negative context, an unknown device and a missing model."},
	{"start-failed", "After a failed Start the state is failed, with a problem; a worker that refused the request is not ready."},
	{"start-once", "A second Start is ErrState."},
	{"start-progress", "Progress never goes backwards or beyond its total."},
	{"status", "Status answers at any time: idle before Start, loading during it, and afterwards ready with what was asked for."},
	{"status-load", "Status counts active and queued requests and generated tokens."},
	{"data-socket", "The data socket is for its owner alone, and gone after Stop."},
	{"data-guard", "A worker that says data_guarded serves no connection that does not begin with data_opening."},
	{"capabilities", "A ready worker says what it can do in Status.Capabilities: valid names, sorted, chat or another route among them."},

	{"prefix-blocks", "A worker that reports prefix_blocks reports at most 512, each once, and their prefix_block_tokens."},
	{"state-file", "With its defaults a worker keeps nothing in StartSpec.StateFile, and does not leave what was there."},

	{"chat", "A worker that says chat answers /v1/chat/completions with a whole answer."},
	{"chat-stream", "A streamed chat is server-sent events with one id, a finish_reason and [DONE], and has the same text as the whole answer at temperature 0."},
	{"completions", "A worker that says completions answers /v1/completions, whole and streamed."},
	{"usage", "usage counts the prompt's tokens and those of the answer: exactly max_tokens where that ended it, and the same for stream and whole answer."},
	{"utf8", "Every event is valid UTF-8: a character that is not complete yet waits for the next event."},
	{"errors", "Errors have OpenAI's envelope with the right status: 400 for a bad request, 404 for an unknown route."},
	{"tools", "A worker that says tools takes them; any other refuses them with 400 or 501."},
	{"json-schema", "A worker that says json_schema answers in JSON when asked; any other refuses response_format with 400 or 501."},
	{"logprobs", "A worker that says logprobs sends them when asked; any other refuses them with 400 or 501."},
	{"vision", "A worker that does not say vision refuses images with 400 or 501."},
	{"embeddings", "A worker that says embeddings answers /v1/embeddings with one vector for each input."},
	{"rerank", "A worker that says rerank answers /v1/rerank with a score for each document, the highest first."},
	{"tokenize", "A worker that says tokenize answers /tokenize, and /detokenize with the text of its tokens."},

	{"slot-limit", "A worker answers at most as many requests at once as it has slots."},
	{"queue", "Requests beyond the slots wait and are answered as they would be alone."},
	{"cancel", "A request whose client goes away ends within a second and frees its slot."},
	{"cancel-queued", "A request whose client goes away while it waits for a slot leaves the queue within a second."},
	{"drain", "Drain refuses new requests with 503, lets running ones finish, and returns when the last has."},
	{"stop", "Stop ends running requests within its grace, may be called again, and the process exits."},
}

// Rules returns every rule of the suite.
func Rules() []Rule { return slices.Clone(rules) }

// RuleNamed returns the rule with the name, and reports whether it exists.
func RuleNamed(name string) (Rule, bool) {
	i := slices.IndexFunc(rules, func(r Rule) bool { return r.Name == name })
	if i < 0 {
		return Rule{}, false
	}
	return rules[i], true
}

// broken reports a broken rule as a test error.
func broken(t testing.TB, rule, format string, args ...any) {
	t.Helper()
	if _, ok := RuleNamed(rule); !ok {
		panic("no rule " + rule)
	}
	t.Errorf("%s%s: %s", RulePrefix, rule, fmt.Sprintf(format, args...))
}

// brokenNow reports a broken rule and ends the test.
func brokenNow(t testing.TB, rule, format string, args ...any) {
	t.Helper()
	broken(t, rule, format, args...)
	t.FailNow()
}
