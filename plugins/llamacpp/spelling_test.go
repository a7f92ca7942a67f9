package llamacpp

import (
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/shoenig/test/must"
)

func TestCutRuns(t *testing.T) {
	t.Parallel()
	control := newControlTokens([]string{"<|im_end|>", "<s>"})
	prose := strings.Repeat("Every word of this goes on, and so does the next one. ", 200)
	for name, c := range map[string]struct {
		text  string
		parts int
		ends  string // end of the first part
	}{
		"short":          {"a b", 1, "a b"},
		"empty":          {"", 1, ""},
		"letters":        {strings.Repeat("a", 3*maxRun), 3, "aaa"},
		"wide letters":   {strings.Repeat("漢", 2*maxRun), 2, "漢漢"},
		"blanks":         {strings.Repeat(" ", maxRun) + "a" + strings.Repeat("\n", maxRun+1), 3, "   "},
		"short lines":    {strings.Repeat(strings.Repeat("a", 100)+"\n", 1000), 1, "a\n"},
		"prose":          {prose, 6, "next"},
		"behind letters": {strings.Repeat("x", maxRun-2) + "0123", 2, "xx"},
		"marks":          {strings.Repeat("x", maxRun-1) + "\u0301yz", 2, "x\u0301"},
		"control":        {strings.Repeat("x", maxRun-3) + "<|im_end|>" + strings.Repeat("x", maxRun-1), 1, "x"},
		"all control":    {strings.Repeat("<|im_end|>", maxRun), 1, "<|im_end|>"},
		"bytes":          {strings.Repeat("\xff", maxRun+1), 2, "\xff"},
	} {
		parts := cutRuns(c.text, control)
		must.Len(t, c.parts, parts, must.Sprint(name))
		must.Eq(t, c.text, strings.Join(parts, ""), must.Sprint(name))
		must.StrHasSuffix(t, c.ends, parts[0], must.Sprint(name))
	}
	must.Greater(t, 1, len(cutRuns(strings.Repeat("<s>", maxRun), &controlTokens{}))) // here it is plain text
}

// longestRun returns the length that cutRuns bounds.
func longestRun(text string, control *controlTokens) int {
	most, line, run, was := 0, 0, 0, false
	for i := 0; i < len(text); {
		if n := control.at(text, i); n > 0 {
			i, line, run = i+n, 0, 0
			continue
		}
		r, size := utf8.DecodeRuneInString(text[i:])
		if unicode.IsSpace(r) != was {
			run, was = 0, !was
		}
		line, run, i = line+1, run+1, i+size
		most = max(most, line, run)
		if r == '\n' {
			line = 0
		}
	}
	return most
}

// For any text, the parts join to the text, no run exceeds the bound, and no control token is cut.
func FuzzCutRuns(f *testing.F) {
	for _, s := range []string{"", "a", " ", "\n", "a b", "<s>", "é\u0301", "\xf0", "1,2", "a<|im_end|>"} {
		f.Add(s, uint16(3000))
	}
	control := newControlTokens([]string{"<s>", "<|im_end|>"})
	f.Fuzz(func(t *testing.T, unit string, n uint16) {
		text := strings.Repeat(unit, int(n)%5000)
		if len(text) > 1<<20 {
			return
		}
		parts := cutRuns(text, control)
		if strings.Join(parts, "") != text {
			t.Fatal("the parts are another text")
		}
		whole := map[int]bool{} // where a part may begin
		for i := 0; i < len(text); {
			whole[i] = true
			i += max(1, control.at(text, i))
		}
		at := 0
		for i, p := range parts {
			if i > 0 && !whole[at] {
				t.Fatalf("a control token is cut at byte %d", at)
			}
			at += len(p)
			if most := longestRun(p, control); most > maxRun {
				t.Fatalf("a run of %d characters", most)
			}
		}
	})
}
