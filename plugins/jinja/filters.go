package jinja

// filterNamed returns a filter of Jinja's, or nil.
func filterNamed(name string) filter {
	for _, find := range []func(string) filter{textFilter, numberFilter, listFilter, valueFilter} {
		if f := find(name); f != nil {
			return f
		}
	}
	return nil
}

// valueFilter returns a filter of any value, or nil.
func valueFilter(name string) filter {
	switch name {
	case "attr":
		return filterAttr
	case "d", "default":
		return func(c *call, v any) (any, error) {
			otherwise := c.arg("default_value", Text{})
			_, isUndefined := v.(*undefined)
			if c.boolean("boolean", false) && !truth(v) || isUndefined {
				return otherwise, nil
			}
			return v, nil
		}
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
