package download

// ParseContentRange parses a Content-Range header.
func ParseContentRange(text string) (first, last, total int64, ok bool) {
	return parseContentRange(text)
}
