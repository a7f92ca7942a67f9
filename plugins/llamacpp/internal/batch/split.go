package batch

import (
	"strings"
	"unicode/utf8"
)

// splitter turns the pieces of a generation into text that may be sent: complete characters, and
// nothing that might begin a stop string. Each byte of invalid UTF-8 becomes U+FFFD.
type splitter struct {
	stops []string
	held  string // not sent yet
	sent  int    // bytes of pieces returned so far
}

// push adds a piece. It returns the text that may be sent now, and whether a stop string ended the
// generation; the stop string itself is never sent.
func (s *splitter) push(piece string) (text string, stopped bool) {
	if s.held == "" && len(s.stops) == 0 && utf8.ValidString(piece) {
		s.sent += len(piece)
		return piece, false // the usual case: nothing to look for and nothing to copy
	}
	s.held += piece
	first := -1
	for _, stop := range s.stops {
		if i := strings.Index(s.held, stop); i >= 0 && (first < 0 || i < first) {
			first = i
		}
	}
	if first >= 0 {
		text, s.held = s.held[:first], ""
		s.sent += first
		return validText(text), true
	}
	keep := incomplete(s.held)
	for _, stop := range s.stops {
		keep = max(keep, beginning(s.held, stop))
	}
	cut := len(s.held) - keep
	text, s.held = s.held[:cut], s.held[cut:]
	s.sent += cut
	return validText(text), false
}

// flush returns the held text when the generation ended without a stop string.
func (s *splitter) flush() string {
	text := s.held
	s.held = ""
	s.sent += len(text)
	return validText(text)
}

// incomplete returns the length of the incomplete character at the end of s.
func incomplete(s string) int {
	for n := 1; n < utf8.UTFMax && n <= len(s); n++ {
		if c := s[len(s)-n]; utf8.RuneStart(c) {
			if !utf8.FullRuneInString(s[len(s)-n:]) {
				return n
			}
			return 0
		}
	}
	return 0
}

// beginning returns the length of the longest suffix of s that is a prefix of stop.
func beginning(s, stop string) int {
	for n := min(len(s), len(stop)-1); n > 0; n-- {
		if s[len(s)-n:] == stop[:n] {
			return n
		}
	}
	return 0
}

// validText replaces each byte of invalid UTF-8, so that the result does not depend on where the
// text was cut.
func validText(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}
