package ssh

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/rbee-project/rbee/core"
)

// Bounds of an OpenSSH configuration.
const (
	maxConfigBytes = 1 << 20
	maxIncludes    = 64 // files, all together
	maxDepth       = 16 // nesting of includes, as in OpenSSH
)

// Config is the part of an OpenSSH client configuration that rbee reads: Host, Include, and the
// values for Lookup. It skips Match blocks.
type Config struct {
	Problems []Problem // unreadable lines, in order

	entries []entry
	hosts   []string // first names of Host lines, in order
	files   int
	home    string
}

// Problem is an unreadable line of a configuration. It does not repeat the line's text.
type Problem struct {
	File string // base name
	Line int
	Text string
}

func (p Problem) String() string { return fmt.Sprintf("%s, line %d: %s", p.File, p.Line, p.Text) }

// entry is one value with the blocks around it, all of which must match.
type entry struct {
	blocks     [][]string
	key, value string
}

// ReadConfig reads the file and its includes; home is the base of "~" and of relative Include
// paths. A missing file is an empty configuration. Errors: Invalid for a file that is too large,
// Internal.
func ReadConfig(file, home string) (*Config, error) {
	c := &Config{home: home}
	text, err := readBounded(file)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, core.WithHint(core.Prefix(err, "read the SSH configuration"), "Name another file.")
	}
	c.read(filepath.Base(file), text, nil, 0)
	return c, nil
}

func readBounded(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", errors.Join(err, core.Errorf(core.Invalid, "%s is not a file", file))
	}
	b, err := io.ReadAll(io.LimitReader(f, maxConfigBytes+1))
	if err == nil && len(b) > maxConfigBytes {
		err = core.Errorf(core.Invalid, "%s has more than %d bytes", file, maxConfigBytes)
	}
	return string(b), err
}

// read adds the lines of one file. outer holds the blocks around the Include.
func (c *Config) read(name, text string, outer [][]string, depth int) {
	blocks := outer // blocks around the current line
	skip := false   // within Match
	line := 0
	bad := func(format string, args ...any) {
		c.Problems = append(c.Problems, Problem{name, line, fmt.Sprintf(format, args...)})
	}
	for raw := range strings.Lines(text) {
		line++
		key, words, err := splitLine(raw)
		switch {
		case err != "":
			bad("%s", err)
		case key == "":
		case key == "host":
			blocks, skip = append(slices.Clone(outer), words), false
			if len(words) == 0 {
				bad("Host names no host")
				skip = true
				continue
			}
			c.addHost(words, bad)
		case key == "match":
			skip = true
		case skip:
		case len(words) == 0:
			bad("a value is missing")
		case key == "include":
			for _, pattern := range words {
				if problem := c.include(pattern, blocks, depth); problem != "" {
					bad("%s", problem)
				}
			}
		default:
			if key == "port" {
				if n, err := strconv.Atoi(words[0]); err != nil || n < 1 || n > 65535 {
					bad("the port is no number between 1 and 65535")
					continue
				}
			}
			c.entries = append(c.entries, entry{blocks, key, strings.Join(words, " ")})
		}
	}
}

// addHost records the first name of a Host line, unless it is a pattern.
func (c *Config) addHost(words []string, bad func(string, ...any)) {
	for _, w := range words {
		if strings.ContainsAny(w, "*?!") {
			continue
		}
		if !hostWord.MatchString(w) {
			bad("a name of the host has characters that no host name has")
			return
		}
		if !slices.Contains(c.hosts, w) {
			c.hosts = append(c.hosts, w)
		}
		return
	}
}

func (c *Config) include(pattern string, blocks [][]string, depth int) (problem string) {
	if depth+1 >= maxDepth {
		return "Include goes too deep"
	}
	if rest, ok := strings.CutPrefix(pattern, "~/"); ok {
		pattern = filepath.Join(c.home, rest)
	}
	if !filepath.IsAbs(pattern) {
		pattern = filepath.Join(c.home, ".ssh", pattern)
	}
	files, err := filepath.Glob(pattern)
	if err != nil {
		return "Include has a pattern that cannot be read"
	}
	for _, f := range files {
		if c.files++; c.files > maxIncludes {
			return "Include names too many files"
		}
		text, err := readBounded(f)
		if err != nil {
			return "an included file cannot be read"
		}
		c.read(filepath.Base(f), text, blocks, depth+1)
	}
	return ""
}

// splitLine splits a line into the keyword in lower case and its arguments. An empty line or a
// comment has no keyword.
func splitLine(line string) (key string, words []string, problem string) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return "", nil, ""
	}
	if strings.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f || r == '\uFFFD' }) {
		return "", nil, "it has control characters"
	}
	end := strings.IndexAny(line, " \t=\"")
	if end < 0 {
		return strings.ToLower(line), nil, ""
	}
	key = strings.ToLower(line[:end])
	rest := strings.TrimLeft(line[end:], " \t")
	if after, ok := strings.CutPrefix(rest, "="); ok {
		rest = strings.TrimLeft(after, " \t")
	}
	if key == "" {
		return "", nil, "it begins with no keyword"
	}
	for rest != "" {
		var word string
		if rest[0] == '"' {
			close := strings.IndexByte(rest[1:], '"')
			if close < 0 {
				return "", nil, "a quotation mark is missing"
			}
			word, rest = rest[1:1+close], rest[close+2:]
		} else {
			if rest[0] == '#' {
				break
			}
			word = rest
			if i := strings.IndexAny(rest, " \t"); i >= 0 {
				word = rest[:i]
			}
			rest = rest[len(word):]
		}
		words = append(words, word)
		rest = strings.TrimLeft(rest, " \t")
	}
	return key, words, ""
}

// Hosts returns the first names of the Host lines, without patterns, in the order of the file.
func (c *Config) Hosts() []string { return slices.Clone(c.hosts) }

// Lookup returns the first value of a keyword (in lower case) that applies to a host; empty: none.
func (c *Config) Lookup(host, key string) string {
	for _, e := range c.entries {
		if e.key == key && e.fits(host) {
			return e.value
		}
	}
	return ""
}

// LookupAll returns every value of a keyword that applies to a host, in order: OpenSSH accumulates
// identity files.
func (c *Config) LookupAll(host, key string) []string {
	var out []string
	for _, e := range c.entries {
		if e.key == key && e.fits(host) {
			out = append(out, e.value)
		}
	}
	return out
}

func (e entry) fits(host string) bool {
	for _, patterns := range e.blocks {
		hit := false
		for _, p := range patterns {
			p, not := strings.CutPrefix(p, "!")
			if match(p, host) {
				if not {
					return false
				}
				hit = true
			}
		}
		if !hit {
			return false
		}
	}
	return true
}

// match implements OpenSSH's patterns: "*" matches any text, "?" any one character. It takes at
// most len(pattern)·len(text) steps.
func match(pattern, text string) bool {
	pi, ti, star, mark := 0, 0, -1, 0
	for ti < len(text) {
		switch {
		case pi < len(pattern) && pattern[pi] == '*':
			star, mark = pi, ti
			pi++
		case pi < len(pattern) && (pattern[pi] == '?' || pattern[pi] == text[ti]):
			pi++
			ti++
		case star >= 0:
			mark++
			pi, ti = star+1, mark
		default:
			return false
		}
	}
	return strings.Trim(pattern[pi:], "*") == ""
}
