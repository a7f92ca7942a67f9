package jinja

import (
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
			return c.onText(v, c.in.escape)
		}
	case "forceescape":
		return func(c *call, v any) (any, error) {
			return c.onText(v, func(t Text) (any, error) { return c.in.escape(t.plain()) })
		}
	case "filesizeformat":
		return func(c *call, v any) (any, error) {
			f, err := c.in.toNumber(v)
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
				return c.strip(t, true, true)
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
