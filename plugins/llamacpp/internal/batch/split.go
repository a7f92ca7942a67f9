package batch

import (
	"strings"
	"unicode/utf8"
)

// splitter turns the pieces of a generation into text that may be sent: whole characters, and
// nothing that could be the beginning of a stop string. Bytes that are no UTF-8 become U+FFFD, one
// for each.
type splitter struct {
	stops []string
	held  string // not sent yet
	sent  int    // bytes of pieces that were returned
}

// push adds a piece. It returns what may be sent now, and whether a stop string ended the
// generation; the stop string is never sent.
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

// flush returns what is still held, when the generation ended otherwise.
func (s *splitter) flush() string {
	text := s.held
	s.held = ""
	s.sent += len(text)
	return validText(text)
}

// incomplete returns the length of the unfinished character at the end of s.
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

// beginning returns the length of the longest end of s that is a beginning of stop.
func beginning(s, stop string) int {
	for n := min(len(s), len(stop)-1); n > 0; n-- {
		if s[len(s)-n:] == stop[:n] {
			return n
		}
	}
	return 0
}

// validText replaces each byte that is no UTF-8, so that the result does not depend on where the
// text was cut.
func validText(s string) string {
	if utf8.ValidString(s) {
		return s
	}
	return string([]rune(s))
}
