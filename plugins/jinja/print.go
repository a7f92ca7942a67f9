package jinja

import (
	"fmt"
	"math"
	"math/big"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// str returns the result of Python's str(): the text that a value prints.
func (in *interp) str(v any) (Text, error) {
	switch v := v.(type) {
	case Text:
		return v, nil
	case *undefined:
		return Text{}, nil
	}
	return in.repr(v)
}

// repr returns the result of Python's repr().
func (in *interp) repr(v any) (Text, error) {
	var b textBuilder
	if err := in.writeRepr(&b, v); err != nil {
		return Text{}, err
	}
	return b.text(), in.charge(b.len())
}

func (in *interp) writeRepr(b *textBuilder, v any) error {
	if err := in.enter(); err != nil {
		return err
	}
	defer in.leave()
	if err := in.step(1); err != nil {
		return err
	}
	if b.len() > in.bytes {
		return in.charge(b.len())
	}
	switch v := v.(type) {
	case Text:
		if err := in.remake(v, 1); err != nil {
			return err
		}
		if v.markup {
			b.addString("Markup(", false)
			defer b.addString(")", false)
		}
		writeReprText(b, v)
	case *list:
		return in.writeReprList(b, v)
	case *dict:
		return in.writeReprDict(b, v)
	case *view:
		b.addString(v.kind+"(", false)
		if err := in.writeRepr(b, &list{items: v.items}); err != nil {
			return err
		}
		b.addString(")", false)
	case *namespace:
		b.addString("<Namespace ", false)
		if err := in.writeRepr(b, &v.attrs); err != nil {
			return err
		}
		b.addString(">", false)
	default:
		b.addString(reprSimple(v), false)
	}
	return nil
}

// reprSimple prints a value that contains no other.
func reprSimple(v any) string {
	switch v := v.(type) {
	case nil:
		return "None"
	case bool:
		if v {
			return "True"
		}
		return "False"
	case int64:
		return strconv.FormatInt(v, 10)
	case *big.Int:
		return v.String()
	case float64:
		return reprFloat(v)
	case *undefined:
		return "Undefined"
	case *generator:
		return "<generator object>"
	case *loop:
		return fmt.Sprintf("<LoopContext %d/%d>", v.at+1, len(v.items))
	case *function:
		return "<function " + v.name + ">"
	}
	return "<object>"
}

func (in *interp) writeReprList(b *textBuilder, l *list) error {
	open, end := "[", "]"
	if l.tuple {
		open, end = "(", ")"
	}
	b.addString(open, false)
	for i, item := range l.items {
		if i > 0 {
			b.addString(", ", false)
		}
		if err := in.writeRepr(b, item); err != nil {
			return err
		}
	}
	if l.tuple && len(l.items) == 1 {
		b.addString(",", false)
	}
	b.addString(end, false)
	return nil
}

func (in *interp) writeReprDict(b *textBuilder, d *dict) error {
	b.addString("{", false)
	for i, k := range d.keys {
		if i > 0 {
			b.addString(", ", false)
		}
		if err := in.writeRepr(b, k); err != nil {
			return err
		}
		b.addString(": ", false)
		if err := in.writeRepr(b, d.values[i]); err != nil {
			return err
		}
	}
	b.addString("}", false)
	return nil
}

// writeReprText writes a string with quotes; an escape has the origin of the character that it
// stands for.
func writeReprText(b *textBuilder, t Text) {
	quote := byte('\'')
	if strings.Contains(t.s, "'") && !strings.Contains(t.s, "\"") {
		quote = '"'
	}
	b.addString(string(quote), false)
	for c := range t.chars() {
		b.addString(reprChar(c.text, quote), c.client)
	}
	b.addString(string(quote), false)
}

func reprChar(c string, quote byte) string {
	r, _ := utf8.DecodeRuneInString(c)
	switch {
	case c == string(quote) || c == "\\":
		return "\\" + c
	case r == '\n':
		return "\\n"
	case r == '\r':
		return "\\r"
	case r == '\t':
		return "\\t"
	case r == ' ' || unicode.IsPrint(r):
		return c
	case r <= 0xff:
		return fmt.Sprintf("\\x%02x", r)
	case r <= 0xffff:
		return fmt.Sprintf("\\u%04x", r)
	}
	return fmt.Sprintf("\\U%08x", r)
}

// maxQuoted bounds the bytes of a text that an error quotes.
const maxQuoted = 200

// reprString quotes a text for an error.
func reprString(s string) string {
	if len(s) > maxQuoted {
		s = strings.ToValidUTF8(s[:maxQuoted], "") + "…"
	}
	var b textBuilder
	writeReprText(&b, TemplateText(s))
	return b.b.String()
}

// reprFloat prints a float as Python does: shortest, with an exponent below 1e-4 and from 1e16 on.
func reprFloat(f float64) string {
	switch {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case math.IsNaN(f):
		return "nan"
	}
	if a := math.Abs(f); a != 0 && (a < 1e-4 || a >= 1e16) {
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}
