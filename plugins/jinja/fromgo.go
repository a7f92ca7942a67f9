package jinja

import (
	"fmt"
	"math/big"
	"slices"
	"strings"
)

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
