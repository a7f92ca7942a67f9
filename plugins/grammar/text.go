package grammar

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// CompileRegex compiles a regular expression in the dialect of ECMA 262 that must match the whole
// text.
func CompileRegex(pattern string, opts Options) (*Grammar, error) {
	return newGrammar(opts, compileWork, func(g *Grammar) error {
		q, err := g.set.parseWholeRegex(pattern)
		if err != nil {
			return &Error{Reason: err.Error()}
		}
		return g.textOf(q)
	})
}

// CompileChoice compiles a choice among texts.
func CompileChoice(choices []string, opts Options) (*Grammar, error) {
	size := 0
	for _, c := range choices {
		if !utf8.ValidString(c) {
			return nil, &Error{Reason: fmt.Sprintf("choice %q is not valid UTF-8", c)}
		}
		size += len(c)
	}
	if size > opts.maxBytes() {
		return nil, &Error{Reason: fmt.Sprintf("choices are larger than %d bytes", opts.maxBytes())}
	}
	choices = slices.Clone(choices)
	return newGrammar(opts, compileWork+40*size, func(g *Grammar) error { return g.textOf(g.set.literals(choices)) })
}

// textOf starts a text that matches q.
func (g *Grammar) textOf(q rx) error {
	alive := g.set.alive(q)
	if g.set.exhausted() {
		return &Error{Reason: errRegexSize.Error()}
	}
	if !alive {
		return &Error{Reason: "no text matches"}
	}
	g.first = config{thread: thread{g.leaf(leafKey{kind: lText, q: q}), g.root}}
	return nil
}
