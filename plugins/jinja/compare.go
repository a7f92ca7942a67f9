package jinja

import (
	"math/big"
	"strings"
)

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
