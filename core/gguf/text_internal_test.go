package gguf

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

// Text from a file is shown short and with printable characters only: it goes to terminals.
func TestShownText(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"blk.0.attn_q.weight":         "blk.0.attn_q.weight",
		"a\x1b[31m\x00\xff":           "a?[31m??",
		strings.Repeat("a", 80):       strings.Repeat("a", 80),
		strings.Repeat("a", 81):       strings.Repeat("a", 80) + "…",
		strings.Repeat("a", 79) + "ä": strings.Repeat("a", 79) + "?…",
	} {
		must.Eq(t, want, shown(in))
	}
	for in, want := range map[string]string{
		"  two \x1b words\n":                     "two   words",
		strings.Repeat("a", maxShownBytes):       strings.Repeat("a", maxShownBytes),
		strings.Repeat("a", maxShownBytes) + "b": strings.Repeat("a", maxShownBytes),
	} {
		must.Eq(t, want, clean(in))
	}
}

// Of types that take equally many bytes, the one with the smaller number names the model's
// quantization, whatever the order of a map.
func TestDominating(t *testing.T) {
	t.Parallel()
	for range 50 {
		must.Eq(t, "Q4_0", dominating(map[uint32]uint64{0: 9, 2: 10, 8: 10, 12: 10}))
		must.Eq(t, "Q4_K", dominating(map[uint32]uint64{0: 9, 2: 10, 8: 10, 12: 11}))
	}
	must.Eq(t, "", dominating(nil))
}
