package jinja

import (
	"slices"
	"strings"
	"unicode"
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

// ascii has every character of ASCII at its number, so that its letters need no memory.
var ascii = func() string {
	b := make([]byte, utf8.RuneSelf)
	for i := range b {
		b[i] = byte(i)
	}
	return string(b)
}()

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

// chars returns the set of characters that the next argument names; empty: white space.
func (c *call) chars(name string) (string, error) {
	v := c.arg(name, nil)
	if v == nil {
		return "", nil
	}
	t, err := textOf(v)
	return t.s, err
}

// strip removes the characters that the call names, or white space, at one or both ends.
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

func stripText(t Text, in func(rune) bool, left, right bool) Text {
	from, to := 0, len(t.s)
	if left {
		from = len(t.s) - len(strings.TrimLeftFunc(t.s, in))
	}
	if right {
		to = max(from, len(strings.TrimRightFunc(t.s, in)))
	}
	return t.slice(from, to)
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

func (c *call) split(t Text, right bool) (any, error) {
	sep := c.arg("sep", nil)
	most, err := c.integer("maxsplit", -1)
	if err != nil {
		return nil, err
	}
	pieces := func(n int) error { // before they are made
		if most >= 0 {
			n = min(n, most+1)
		}
		return c.in.chargeTexts(n)
	}
	if err := c.in.walk(t); err != nil {
		return nil, err
	}
	var items []any
	if sep == nil {
		if err := pieces(countWords(t.s)); err != nil {
			return nil, err
		}
		items = splitSpace(t, most, right)
	} else {
		by, err := textOf(sep)
		if err != nil {
			return nil, err
		}
		if by.s == "" {
			return nil, fail("ValueError", "empty separator")
		}
		if err := pieces(strings.Count(t.s, by.s) + 1); err != nil {
			return nil, err
		}
		items = splitBy(t, by.s, most, right)
	}
	return &list{items: items}, nil
}

// countWords returns how many words white space separates in s.
func countWords(s string) int { return countFields(s, isSpace) }

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

func splitBy(t Text, sep string, most int, right bool) []any {
	var out []any
	from, to := 0, len(t.s)
	for most != 0 {
		if right {
			n := strings.LastIndex(t.s[:to], sep)
			if n < 0 {
				break
			}
			out = append(out, t.slice(n+len(sep), to))
			to = n
		} else {
			n := strings.Index(t.s[from:], sep)
			if n < 0 {
				break
			}
			out = append(out, t.slice(from, from+n))
			from += n + len(sep)
		}
		most--
	}
	out = append(out, t.slice(from, to))
	if right {
		slices.Reverse(out)
	}
	return out
}

func splitSpace(t Text, most int, right bool) []any {
	var out []any
	if right {
		for {
			t = stripText(t, isSpace, false, true)
			if t.s == "" {
				break
			}
			n := strings.LastIndexFunc(t.s, isSpace)
			if most == 0 || n < 0 {
				out = append(out, stripText(t, isSpace, n < 0, true))
				break
			}
			_, size := utf8.DecodeRuneInString(t.s[n:])
			out = append(out, t.slice(n+size, len(t.s)))
			t = t.slice(0, n)
			most--
		}
		slices.Reverse(out)
		return out
	}
	from := 0
	for {
		from += len(t.s[from:]) - len(strings.TrimLeftFunc(t.s[from:], isSpace))
		if from == len(t.s) {
			return out
		}
		n := strings.IndexFunc(t.s[from:], isSpace)
		if most == 0 || n < 0 {
			return append(out, t.slice(from, len(t.s)))
		}
		out = append(out, t.slice(from, from+n))
		from += n
		most--
	}
}

// lines cuts a text as Python's splitlines does.
func (in *interp) lines(t Text, keep bool) ([]any, error) {
	if err := in.walk(t); err != nil {
		return nil, err
	}
	n := 1
	for from := 0; from < len(t.s); n++ {
		_, from = lineEnd(t.s, from)
	}
	if err := in.chargeTexts(n); err != nil { // before they are made
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

// lineEnd returns where the line that begins at from ends, and where the next one begins.
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

func (c *call) partition(t Text, right bool) (any, error) {
	sep, err := c.needText("sep")
	if err != nil {
		return nil, err
	}
	if sep.s == "" {
		return nil, fail("ValueError", "empty separator")
	}
	if err := c.in.charge(len(t.s)); err != nil {
		return nil, err
	}
	n := strings.Index(t.s, sep.s)
	if right {
		n = strings.LastIndex(t.s, sep.s)
	}
	items := []any{t, Text{}, Text{}}
	if n < 0 && right {
		items = []any{Text{}, Text{}, t}
	}
	if n >= 0 {
		end := n + len(sep.s)
		items = []any{t.slice(0, n), t.slice(n, end), t.slice(end, len(t.s))}
	}
	return &list{items: items, tuple: true}, nil
}

// replace replaces old by by, at most n times; below 0: everywhere.
func (in *interp) replace(t, old, by Text, n int) (Text, error) {
	found := strings.Count(t.s, old.s)
	if n < 0 || n > found {
		n = found
	}
	if err := in.step(n); err != nil {
		return Text{}, err
	}
	if err := in.charge(len(t.s)); err != nil {
		return Text{}, err
	}
	if n > 0 && len(by.s) > in.bytes/n {
		return Text{}, in.charge(in.bytes + 1)
	}
	if err := in.charge(n * len(by.s)); err != nil {
		return Text{}, err
	}
	if (t.client != nil || by.client != nil) && n > 0 { // who wrote what: two spans at most for each
		if err := in.chargeItems(n); err != nil {
			return Text{}, err
		}
	}
	var b textBuilder
	from := 0
	for i := range n {
		if old.s == "" {
			b.add(by)
			if i == n-1 {
				break
			}
			_, size := utf8.DecodeRuneInString(t.s[from:])
			b.add(t.slice(from, from+size))
			from += size
			continue
		}
		at := from + strings.Index(t.s[from:], old.s)
		b.add(t.slice(from, at))
		b.add(by)
		from = at + len(old.s)
	}
	b.add(t.slice(from, len(t.s)))
	out := b.text()
	out.markup = t.markup
	return out, nil
}

// joinStrings implements str.join: every item must be a string.
func (in *interp) joinStrings(sep Text, v any) (any, error) {
	items, err := in.iterate(v)
	if err != nil {
		return nil, err
	}
	parts := make([]Text, 0, len(items))
	for i, item := range items {
		t, ok := item.(Text)
		if !ok {
			return nil, typeError("sequence item %d: expected str instance, %s found", i, typeName(item))
		}
		parts = append(parts, t)
	}
	return in.joinTexts(sep, parts)
}

func (in *interp) joinTexts(sep Text, parts []Text) (Text, error) {
	if err := in.step(len(parts)); err != nil {
		return Text{}, err
	}
	size := max(len(parts)-1, 0) * len(sep.s)
	for _, t := range parts {
		size += len(t.s)
	}
	if err := in.charge(size); err != nil { // before anything is made
		return Text{}, err
	}
	var b textBuilder
	b.b.Grow(size)
	for i, t := range parts {
		if i > 0 {
			b.add(sep)
		}
		b.add(t)
	}
	return b.text(), nil
}

// pad fills a text up to a width in characters.
func (in *interp) pad(how string, t Text, width int, fill Text) (Text, error) {
	if fill.runes() != 1 {
		return Text{}, typeError("The fill character must be exactly one character long")
	}
	missing := width - t.runes()
	if missing <= 0 {
		return t, nil
	}
	if missing > in.bytes/len(fill.s) {
		return Text{}, in.charge(in.bytes + 1)
	}
	if err := in.charge(len(t.s) + missing*len(fill.s)); err != nil {
		return Text{}, err
	}
	left, right := 0, missing
	switch how {
	case "rjust":
		left, right = missing, 0
	case "center":
		left = missing/2 + missing&width&1
		right = missing - left
	}
	client := fill.client != nil
	var b textBuilder
	b.addString(strings.Repeat(fill.s, left), client)
	b.add(t)
	b.addString(strings.Repeat(fill.s, right), client)
	out := b.text()
	out.markup = t.markup
	return out, nil
}

func (in *interp) expandTabs(t Text, size int) (Text, error) {
	if err := in.remake(t, 1); err != nil {
		return Text{}, err
	}
	var b textBuilder
	column := 0
	for c := range t.chars() {
		switch {
		case c.text == "\t" && size > 0:
			n := size - column%size
			if err := in.charge(n); err != nil {
				return Text{}, err
			}
			b.addString(strings.Repeat(" ", n), c.client)
			column += n
			continue
		case c.text == "\t":
			continue
		case c.text == "\n" || c.text == "\r":
			column = -1
		}
		column++
		b.addString(c.text, c.client)
	}
	return b.text(), nil
}
