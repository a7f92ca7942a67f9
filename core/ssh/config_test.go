package ssh

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestReadConfig(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		text     string
		files    map[string]string
		hosts    []string
		problems []string
		lookups  map[string]string // "host keyword" → value
	}{
		{
			name: "first value wins", text: "Host box\n  User a\n  User b\nHost *\n  User c\n  Port 2200\n", hosts: []string{"box"},
			lookups: map[string]string{"box user": "a", "box port": "2200", "other user": "c"},
		},
		{
			name: "first alias only, patterns skipped", text: "Host gpu1 gpu1.example.org\nHost *.lan\nHost !no ?x yes\n", hosts: []string{"gpu1", "yes"},
		},
		{
			name: "negation", text: "Host *.lan !old.lan\n User a\n", lookups: map[string]string{"new.lan user": "a", "old.lan user": ""},
		},
		{
			name: "match is skipped", text: "Host a\n User x\nMatch host a exec \"rm -rf /\"\n User y\n Include bad\n broken\nHost b\n User z\n", hosts: []string{"a", "b"},
			lookups: map[string]string{"a user": "x", "b user": "z"},
		},
		{
			name: "quotes and equals signs", text: "HOST=\"box\"\nIdentityFile = \"/a b/key\"\n", hosts: []string{"box"},
			lookups: map[string]string{"box identityfile": "/a b/key"},
		},
		{
			name: "include", text: "Include inc/*\nHost a\n Include nested\nHost z\n", files: map[string]string{"inc/1": "Host i\n User one\n", "nested": "User n\nHost never\n User x\n"},
			hosts: []string{"i", "a", "never", "z"}, lookups: map[string]string{"i user": "one", "a user": "n", "z user": "", "never user": ""},
		},
		{
			name: "include of itself ends", text: "Include config\nHost a\n", hosts: []string{"a"},
			problems: []string{"config, line 1: Include goes too deep"},
		},
		{
			name: "broken lines by number", text: "Host ok\n Port 99999\n User\nHost\n User lost\nHost \"x\nHost $(reboot)\n\x01\nHost fine\n", hosts: []string{"ok", "fine"},
			problems: []string{
				"config, line 2: the port is no number between 1 and 65535", "config, line 3: a value is missing", "config, line 4: Host names no host",
				"config, line 6: a quotation mark is missing", "config, line 7: a name of the host has characters that no host name has", "config, line 8: it has control characters",
			},
			lookups: map[string]string{"ok user": "", "fine user": ""},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			home := t.TempDir()
			must.NoError(t, os.MkdirAll(filepath.Join(home, ".ssh", "inc"), 0o700))
			for f, text := range c.files {
				must.NoError(t, os.WriteFile(filepath.Join(home, ".ssh", f), []byte(text), 0o600))
			}
			file := filepath.Join(home, ".ssh", "config")
			must.NoError(t, os.WriteFile(file, []byte(c.text), 0o600))
			got, err := ReadConfig(file, home)
			must.NoError(t, err)
			must.Eq(t, append([]string{}, c.hosts...), append([]string{}, got.Hosts()...))
			var problems []string
			for _, p := range got.Problems {
				problems = append(problems, p.String())
			}
			must.Eq(t, c.problems, problems)
			for q, want := range c.lookups {
				host, key, _ := strings.Cut(q, " ")
				must.Eq(t, want, got.Lookup(host, key), must.Sprint(q))
			}
		})
	}
}

func TestConfigBounds(t *testing.T) {
	t.Parallel()
	home := t.TempDir()
	file := filepath.Join(home, "config")
	got, err := ReadConfig(file, home)
	must.NoError(t, err)
	must.SliceEmpty(t, got.Hosts())
	must.NoError(t, os.WriteFile(file, make([]byte, maxConfigBytes+1), 0o600))
	_, err = ReadConfig(file, home)
	must.Eq(t, core.Invalid, core.KindOf(err))
	_, err = ReadConfig(home, home)
	must.Eq(t, core.Invalid, core.KindOf(err))
}

func TestMatch(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		pattern, text string
		want          bool
	}{
		{"*", "", true},
		{"*", "abc", true},
		{"a*c", "abbc", true},
		{"a*c", "abb", false},
		{"a?c", "abc", true},
		{"a?c", "ac", false},
		{"", "", true},
		{"", "a", false},
		{"*a*b*", "xxaxxbxx", true},
		{strings.Repeat("*a", 200), strings.Repeat("a", 199) + "b", false},
	} {
		must.Eq(t, c.want, match(c.pattern, c.text), must.Sprint(c.pattern, c.text))
	}
}

func TestCheckTarget(t *testing.T) {
	t.Parallel()
	for _, good := range []Target{{Host: "box"}, {Host: "10.0.0.1"}, {Host: "fe80::1"}, {Host: "::1"}, {Host: "a.b-c_d"}, {Host: "b", User: "bee", Port: 65535, HostName: "h"}} {
		must.NoError(t, good.Check())
	}
	for _, bad := range []string{"", "-oProxyCommand=x", "a b", "$(reboot)", "a\nb", "a;b", "`x`", "a/b", "a@b", "a'b", "a\x00", "é", strings.Repeat("a", 300), ".a", "[::1]"} {
		must.Eq(t, core.Invalid, core.KindOf(Target{Host: bad}.Check()), must.Sprintf("host %q", bad))
		if bad != "" {
			must.Eq(t, core.Invalid, core.KindOf(Target{Host: "ok", HostName: bad}.Check()), must.Sprintf("host name %q", bad))
		}
		if bad != "" && bad != "a@b" {
			must.Eq(t, core.Invalid, core.KindOf(Target{Host: "ok", User: bad}.Check()), must.Sprintf("user %q", bad))
		}
	}
	must.Eq(t, core.Invalid, core.KindOf(Target{Host: "ok", Port: 65536}.Check()))
	must.Eq(t, core.Invalid, core.KindOf(Target{Host: "ok", Port: -1}.Check()))
}

// FuzzTarget: an accepted target contains nothing that a shell or an option parser would treat as
// more than a word.
func FuzzTarget(f *testing.F) {
	for _, s := range []string{"box", "-x", "a b", "$(x)", "a\nb", "\u00e9", "a\\b", "fe80::1"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, host, user string) {
		if (Target{Host: host, HostName: host, User: user}).Check() != nil {
			return
		}
		for _, word := range []string{host, user} {
			if strings.HasPrefix(word, "-") || strings.ContainsAny(word, " \t\r\n'\"`$&;|<>(){}[]\\*?!~#%=/") || len(word) > 253 {
				t.Errorf("%q passed", word)
			}
			for _, r := range word {
				if r < ' ' || r > '~' {
					t.Errorf("%q passed", word)
				}
			}
		}
	})
}

// FuzzQuote: a POSIX shell reads quoted text back as one word. unquote implements that grammar, and
// TestQuoteInAShell checks it with a real shell.
func FuzzQuote(f *testing.F) {
	for _, s := range []string{"", "a", "a b", "'", "''", `\'`, "$(x)", "`x`", "a\nb", "!", `"`, "\x01\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := Quote(s)
		if strings.ContainsRune(s, 0) {
			must.Eq(t, core.Invalid, core.KindOf(err))
			return
		}
		must.NoError(t, err)
		words, ok := unquote(q + " " + q)
		must.True(t, ok, must.Sprintf("%q", q))
		must.Eq(t, []string{s, s}, words)
	})
}

// unquote parses words of single quotes and backslashes, as in XCU 2.2; it rejects anything else.
func unquote(line string) (words []string, ok bool) {
	word, in := "", false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '\'':
			end := strings.IndexByte(line[i+1:], '\'')
			if end < 0 {
				return nil, false
			}
			word, in = word+line[i+1:i+1+end], true
			i += end + 1
		case c == '\\' && i+1 < len(line):
			i++
			word, in = word+string(line[i]), true
		case c == ' ':
			if in {
				words = append(words, word)
			}
			word, in = "", false
		default:
			return nil, false
		}
	}
	if in {
		words = append(words, word)
	}
	return words, true
}

func TestQuoteInAShell(t *testing.T) {
	t.Parallel()
	args := []string{"", "a b", "it's", `\`, `'\''`, "$(touch x)", "`id`", "a\nb", "*", "~", "-n", "$HOME", `"`, "!!", "é", "a;b", "&&"}
	line, err := Command(append([]string{"printf", `[%s]`}, args...)...)
	must.NoError(t, err)
	out, err := exec.CommandContext(t.Context(), "sh", "-c", line).CombinedOutput()
	must.NoError(t, err)
	must.Eq(t, "["+strings.Join(args, "][")+"]", string(out))
	_, err = Command("a", "b\x00c")
	must.Eq(t, core.Invalid, core.KindOf(err))
}

func FuzzReadConfig(f *testing.F) {
	f.Add("Host a b\n User x\nMatch all\n Port 1\nHost *\n Include nothing\n Port 22\n")
	f.Add("Host=\"a\"\n\x00 \n HostName \"")
	f.Fuzz(func(t *testing.T, text string) {
		c := &Config{home: t.TempDir()}
		c.read("config", text, nil, 0)
		for _, h := range c.Hosts() {
			must.NoError(t, Target{Host: h}.Check())
			_ = c.Lookup(h, "user")
			d := &Dialer{Home: "/home/x"}
			if r, err := d.routeTo(Target{Host: h, User: "u"}, c); err == nil {
				must.NoError(t, Target{Host: r.hostName, User: r.user, Port: r.port}.Check())
			}
		}
		for _, p := range c.Problems {
			must.Between(t, 1, p.Line, strings.Count(text, "\n")+1)
		}
	})
}
