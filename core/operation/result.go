package operation

import (
	"encoding"
	"encoding/json"
	"reflect"

	"github.com/rbee-project/rbee/core"
)

// Bounds of a result as JSON. A hive may send anything: these bound its decoded size to about 16
// MiB.
const (
	MaxResultBytes   = 4<<20 - 64<<10 // leaves room for the message around it (rpc.MaxMessageBytes)
	maxResultObjects = 20_000         // objects and lists
	maxResultValues  = 250_000
)

// Encode encodes a result as JSON, with [] for a nil slice. Errors: TooLarge.
func Encode(v any) ([]byte, error) {
	text, err := json.Marshal(Filled(v))
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "encode result")
	}
	return text, bounded(text)
}

// Receive decodes a result that a machine of the cluster sent, within the bounds above. It skips
// unknown fields, since the other machine may be newer. The value has the type of the operation's
// result. Errors: TooLarge; Internal for anything that is not a result of this operation.
func (s Spec) Receive(text []byte) (any, error) {
	if err := bounded(text); err != nil {
		return nil, err
	}
	return s.Decode(text)
}

// Decode is Receive without its bounds, for callers that trust the sender.
func (s Spec) Decode(text []byte) (any, error) {
	v, err := s.decode(text)
	if err != nil {
		return nil, core.Errorf(core.Internal, "malformed result of %s: %w", s.Name, err)
	}
	return v, nil
}

// bounded refuses a result that is too long, or has too many values, before it is decoded.
func bounded(text []byte) error {
	if len(text) > MaxResultBytes {
		return core.Errorf(core.TooLarge, "the result has %d bytes, at most %d are read", len(text), MaxResultBytes)
	}
	objects, values, inText := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case inText && c == '\\':
			i++
		case c == '"':
			inText = !inText
		case inText:
		case c == '{' || c == '[':
			objects++
		case c == ',':
			values++
		}
	}
	if objects > maxResultObjects || objects+values > maxResultValues {
		return core.Errorf(core.TooLarge, "the result has %d objects and lists and %d values; at most %d and %d are read", objects, objects+values, maxResultObjects, maxResultValues)
	}
	return nil
}

// Filled returns v with empty slices in place of nil ones, so that JSON has [] and not null. It
// copies what it changes, since v may be shared.
func Filled(v any) any {
	if v == nil {
		return nil
	}
	return filled(reflect.ValueOf(v)).Interface()
}

func filled(v reflect.Value) reflect.Value {
	if !v.IsValid() || writesItself(v.Type()) {
		return v
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return v
		}
		in := filled(v.Elem())
		if v.Kind() == reflect.Interface {
			return in
		}
		out := reflect.New(in.Type())
		out.Elem().Set(in)
		return out
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			return v
		}
		out := reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		for i := range v.Len() {
			out.Index(i).Set(filled(v.Index(i)))
		}
		return out
	case reflect.Struct:
		out := reflect.New(v.Type()).Elem()
		out.Set(v)
		for i := range v.NumField() {
			if v.Type().Field(i).IsExported() {
				out.Field(i).Set(filled(v.Field(i)))
			}
		}
		return out
	}
	return v
}

func writesItself(t reflect.Type) bool {
	return t.Implements(reflect.TypeFor[json.Marshaler]()) || t.Implements(reflect.TypeFor[encoding.TextMarshaler]())
}
