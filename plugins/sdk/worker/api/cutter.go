package api

import (
	"strings"
	"unicode/utf8"
)

// cutter passes an answer on in complete characters, up to the first stop string.
type cutter struct {
	stops []string
	held  string // possible start of a character or of a stop string
}

// push adds a token's text. It returns the text that can be passed on, and reports whether a stop
// string ended the answer.
func (c *cutter) push(token string) (text string, stopped bool) {
	all := c.held + token
	end := -1
	for _, s := range c.stops {
		if i := strings.Index(all, s); s != "" && i >= 0 && (end < 0 || i < end) {
			end = i
		}
	}
	if end >= 0 {
		c.held = ""
		return all[:end], true
	}
	keep := partOfCharacter(all)
	for _, s := range c.stops {
		keep = max(keep, overlap(all, s))
	}
	c.held = all[len(all)-keep:]
	return all[:len(all)-keep], false
}

// rest returns the text still held back when the answer ends without a stop string.
func (c *cutter) rest() string {
	rest := c.held
	c.held = ""
	return rest
}

// overlap returns the length of the longest suffix of text that is a proper prefix of stop.
func overlap(text, stop string) int {
	for n := min(len(text), len(stop)-1); n > 0; n-- {
		if strings.HasSuffix(text, stop[:n]) {
			return n
		}
	}
	return 0
}

// partOfCharacter returns the length of the incomplete character at the end of text.
func partOfCharacter(text string) int {
	for n := 1; n < utf8.UTFMax && n <= len(text); n++ {
		if tail := text[len(text)-n:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRuneInString(tail) {
				return n
			}
			return 0
		}
	}
	return 0
}
