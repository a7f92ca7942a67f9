package hive

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/shoenig/test/must"
)

func TestTailFile(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	lines, err := tailFile(path, 3)
	must.NoError(t, err)
	must.Len(t, 0, lines)

	must.NoError(t, os.WriteFile(path, []byte(strings.Repeat("early "+strings.Repeat("x", 100)+"\n", 2000)+
		`{"@level":"warn","@message":"slow disk","@timestamp":"2026-11-23T10:00:00Z","worker":"w1","ms":7}`+"\n\nplain\x1b[2J line\n"), 0o600))
	lines, err = tailFile(path, 2)
	must.NoError(t, err)
	must.Eq(t, []string{"2026-11-23T10:00:00Z [WARN] slow disk: ms=7 worker=w1", "plain [2J line"}, lines)
	lines, err = tailFile(path, 1<<20)
	must.NoError(t, err)
	must.Between(t, 100, len(lines), tailBytes/100)
	for _, l := range lines[:len(lines)-2] {
		must.StrHasPrefix(t, "early ", l) // no torn first line
	}
}

func FuzzLogLine(f *testing.F) {
	f.Add(`{"@message":"x","a":{"b":[1]}}`)
	f.Add("\x1b]0;title\x07")
	f.Add(strings.Repeat("ä", 3000))
	f.Fuzz(func(t *testing.T, in string) {
		out := logLine(in)
		if !utf8.ValidString(out) || strings.ContainsFunc(out, func(r rune) bool { return r < ' ' || r == 0x7f }) || len(out) > maxLineBytes+len("…") {
			t.Fatalf("%q", out)
		}
	})
}

// The tail of a recently rotated log begins in the older piece, possibly in the middle of a line.
func TestTailRotatedLog(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "log")
	tail := func(n int, want ...string) {
		t.Helper()
		lines, err := tailFile(path, n)
		must.NoError(t, err)
		must.Eq(t, want, lines)
	}
	must.NoError(t, os.WriteFile(olderLog(path), []byte(strings.Repeat("early "+strings.Repeat("x", 100)+"\n", 2000)+"one\ntwo\nthr"), 0o600))
	must.NoError(t, os.WriteFile(path, nil, 0o600))
	tail(2, "two", "thr")
	must.NoError(t, os.WriteFile(path, []byte("ee\nfour\n"), 0o600))
	tail(3, "two", "three", "four")
	must.NoError(t, os.WriteFile(path, []byte(strings.Repeat("y", 2*tailBytes)+"\nfive\n"), 0o600))
	tail(3, "five") // and nothing from before the omitted part
}
