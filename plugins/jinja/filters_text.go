package jinja

import (
	"html"
	"net/url"
	"strings"
	"unicode"
)

// textFilter returns a filter that makes text, or nil.
func textFilter(name string) filter {
	switch name {
	case "capitalize", "lower", "upper":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) { return c.in.recase(name, t) })
		}
	case "center":
		return filterCenter
	case "e", "escape":
		return func(c *call, v any) (any, error) {
			return c.onText(v, c.in.escape)
		}
	case "forceescape":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) { return c.in.escape(t.plain()) })
		}
	case "format":
		return filterFormat
	case "indent":
		return filterIndent
	case "pprint":
		return func(c *call, v any) (any, error) { return c.in.repr(v) }
	case "replace":
		return filterReplace
	case "safe":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) {
				t.markup = true
				return t, nil
			})
		}
	case "string":
		return func(c *call, v any) (any, error) { return c.in.str(v) }
	case "striptags":
		return filterStriptags
	case "title":
		return filterTitle
	case "tojson":
		return filterToJSON
	case "trim":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) {
				return c.strip(t, true, true)
			})
		}
	case "truncate":
		return filterTruncate
	case "urlencode":
		return filterURLEncode
	case "wordcount":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) {
				if err := c.in.walk(t); err != nil {
					return nil, err
				}
				gap := func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsNumber(r) }
				return int64(countFields(t.s, gap)), nil
			})
		}
	case "wordwrap":
		return filterWordwrap
	}
	return nil
}

// onText calls f with the text that the value prints.
func (c *call) onText(v any, f func(t Text) (any, error)) (any, error) {
	t, err := c.in.str(v)
	if err != nil {
		return nil, err
	}
	if err := c.in.scan(t); err != nil {
		return nil, err
	}
	return f(t)
}

func filterCenter(c *call, v any) (any, error) {
	width, err := c.integer("width", 80)
	if err != nil {
		return nil, err
	}
	return c.onText(v, func(t Text) (any, error) { return c.in.pad("center", t, width, TemplateText(" ")) })
}

func filterFormat(c *call, v any) (any, error) {
	args, kw := c.rest()
	if len(args) > 0 && kw.len() > 0 {
		return nil, fail("FilterArgumentError", "can't handle positional and keyword arguments at the same time")
	}
	return c.onText(v, func(t Text) (any, error) {
		if kw.len() > 0 {
			return c.in.percent(t, kw)
		}
		return c.in.percent(t, &list{items: args, tuple: true})
	})
}

func filterIndent(c *call, v any) (any, error) {
	width := c.arg("width", int64(4))
	first, blank := c.boolean("first", false), c.boolean("blank", false)
	by, ok := width.(Text)
	if !ok {
		n, ok := width.(int64)
		if !ok {
			return nil, typeError("width must be an integer or a string")
		}
		t, err := c.in.repeat(TemplateText(" "), n, width)
		if err != nil {
			return nil, err
		}
		by, _ = t.(Text)
	}
	if _, ok := v.(Text); !ok {
		return nil, typeError("can only indent str, not \"%s\"", typeName(v))
	}
	return c.onText(v, func(t Text) (any, error) {
		if err := c.in.charge(len(t.s)); err != nil {
			return nil, err
		}
		lines, err := c.in.lines(Text{s: t.s + "\n", client: t.client}, false)
		if err != nil {
			return nil, err
		}
		if err := c.in.chargeTexts(len(lines)); err != nil {
			return nil, err
		}
		parts := make([]Text, len(lines))
		for i, line := range lines {
			l, _ := line.(Text)
			if i == 0 && !first || i > 0 && l.s == "" && !blank {
				parts[i] = l
				continue
			}
			joined, err := c.in.join(false, by, l)
			if err != nil {
				return nil, err
			}
			parts[i], _ = joined.(Text)
		}
		return c.in.joinTexts(TemplateText("\n"), parts)
	})
}

func filterReplace(c *call, v any) (any, error) {
	old, err := c.need("old")
	if err != nil {
		return nil, err
	}
	by, err := c.need("new")
	if err != nil {
		return nil, err
	}
	n := -1
	if count := c.arg("count", nil); count != nil {
		i, ok := count.(int64)
		if !ok {
			return nil, typeError("'%s' object cannot be interpreted as an integer", typeName(count))
		}
		n = int(i)
	}
	oldText, err := c.in.str(old)
	if err != nil {
		return nil, err
	}
	byText, err := c.in.str(by)
	if err != nil {
		return nil, err
	}
	return c.onText(v, func(t Text) (any, error) { return c.in.replace(t.plain(), oldText, byText, n) })
}

// filterStriptags removes comments and tags and folds white space.
func filterStriptags(c *call, v any) (any, error) {
	return c.onText(v, func(t Text) (any, error) {
		if err := c.in.remake(t, 2); err != nil {
			return nil, err
		}
		var b textBuilder
		for at := 0; at < len(t.s); {
			n := strings.IndexByte(t.s[at:], '<')
			end := -1
			if n >= 0 {
				mark := ">"
				if strings.HasPrefix(t.s[at+n:], "<!--") {
					mark = "-->"
				}
				if end = strings.Index(t.s[at+n:], mark); end >= 0 {
					end += n + len(mark)
				}
			}
			if end < 0 {
				b.add(t.slice(at, len(t.s)))
				break
			}
			b.add(t.slice(at, at+n))
			at += end
			if err := c.in.step(1); err != nil {
				return nil, err
			}
		}
		folded := unescape(b.text())
		if err := c.in.chargeTexts(countWords(folded.s)); err != nil {
			return nil, err
		}
		words := splitSpace(folded, -1, false)
		return c.in.joinStrings(TemplateText(" "), &list{items: words})
	})
}

// maxEntity bounds the names of HTML entities, in bytes; the longest that HTML has is 33.
const maxEntity = 34

// unescape replaces HTML entities. A character counts as a client's if any byte of its entity does.
func unescape(t Text) Text {
	var b textBuilder
	for at := 0; at < len(t.s); {
		n := strings.IndexByte(t.s[at:], '&')
		if n < 0 {
			b.add(t.slice(at, len(t.s)))
			break
		}
		b.add(t.slice(at, at+n))
		at += n
		end := strings.IndexByte(t.s[at:min(at+maxEntity, len(t.s))], ';') + 1
		entity := t.slice(at, at+max(end, 1))
		b.add(entity.taint(TemplateText(html.UnescapeString(entity.s))))
		at += len(entity.s)
	}
	return b.text()
}

// filterTitle begins each word with a capital; words end at white space and opening brackets,
// unlike str.title's.
func filterTitle(c *call, v any) (any, error) {
	return c.onText(v, func(t Text) (any, error) {
		if err := c.in.remake(t, 1); err != nil {
			return nil, err
		}
		start := true
		return t.mapRunes(func(r rune) string {
			first := start
			start = isSpace(r) || strings.ContainsRune("-({[<", r)
			if first {
				return upper(r)
			}
			return lower(r)
		}), nil
	})
}

func filterToJSON(c *call, v any) (any, error) {
	style := defaultJSON()
	style.ascii = c.boolean("ensure_ascii", false)
	indent := c.arg("indent", nil)
	separators := c.arg("separators", nil)
	style.sortKeys = c.boolean("sort_keys", false)
	switch indent := indent.(type) {
	case nil:
	case int64:
		if indent > maxWidth {
			return nil, fail(classLimit, "an indent is over %d", maxWidth)
		}
		style.multiline, style.item = true, TemplateText(",")
		style.indent = TemplateText(strings.Repeat(" ", int(max(indent, 0))))
	case Text:
		style.multiline, style.indent, style.item = true, indent, TemplateText(",")
	default:
		return nil, typeError("indent must be an integer or a string")
	}
	if separators != nil {
		pair, err := c.in.iterate(separators)
		if err != nil {
			return nil, err
		}
		if len(pair) != 2 {
			return nil, fail("ValueError", "separators takes two strings")
		}
		if style.item, err = textOf(pair[0]); err != nil {
			return nil, err
		}
		if style.between, err = textOf(pair[1]); err != nil {
			return nil, err
		}
	}
	var b textBuilder
	if err := c.in.writeJSON(&b, v, style, 0); err != nil {
		return nil, err
	}
	return b.text(), nil
}

func filterTruncate(c *call, v any) (any, error) {
	most, err := c.integer("length", 255)
	if err != nil {
		return nil, err
	}
	kill := c.boolean("killwords", false)
	end, err := c.text("end", "...")
	if err != nil {
		return nil, err
	}
	leeway, err := c.integer("leeway", 5)
	if err != nil {
		return nil, err
	}
	if _, ok := v.(Text); !ok {
		n, err := length(v)
		if err == nil && n > most+leeway {
			err = typeError("can only truncate str, not \"%s\"", typeName(v))
		}
		return v, err
	}
	return c.onText(v, func(t Text) (any, error) {
		if t.runes() <= most+leeway {
			return t, nil
		}
		cut := t.slice(0, t.offset(most-end.runes()))
		if !kill {
			if n := strings.LastIndexByte(cut.s, ' '); n >= 0 {
				cut = cut.slice(0, n)
			}
		}
		return c.in.join(false, cut, end)
	})
}

// filterURLEncode quotes a text for a path, or pairs for a query.
func filterURLEncode(c *call, v any) (any, error) {
	quote := func(v any, slash, space string) (Text, error) {
		t, err := c.in.str(v)
		if err != nil {
			return t, err
		}
		if err := c.in.remake(t, 3); err != nil {
			return t, err
		}
		return t.mapRunes(func(r rune) string {
			switch r {
			case '/':
				return slash
			case ' ':
				return space
			}
			return url.QueryEscape(string(r))
		}), nil
	}
	if _, isText := v.(Text); isText || !isIterable(v) {
		return quote(v, "/", "%20")
	}
	pairs, err := c.in.pairsOf(v)
	if err != nil {
		return nil, err
	}
	var parts []Text
	for _, p := range pairs {
		pair, err := c.in.iterate(p)
		if err != nil {
			return nil, err
		}
		if len(pair) != 2 {
			return nil, fail("ValueError", "urlencode takes pairs, not %d values", len(pair))
		}
		key, err := quote(pair[0], "%2F", "+")
		if err != nil {
			return nil, err
		}
		value, err := quote(pair[1], "%2F", "+")
		if err != nil {
			return nil, err
		}
		part, err := c.in.joinTexts(TemplateText("="), []Text{key, value})
		if err != nil {
			return nil, err
		}
		parts = append(parts, part)
	}
	return c.in.joinTexts(TemplateText("&"), parts)
}

// filterWordwrap breaks each line at white space, and words that are longer than a line.
func filterWordwrap(c *call, v any) (any, error) {
	width, err := c.integer("width", 79)
	if err != nil {
		return nil, err
	}
	long := c.boolean("break_long_words", true)
	end := c.arg("wrapstring", nil)
	_ = c.boolean("break_on_hyphens", true)
	by := TemplateText("\n")
	if end != nil {
		if by, err = textOf(end); err != nil {
			return nil, err
		}
	}
	if width <= 0 {
		return nil, fail("ValueError", "invalid width %d (must be > 0)", width)
	}
	if _, ok := v.(Text); !ok {
		return nil, fail("AttributeError", "%s object has no attribute 'splitlines'", reprString(typeName(v)))
	}
	return c.onText(v, func(t Text) (any, error) {
		var lines []Text
		given, err := c.in.lines(t, false)
		if err != nil {
			return nil, err
		}
		for _, line := range given {
			l, _ := line.(Text)
			if err := c.in.chargeTexts(len(l.s)/width + 2*countWords(l.s) + 1); err != nil { // at most
				return nil, err
			}
			lines = append(lines, wrap(l, width, long)...)
		}
		return c.in.joinTexts(by, lines)
	})
}

func wrap(t Text, width int, long bool) []Text {
	if t.s == "" {
		return []Text{{}}
	}
	var lines []Text
	from, at, used := 0, 0, 0 // the line's first byte, the byte after it, its characters
	if start := len(t.s) - len(stripText(t, isSpace, true, false).s); start < len(t.s) {
		at, used = start, t.slice(0, start).runes() // the first line keeps its indent
	}
	for _, w := range splitSpace(t, -1, false) {
		word, _ := w.(Text)
		start := at + strings.Index(t.s[at:], word.s)
		gap := TemplateText(t.s[at:start]).runes()
		n := word.runes()
		if used > 0 && used+gap+n > width {
			lines = append(lines, t.slice(from, at))
			from, used, gap = start, 0, 0
		}
		if used == 0 {
			from = start
			gap = 0
		}
		end := start + len(word.s)
		for long && n > width {
			cut := start + word.offset(width)
			lines = append(lines, t.slice(start, cut))
			start, from = cut, cut
			word = t.slice(cut, end)
			n -= width
		}
		used += gap + n
		at = end
	}
	return append(lines, t.slice(from, at))
}
