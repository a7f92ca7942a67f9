package core_test

import (
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestNearest(t *testing.T) {
	t.Parallel()
	names := []string{"rbee-tiny", "qwen-7b", "qwen-14b", "worker", "model", "status", "", "ps"}
	for want, expected := range map[string][]string{
		"rbee-tyni":               {"rbee-tiny"},
		"RBEE-TINY":               {"rbee-tiny"},
		"qwen":                    {"qwen-14b", "qwen-7b"},
		"wroker":                  {"worker"},
		"stat":                    {"status"},
		"x":                       nil,
		"ab":                      nil,
		"pq":                      {"ps"},
		"":                        nil,
		"entirely-else":           nil,
		strings.Repeat("é", 9999): nil,
	} {
		must.Eq(t, expected, core.Nearest(want, names), must.Sprint(want[:min(len(want), 20)]))
	}
	must.Eq(t, []string{"aa", "ab", "ac"}, core.Nearest("aaa", []string{"ad", "ac", "ab", "aa", "aa"}))
}
