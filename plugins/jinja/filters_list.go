package jinja

import (
	"slices"
	"strconv"
	"strings"
)

// listFilter returns a filter of lists and mappings, or nil. It is a switch, not a table, because
// map and select look filters up themselves.
func listFilter(name string) filter {
	switch name {
	case "batch":
		return filterBatch
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
	case "dictsort":
		return filterDictsort
	case "first", "last":
		return func(c *call, v any) (any, error) { return c.end(v, name == "last") }
	case "groupby":
		return filterGroupby
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
	case "select", "reject", "selectattr", "rejectattr":
		return func(c *call, v any) (any, error) {
			return c.selected(v, strings.HasSuffix(name, "attr"), strings.HasPrefix(name, "select"))
		}
	case "reverse":
		return filterReverse
	case "slice":
		return filterSlice
	case "sort":
		return filterSort
	case "sum":
		return filterSum
	case "unique":
		return filterUnique
	}
	return nil
}

// filterBatch splits items into lists of n and pads the last one with a value, if given.
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

// selected keeps the items for which a test of them, or of one of their attributes, gives the
// wanted result.
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

// sortKey returns the key by which items are ordered, ignoring case unless caseSensitive.
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
		if err := c.in.hashing(k); err != nil {
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
