package inference

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// The marks of a conversation's turns share a prefix; a different beginning, key or tools list
// changes them.
func TestPrefixMarks(t *testing.T) {
	t.Parallel()
	s := New(Options{})
	marks := func(key, tools string, messages ...string) []uint64 {
		t.Helper()
		body := `{"model":"m","messages":[` + strings.Join(messages, ",") + `]`
		if tools != "" {
			body += `,"tools":` + tools
		}
		f, err := readFacts([]byte(body+"}"), "")
		must.NoError(t, err)
		return s.prefix(&Request{Path: "/v1/chat/completions", Key: key}, &f)
	}
	say := func(role, text string) string { return fmt.Sprintf(`{"role":%q,"content":%q}`, role, text) }
	long := strings.Repeat("What is a bee? ", 100)
	first := marks("k", "", say("user", long))
	must.Len(t, 5, first) // 1,530 bytes
	second := marks("k", "", say("user", long), say("assistant", "An animal."), say("user", long))
	must.Eq(t, first, second[:len(first)])
	must.Greater(t, len(first), len(second))
	other := marks("k", "", say("user", long[:1000]+"Nothing else. "+long[1000:]))
	must.Eq(t, first[:3], other[:3]) // the 1,000 bytes follow the JSON that starts a message
	for _, m := range other[4:] {
		must.False(t, slices.Contains(second, m))
	}
	for name, none := range map[string][]uint64{
		"another key": marks("l", "", say("user", long)),
		"tools":       marks("k", `[{"type":"function"}]`, say("user", long)),
		"a server":    New(Options{}).prefix(&Request{Path: "/v1/chat/completions", Key: "k"}, &facts{prompt: []byte(long)}),
		"a short one": marks("k", "", say("user", "Hi")),
	} {
		for _, m := range none {
			must.False(t, slices.Contains(first, m), must.Sprint(name))
		}
	}
	must.Len(t, 0, marks("k", "", say("user", "Hi")))

	f, err := readFacts([]byte(`{"model":"m","prompt":"`+strings.Repeat("x", 64<<20)+`"}`), "")
	must.NoError(t, err)
	must.Less(t, 200, len(s.prefix(&Request{Path: "/v1/completions"}, &f)))
}
