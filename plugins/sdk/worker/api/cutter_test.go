package api

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shoenig/test/must"
)

func TestCutter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stops  []string
		tokens []string
		texts  []string // passed on after each token, and at the end
		ended  bool
	}{
		"no stop string":                 {nil, []string{"a", " b"}, []string{"a", " b", ""}, false},
		"within a token":                 {[]string{"END"}, []string{"one END two"}, []string{"one "}, true},
		"across tokens":                  {[]string{"END"}, []string{"one E", "N", "D"}, []string{"one ", "", ""}, true},
		"began and went on differently":  {[]string{"END"}, []string{"E", "N", "X"}, []string{"", "", "ENX", ""}, false},
		"began and the answer ended":     {[]string{"END"}, []string{"E", "N"}, []string{"", "", "EN"}, false},
		"the first of several":           {[]string{"cd", "b"}, []string{"abcd"}, []string{"a"}, true},
		"one that begins like another":   {[]string{"aab"}, []string{"aa", "ab"}, []string{"", "a"}, true},
		"character in parts":             {nil, []string{"z\xc3", "\xbcrich"}, []string{"z", "ürich", ""}, false},
		"character in single bytes":      {nil, []string{"\xf0", "\x9f", "\x90", "\x9d"}, []string{"", "", "", "🐝", ""}, false},
		"character that stays a part":    {nil, []string{"a\xf0\x9f"}, []string{"a", "\xf0\x9f"}, false},
		"byte that begins no character":  {nil, []string{"a\xbf"}, []string{"a\xbf", ""}, false},
		"empty stop string and no token": {[]string{""}, []string{"", "a"}, []string{"", "a", ""}, false},
	} {
		cut := cutter{stops: c.stops}
		var texts []string
		ended := false
		for _, token := range c.tokens {
			var text string
			text, ended = cut.push(token)
			texts = append(texts, text)
		}
		if !ended {
			texts = append(texts, cut.rest())
		}
		must.Eq(t, c.texts, texts, must.Sprint(name))
		must.Eq(t, c.ended, ended, must.Sprint(name))
	}
}

// However an answer is split into tokens, the text before the first completed stop string is passed
// on, and every piece but the last consists of whole characters.
func FuzzCutter(f *testing.F) {
	f.Add("one END two", "END", "t", 2)
	f.Add("zürich 🐝🐝", "🐝🐝", "", 1)
	f.Add("aaab", "aab", "ab", 1)
	f.Fuzz(func(t *testing.T, answer, stop, other string, size int) {
		size = 1 + max(size, -size)%7
		cut := cutter{stops: []string{stop, other}}
		var got strings.Builder
		for at := 0; at < len(answer); at += size {
			upTo := min(at+size, len(answer))
			text, ended := cut.push(answer[at:upTo])
			got.WriteString(text)
			if utf8.ValidString(answer) && !ended && !utf8.ValidString(text) {
				t.Fatalf("%q was passed on of %q", text, answer)
			}
			first := -1
			for _, s := range cut.stops {
				if i := strings.Index(answer[:upTo], s); s != "" && i >= 0 && (first < 0 || i < first) {
					first = i
				}
			}
			if ended != (first >= 0) {
				t.Fatalf("ended is %t with %q of %q, stops %q", ended, answer[:upTo], answer, cut.stops)
			}
			if ended {
				if got.String() != answer[:first] {
					t.Fatalf("%q of %q, stops %q", got.String(), answer, cut.stops)
				}
				return
			}
		}
		if got.WriteString(cut.rest()); got.String() != answer {
			t.Fatalf("%q of %q, stops %q", got.String(), answer, cut.stops)
		}
	})
}
