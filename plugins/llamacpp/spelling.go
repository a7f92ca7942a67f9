package llamacpp

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// maxRun bounds the characters of a line, or of a word, that the engine gets in one piece if its
// vocabulary splits with regular expressions. Those of many models are matched by recursion, a
// frame per character: some 30,000 letters in a row overflow the stack of 8 MiB and end the
// process, and digits take quadratic time.
const maxRun = 2048

// tokens tokenizes a text. addSpecial adds begin and end tokens where the model expects them;
// parseSpecial turns the spellings of control tokens into control tokens.
func (m *model) tokens(text string, addSpecial, parseSpecial bool) []token {
	text = strings.ReplaceAll(text, "\x00", "\uFFFD") // the engine takes a C string
	if !m.native.CutsByExpression() || len(text) <= maxRun {
		return m.native.Tokenize(text, addSpecial, parseSpecial)
	}
	control := &controlTokens{}
	if parseSpecial {
		control = m.control
	}
	parts := cutRuns(text, control)
	if len(parts) == 1 {
		return m.native.Tokenize(text, addSpecial, parseSpecial)
	}
	var out []token
	if addSpecial && m.addBOS {
		out = append(out, m.bos)
	}
	for _, p := range parts {
		out = append(out, m.native.Tokenize(p, false, parseSpecial)...)
	}
	if addSpecial && m.native.AddsEOS() {
		out = append(out, m.native.EOS())
	}
	return out
}

// cut truncates tokens to limit. Tokens that end a text stay at its end.
func (m *model) cut(tokens []token, limit int) []token {
	if len(tokens) <= limit || limit < 1 {
		return tokens
	}
	last := tokens[len(tokens)-1]
	tokens = tokens[:limit]
	if last >= 0 && (last == m.native.EOS() || last == m.native.SEP()) {
		tokens[limit-1] = last
	}
	return tokens
}

// cutRuns cuts a text where a line, or a run of characters with or without blanks, is longer than
// maxRun. It prefers places where expressions split anyway: before a blank that follows a word, or
// after the letters of a word. It never cuts within the text of a control token.
func cutRuns(text string, control *controlTokens) []string {
	var parts []string
	var c cutter
	for i := 0; i < len(text); {
		if n := control.at(text, i); n > 0 {
			i += n
			c = cutter{start: c.start} // the engine splits around it
			continue
		}
		r, size := utf8.DecodeRuneInString(text[i:])
		if at := c.next(r, i); at > 0 {
			parts = append(parts, text[c.start:at])
			c = cutter{start: at}
			i = at
			continue
		}
		i += size
	}
	return append(parts, text[c.start:])
}

// cutter counts characters since the last place at which a text splits.
type cutter struct {
	start     int // of the part, in bytes
	line, run int // characters of the line, and of its last run with or without blanks
	before    rune
	blank     int // the last good place before a blank; 0: none
	afterWord int // the last good place after letters; 0: none
}

// next takes the character at byte i. It returns the place to cut at, or 0.
func (c *cutter) next(r rune, i int) int {
	space, was := unicode.IsSpace(r), unicode.IsSpace(c.before)
	if c.run > 0 && space != was {
		c.run = 0
	}
	if c.line > maxRun/2 {
		switch {
		case r == ' ' && !was:
			c.blank = i
		case unicode.IsLetter(c.before) && !space && !unicode.IsLetter(r) && !unicode.IsMark(r):
			c.afterWord = i
		}
	}
	if c.line >= maxRun || c.run >= maxRun {
		switch {
		case c.blank > 0:
			return c.blank
		case c.afterWord > 0:
			return c.afterWord
		}
		return i
	}
	c.before = r
	c.line++
	c.run++
	if r == '\n' {
		c.line, c.blank, c.afterWord = 0, 0, 0
	}
	return 0
}
