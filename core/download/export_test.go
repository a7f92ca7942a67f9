package download

// ParseContentRange is for tests.
func ParseContentRange(text string) (first, last, total int64, ok bool) {
	return parseContentRange(text)
}
