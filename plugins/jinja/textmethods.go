package jinja

import (
	"strings"
	"unicode/utf8"
)

// textMethod returns a method of Python's str, or nil.
func textMethod(name string) func(c *call, t Text) (any, error) {
	switch name {
	case "upper", "lower", "casefold", "swapcase", "title", "capitalize":
		return func(c *call, t Text) (any, error) { return c.in.recase(name, t) }
	case "strip", "lstrip", "rstrip":
		return func(c *call, t Text) (any, error) {
			return c.strip(t, name != "rstrip", name != "lstrip")
		}
	case "startswith", "endswith":
		return func(c *call, t Text) (any, error) { return c.affix(t, name == "startswith") }
	case "removeprefix", "removesuffix":
		return func(c *call, t Text) (any, error) {
			affix, err := c.needText(name)
			n := len(affix.s)
			switch {
			case err != nil || n == 0:
			case name == "removeprefix" && strings.HasPrefix(t.s, affix.s):
				t = t.slice(n, len(t.s))
			case name == "removesuffix" && strings.HasSuffix(t.s, affix.s):
				t = t.slice(0, len(t.s)-n)
			}
			return t, err
		}
	case "split", "rsplit":
		return func(c *call, t Text) (any, error) { return c.split(t, name == "rsplit") }
	case "splitlines":
		return func(c *call, t Text) (any, error) {
			lines, err := c.in.lines(t, c.boolean("keepends", false))
			return &list{items: lines}, err
		}
	case "partition", "rpartition":
		return func(c *call, t Text) (any, error) { return c.partition(t, name == "rpartition") }
	case "find", "rfind", "index", "rindex", "count":
		return func(c *call, t Text) (any, error) { return c.find(name, t) }
	case "replace":
		return func(c *call, t Text) (any, error) {
			old, err := c.needText("old")
			if err != nil {
				return nil, err
			}
			by, err := c.needText("new")
			if err != nil {
				return nil, err
			}
			n, err := c.integer("count", -1)
			if err != nil {
				return nil, err
			}
			return c.in.replace(t, old, by, n)
		}
	case "join":
		return func(c *call, t Text) (any, error) {
			v, err := c.need("iterable")
			if err != nil {
				return nil, err
			}
			return c.in.joinStrings(t, v)
		}
	case "format":
		return func(c *call, t Text) (any, error) {
			args, kw := c.rest()
			return c.in.format(t, args, kw)
		}
	case "format_map":
		return func(c *call, t Text) (any, error) {
			v, err := c.need("mapping")
			d, ok := v.(*dict)
			if err != nil || !ok {
				return nil, typeError("format_map() argument must be a mapping")
			}
			return c.in.format(t, nil, d)
		}
	case "center", "ljust", "rjust":
		return func(c *call, t Text) (any, error) {
			width, err := c.integer("width", 0)
			if err != nil {
				return nil, err
			}
			fill, err := c.text("fillchar", " ")
			if err != nil {
				return nil, err
			}
			return c.in.pad(name, t, width, fill)
		}
	case "zfill":
		return func(c *call, t Text) (any, error) {
			width, err := c.integer("width", 0)
			if err != nil {
				return nil, err
			}
			sign := Text{}
			if t.s != "" && (t.s[0] == '+' || t.s[0] == '-') {
				sign, t = t.slice(0, 1), t.slice(1, len(t.s))
			}
			padded, err := c.in.pad("rjust", t, width-len(sign.s), TemplateText("0"))
			if err != nil {
				return nil, err
			}
			return c.in.join(false, sign, padded)
		}
	case "expandtabs":
		return func(c *call, t Text) (any, error) {
			size, err := c.integer("tabsize", 8)
			if err != nil {
				return nil, err
			}
			return c.in.expandTabs(t, size)
		}
	}
	if is := textPredicate(name); is != nil {
		return func(c *call, t Text) (any, error) { return is(t.s), nil }
	}
	return nil
}

// ascii holds every ASCII character at its index, so that single letters need no allocation.
var ascii = func() string {
	b := make([]byte, utf8.RuneSelf)
	for i := range b {
		b[i] = byte(i)
	}
	return string(b)
}()

// strip removes the characters given by the call, or white space, at one or both ends.
func (c *call) strip(t Text, left, right bool) (any, error) {
	set, err := c.chars("chars")
	if err != nil {
		return nil, err
	}
	if err := c.in.walk(t); err != nil {
		return nil, err
	}
	if set == "" {
		return stripText(t, isSpace, left, right), nil
	}
	if err := c.in.step(len(set)); err != nil {
		return nil, err
	}
	chars := map[rune]bool{}
	for _, r := range set {
		chars[r] = true
	}
	return stripText(t, func(r rune) bool { return chars[r] }, left, right), nil
}

// part returns the part of a text between the optional start and end, and its offset in characters.
func (c *call) part(t Text) (Text, int, error) {
	bound := func(name string) (*int, error) {
		v := c.arg(name, nil)
		if v == nil {
			return nil, nil //nolint:nilnil // None
		}
		i, ok := wholeNumber(v)
		if !ok {
			return nil, typeError("slice indices must be integers or None or have an __index__ method")
		}
		j := int(i)
		return &j, nil
	}
	from, err := bound("start")
	if err != nil {
		return t, 0, err
	}
	to, err := bound("end")
	if err != nil {
		return t, 0, err
	}
	if from == nil && to == nil {
		return t, 0, nil
	}
	a, b := sliceBounds(t.runes(), from, to, 1)
	start := t.offset(a)
	return t.slice(start, max(start, t.offset(max(a, b)))), a, nil
}

func (c *call) affix(t Text, prefix bool) (any, error) {
	v, err := c.need("prefix")
	if err != nil {
		return nil, err
	}
	candidates := []any{v}
	if l, ok := v.(*list); ok && l.tuple {
		candidates = l.items
	}
	if t, _, err = c.part(t); err != nil {
		return nil, err
	}
	for _, x := range candidates {
		affix, err := textOf(x)
		if err != nil {
			return nil, err
		}
		if err := c.in.step(1 + len(affix.s)/scanBytes); err != nil {
			return nil, err
		}
		if prefix && strings.HasPrefix(t.s, affix.s) || !prefix && strings.HasSuffix(t.s, affix.s) {
			return true, nil
		}
	}
	return false, nil
}

func (c *call) find(how string, t Text) (any, error) {
	sub, err := c.needText("sub")
	if err != nil {
		return nil, err
	}
	t, from, err := c.part(t)
	if err != nil {
		return nil, err
	}
	if how == "count" {
		return int64(strings.Count(t.s, sub.s)), nil
	}
	at := strings.Index(t.s, sub.s)
	if strings.HasPrefix(how, "r") {
		at = strings.LastIndex(t.s, sub.s)
	}
	switch {
	case at >= 0:
		return int64(from + utf8.RuneCountInString(t.s[:at])), nil
	case strings.HasSuffix(how, "index"):
		return nil, fail("ValueError", "substring not found")
	}
	return int64(-1), nil
}

func countFields(s string, gap func(rune) bool) int {
	n, within := 0, false
	for _, r := range s {
		between := gap(r)
		if !between && !within {
			n++
		}
		within = !between
	}
	return n
}

// lines splits a text as Python's splitlines does.
func (in *interp) lines(t Text, keep bool) ([]any, error) {
	if err := in.walk(t); err != nil {
		return nil, err
	}
	n := 1
	for from := 0; from < len(t.s); n++ {
		_, from = lineEnd(t.s, from)
	}
	if err := in.chargeTexts(n); err != nil { // before allocating them
		return nil, err
	}
	out := make([]any, 0, n)
	for from := 0; from < len(t.s); {
		end, next := lineEnd(t.s, from)
		if keep {
			end = next
		}
		out = append(out, t.slice(from, end))
		from = next
	}
	return out, nil
}

// lineEnd returns the end of the line that begins at from, and the start of the next one.
func lineEnd(s string, from int) (end, next int) {
	for i := from; i < len(s); i++ {
		switch b := s[i]; {
		case b == '\r' && i+1 < len(s) && s[i+1] == '\n':
			return i, i + 2
		case b >= '\n' && b <= '\r' || b >= 0x1c && b <= 0x1e:
			return i, i + 1
		case b == 0xc2 && strings.HasPrefix(s[i:], "\u0085"):
			return i, i + 2
		case b == 0xe2 && (strings.HasPrefix(s[i:], "\u2028") || strings.HasPrefix(s[i:], "\u2029")):
			return i, i + 3
		}
	}
	return len(s), len(s)
}
