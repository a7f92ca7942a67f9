package jinja

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// textPredicate returns one of the is… methods, or nil.
func textPredicate(name string) func(s string) bool {
	all := func(is func(r rune) bool) func(s string) bool {
		return func(s string) bool { return s != "" && strings.IndexFunc(s, func(r rune) bool { return !is(r) }) < 0 }
	}
	digit := func(r rune) bool { return unicode.Is(unicode.Nd, r) }
	switch name {
	case "isdigit", "isdecimal":
		return all(digit)
	case "isnumeric":
		return all(unicode.IsNumber)
	case "isalpha":
		return all(unicode.IsLetter)
	case "isalnum":
		return all(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) })
	case "isspace":
		return all(isSpace)
	case "isascii":
		return func(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return r > 0x7f }) < 0 }
	case "isprintable":
		return func(s string) bool { return strings.IndexFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) < 0 }
	case "isupper":
		return func(s string) bool { return cased(s) && strings.IndexFunc(s, unicode.IsLower) < 0 }
	case "islower":
		return func(s string) bool { return cased(s) && strings.IndexFunc(s, unicode.IsUpper) < 0 }
	case "istitle":
		return func(s string) bool { return cased(s) && titleWords(TemplateText(s)).s == s }
	case "isidentifier":
		return func(s string) bool {
			return s != "" && !isDecimal(s[0]) && all(func(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsDigit(r) })(s)
		}
	}
	return nil
}

func cased(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return unicode.IsUpper(r) || unicode.IsLower(r) }) >= 0
}

// recase changes the case of letters.
func (in *interp) recase(how string, t Text) (Text, error) {
	if err := in.remake(t, 1); err != nil {
		return Text{}, err
	}
	switch how {
	case "upper":
		return t.mapRunes(upper), nil
	case "lower", "casefold":
		return t.mapRunes(lower), nil
	case "swapcase":
		return t.mapRunes(func(r rune) string {
			if unicode.IsUpper(r) {
				return lower(r)
			}
			return upper(r)
		}), nil
	case "title":
		return titleWords(t), nil
	}
	first := true
	return t.mapRunes(func(r rune) string {
		if first {
			first = false
			return upper(r)
		}
		return lower(r)
	}), nil
}

func upper(r rune) string {
	if r < utf8.RuneSelf {
		r = unicode.ToUpper(r)
		return ascii[r : r+1]
	}
	if r == 'ß' {
		return "SS"
	}
	return string(unicode.ToUpper(r))
}

func lower(r rune) string {
	if r < utf8.RuneSelf {
		r = unicode.ToLower(r)
		return ascii[r : r+1]
	}
	if r == 'İ' {
		return "i̇"
	}
	return string(unicode.ToLower(r))
}

// titleWords begins each run of letters with a capital.
func titleWords(t Text) Text {
	inWord := false
	return t.mapRunes(func(r rune) string {
		was := inWord
		inWord = unicode.IsLetter(r)
		if was {
			return lower(r)
		}
		return upper(r)
	})
}
