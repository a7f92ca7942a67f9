package llamacpp

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"

	"github.com/ardanlabs/jinja"
)

// The template library differs from the one that models are trained with in some things, all mended here: it keeps the template's last line break,
// it does not trim blocks, and its tojson escapes HTML and sorts keys. Besides, it takes two closing braces of nested dicts for the end of the tag.

// filterToJSON is the name that tojson gets: the library looks up its own filters first.
const filterToJSON = "rbee_tojson"

// compileTemplate compiles a chat template.
func compileTemplate(source string) (*jinja.Template, error) {
	source = strings.TrimSuffix(source, "\n")
	t, err := jinja.Compile(rewrite(source))
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	return t, nil
}

var toJSONUse = regexp.MustCompile(`\|(\s*)tojson\b`)

// rewrite does in the source what trim_blocks and lstrip_blocks do when a template is read: the line break behind a block or a comment goes, and so do
// the blanks before one at the start of a line. A plus sign in the tag prevents it.
func rewrite(src string) string {
	var out strings.Builder
	out.Grow(len(src))
	lineStart := true // the text so far ends a line
	for {
		open, kind := nextTag(src)
		if open < 0 {
			out.WriteString(src)
			return out.String()
		}
		text, rest := src[:open], src[open+2:]
		closer := map[byte]string{'{': "}}", '%': "%}", '#': "#}"}[kind]
		end := tagEnd(rest, kind, closer)
		if end < 0 {
			out.WriteString(src) // the library will complain
			return out.String()
		}
		body := rest[:end]
		src = rest[end+2:]
		keepLeft := strings.HasPrefix(body, "+")
		body = strings.TrimPrefix(body, "+")
		keepRight := strings.HasSuffix(body, "+")
		if kind != '{' { // in an expression a last + would be a mistake, not a mark
			body = strings.TrimSuffix(body, "+")
		}
		if kind != '{' && !keepLeft {
			line := strings.LastIndexByte(text, '\n') + 1
			if (line > 0 || lineStart) && strings.Trim(text[line:], " \t") == "" {
				text = text[:line]
			}
		}
		out.WriteString(text)
		if kind == '#' {
			// A comment leaves nothing behind but the whitespace control of its marks, which the library knows how to do.
			body = keepMarks(body)
		} else {
			body = toJSONUse.ReplaceAllString(spaceBraces(body), "|${1}"+filterToJSON)
		}
		out.WriteByte('{')
		out.WriteByte(kind)
		out.WriteString(body)
		out.WriteString(closer)
		lineStart = false
		if kind != '{' && !keepRight && !strings.HasSuffix(body, "-") {
			if cut, ok := strings.CutPrefix(src, "\n"); ok {
				src, lineStart = cut, true
			}
		}
	}
}

func keepMarks(body string) string {
	left, right := "", ""
	if strings.HasPrefix(body, "-") {
		left = "-"
	}
	if len(body) > 1 && strings.HasSuffix(body, "-") {
		right = "-"
	}
	return left + " " + right
}

// nextTag finds the next {{, {% or {#.
func nextTag(src string) (at int, kind byte) {
	for i := 0; ; i++ {
		j := strings.IndexByte(src[i:], '{')
		if j < 0 || i+j+1 >= len(src) {
			return -1, 0
		}
		i += j
		if k := src[i+1]; k == '{' || k == '%' || k == '#' {
			return i, k
		}
	}
}

// tagEnd finds the closer of a tag, strings and nested braces skipped.
func tagEnd(s string, kind byte, closer string) int {
	if kind == '#' {
		return strings.Index(s, closer)
	}
	depth := 0
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\'' || c == '"':
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' {
					i++
				}
			}
		case depth <= 0 && strings.HasPrefix(s[i:], closer):
			return i
		case c == '{':
			depth++
		case c == '}':
			depth--
		}
	}
	return -1
}

// spaceBraces parts closing braces that follow each other inside a tag.
func spaceBraces(body string) string {
	if !strings.Contains(body, "}}") {
		return body
	}
	var out strings.Builder
	quote, last := byte(0), byte(0)
	for i := 0; i < len(body); i++ {
		c := body[i]
		switch {
		case quote != 0 && c == '\\' && i+1 < len(body):
			out.WriteByte(c)
			i++
			c = body[i]
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '\'' || c == '"':
			quote = c
		case c == '}' && last == '}':
			out.WriteByte(' ')
		}
		out.WriteByte(c)
		last = c
		if quote != 0 {
			last = 0
		}
	}
	return out.String()
}

// toJSON is tojson as models know it: Python's json.dumps with ensure_ascii off.
func toJSON(args []jinja.Value, kwargs map[string]jinja.Value) (jinja.Value, error) {
	if len(args) == 0 {
		return jinja.Undefined(), errors.New("tojson: no value")
	}
	w := jsonWriter{indent: -1}
	if v, ok := kwargs["indent"]; ok && v.IsInt() {
		w.indent = int(min(max(v.AsInt(), 0), 16))
	}
	if err := w.value(args[0], 0); err != nil {
		return jinja.Undefined(), err
	}
	return jinja.NewString(w.b.String()), nil
}

type jsonWriter struct {
	b      strings.Builder
	indent int // -1: on one line
}

// maxTemplateDepth bounds the recursion into what a template builds.
const maxTemplateDepth = 128

func (w *jsonWriter) value(v jinja.Value, depth int) error {
	if depth > maxTemplateDepth {
		return errors.New("tojson: nested too deeply")
	}
	switch {
	case v.IsNone():
		w.b.WriteString("null")
	case v.IsBool():
		w.b.WriteString(strconv.FormatBool(v.AsBool()))
	case v.IsInt():
		w.b.WriteString(strconv.FormatInt(v.AsInt(), 10))
	case v.IsFloat():
		s := strconv.FormatFloat(v.AsFloat(), 'g', -1, 64)
		if !strings.ContainsAny(s, ".eIN") {
			s += ".0"
		}
		w.b.WriteString(s)
	case v.IsString():
		w.text(v.AsString())
	case v.IsList():
		items := v.AsList().Items
		w.b.WriteByte('[')
		for i, item := range items {
			w.separate(i, depth+1)
			if err := w.value(item, depth+1); err != nil {
				return err
			}
		}
		w.end(len(items), depth)
		w.b.WriteByte(']')
	case v.IsDict():
		d := v.AsDict()
		w.b.WriteByte('{')
		for i, key := range d.OrderedKeys() {
			w.separate(i, depth+1)
			w.text(key)
			w.b.WriteString(": ")
			item, _ := d.Get(key)
			if err := w.value(item, depth+1); err != nil {
				return err
			}
		}
		w.end(d.Len(), depth)
		w.b.WriteByte('}')
	default:
		return errors.New("tojson: the value is undefined")
	}
	return nil
}

func (w *jsonWriter) separate(i, depth int) {
	if i > 0 {
		w.b.WriteByte(',')
		if w.indent < 0 {
			w.b.WriteByte(' ')
		}
	}
	w.newline(depth)
}

func (w *jsonWriter) end(n, depth int) {
	if n > 0 {
		w.newline(depth)
	}
}

func (w *jsonWriter) newline(depth int) {
	if w.indent >= 0 {
		w.b.WriteString("\n" + strings.Repeat(" ", w.indent*depth))
	}
}

func (w *jsonWriter) text(s string) {
	w.b.WriteByte('"')
	for _, r := range s {
		switch r {
		case '"', '\\':
			w.b.WriteByte('\\')
			w.b.WriteRune(r)
		case '\n':
			w.b.WriteString(`\n`)
		case '\r':
			w.b.WriteString(`\r`)
		case '\t':
			w.b.WriteString(`\t`)
		case '\b':
			w.b.WriteString(`\b`)
		case '\f':
			w.b.WriteString(`\f`)
		default:
			if r < 0x20 {
				fmt.Fprintf(&w.b, `\u%04x`, r)
			} else {
				w.b.WriteRune(r)
			}
		}
	}
	w.b.WriteByte('"')
}

// jsonValue reads JSON into a template value and keeps the order of keys. text changes every string.
func jsonValue(raw []byte, text func(string) string) (jinja.Value, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	v, err := decodeValue(d, text)
	if err != nil {
		return jinja.Undefined(), err
	}
	if d.More() {
		return jinja.Undefined(), errors.New("more than one JSON value")
	}
	return v, nil
}

func decodeValue(d *json.Decoder, text func(string) string) (jinja.Value, error) {
	token, err := d.Token()
	if err != nil {
		return jinja.Undefined(), err
	}
	switch t := token.(type) {
	case nil:
		return jinja.None(), nil
	case bool:
		return jinja.NewBool(t), nil
	case string:
		return jinja.NewString(text(t)), nil
	case json.Number:
		if n, err := t.Int64(); err == nil {
			return jinja.NewInt(n), nil
		}
		f, err := t.Float64()
		return jinja.NewFloat(f), err
	case json.Delim:
		if t == '[' {
			var items []jinja.Value
			for d.More() {
				item, err := decodeValue(d, text)
				if err != nil {
					return item, err
				}
				items = append(items, item)
			}
			_, err := d.Token()
			return jinja.NewList(items), err
		}
		dict := jinja.NewDict()
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return jinja.Undefined(), err
			}
			item, err := decodeValue(d, text)
			if err != nil {
				return item, err
			}
			name, ok := key.(string)
			if !ok {
				return jinja.Undefined(), errors.New("a key that is no string")
			}
			dict.AsDict().Set(text(name), item)
		}
		_, err := d.Token()
		return dict, err
	}
	return jinja.Undefined(), errors.New("unknown JSON value")
}
