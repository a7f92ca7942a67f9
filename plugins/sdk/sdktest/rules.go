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
	{"launch", "The executable starts, prints the handshake line to standard output and serves gRPC at the address in that line."},
	{"stdout", "After the handshake line a plugin writes nothing to standard output, and keeps running when nothing reads it."},
	{"stderr", "A worker keeps running when nothing reads its standard error any more."},
	{"tether", "A plugin started with RBEE_PLUGIN_TETHER=1 exits when its standard input ends."},

	{"info-stable", "Info answers, and always returns the same."},
	{"info-kind", "Info.Kind matches the kind in the executable's name."},
	{"info-name", "Info.Name is lower-case letters, digits, dashes and underscores, at most 64."},
	{"info-version", "Info.Version is set, without a leading v."},
	{"info-summary", "Info.Summary is one line."},
	{"info-capabilities", "Info.Capabilities are sorted."},
	{"info-engine", "An engine in Info has a reference and a version."},

	{"schema-stable", "Schema answers, and always returns the same."},
	{"schema-names", "Every attribute and block of the schema has a valid, unique name and a type."},
	{"schema-docs", "Every attribute and block of the schema has documentation."},
	{"schema-defaults", "A default of the schema is JSON, and a required attribute has none."},
	{"configure-defaults", "Configure accepts the schema's own defaults, and any configuration that fits the schema."},
	{"configure-diagnostics", "Configure reports a user's mistake as a diagnostic with summary, detail and path."},

	{"search", "Search finds existing items, with reference, name and kind, and nothing for a nonsense query."},
	{"search-limit", "Search returns no more items than the limit, and stops when they cannot be sent."},
	{"resolve", "Resolve returns reference, name, kind, files and one-line notes."},
	{"resolve-exact", "The exact reference of a manifest resolves to the same manifest."},
	{"resolve-missing", "Resolve returns ErrNotFound for a reference that does not exist."},
	{"file-path", "A file's path is relative and slash-separated, and stays inside the folder."},
	{"file-digest", "A file's size and digest match its bytes."},
	{"file-url", "A file's URL is http or https without credentials, headers are set only with a URL, and Info lists the capability \"url\"."},
	{"fetch", "Fetch writes the bytes from the offset to the end, and returns an error for a file that does not exist."},
	{"fetch-ends", "Fetch stops when its context ends and when its bytes cannot be written."},

	{"fingerprint-first", "Fingerprint reports at once, without an engine."},
	{"fingerprint-devices", "Fingerprint reports devices with a unique id, a kind, a name and plausible memory, or a problem."},
	{"fingerprint-ends", "Fingerprint runs until its context ends, and then returns."},
	{"start", "Start loads an existing model on a device that Fingerprint reported."},
	{"start-refuses", "Start rejects zero slots, an empty nonce, a negative context, an unknown device and a missing model."},
	{"start-failed", "After a failed Start the state is failed, with a problem; a worker that rejected the request is not ready."},
	{"start-once", "A second Start returns ErrState."},
	{"start-progress", "Progress never goes backwards or beyond its total."},
	{"status", "Status answers at any time: idle before Start, loading during it, and afterwards ready with the requested settings."},
	{"status-load", "Status counts active and queued requests and generated tokens."},
	{"data-socket", "Only its owner can use the data socket, and it is removed after Stop."},
	{"data-guard", "A worker that reports data_guarded serves only connections that begin with data_opening."},
	{"capabilities", "A ready worker lists what it can do in Status.Capabilities: valid names, sorted, including chat or another route."},

	{"prefix-blocks", "A worker that reports prefix_blocks reports at most 512, without repetitions, and sets prefix_block_tokens."},
	{"state-file", "With its defaults a worker saves nothing to StartSpec.StateFile, and removes a file that is already there."},

	{"chat", "A worker that lists chat answers /v1/chat/completions with a complete answer."},
	{"chat-stream", "A streamed chat consists of server-sent events with one id, a finish_reason and [DONE], and at temperature 0 has the same text as the whole answer."},
	{"completions", "A worker that lists completions answers /v1/completions, whole and streamed."},
	{"usage", "usage counts the tokens of the prompt and of the answer: exactly max_tokens if that ended the answer, and the same for a streamed and a whole answer."},
	{"utf8", "Every event is valid UTF-8: an incomplete character waits for the next event."},
	{"errors", "Errors use OpenAI's envelope with the right status: 400 for a bad request, 404 for an unknown route."},
	{"tools", "A worker that lists tools accepts them; any other rejects them with 400 or 501."},
	{"json-schema", "A worker that lists json_schema answers in JSON on request; any other rejects response_format with 400 or 501."},
	{"logprobs", "A worker that lists logprobs sends them on request; any other rejects them with 400 or 501."},
	{"vision", "A worker that does not list vision rejects images with 400 or 501."},
	{"embeddings", "A worker that lists embeddings answers /v1/embeddings with one vector for each input."},
	{"rerank", "A worker that lists rerank answers /v1/rerank with a score for each document, highest first."},
	{"tokenize", "A worker that lists tokenize answers /tokenize, and /detokenize with the text of its tokens."},

	{"slot-limit", "A worker serves at most as many requests at once as it has slots."},
	{"queue", "Requests beyond the slots wait, and get the same answers as they would alone."},
	{"cancel", "A request whose client disconnects ends within a second and frees its slot."},
	{"cancel-queued", "A request whose client disconnects while it waits for a slot leaves the queue within a second."},
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
