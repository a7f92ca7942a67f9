package worker

import (
	"reflect"
	"testing"

	"github.com/shoenig/test/must"
)

// filled returns a T in which every field, including those of nested structs, is non-zero.
func filled[T any](t *testing.T) T {
	t.Helper()
	var v T
	fill(t, reflect.ValueOf(&v).Elem())
	return v
}

func fill(t *testing.T, v reflect.Value) {
	t.Helper()
	switch v.Kind() {
	case reflect.String:
		v.SetString("text")
	case reflect.Int, reflect.Int64:
		v.SetInt(7)
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(7)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Float64:
		v.SetFloat(1.5)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range 2 {
			fill(t, v.Index(i))
		}
	case reflect.Struct:
		for _, field := range v.Fields() {
			fill(t, field)
		}
	default:
		t.Fatalf("no value for a %s", v.Type())
	}
}

func TestWireRoundTrip(t *testing.T) {
	t.Parallel()
	f := filled[Fingerprint](t)
	must.Eq(t, f, fingerprintFromProto(fingerprintToProto(f)))
	s := filled[StartSpec](t)
	must.Eq(t, s, startSpecFromProto(startSpecToProto(s)))
	p := filled[Progress](t)
	must.Eq(t, p, progressFromProto(progressToProto(p)))
	st := filled[Status](t)
	must.Eq(t, st, statusFromProto(statusToProto(st)))
}
