package hostinfo

import (
	"os"
	"strings"
	"testing"

	"github.com/shoenig/test/must"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	tail := " 7 9 9 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 4242 1000 100"
	for name, c := range map[string]struct {
		in   string
		want stat
		bad  bool
	}{
		"plain":                 {in: "12 (sleep) S" + tail, want: stat{state: 'S', parent: 7, group: 9, start: 4242}},
		"parentheses and space": {in: "12 (a) Z 1 2 (b) Z" + tail, want: stat{state: 'Z', parent: 7, group: 9, start: 4242}},
		"kernel thread":         {in: "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 3 0 0", want: stat{state: 'S', kernel: true, start: 3}},
		"its environment":       {in: "12 (sleep) S" + tail + strings.Repeat(" 0", 25) + " 4096 5000 0", want: stat{state: 'S', parent: 7, group: 9, start: 4242, envStart: 4096, envEnd: 5000}},
		"empty":                 {bad: true},
		"short":                 {in: "12 (sleep) S 7 9", bad: true},
		"no number":             {in: "12 (sleep) S x" + tail, bad: true},
		"negative start":        {in: "12 (sleep) S 7 9 9 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 -1 1000", bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parseStat([]byte(c.in))
			if c.bad {
				must.Error(t, err)
				return
			}
			must.NoError(t, err)
			must.True(t, c.want == got, must.Sprintf("got %+v", got))
		})
	}
	must.True(t, stat{state: 'Z'}.ended())
	must.False(t, stat{state: 'S'}.ended())
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	must.NoError(f, err)
	f.Add(own)
	f.Add([]byte("1 ( ) ) R 0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && s.state == 0 {
			t.Fatal("taken without a state")
		}
	})
}
