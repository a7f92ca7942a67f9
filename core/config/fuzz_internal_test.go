package config

import (
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/shoenig/test/must"
)

// Loading any file returns either a Config or printable errors, never both and never neither.
func FuzzSource(f *testing.F) {
	names, err := filepath.Glob("testdata/*.hcl")
	must.NoError(f, err)
	for _, n := range names {
		src, err := os.ReadFile(n)
		must.NoError(f, err)
		f.Add(src, false)
	}
	f.Add([]byte(`{"queen":{"enabled":true},"worker":{"a":[{"config":{}},{"env":[null]}]}}`), true)
	f.Fuzz(func(t *testing.T, src []byte, json bool) {
		env := func(name string) (string, bool) { return "/home/me", name == "HOME" }
		name := "x.hcl"
		if json {
			name = "x.json"
		}
		l := newLoader(defaults(env))
		l.source(src, name)
		l.c.files = l.parser.Files()
		c, diags := l.finish(env)
		must.Eq(t, diags.HasErrors(), c == nil)
		must.NoError(t, diags.Write(io.Discard, 80, false))
	})
}
