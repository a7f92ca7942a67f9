package jinja

import (
	"fmt"
	"math"
	"math/big"
	"strings"
)

// A value is one of: nil (None), bool, int64, *big.Int (beyond int64), float64, Text, *list, *dict,
// *undefined, *namespace, *generator, *view, *function, *loop.

// list is a Python list or tuple. It is immutable.
type list struct {
	items []any
	tuple bool
	names []string // field names of a named tuple; nil: not named
}

// generator is the result of map, select and other lazy filters: it can be read once.
type generator struct {
	items []any
	used  bool
}

// view is the result of items(), keys() and values() of a dict.
type view struct {
	kind  string // "dict_items", "dict_keys", "dict_values"
	items []any
}

// undefined stands for a missing value. why is the error message for its use.
type undefined struct {
	class, why string
}

func undefinedf(format string, args ...any) *undefined {
	return &undefined{"UndefinedError", fmt.Sprintf(format, args...)}
}

func (u *undefined) err() error { return &Error{Class: u.class, Message: u.why} }

// namespace is the only value that a template can change.
type namespace struct{ attrs dict }

// function is a macro, a method or a function of the environment.
type function struct {
	name string
	call func(in *interp, args []any, kw *dict) (any, error)
}

// dict is a Python dict: ordered, with any hashable key.
type dict struct {
	keys   []any
	values []any
	index  map[any]int // from the key's hash
}

// hashed stands for a key other than a string, number or object.
type hashed string

// maxTupleKey bounds tuples as keys, in bytes of their text.
const maxTupleKey = 4096

// hashKey returns a comparable form in which keys are equal as in Python: 1, 1.0 and True are one
// key.
func hashKey(k any) (any, error) {
	switch k := k.(type) {
	case nil:
		return nil, nil
	case Text:
		return k.s, nil
	case bool:
		if k {
			return int64(1), nil
		}
		return int64(0), nil
	case float64:
		if k == math.Trunc(k) && math.Abs(k) < 1<<53 {
			return int64(k), nil
		}
		return k, nil
	case int64:
		return k, nil
	case *big.Int:
		return hashed("int " + k.String()), nil
	case *list:
		if !k.tuple {
			break
		}
		var key strings.Builder
		for _, item := range k.items {
			h, err := hashKey(item)
			if err != nil {
				return nil, err
			}
			fmt.Fprintf(&key, " %T %q", h, fmt.Sprint(h))
			if key.Len() > maxTupleKey {
				return nil, fail(classLimit, "a tuple is too large for a key of a dict")
			}
		}
		return hashed("tuple" + key.String()), nil
	case *undefined:
		return hashed("undefined"), nil
	case *function, *namespace, *loop:
		return k, nil
	}
	return nil, typeError("unhashable type: '%s'", typeName(k))
}

func (d *dict) get(key any) (any, bool) {
	h, err := hashKey(key)
	if err != nil {
		return nil, false
	}
	i, ok := d.index[h]
	if !ok {
		return nil, false
	}
	return d.values[i], true
}

// hashing counts the steps of hashing a key.
func (in *interp) hashing(key any) error {
	if t, ok := key.(Text); ok {
		return in.scan(t)
	}
	return nil
}

func (d *dict) getString(key string) (any, bool) {
	if d == nil {
		return nil, false
	}
	i, ok := d.index[key]
	if !ok {
		return nil, false
	}
	return d.values[i], true
}

func (d *dict) set(key, value any) error {
	h, err := hashKey(key)
	if err != nil {
		return err
	}
	if i, ok := d.index[h]; ok {
		d.values[i] = value
		return nil
	}
	if d.index == nil {
		d.index = map[any]int{}
	}
	d.index[h] = len(d.keys)
	d.keys, d.values = append(d.keys, key), append(d.values, value)
	return nil
}

func (d *dict) len() int {
	if d == nil {
		return 0
	}
	return len(d.keys)
}

// pairs returns the entries as tuples.
func (d *dict) pairs() []any {
	out := make([]any, len(d.keys))
	for i, k := range d.keys {
		out[i] = &list{items: []any{k, d.values[i]}, tuple: true}
	}
	return out
}

// normalInt returns n as an int64 if it fits.
func normalInt(n *big.Int) any {
	if n.IsInt64() {
		return n.Int64()
	}
	return n
}

// typeName returns the name of the value's class in Python.
func typeName(v any) string {
	switch v := v.(type) {
	case nil:
		return "NoneType"
	case bool:
		return "bool"
	case int64, *big.Int:
		return "int"
	case float64:
		return "float"
	case Text:
		if v.markup {
			return "Markup"
		}
		return "str"
	case *list:
		if v.tuple {
			return "tuple"
		}
		return "list"
	case *dict:
		return "dict"
	case *undefined:
		return "Undefined"
	case *namespace:
		return "Namespace"
	case *generator:
		return "generator"
	case *view:
		return v.kind
	case *loop:
		return "LoopContext"
	}
	return "function"
}

// owner names the value in the message about a missing attribute.
func owner(v any) string {
	if v == nil {
		return "None"
	}
	return typeName(v) + " object"
}

// truth reports whether the value counts as true.
func truth(v any) bool {
	switch v := v.(type) {
	case nil, *undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case *big.Int:
		return v.Sign() != 0
	case float64:
		return v != 0
	case Text:
		return v.s != ""
	case *list:
		return len(v.items) > 0
	case *dict:
		return v.len() > 0
	case *view:
		return len(v.items) > 0
	}
	return true
}

// length returns len() of the value.
func length(v any) (int, error) {
	switch v := v.(type) {
	case *undefined:
		return 0, nil
	case Text:
		return v.runes(), nil
	case *list:
		return len(v.items), nil
	case *dict:
		return v.len(), nil
	case *view:
		return len(v.items), nil
	case *loop:
		return len(v.items), nil
	}
	return 0, typeError("object of type '%s' has no len()", typeName(v))
}

// iterate returns the items of a loop over the value. The caller must not modify the result.
func (in *interp) iterate(v any) ([]any, error) {
	switch v := v.(type) {
	case *undefined:
		return nil, nil
	case *list:
		return v.items, nil
	case *dict:
		return v.keys, nil
	case *view:
		return v.items, nil
	case *generator:
		if v.used {
			return nil, nil
		}
		v.used = true
		return v.items, nil
	case Text:
		n := v.runes()
		if err := in.charge(n * textBytes); err != nil {
			return nil, err
		}
		out := make([]any, 0, n)
		for c := range v.chars() {
			t := Text{s: c.text}
			if c.client {
				t.client = []span{{0, len(c.text)}}
			}
			out = append(out, t)
		}
		return out, nil
	}
	return nil, typeError("'%s' object is not iterable", typeName(v))
}

// unordered is the order of values that are neither less, equal nor greater (NaN).
const unordered = 2

// maxValueDepth bounds the nesting of variables.
const maxValueDepth = 300
