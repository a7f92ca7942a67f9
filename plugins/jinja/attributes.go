package jinja

import (
	"math"
	"slices"
	"strings"
)

// mutators lists the methods that Jinja's immutable sandbox forbids, by class.
var mutators = map[string][]string{
	"list": {"append", "clear", "pop", "reverse", "insert", "sort", "extend", "remove"},
	"dict": {"clear", "pop", "popitem", "setdefault", "update"},
}

// attribute returns v.name: a method, else an item of that name.
func (in *interp) attribute(v any, name string) (any, error) {
	if u, ok := v.(*undefined); ok {
		return nil, u.err()
	}
	if m := in.methodOf(v, name); m != nil {
		return m, nil
	}
	if slices.Contains(mutators[typeName(v)], name) || strings.HasPrefix(name, "__") {
		return &undefined{"SecurityError", "access to attribute " + reprString(name) + " of " + reprString(typeName(v)) + " object is unsafe."}, nil
	}
	switch v := v.(type) {
	case *dict:
		if x, ok := v.getString(name); ok {
			return x, nil
		}
	case *namespace:
		if x, ok := v.attrs.getString(name); ok {
			return x, nil
		}
	case *loop:
		if x, ok := v.attribute(name); ok {
			return x, nil
		}
	case *list:
		if i := slices.Index(v.names, name); i >= 0 {
			return v.items[i], nil
		}
	case *function:
		if name == "name" {
			return TemplateText(v.name), nil
		}
	}
	return undefinedf("%s has no attribute %s", reprString(owner(v)), reprString(name)), nil
}

// index returns v[key]: an item, else an attribute of that name.
func (in *interp) index(v, key any) (any, error) {
	switch v := v.(type) {
	case *undefined:
		return nil, v.err()
	case *dict:
		if err := in.hashing(key); err != nil {
			return nil, err
		}
		if x, ok := v.get(key); ok {
			return x, nil
		}
	case *list:
		if i, ok := position(key, len(v.items)); ok {
			return v.items[i], nil
		}
	case Text:
		if err := in.scan(v); err != nil {
			return nil, err
		}
		if i, ok := position(key, v.runes()); ok {
			from := v.offset(i)
			return v.slice(from, from+v.slice(from, len(v.s)).offset(1)), nil
		}
	}
	t, ok := key.(Text)
	if !ok {
		text, err := in.repr(key)
		if err != nil {
			return nil, err
		}
		return undefinedf("%s has no element %s", owner(v), text.s), nil
	}
	return in.attribute(v, t.s)
}

// position returns the index that key names in a sequence of n items.
func position(key any, n int) (int, bool) {
	i, ok := wholeNumber(key)
	if !ok {
		return 0, false
	}
	if i < 0 {
		i += int64(n)
	}
	return int(i), i >= 0 && i < int64(n)
}

// attribute returns a loop's attribute.
func (l *loop) attribute(name string) (any, bool) {
	n := len(l.items)
	switch name {
	case "index":
		return int64(l.at + 1), true
	case "index0":
		return int64(l.at), true
	case "revindex":
		return int64(n - l.at), true
	case "revindex0":
		return int64(n - l.at - 1), true
	case "first":
		return l.at == 0, true
	case "last":
		return l.at == n-1, true
	case "length":
		return int64(n), true
	case "depth":
		return int64(l.depth), true
	case "depth0":
		return int64(l.depth - 1), true
	case "previtem":
		if l.at == 0 {
			return undefinedf("there is no previous item"), true
		}
		return l.items[l.at-1], true
	case "nextitem":
		if l.at >= n-1 {
			return undefinedf("there is no next item"), true
		}
		return l.items[l.at+1], true
	case "cycle":
		return method(name, func(c *call) (any, error) {
			args, _ := c.rest()
			if len(args) == 0 {
				return nil, typeError("no items for cycling given")
			}
			return args[l.at%len(args)], nil
		}), true
	case "changed":
		return method(name, func(c *call) (any, error) {
			args, _ := c.rest()
			same, err := c.in.equal(&list{items: l.last}, &list{items: args})
			if err != nil {
				return nil, err
			}
			changed := !l.changed || !same
			l.changed, l.last = true, args
			return changed, nil
		}), true
	}
	return nil, false
}

// methodOf returns a method of a value, or nil.
func (in *interp) methodOf(v any, name string) any {
	var f func(c *call) (any, error)
	switch v := v.(type) {
	case Text:
		if g := textMethod(name); g != nil {
			f = func(c *call) (any, error) {
				if err := c.in.scan(v); err != nil {
					return nil, err
				}
				return g(c, v)
			}
		}
	case *dict:
		f = dictMethod(v, name)
	case *list:
		f = listMethod(v, name)
	case float64:
		if name == "is_integer" {
			f = func(*call) (any, error) { return v == math.Trunc(v), nil }
		}
	}
	if f == nil {
		return nil
	}
	return method(name, f)
}

func dictMethod(d *dict, name string) func(c *call) (any, error) {
	switch name {
	case "get":
		return func(c *call) (any, error) {
			key, err := c.need("key")
			if err != nil {
				return nil, err
			}
			otherwise := c.arg("default", nil)
			if err := c.in.hashing(key); err != nil {
				return nil, err
			}
			if _, err := hashKey(key); err != nil {
				return nil, err
			}
			if v, ok := d.get(key); ok {
				return v, nil
			}
			return otherwise, nil
		}
	case "items":
		return func(c *call) (any, error) {
			return &view{"dict_items", d.pairs()}, c.in.chargeItems(3 * d.len())
		}
	case "keys":
		return func(*call) (any, error) { return &view{"dict_keys", d.keys}, nil }
	case "values":
		return func(*call) (any, error) { return &view{"dict_values", d.values}, nil }
	case "copy":
		return func(*call) (any, error) { return d, nil }
	}
	return nil
}

func listMethod(l *list, name string) func(c *call) (any, error) {
	switch name {
	case "count", "index":
		return func(c *call) (any, error) {
			x, err := c.need("value")
			if err != nil {
				return nil, err
			}
			n := 0
			for i, item := range l.items {
				same, err := c.in.equal(item, x)
				if err != nil {
					return nil, err
				}
				if same && name == "index" {
					return int64(i), nil
				}
				if same {
					n++
				}
			}
			if name == "count" {
				return int64(n), nil
			}
			text, err := c.in.repr(x)
			if err != nil {
				return nil, err
			}
			return nil, fail("ValueError", "%s is not in list", text.s)
		}
	case "copy":
		if !l.tuple {
			return func(*call) (any, error) { return l, nil }
		}
	}
	return nil
}

// maxRange is the sandbox's own bound on range().
const maxRange = 100_000

// globalNamed returns a function of the environment, or nil.
func globalNamed(name string) any {
	var f func(c *call) (any, error)
	switch name {
	case "range":
		f = globalRange
	case "dict":
		f = globalDict
	case "namespace":
		f = func(c *call) (any, error) {
			d, err := globalDict(c)
			if err != nil {
				return nil, err
			}
			return &namespace{attrs: *d.(*dict)}, nil //nolint:forcetypeassert // globalDict makes one
		}
	case "raise_exception":
		f = func(c *call) (any, error) {
			v, err := c.need("message")
			if err != nil {
				return nil, err
			}
			t, err := c.in.str(v)
			if err != nil {
				return nil, err
			}
			return nil, fail(classRaise, "%s", t.s)
		}
	case "strftime_now":
		f = func(c *call) (any, error) {
			t, err := c.needText("format")
			if err != nil {
				return nil, err
			}
			if err := c.in.charge(len(t.s) * 16); err != nil {
				return nil, err
			}
			return strftime(c.in.now, t), nil
		}
	case "joiner":
		f = globalJoiner
	case "cycler":
		f = globalCycler
	default:
		return nil
	}
	return method(name, f)
}

func globalRange(c *call) (any, error) {
	from, err := c.integer("start", 0)
	if err != nil {
		return nil, err
	}
	step := 1
	to := from
	if len(c.args) == 0 {
		from = 0
	} else {
		if to, err = c.integer("stop", 0); err != nil {
			return nil, err
		}
		if step, err = c.integer("step", 1); err != nil {
			return nil, err
		}
	}
	n := 0.0
	switch {
	case step == 0:
		return nil, fail("ValueError", "range() arg 3 must not be zero")
	case step > 0 && to > from, step < 0 && to < from:
		n = math.Ceil((float64(to) - float64(from)) / float64(step))
	}
	if n > maxRange {
		return nil, fail("OverflowError", "Range too big. The sandbox blocks ranges larger than MAX_RANGE (%d).", maxRange)
	}
	if err := c.in.chargeItems(int(n)); err != nil {
		return nil, err
	}
	out := &list{items: make([]any, int(n))}
	for i := range out.items {
		out.items[i] = int64(from + i*step)
	}
	return out, nil
}

// globalDict makes a dict from another one or from pairs, and from keyword arguments.
func globalDict(c *call) (any, error) {
	args, kw := c.rest()
	out := &dict{}
	if len(args) > 1 {
		return nil, typeError("dict expected at most 1 argument, got %d", len(args))
	}
	sources := []any{}
	if len(args) == 1 {
		sources = append(sources, args[0])
	}
	if kw != nil {
		sources = append(sources, kw)
	}
	for _, source := range sources {
		pairs, err := c.in.pairsOf(source)
		if err != nil {
			return nil, err
		}
		if err := c.in.chargeItems(2 * len(pairs)); err != nil {
			return nil, err
		}
		for _, p := range pairs {
			items, err := c.in.iterate(p)
			if err != nil {
				return nil, err
			}
			if len(items) != 2 {
				return nil, fail("ValueError", "dictionary update sequence element has length %d; 2 is required", len(items))
			}
			if err := out.set(items[0], items[1]); err != nil {
				return nil, err
			}
		}
	}
	return out, nil
}

func (in *interp) pairsOf(v any) ([]any, error) {
	switch v := v.(type) {
	case *dict:
		return v.pairs(), nil
	case *namespace:
		return v.attrs.pairs(), nil
	}
	return in.iterate(v)
}

func globalJoiner(c *call) (any, error) {
	separator, err := c.text("sep", ", ")
	if err != nil {
		return nil, err
	}
	used := false
	return method("joiner", func(*call) (any, error) {
		if !used {
			used = true
			return Text{}, nil
		}
		return separator, nil
	}), nil
}

func globalCycler(c *call) (any, error) {
	items, _ := c.rest()
	if len(items) == 0 {
		return nil, typeError("at least one item has to be provided")
	}
	i := 0
	ns := &namespace{}
	set := func(name string, v any) { _ = ns.attrs.set(TemplateText(name), v) }
	set("current", items[0])
	set("next", method("next", func(*call) (any, error) {
		v := items[i%len(items)]
		i++
		set("current", items[i%len(items)])
		return v, nil
	}))
	set("reset", method("reset", func(*call) (any, error) {
		i = 0
		set("current", items[0])
		return nil, nil //nolint:nilnil // None
	}))
	return ns, nil
}
