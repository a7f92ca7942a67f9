package jinja

import (
	"html"
	"math"
	"math/big"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// filterNamed returns a filter of Jinja's, or nil. It is a switch, not a table, because map and
// select look filters up themselves.
func filterNamed(name string) filter {
	switch name {
	case "abs":
		return filterAbs
	case "attr":
		return filterAttr
	case "batch":
		return filterBatch
	case "capitalize", "lower", "upper":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) { return c.in.recase(name, t) })
		}
	case "center":
		return filterCenter
	case "count", "length":
		return func(c *call, v any) (any, error) {
			if t, ok := v.(Text); ok {
				if err := c.in.scan(t); err != nil {
					return nil, err
				}
			}
			n, err := length(v)
			return int64(n), err
		}
	case "d", "default":
		return func(c *call, v any) (any, error) {
			otherwise := c.arg("default_value", Text{})
			_, isUndefined := v.(*undefined)
			if c.boolean("boolean", false) && !truth(v) || isUndefined {
				return otherwise, nil
			}
			return v, nil
		}
	case "dictsort":
		return filterDictsort
	case "e", "escape":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) { return escapeText(t), c.in.charge(6 * len(t.s)) })
		}
	case "forceescape":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) { return escapeText(t.plain()), c.in.charge(6 * len(t.s)) })
		}
	case "filesizeformat":
		return func(c *call, v any) (any, error) {
			f, err := toNumber(v)
			return TemplateText(sizeText(f, c.boolean("binary", false))), err
		}
	case "first", "last":
		return func(c *call, v any) (any, error) { return c.end(v, name == "last") }
	case "float":
		return filterFloat
	case "format":
		return filterFormat
	case "groupby":
		return filterGroupby
	case "indent":
		return filterIndent
	case "int":
		return filterInt
	case "items":
		return filterItems
	case "join":
		return filterJoin
	case "list":
		return func(c *call, v any) (any, error) {
			items, err := c.in.iterate(v)
			if err != nil {
				return nil, err
			}
			return &list{items: items}, c.in.chargeItems(len(items))
		}
	case "map":
		return filterMap
	case "max", "min":
		return func(c *call, v any) (any, error) { return c.extreme(v, name) }
	case "pprint":
		return func(c *call, v any) (any, error) { return c.in.repr(v) }
	case "select", "reject", "selectattr", "rejectattr":
		return func(c *call, v any) (any, error) {
			return c.selected(v, strings.HasSuffix(name, "attr"), strings.HasPrefix(name, "select"))
		}
	case "replace":
		return filterReplace
	case "reverse":
		return filterReverse
	case "round":
		return filterRound
	case "safe":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) {
				t.markup = true
				return t, nil
			})
		}
	case "slice":
		return filterSlice
	case "sort":
		return filterSort
	case "string":
		return func(c *call, v any) (any, error) { return c.in.str(v) }
	case "striptags":
		return filterStriptags
	case "sum":
		return filterSum
	case "title":
		return filterTitle
	case "tojson":
		return filterToJSON
	case "trim":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) {
				set, err := c.chars("chars")
				return stripText(t, set, true, true), err
			})
		}
	case "truncate":
		return filterTruncate
	case "unique":
		return filterUnique
	case "urlencode":
		return filterURLEncode
	case "wordcount":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) {
				word := func(r rune) bool { return r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r) }
				return int64(len(strings.FieldsFunc(t.s, func(r rune) bool { return !word(r) }))), c.in.step(len(t.s) / 8)
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

// toNumber converts a value to a number, as it is or from its text.
func toNumber(v any) (float64, error) {
	if n, ok := number(v); ok {
		return toFloat(n), nil
	}
	switch v := v.(type) {
	case Text:
		f, ok := parseFloat(v.s)
		if !ok {
			return 0, fail("ValueError", "could not convert string to float: %s", reprString(v.s))
		}
		return f, nil
	case *undefined:
		return 0, v.err()
	}
	return 0, typeError("float() argument must be a string or a real number, not '%s'", typeName(v))
}

// parseFloat reads a number as Python's float() does.
func parseFloat(s string) (float64, bool) {
	s = strings.TrimFunc(s, isSpace)
	if len(s) > maxDigits || strings.HasPrefix(strings.TrimLeft(strings.ToLower(s), "+-"), "0x") {
		return 0, false
	}
	for i := range len(s) { // Python takes single underscores between digits only
		if s[i] == '_' && (i == 0 || i == len(s)-1 || !isDecimal(s[i-1]) || !isDecimal(s[i+1])) {
			return 0, false
		}
	}
	f, err := strconv.ParseFloat(strings.ReplaceAll(s, "_", ""), 64)
	return f, err == nil || math.IsInf(f, 0)
}

func filterAbs(_ *call, v any) (any, error) {
	n, _ := number(v)
	switch n := n.(type) {
	case int64:
		return normalInt(new(big.Int).Abs(big.NewInt(n))), nil
	case *big.Int:
		return new(big.Int).Abs(n), nil
	case float64:
		return math.Abs(n), nil
	}
	if u, isUndefined := v.(*undefined); isUndefined {
		return nil, u.err()
	}
	return nil, typeError("bad operand type for abs(): '%s'", typeName(v))
}

func filterAttr(c *call, v any) (any, error) {
	name, err := c.needText("name")
	if err != nil {
		return nil, err
	}
	if d, ok := v.(*dict); ok { // attr never looks at items
		if m := c.in.methodOf(d, name.s); m != nil {
			return m, nil
		}
		return undefinedf("'dict object' has no attribute %s", reprString(name.s)), nil
	}
	return c.in.attribute(v, name.s)
}

// filterBatch cuts items into lists of n and fills the last with a value, if one is given.
func filterBatch(c *call, v any) (any, error) {
	n, err := c.integer("linecount", 0)
	if err != nil {
		return nil, err
	}
	fill := c.arg("fill_with", nil)
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	if err := c.in.chargeItems(len(items)); err != nil {
		return nil, err
	}
	n = max(n, 1)
	var out []any
	for from := 0; from < len(items); from += n {
		group := slices.Clone(items[from:min(from+n, len(items))])
		if fill != nil && len(group) < n {
			if err := c.in.chargeItems(n - len(group)); err != nil {
				return nil, err
			}
			for len(group) < n {
				group = append(group, fill)
			}
		}
		out = append(out, &list{items: group})
	}
	return &generator{items: out}, nil
}

func filterSlice(c *call, v any) (any, error) {
	n, err := c.integer("slices", 0)
	if err != nil {
		return nil, err
	}
	fill := c.arg("fill_with", nil)
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	if n <= 0 {
		return nil, errZero
	}
	if err := c.in.chargeItems(n + len(items)); err != nil {
		return nil, err
	}
	per, more := len(items)/n, len(items)%n
	var out []any
	from := 0
	for i := range n {
		size := per
		if i < more {
			size++
		}
		group := slices.Clone(items[from : from+size])
		from += size
		if fill != nil && i >= more && more > 0 {
			group = append(group, fill)
		}
		out = append(out, &list{items: group})
	}
	return &generator{items: out}, nil
}

func filterCenter(c *call, v any) (any, error) {
	width, err := c.integer("width", 80)
	if err != nil {
		return nil, err
	}
	return c.onText(v, func(t Text) (any, error) { return c.in.pad("center", t, width, TemplateText(" ")) })
}

// end returns the first or the last item.
func (c *call) end(v any, last bool) (any, error) {
	if t, ok := v.(Text); ok && t.s != "" {
		if last {
			return c.in.index(t, int64(-1))
		}
		return c.in.index(t, int64(0))
	}
	if g, ok := v.(*generator); ok && last {
		return nil, typeError("'%s' object is not reversible", typeName(g))
	}
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	switch {
	case len(items) == 0 && last:
		return undefinedf("No last item, sequence was empty."), nil
	case len(items) == 0:
		return undefinedf("No first item, sequence was empty."), nil
	case last:
		return items[len(items)-1], nil
	}
	return items[0], nil
}

func filterFloat(c *call, v any) (any, error) {
	otherwise := c.arg("default", 0.0)
	if u, ok := v.(*undefined); ok {
		return nil, u.err()
	}
	f, err := toNumber(v)
	if err != nil {
		return otherwise, nil //nolint:nilerr // as Jinja does
	}
	return f, nil
}

func filterInt(c *call, v any) (any, error) {
	otherwise := c.arg("default", int64(0))
	base, err := c.integer("base", 10)
	if err != nil {
		return nil, err
	}
	if u, ok := v.(*undefined); ok {
		return nil, u.err()
	}
	if t, ok := v.(Text); ok {
		s := strings.ToLower(strings.TrimFunc(t.s, isSpace))
		for b, prefix := range map[int]string{16: "0x", 8: "0o", 2: "0b"} {
			if base == b {
				s = strings.Replace(s, prefix, "", 1)
			}
		}
		if base < 2 || base > 36 || len(s) > maxDigits {
			return otherwise, nil
		}
		if n, ok := new(big.Int).SetString(strings.ReplaceAll(s, "_", ""), base); ok {
			return normalInt(n), nil
		}
	}
	if n, ok := number(v); ok {
		if _, isFloat := n.(float64); !isFloat {
			return n, nil
		}
	}
	f, err := toNumber(v)
	if err != nil {
		return otherwise, nil //nolint:nilerr // as Jinja does
	}
	n, err := truncate(f)
	if err != nil {
		return otherwise, nil //nolint:nilerr // as Jinja does
	}
	return n, nil
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
		lines := splitLines(Text{s: t.s + "\n", client: t.client}, false)
		if err := c.in.chargeItems(len(lines)); err != nil {
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

func filterItems(c *call, v any) (any, error) {
	switch v := v.(type) {
	case *undefined:
		return &generator{}, nil
	case *dict:
		return &generator{items: v.pairs()}, c.in.chargeItems(3 * v.len())
	}
	return nil, typeError("Can only get item pairs from a mapping.")
}

func filterJoin(c *call, v any) (any, error) {
	sep, err := c.in.str(c.arg("d", Text{}))
	if err != nil {
		return nil, err
	}
	attribute := c.arg("attribute", nil)
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	parts := make([]Text, 0, len(items))
	for _, item := range items {
		if attribute != nil {
			if item, err = c.in.path(item, attribute, nil); err != nil {
				return nil, err
			}
		}
		t, err := c.in.str(item)
		if err != nil {
			return nil, err
		}
		parts = append(parts, t.plain())
	}
	return c.in.joinTexts(sep.plain(), parts)
}

// path follows "a.b.0" from a value. A missing attribute becomes otherwise unless that is nil.
func (in *interp) path(v, attribute, otherwise any) (any, error) {
	keys := []any{attribute}
	if t, ok := attribute.(Text); ok {
		keys = nil
		for _, part := range splitBy(t, ".", -1, false) {
			p, _ := part.(Text)
			if i, err := strconv.ParseInt(p.s, 10, 64); err == nil && isDecimal(p.s[0]) {
				keys = append(keys, i)
			} else {
				keys = append(keys, p)
			}
		}
	}
	for _, key := range keys {
		if err := in.step(1); err != nil {
			return nil, err
		}
		var err error
		if v, err = in.index(v, key); err != nil {
			return nil, err
		}
		if _, ok := v.(*undefined); ok && otherwise != nil {
			v = otherwise
		}
	}
	return v, nil
}

func filterMap(c *call, v any) (any, error) {
	if !truth(v) {
		c.rest()
		return &generator{}, nil
	}
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	if err := c.in.chargeItems(len(items)); err != nil {
		return nil, err
	}
	out := make([]any, len(items))
	if len(c.args) == 0 && c.kw.len() > 0 {
		attribute, err := c.need("attribute")
		if err != nil {
			return nil, err
		}
		otherwise := c.arg("default", nil)
		for i, item := range items {
			if out[i], err = c.in.path(item, attribute, otherwise); err != nil {
				return nil, err
			}
		}
		return &generator{items: out}, nil
	}
	name, err := c.needText("filter")
	if err != nil {
		return nil, err
	}
	args, kw := c.rest()
	f := filterNamed(name.s)
	if f == nil {
		return nil, fail("TemplateRuntimeError", "No filter named %s.", reprString(name.s))
	}
	for i, item := range items {
		if err := c.in.enter(); err != nil {
			return nil, err
		}
		out[i], err = c.in.filter(name.s, f, item, args, kw)
		c.in.leave()
		if err != nil {
			return nil, err
		}
	}
	return &generator{items: out}, nil
}

// selected keeps the items for which a test of them, or of an attribute of theirs, gives the wanted
// result.
func (c *call) selected(v any, byAttribute, want bool) (any, error) {
	if !truth(v) {
		c.rest()
		return &generator{}, nil
	}
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	var attribute any
	if byAttribute {
		if attribute, err = c.need("attribute"); err != nil {
			return nil, err
		}
	}
	check := func(v any) (bool, error) { return truth(v), nil }
	args, kw := c.rest()
	if len(args) > 0 {
		name, err := textOf(args[0])
		if err != nil {
			return nil, err
		}
		f := testNamed(name.s)
		if f == nil {
			return nil, fail("TemplateRuntimeError", "No test named %s.", reprString(name.s))
		}
		check = func(v any) (bool, error) { return c.in.test(name.s, f, v, args[1:], kw) }
	}
	if err := c.in.chargeItems(len(items)); err != nil {
		return nil, err
	}
	var out []any
	for _, item := range items {
		x := item
		if byAttribute {
			if x, err = c.in.path(item, attribute, nil); err != nil {
				return nil, err
			}
		}
		ok, err := check(x)
		if err != nil {
			return nil, err
		}
		if ok == want {
			out = append(out, item)
		}
	}
	return &generator{items: out}, nil
}

// sortKey returns what items are ordered by: ignoring case, unless asked otherwise.
func (c *call) sortKey(v, attribute any, caseSensitive bool) (any, error) {
	if attribute != nil {
		var err error
		if v, err = c.in.path(v, attribute, nil); err != nil {
			return nil, err
		}
	}
	if t, ok := v.(Text); ok && !caseSensitive {
		return c.in.recase("lower", t)
	}
	return v, nil
}

// sorted returns the items in the order of their keys.
func (c *call) sorted(items []any, reverse bool, key func(v any) (any, error)) ([]any, error) {
	if err := c.in.chargeItems(2 * len(items)); err != nil {
		return nil, err
	}
	type keyed struct{ key, item any }
	all := make([]keyed, len(items))
	for i, item := range items {
		k, err := key(item)
		if err != nil {
			return nil, err
		}
		all[i] = keyed{k, item}
	}
	var failed error
	slices.SortStableFunc(all, func(a, b keyed) int {
		if failed != nil {
			return 0
		}
		order, err := c.in.order(a.key, b.key, "<")
		if err != nil {
			failed = err
		}
		if order == unordered {
			order = 0
		}
		if reverse {
			return -order
		}
		return order
	})
	out := make([]any, len(items))
	for i, k := range all {
		out[i] = k.item
	}
	return out, failed
}

func filterSort(c *call, v any) (any, error) {
	reverse, caseSensitive := c.boolean("reverse", false), c.boolean("case_sensitive", false)
	attribute := c.arg("attribute", nil)
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	by := []any{attribute}
	if t, ok := attribute.(Text); ok {
		by = splitBy(t, ",", -1, false)
	}
	out, err := c.sorted(items, reverse, func(v any) (any, error) {
		keys := &list{} // a list, so that undefined keys are equal and not an error
		for _, part := range by {
			k, err := c.sortKey(v, part, caseSensitive)
			if err != nil {
				return nil, err
			}
			keys.items = append(keys.items, k)
		}
		return keys, nil
	})
	return &list{items: out}, err
}

func filterDictsort(c *call, v any) (any, error) {
	caseSensitive := c.boolean("case_sensitive", false)
	by, err := c.text("by", "key")
	if err != nil {
		return nil, err
	}
	reverse := c.boolean("reverse", false)
	at := map[string]int64{"key": 0, "value": 1}
	if _, ok := at[by.s]; !ok {
		return nil, fail("FilterArgumentError", "You can only sort by either \"key\" or \"value\"")
	}
	d, ok := v.(*dict)
	if !ok {
		return nil, undefinedf("%s has no attribute 'items'", reprString(owner(v))).err()
	}
	if err := c.in.chargeItems(3 * d.len()); err != nil {
		return nil, err
	}
	out, err := c.sorted(d.pairs(), reverse, func(v any) (any, error) { return c.sortKey(v, at[by.s], caseSensitive) })
	return &list{items: out}, err
}

func filterGroupby(c *call, v any) (any, error) {
	attribute, err := c.need("attribute")
	if err != nil {
		return nil, err
	}
	otherwise := c.arg("default", nil)
	caseSensitive := c.boolean("case_sensitive", false)
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	key := func(v any) (any, error) {
		k, err := c.in.path(v, attribute, otherwise)
		if err != nil {
			return nil, err
		}
		return c.sortKey(k, nil, caseSensitive)
	}
	items, err = c.sorted(items, false, key)
	if err != nil {
		return nil, err
	}
	out := &list{}
	var last any
	for i, item := range items {
		k, err := key(item)
		if err != nil {
			return nil, err
		}
		same, err := c.in.equal(k, last)
		if err != nil {
			return nil, err
		}
		if i == 0 || !same {
			name, err := c.in.path(item, attribute, otherwise)
			if err != nil {
				return nil, err
			}
			out.items = append(out.items, &list{items: []any{name, &list{}}, tuple: true, names: []string{"grouper", "list"}})
			last = k
		}
		group, _ := out.items[len(out.items)-1].(*list)
		members, _ := group.items[1].(*list)
		members.items = append(members.items, item)
	}
	return out, nil
}

func filterUnique(c *call, v any) (any, error) {
	caseSensitive := c.boolean("case_sensitive", false)
	attribute := c.arg("attribute", nil)
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	seen := &dict{}
	var out []any
	for _, item := range items {
		k, err := c.sortKey(item, attribute, caseSensitive)
		if err != nil {
			return nil, err
		}
		if err := c.in.chargeItems(2); err != nil {
			return nil, err
		}
		if _, ok := seen.get(k); ok {
			continue
		}
		if err := seen.set(k, true); err != nil {
			return nil, err
		}
		out = append(out, item)
	}
	return &generator{items: out}, nil
}

// extreme returns the smallest or the largest item.
func (c *call) extreme(v any, how string) (any, error) {
	caseSensitive := c.boolean("case_sensitive", false)
	attribute := c.arg("attribute", nil)
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	if len(items) == 0 {
		return undefinedf("No aggregated item, sequence was empty."), nil
	}
	var best, bestKey any
	for i, item := range items {
		k, err := c.sortKey(item, attribute, caseSensitive)
		if err != nil {
			return nil, err
		}
		if i == 0 {
			best, bestKey = item, k
			continue
		}
		a, b := k, bestKey
		if how == "max" {
			a, b = bestKey, k
		}
		less, err := c.in.less(a, b, "<")
		if err != nil {
			return nil, err
		}
		if less {
			best, bestKey = item, k
		}
	}
	return best, nil
}

func filterSum(c *call, v any) (any, error) {
	attribute := c.arg("attribute", nil)
	sum := c.arg("start", int64(0))
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, err
	}
	for _, item := range items {
		if attribute != nil {
			if item, err = c.in.path(item, attribute, nil); err != nil {
				return nil, err
			}
		}
		if err := c.in.step(1); err != nil {
			return nil, err
		}
		if _, isText := sum.(Text); isText {
			return nil, typeError("sum() can't sum strings [use ''.join(seq) instead]")
		}
		if sum, err = c.in.binary("+", sum, item); err != nil {
			return nil, err
		}
	}
	return sum, nil
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

func filterReverse(c *call, v any) (any, error) {
	if t, ok := v.(Text); ok {
		by := -1
		return c.in.slice(t, nil, nil, &by)
	}
	items, err := c.in.iterate(v)
	if err != nil {
		return nil, fail("FilterArgumentError", "argument must be iterable")
	}
	if err := c.in.chargeItems(len(items)); err != nil {
		return nil, err
	}
	items = slices.Clone(items)
	slices.Reverse(items)
	return &generator{items: items}, nil
}

func filterRound(c *call, v any) (any, error) {
	places, err := c.integer("precision", 0)
	if err != nil {
		return nil, err
	}
	how, err := c.text("method", "common")
	if err != nil {
		return nil, err
	}
	n, ok := number(v)
	if !ok {
		if u, ok := v.(*undefined); ok {
			return nil, u.err()
		}
		return nil, typeError("type %s doesn't define __round__ method", typeName(v))
	}
	p := math.Pow(10, float64(places))
	switch how.s {
	case "common":
		if _, isFloat := n.(float64); !isFloat && places >= 0 {
			return n, nil
		} else if !isFloat {
			return truncate(roundHalfEven(toFloat(n), places))
		}
		return roundHalfEven(toFloat(n), places), nil
	case "ceil":
		return math.Ceil(toFloat(n)*p) / p, nil
	case "floor":
		return math.Floor(toFloat(n)*p) / p, nil
	}
	return nil, fail("FilterArgumentError", "method must be common, ceil or floor")
}

// filterStriptags removes comments and tags and folds white space.
func filterStriptags(c *call, v any) (any, error) {
	return c.onText(v, func(t Text) (any, error) {
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
		words := splitSpace(unescape(b.text()), -1, false)
		if err := c.in.chargeItems(len(words)); err != nil {
			return nil, err
		}
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
		start := true
		return t.mapRunes(func(r rune) string {
			first := start
			start = isSpace(r) || strings.ContainsRune("-({[<", r)
			if first {
				return upper(r)
			}
			return lower(r)
		}), c.in.charge(len(t.s))
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
		return t.mapRunes(func(r rune) string {
			switch r {
			case '/':
				return slash
			case ' ':
				return space
			}
			return url.QueryEscape(string(r))
		}), c.in.charge(3 * len(t.s))
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
		for _, line := range splitLines(t, false) {
			l, _ := line.(Text)
			lines = append(lines, wrap(l, width, long)...)
			if err := c.in.chargeItems(len(l.s)/width + 1); err != nil {
				return nil, err
			}
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
	if start := len(t.s) - len(stripText(t, "", true, false).s); start < len(t.s) {
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
