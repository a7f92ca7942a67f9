package batch

import (
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shoenig/test/must"
)

func TestSplitter(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		stops   []string
		pieces  []string
		sent    []string // after each piece
		rest    string   // the result of flush
		stopped bool
	}{
		"plain":                    {nil, []string{"a", "b", ""}, []string{"a", "b", ""}, "", false},
		"character in two":         {nil, []string{"a\xe6\x9d", "\xb1b"}, []string{"a", "東b"}, "", false},
		"character in four":        {nil, []string{"\xf0", "\x9f", "\x90", "\x9d"}, []string{"", "", "", "🐝"}, "", false},
		"character never finished": {nil, []string{"a\xf0\x9f"}, []string{"a"}, "\uFFFD\uFFFD", false},
		"character broken off":     {nil, []string{"\xf0\x9f", "x"}, []string{"", "\uFFFD\uFFFDx"}, "", false},
		"no UTF-8":                 {nil, []string{"\xff", "\x80a"}, []string{"\uFFFD", "\uFFFDa"}, "", false},
		"stop in a piece":          {[]string{"END"}, []string{"abENDcd"}, []string{"ab"}, "", true},
		"stop over pieces":         {[]string{"END"}, []string{"aE", "N", "Dx"}, []string{"a", "", ""}, "", true},
		"nearly a stop":            {[]string{"END"}, []string{"E", "N", "x"}, []string{"", "", "ENx"}, "", false},
		"held at the end":          {[]string{"END"}, []string{"aEN"}, []string{"a"}, "EN", false},
		"begins again":             {[]string{"aab"}, []string{"aa", "ab"}, []string{"", "a"}, "", true},
		"first of several":         {[]string{"xyz", "y"}, []string{"wx", "yz"}, []string{"w", ""}, "", true},
		"the shorter comes first":  {[]string{"long one", "lo"}, []string{"l", "ong one"}, []string{"", ""}, "", true},
		"stop of many bytes":       {[]string{"東京"}, []string{"x\xe6\x9d\xb1", "\xe4\xba", "\xac!"}, []string{"x", "", ""}, "", true},
		"one character":            {[]string{"\n"}, []string{"a", "b\nc"}, []string{"a", "b"}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := splitter{stops: c.stops}
			var sent []string
			stopped, pushed := false, 0
			for _, p := range c.pieces {
				var text string
				text, stopped = s.push(p)
				sent = append(sent, text)
				pushed += len(p)
				if !stopped { // all text not held back was sent
					must.Eq(t, pushed-len(s.held), s.sent)
				}
			}
			if stopped {
				must.Eq(t, len(strings.Join(sent, "")), s.sent)
			}
			must.Eq(t, c.sent, sent)
			must.Eq(t, c.stopped, stopped)
			must.Eq(t, c.rest, s.flush())
			must.Eq(t, "", s.flush())
		})
	}
}

// However a text is cut into pieces, the text sent is complete and stops at the stop string.
func FuzzSplitter(f *testing.F) {
	f.Add("hello END more", "END", "", byte(1))
	f.Add("東京 🐝\xff\xf0\x9f", "京", "\xf0", byte(2))
	f.Add("aaab aaaab", "aab", "aaaa", byte(3))
	f.Add("abcde", "abcde", "c", byte(0))
	f.Add("\xe6\xe6\x9d\xb1\xf0\x90", "\x9d", "", byte(1))
	f.Fuzz(func(t *testing.T, text, stop1, stop2 string, size byte) {
		var stops []string
		for _, s := range []string{stop1, stop2} {
			if s != "" && utf8.ValidString(s) {
				stops = append(stops, s)
			}
		}
		n := int(size%5) + 1
		// Expected: everything before the first stop string, once a piece completes one.
		end, complete := len(text), false
		for i := n; !complete && i < len(text)+n; i += n {
			for _, s := range stops {
				if at := strings.Index(text[:min(i, len(text))], s); at >= 0 {
					end, complete = min(end, at), true
				}
			}
		}
		s := splitter{stops: stops}
		var got strings.Builder
		stopped := false
		for i := 0; i < len(text) && !stopped; i += n {
			var part string
			part, stopped = s.push(text[i:min(i+n, len(text))])
			if !utf8.ValidString(part) {
				t.Fatalf("%q is not UTF-8", part)
			}
			got.WriteString(part)
		}
		if !stopped {
			got.WriteString(s.flush())
		}
		if want := validText(text[:end]); got.String() != want {
			t.Fatalf("%q in pieces of %d with stops %q: got %q, want %q", text, n, stops, got.String(), want)
		}
		if stopped != complete {
			t.Fatalf("%q in pieces of %d with stops %q: stopped is %v", text, n, stops, stopped)
		}
	})
}
