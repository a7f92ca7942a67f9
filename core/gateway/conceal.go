package gateway

import (
	"regexp"
	"strings"
)

// concealed is an error for an inference client, with everything about the machines behind the API
// removed: paths, addresses, sockets and name servers. GET /v1/requests/{id} has the full text for
// those allowed to read it; the log does not, as errors may repeat what a user wrote.
type concealed struct{ err error }

func (e *concealed) Error() string { return conceal(e.err.Error()) }
func (e *concealed) Unwrap() error { return e.err }

// secrets are the patterns that conceal removes, longest kind first.
var secrets = []struct {
	find *regexp.Regexp
	by   string
}{
	// The form in which the net package reports the address it tried.
	{regexp.MustCompile(`\b(dial|read|write|listen|accept) (tcp|udp|unix|ip)[46]?( \S+->\S+| \S+)?:? ?`), ""},
	{regexp.MustCompile(`\blookup \S+( on \S+)?:? ?`), "name lookup: "},
	// Absolute paths of two or more parts, and socket files. keep exempts the API's own routes.
	{regexp.MustCompile(`(^|[\s"'(=:\[])(~?/[^\s"'():,;]+/[^\s"'():,;]+|[^\s"'():,;]+\.sock)`), "$1(file)"},
	{regexp.MustCompile(`\[[0-9a-fA-F:.%]*:[0-9a-fA-F:.%a-z]*\](:\d+)?`), "(address)"},
	{regexp.MustCompile(`\b\d{1,3}(\.\d{1,3}){3}(:\d+)?\b`), "(address)"},
	{regexp.MustCompile(`\b[0-9a-fA-F]{0,4}(:[0-9a-fA-F]{0,4}){3,7}\b`), "(address)"},
	{regexp.MustCompile(`\b[A-Za-z0-9][A-Za-z0-9.-]*:(\d{4,5})\b`), "(address)"},
}

// apiRoute matches the API routes that an error tells a client to use.
var apiRoute = regexp.MustCompile(`(GET|POST|DELETE|PUT|HEAD) /[^\s"']*|/v1/[a-z/_-]+`)

// conceal replaces anything that reveals the server's files or network in a text for an inference
// client.
func conceal(s string) string {
	var b strings.Builder
	at := 0
	for _, kept := range apiRoute.FindAllStringIndex(s, -1) {
		b.WriteString(concealPart(s[at:kept[0]]))
		b.WriteString(s[kept[0]:kept[1]])
		at = kept[1]
	}
	b.WriteString(concealPart(s[at:]))
	return b.String()
}

func concealPart(s string) string {
	for _, secret := range secrets {
		s = secret.find.ReplaceAllString(s, secret.by)
	}
	return s
}
