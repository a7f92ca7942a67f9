package jinja

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// ParseJSON parses a JSON document into a value for Render, as Python's json.loads does: objects
// keep their order, integers their digits. With client, every string in it, keys included, counts
// as written by a client.
func ParseJSON(data []byte, client bool) (any, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	v, err := readJSON(d, client, 0)
	if err != nil {
		return nil, err
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, fmt.Errorf("text behind the JSON document at byte %d", d.InputOffset())
	}
	return v, nil
}

// ParseObject reads a JSON object into its entries, in their order, as ParseJSON reads a document.
func ParseObject(data []byte, client bool) ([]Entry, error) {
	v, err := ParseJSON(data, client)
	if err != nil {
		return nil, err
	}
	d, ok := v.(*dict)
	if !ok {
		return nil, fmt.Errorf("the JSON document is a %s, not an object", typeName(v))
	}
	entries := make([]Entry, len(d.keys))
	for i, k := range d.keys {
		text, _ := k.(Text)
		entries[i] = Entry{text.s, d.values[i]}
	}
	return entries, nil
}

func readJSON(d *json.Decoder, client bool, depth int) (any, error) {
	if depth > maxValueDepth {
		return nil, fmt.Errorf("JSON nested more than %d deep", maxValueDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, fmt.Errorf("read JSON: %w", err)
	}
	text := TemplateText
	if client {
		text = ClientText
	}
	switch t := t.(type) {
	case string:
		return text(t), nil
	case json.Number:
		return jsonNumber(t.String())
	case json.Delim:
		if t == '[' {
			out := &list{}
			for d.More() {
				item, err := readJSON(d, client, depth+1)
				if err != nil {
					return nil, err
				}
				out.items = append(out.items, item)
			}
			_, err := d.Token()
			return out, err
		}
		out := &dict{}
		for d.More() {
			k, err := d.Token()
			if err != nil {
				return nil, fmt.Errorf("read JSON: %w", err)
			}
			v, err := readJSON(d, client, depth+1)
			if err != nil {
				return nil, err
			}
			key, _ := k.(string)
			if err := out.set(text(key), v); err != nil {
				return nil, err
			}
		}
		_, err := d.Token()
		return out, err
	}
	return t, nil // bool or nil
}

func jsonNumber(s string) (any, error) {
	if !strings.ContainsAny(s, ".eE") {
		if len(s) > maxDigits {
			return nil, fmt.Errorf("a number has more than %d digits", maxDigits)
		}
		n, ok := new(big.Int).SetString(s, 10)
		if ok {
			return normalInt(n), nil
		}
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil && !math.IsInf(f, 0) {
		return nil, fmt.Errorf("read number %s: %w", s, err)
	}
	return f, nil
}

// jsonStyle holds the options of tojson.
type jsonStyle struct {
	ascii         bool
	indent        Text
	multiline     bool
	item, between Text // separators
	sortKeys      bool
}

func defaultJSON() jsonStyle { return jsonStyle{item: TemplateText(", "), between: TemplateText(": ")} }

// writeJSON writes a value as json.dumps does.
func (in *interp) writeJSON(b *textBuilder, v any, style jsonStyle, level int) error {
	if err := in.enter(); err != nil {
		return err
	}
	defer in.leave()
	if err := in.step(1); err != nil {
		return err
	}
	before := b.len()
	switch v := v.(type) {
	case nil:
		b.addString("null", false)
	case bool:
		b.addString(strconv.FormatBool(v), false)
	case int64, *big.Int:
		b.addString(fmt.Sprint(v), false)
	case float64:
		b.addString(jsonFloat(v), false)
	case Text:
		if err := in.remake(v, 1); err != nil {
			return err
		}
		writeJSONString(b, v, style.ascii)
	case *list:
		return in.writeJSONItems(b, '[', ']', len(v.items), style, level, func(i int) error {
			return in.writeJSON(b, v.items[i], style, level+1)
		})
	case *dict:
		order, err := in.jsonOrder(v, style)
		if err != nil {
			return err
		}
		return in.writeJSONItems(b, '{', '}', len(order), style, level, func(i int) error {
			key, err := jsonKey(v.keys[order[i]])
			if err != nil {
				return err
			}
			writeJSONString(b, key, style.ascii)
			b.add(style.between)
			return in.writeJSON(b, v.values[order[i]], style, level+1)
		})
	default:
		return typeError("Object of type %s is not JSON serializable", typeName(v))
	}
	return in.charge(b.len() - before)
}

func jsonFloat(f float64) string {
	switch {
	case math.IsNaN(f):
		return "NaN"
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	}
	return reprFloat(f)
}

func jsonKey(k any) (Text, error) {
	switch k := k.(type) {
	case Text:
		return k, nil
	case nil:
		return TemplateText("null"), nil
	case bool:
		return TemplateText(strconv.FormatBool(k)), nil
	case int64, *big.Int:
		return TemplateText(fmt.Sprint(k)), nil
	case float64:
		return TemplateText(jsonFloat(k)), nil
	}
	return Text{}, typeError("keys must be str, int, float, bool or None, not %s", typeName(k))
}

// jsonOrder returns the order in which to write the entries of a dict.
func (in *interp) jsonOrder(d *dict, style jsonStyle) ([]int, error) {
	order := make([]int, d.len())
	for i := range order {
		order[i] = i
	}
	if !style.sortKeys {
		return order, nil
	}
	var failed error
	slices.SortStableFunc(order, func(a, b int) int {
		o, err := in.order(d.keys[a], d.keys[b], "<")
		if err != nil && failed == nil {
			failed = err
		}
		return o
	})
	return order, failed
}

func (in *interp) writeJSONItems(b *textBuilder, open, end rune, n int, style jsonStyle, level int, write func(i int) error) error {
	b.addRune(open, false)
	if n == 0 {
		b.addRune(end, false)
		return in.charge(2)
	}
	newline := func(level int) error {
		if !style.multiline {
			return nil
		}
		if err := in.charge(1 + len(style.indent.s)*level); err != nil {
			return err
		}
		b.addString("\n", false)
		for range level {
			b.add(style.indent)
		}
		return nil
	}
	for i := range n {
		if i > 0 {
			b.add(style.item)
		}
		if err := newline(level + 1); err != nil {
			return err
		}
		if err := write(i); err != nil {
			return err
		}
	}
	if err := newline(level); err != nil {
		return err
	}
	b.addRune(end, false)
	return in.charge(2 + n*len(style.item.s))
}

const hexDigits = "0123456789abcdef"

// writeJSONString writes a string with its quotes. An escape has the origin of the character that
// it stands for.
func writeJSONString(b *textBuilder, t Text, ascii bool) {
	b.addRune('"', false)
	start := 0
	flush := func(end int) {
		if start < end {
			b.add(t.slice(start, end))
		}
	}
	for i := 0; i < len(t.s); {
		r, n := utf8.DecodeRuneInString(t.s[i:])
		escape := ""
		switch {
		case r == '"' || r == '\\':
			escape = "\\" + string(r)
		case r == '\n':
			escape = "\\n"
		case r == '\r':
			escape = "\\r"
		case r == '\t':
			escape = "\\t"
		case r == '\b':
			escape = "\\b"
		case r == '\f':
			escape = "\\f"
		case r < 0x20, ascii && r >= 0x7f && r < 0x10000:
			if r != 0x7f {
				escape = unicodeEscape(r)
			}
		case ascii && r >= 0x10000:
			r -= 0x10000
			escape = unicodeEscape(0xd800+r>>10) + unicodeEscape(0xdc00+r&0x3ff)
		}
		if escape != "" {
			flush(i)
			b.addString(escape, t.HasClient(i, i+1))
			start = i + n
		}
		i += n
	}
	flush(len(t.s))
	b.addRune('"', false)
}

func unicodeEscape(r rune) string {
	return "\\u" + string([]byte{hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15]})
}
