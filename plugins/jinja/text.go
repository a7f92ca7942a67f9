package jinja

import (
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

// Text is a string that records which of its bytes came from a client. The zero value is the empty
// text of the template. A Text is immutable and safe for concurrent use.
type Text struct {
	s      string
	client []span // sorted, disjoint, not touching; byte offsets into s
	markup bool   // Jinja's Markup: text that escapes what is appended to it
}

// span is the half-open range of bytes [from, to).
type span struct{ from, to int }

// Span is a piece of a rendered text that has one origin.
type Span struct {
	Text   string
	Client bool // whether a client wrote it; false: the template or the caller of Render did
}

// ClientText returns text that a client wrote.
func ClientText(s string) Text {
	if s == "" {
		return Text{}
	}
	return Text{s: s, client: []span{{0, len(s)}}}
}

// TemplateText returns text that is trusted like the template's own.
func TemplateText(s string) Text { return Text{s: s} }

// String returns the text without its origins.
func (t Text) String() string { return t.s }

// Spans cuts the text where its origin changes. Joined, the spans are the text.
func (t Text) Spans() []Span {
	var spans []Span
	at := 0
	for _, c := range t.client {
		if c.from > at {
			spans = append(spans, Span{Text: t.s[at:c.from]})
		}
		spans = append(spans, Span{Text: t.s[c.from:c.to], Client: true})
		at = c.to
	}
	if at < len(t.s) {
		spans = append(spans, Span{Text: t.s[at:]})
	}
	return spans
}

// HasClient reports whether a client wrote any of the bytes [from, to).
func (t Text) HasClient(from, to int) bool {
	n, found := slices.BinarySearchFunc(t.client, from, func(c span, at int) int {
		if c.to <= at {
			return -1
		}
		return 0
	})
	return found && t.client[n].from < to
}

// Head returns the first n bytes, with their origins. The text must have at least n.
func (t Text) Head(n int) Text { return t.slice(0, n) }

// slice returns the bytes [from, to) with their origins.
func (t Text) slice(from, to int) Text {
	out := Text{s: t.s[from:to], markup: t.markup}
	for _, c := range t.client {
		if a, b := max(c.from, from), min(c.to, to); a < b {
			out.client = append(out.client, span{a - from, b - from})
		}
	}
	return out
}

// taint returns made, the result of using the text as part of a format string. All of it counts as
// a client's if any of the text does, since its fill characters and signs come from there.
func (t Text) taint(made Text) Text {
	if len(t.client) == 0 {
		return made
	}
	out := ClientText(made.s)
	out.markup = made.markup
	return out
}

// runes returns the number of characters, as Python counts them.
func (t Text) runes() int { return utf8.RuneCountInString(t.s) }

// plain returns the text without Markup's escaping.
func (t Text) plain() Text {
	t.markup = false
	return t
}

// textBuilder joins texts and keeps their origins.
type textBuilder struct {
	b      strings.Builder
	client []span
}

func (b *textBuilder) add(t Text) {
	at := b.b.Len()
	b.b.WriteString(t.s)
	for _, c := range t.client {
		b.mark(at+c.from, at+c.to)
	}
}

// addString appends a string of one origin.
func (b *textBuilder) addString(s string, client bool) {
	at := b.b.Len()
	b.b.WriteString(s)
	if client {
		b.mark(at, at+len(s))
	}
}

func (b *textBuilder) addRune(r rune, client bool) {
	at := b.b.Len()
	b.b.WriteRune(r)
	if client {
		b.mark(at, b.b.Len())
	}
}

func (b *textBuilder) mark(from, to int) {
	if from == to {
		return
	}
	if n := len(b.client); n > 0 && b.client[n-1].to == from {
		b.client[n-1].to = to
		return
	}
	b.client = append(b.client, span{from, to})
}

func (b *textBuilder) len() int { return b.b.Len() }

func (b *textBuilder) text() Text { return Text{s: b.b.String(), client: b.client} }

// mapRunes replaces each character; the replacement keeps its origin.
func (t Text) mapRunes(f func(r rune) string) Text {
	var b textBuilder
	b.b.Grow(len(t.s))
	for c := range t.chars() {
		r, _ := utf8.DecodeRuneInString(c.text)
		b.addString(f(r), c.client)
	}
	out := b.text()
	out.markup = t.markup
	return out
}

// char is one character with its origin.
type char struct {
	text   string
	client bool
}

// chars cuts the text into characters.
func (t Text) chars() iter.Seq[char] {
	return func(yield func(char) bool) {
		at := 0
		for i := 0; i < len(t.s); {
			_, n := utf8.DecodeRuneInString(t.s[i:])
			for at < len(t.client) && t.client[at].to <= i {
				at++
			}
			if !yield(char{t.s[i : i+n], at < len(t.client) && t.client[at].from <= i}) {
				return
			}
			i += n
		}
	}
}

// offset returns the byte offset of character n; the length of the text if it has at most n
// characters.
func (t Text) offset(n int) int {
	if n <= 0 {
		return 0
	}
	for i := range t.s {
		if n == 0 {
			return i
		}
		n--
	}
	return len(t.s)
}
