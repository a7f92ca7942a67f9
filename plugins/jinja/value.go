package jinja

import (
	"fmt"
	"math"
	"math/big"
	"slices"
	"strings"
)

// A value is one of: nil (None), bool, int64, *big.Int (beyond int64), float64, Text, *list, *dict,
// *undefined, *namespace, *generator, *view, *function, *loop.

// list is a Python list or tuple. It is immutable.
type list struct {
	items []any
	tuple bool
	names []string // of the items of a named tuple; nil: it has none
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

// undefined stands for a missing value. why is the message of the error that its use gives.
type undefined struct {
	class, why string
}

func undefinedf(format string, args ...any) *undefined {
	return &undefined{"UndefinedError", fmt.Sprintf(format, args...)}
}

func (u *undefined) err() error { return &Error{Class: u.class, Message: u.why} }

// namespace is the one value that a template can change.
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

// hashing counts the steps of what a key's hash takes.
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

// iterate returns the items of a loop over the value. The caller must not change it.
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

// number converts bools to integers, as Python does.
func number(v any) (any, bool) {
	switch v := v.(type) {
	case bool:
		if v {
			return int64(1), true
		}
		return int64(0), true
	case int64, *big.Int, float64:
		return v, true
	}
	return nil, false
}

func bigInt(v any) *big.Int {
	switch v := v.(type) {
	case int64:
		return big.NewInt(v)
	case *big.Int:
		return v
	}
	return nil
}

func toFloat(v any) float64 {
	switch v := v.(type) {
	case int64:
		return float64(v)
	case *big.Int:
		f, _ := new(big.Float).SetInt(v).Float64()
		return f
	case float64:
		return v
	}
	return 0
}

// compareNumbers returns -1, 0 or 1; ok is false if one of them is not a number (NaN).
func compareNumbers(a, b any) (order int, ok bool) {
	x, xInt := a.(int64)
	y, yInt := b.(int64)
	if xInt && yInt {
		switch {
		case x < y:
			return -1, true
		case x > y:
			return 1, true
		}
		return 0, true
	}
	f, aFloat := a.(float64)
	g, bFloat := b.(float64)
	if !aFloat && !bFloat {
		return bigInt(a).Cmp(bigInt(b)), true
	}
	if !aFloat {
		f = toFloat(a)
	}
	if !bFloat {
		g = toFloat(b)
	}
	switch {
	case f < g:
		return -1, true
	case f > g:
		return 1, true
	case f == g:
		return 0, true
	}
	return 0, false
}

// equal reports whether Python's == holds. Depth bounds the recursion into nested values.
func (in *interp) equal(a, b any) (bool, error) {
	if err := in.enter(); err != nil {
		return false, err
	}
	defer in.leave()
	if err := in.step(1); err != nil {
		return false, err
	}
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			order, ok := compareNumbers(x, y)
			return ok && order == 0, nil
		}
		return false, nil
	}
	switch a := a.(type) {
	case nil:
		return b == nil, nil
	case Text:
		t, ok := b.(Text)
		return ok && a.s == t.s, in.scan(a)
	case *undefined:
		_, ok := b.(*undefined)
		return ok, nil
	case *list:
		l, ok := b.(*list)
		if !ok || a.tuple != l.tuple || len(a.items) != len(l.items) {
			return false, nil
		}
		return in.equalItems(a.items, l.items)
	case *dict:
		d, ok := b.(*dict)
		if !ok || a.len() != d.len() {
			return false, nil
		}
		for i, k := range a.keys {
			v, ok := d.get(k)
			if !ok {
				return false, nil
			}
			if same, err := in.equal(a.values[i], v); err != nil || !same {
				return false, err
			}
		}
		return true, nil
	case *view:
		v, ok := b.(*view)
		if !ok || a.kind != v.kind || len(a.items) != len(v.items) {
			return false, nil
		}
		return in.equalItems(a.items, v.items)
	}
	return a == b, nil
}

func (in *interp) equalItems(a, b []any) (bool, error) {
	for i := range a {
		if same, err := in.equal(a[i], b[i]); err != nil || !same {
			return false, err
		}
	}
	return true, nil
}

// less reports whether Python's < holds; op is the operator in errors.
func (in *interp) less(a, b any, op string) (bool, error) {
	order, err := in.order(a, b, op)
	return order < 0, err
}

// unordered is the order of values that are neither less, equal nor greater (NaN).
const unordered = 2

// order returns -1, 0, 1 or unordered.
func (in *interp) order(a, b any, op string) (int, error) {
	if err := in.enter(); err != nil {
		return 0, err
	}
	defer in.leave()
	if err := in.step(1); err != nil {
		return 0, err
	}
	for _, v := range []any{a, b} {
		if u, ok := v.(*undefined); ok {
			return 0, u.err()
		}
	}
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			order, ok := compareNumbers(x, y)
			if !ok {
				return unordered, nil
			}
			return order, nil
		}
	}
	if x, ok := a.(Text); ok {
		if y, ok := b.(Text); ok {
			return strings.Compare(x.s, y.s), in.scan(x)
		}
	}
	x, ok := a.(*list)
	y, ok2 := b.(*list)
	if !ok || !ok2 || x.tuple != y.tuple {
		return 0, typeError("'%s' not supported between instances of '%s' and '%s'", op, typeName(a), typeName(b))
	}
	for i := range min(len(x.items), len(y.items)) {
		same, err := in.equal(x.items[i], y.items[i])
		if err != nil {
			return 0, err
		}
		if !same {
			return in.order(x.items[i], y.items[i], op)
		}
	}
	order, _ := compareNumbers(int64(len(x.items)), int64(len(y.items)))
	return order, nil
}

// contains reports whether Python's "item in v" holds.
func (in *interp) contains(v, item any) (bool, error) {
	switch v := v.(type) {
	case Text:
		t, ok := item.(Text)
		if !ok {
			return false, typeError("'in <string>' requires string as left operand, not %s", typeName(item))
		}
		return strings.Contains(v.s, t.s), in.scan(v)
	case *dict:
		if err := in.hashing(item); err != nil {
			return false, err
		}
		h, err := hashKey(item)
		if err != nil {
			return false, err
		}
		_, ok := v.index[h]
		return ok, nil
	case *list, *view, *generator, *undefined:
		items, err := in.iterate(v)
		if err != nil {
			return false, err
		}
		for _, x := range items {
			if err := in.step(1); err != nil {
				return false, err
			}
			if same, err := in.equal(x, item); err != nil || same {
				return same, err
			}
		}
		return false, nil
	}
	return false, typeError("argument of type '%s' is not iterable", typeName(v))
}

// textSize returns the number of bytes of text in a variable, at least one for each value.
func textSize(v any, depth int) int {
	size := 1
	if depth > maxValueDepth {
		return size
	}
	switch v := v.(type) {
	case string:
		size += len(v)
	case Text:
		size += len(v.s)
	case []any:
		for _, item := range v {
			size += textSize(item, depth+1)
		}
	case []Entry:
		for _, e := range v {
			size += len(e.Key) + textSize(e.Value, depth+1)
		}
	case map[string]any:
		for k, item := range v {
			size += len(k) + textSize(item, depth+1)
		}
	case *list:
		for _, item := range v.items {
			size += textSize(item, depth+1)
		}
	case *dict:
		for i, k := range v.keys {
			size += textSize(k, depth+1) + textSize(v.values[i], depth+1)
		}
	}
	return size
}

// Entry is a key of a dict with its value. A []Entry is a dict in that order.
type Entry struct {
	Key   string
	Value any
}

// fromGo converts a Go program's variable.
func (in *interp) fromGo(v any, depth int) (any, error) {
	if depth > maxValueDepth {
		return nil, fail(classLimit, "a variable is nested more than %d deep", maxValueDepth)
	}
	switch v := v.(type) {
	case nil, bool, int64, float64, *big.Int, Text, *list, *dict:
		return v, nil
	case int:
		return int64(v), nil
	case string:
		return TemplateText(v), nil
	case []any:
		out := &list{items: make([]any, len(v))}
		for i, item := range v {
			x, err := in.fromGo(item, depth+1)
			if err != nil {
				return nil, err
			}
			out.items[i] = x
		}
		return out, nil
	case map[string]any:
		entries := make([]Entry, 0, len(v))
		for k, item := range v {
			entries = append(entries, Entry{k, item})
		}
		slices.SortFunc(entries, func(a, b Entry) int { return strings.Compare(a.Key, b.Key) })
		return in.fromGo(entries, depth)
	case []Entry:
		out := &dict{}
		for _, e := range v {
			x, err := in.fromGo(e.Value, depth+1)
			if err != nil {
				return nil, err
			}
			if err := out.set(TemplateText(e.Key), x); err != nil {
				return nil, err
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("values of type %T are not supported", v)
}

// maxValueDepth bounds the nesting of variables.
const maxValueDepth = 300
