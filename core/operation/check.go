package operation

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Field is one field of core.Request that an operation accepts. Its value has the type of that
// field of core.Request.
type Field struct {
	Name     string // JSON name
	Required bool
	Doc      string // a phrase that completes "Give the …"
	// Max is the largest number; the longest text, or longest text of a list, in bytes; the longest
	// time in nanoseconds. 0: core.MaxTextBytes, core.MaxGrace, or for a number the range of an
	// int32.
	Max   int64
	Enum  []string   // the only accepted texts; nil: any
	Lines bool       // a text may have several lines
	Scope core.Scope // scope that a token needs to set the field, if more than the operation's; empty: the operation's
}

// Needs is the scope that a token needs for a request: the operation's, or that of a field that the
// request gives.
func (s Spec) Needs(r core.Request) core.Scope {
	need := cmp.Or(s.Scope, core.ScopeOperate)
	for _, f := range s.Fields {
		if v, ok := requestField(&r, f.Name); ok && f.Scope != "" && !v.IsZero() {
			need = f.Scope
		}
	}
	return need
}

// common names the fields that the operation accepts without listing them in Fields.
func (s Spec) common() []string {
	if s.Runs.OnQueen() {
		return []string{"operation", "request_id"}
	}
	return []string{"operation", "hive", "request_id"}
}

// FieldNames lists the JSON names of the fields that the operation accepts, common ones first.
func (s Spec) FieldNames() []string {
	names := s.common()
	for _, f := range s.Fields {
		names = append(names, f.Name)
	}
	return names
}

// Decode parses the JSON of a request, without the checks of Check. Errors: Invalid, each naming
// what is wrong.
func Decode(body []byte) (core.Request, error) {
	const what = "read request"
	if len(body) > core.MaxRequestBytes {
		return core.Request{}, core.Errorf(core.Invalid, "%s: it has %d bytes; at most %d are read", what, len(body), core.MaxRequestBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	var r core.Request
	if err := dec.Decode(&r); err != nil {
		return core.Request{}, core.Wrap(err, core.Invalid, what)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return core.Request{}, core.Errorf(core.Invalid, "%s: something follows the request's JSON object", what)
	}
	return r, nil
}

// Check refuses a request unless it names a known operation and holds only that operation's fields,
// all required ones included, within the limits. The receiver of a request from another machine
// checks it, once. It does not check whether what the request names exists. Errors: Invalid.
func Check(r core.Request) error {
	spec, err := Find(r.Operation)
	if err != nil {
		return err
	}
	known := spec.FieldNames()
	for name, v := range requestFields(&r) {
		if !v.IsZero() && !slices.Contains(known, name) {
			return core.Errorf(core.Invalid, "%s has no field %q", spec.Name, name).Hint("Its fields are %s.", strings.Join(spec.FieldNames(), ", "))
		}
	}
	if err := (Field{Name: "request_id", Max: core.MaxRequestIDBytes}).check(reflect.ValueOf(r.RequestID)); err != nil {
		return err
	}
	if err := (Field{Name: "hive"}).check(reflect.ValueOf(r.Hive)); err != nil {
		return err
	}
	for _, f := range spec.Fields {
		v, ok := requestField(&r, f.Name)
		if !ok {
			return core.Errorf(core.Internal, "%s has a field %q that core.Request lacks", spec.Name, f.Name)
		}
		if f.Required && v.IsZero() {
			return core.Errorf(core.Invalid, "%s needs %q", spec.Name, f.Name).Hint("Give the %s.", f.Doc)
		}
		if err := f.check(v); err != nil {
			return err
		}
	}
	return nil
}

// requestFields ranges over the fields of a request by their JSON names, in the order of
// core.Request, skipping those that are not sent. The values can be set.
func requestFields(r *core.Request) iter.Seq2[string, reflect.Value] {
	return func(yield func(string, reflect.Value) bool) {
		v := reflect.ValueOf(r).Elem()
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			if name != "-" && !yield(name, v.Field(i)) {
				return
			}
		}
	}
}

// requestField returns the field of a request with a JSON name; false if there is none.
func requestField(r *core.Request, name string) (reflect.Value, bool) {
	for n, v := range requestFields(r) {
		if n == name {
			return v, true
		}
	}
	return reflect.Value{}, false
}

// limit returns Max, or the default that 0 stands for.
func (f Field) limit(v reflect.Value) int64 {
	switch {
	case f.Max > 0:
		return f.Max
	case v.Type() == reflect.TypeFor[core.Duration]():
		return int64(core.MaxGrace)
	case v.CanInt():
		return math.MaxInt32
	}
	return core.MaxTextBytes
}

// check refuses a value that is not within the field's limits.
func (f Field) check(v reflect.Value) error {
	bad := func(format string, args ...any) error {
		return core.WithHint(core.WithKind(fmt.Errorf(format, args...), core.Invalid), "Correct the field and send the request again.")
	}
	top := f.limit(v)
	switch x := v.Interface().(type) {
	case bool:
	case core.Duration:
		if x < 0 || int64(x) > top {
			return bad("%s is %s, it must be between 0 and %s", f.Name, time.Duration(x), time.Duration(top))
		}
	case int:
		if x < 0 || int64(x) > top {
			return bad("%s is %d, it must be between 0 and %d", f.Name, x, top)
		}
	case string:
		return f.checkText(x, top, bad)
	case []string:
		if len(x) > core.MaxTexts {
			return bad("%s has %d entries, at most %d are allowed", f.Name, len(x), core.MaxTexts)
		}
		for _, s := range x {
			if err := f.checkText(s, top, bad); err != nil {
				return err
			}
		}
	default:
		return core.Errorf(core.Internal, "%s is a %s, which no request can have", f.Name, v.Type())
	}
	return nil
}

// checkText never repeats the text in an error: it may be long or private.
func (f Field) checkText(s string, top int64, bad func(string, ...any) error) error {
	control := func(r rune) bool {
		return (r < ' ' || r == 0x7f) && (!f.Lines || r != '\n' && r != '\r' && r != '\t')
	}
	switch {
	case int64(len(s)) > top:
		return bad("%s has %d bytes, at most %d are allowed", f.Name, len(s), top)
	case !f.Lines && hasSecret(s):
		return core.Errorf(core.Invalid, "%s has a name, password or token in its address", f.Name).Hint(
			"Leave it out: it would stay in the job and its log. Credentials belong into the configuration of the catalog source.")
	case strings.ContainsFunc(s, control):
		return bad("%s has control characters", f.Name)
	case f.Enum != nil && s != "" && !slices.Contains(f.Enum, s):
		return bad("%s is none of %s", f.Name, strings.Join(f.Enum, ", "))
	}
	return nil
}

// secretKeys are URL parameters that grant access to what the URL names.
var secretKeys = []string{ // constant
	"token", "access_token", "auth_token", "private_token", "api_key", "apikey", "key", "auth", "authorization", "password", "passwd", "pwd", "secret", "sig", "signature",
	"x-amz-signature", "x-amz-security-token", "x-goog-signature",
}

// hasSecret reports whether a text contains a URL with a user name, a password or a token.
func hasSecret(text string) bool {
	lower := strings.ToLower(text)
	for _, scheme := range []string{"https:", "http:"} {
		_, rest, found := strings.Cut(lower, scheme)
		if !found {
			continue
		}
		rest = strings.TrimLeft(rest, "/\\") // any number of them: parsers differ
		address, fragment, _ := strings.Cut(rest, "#")
		address, query, _ := strings.Cut(address, "?")
		host, _, _ := strings.Cut(strings.ReplaceAll(address, "\\", "/"), "/")
		if strings.Contains(host, "@") {
			return true
		}
		for _, part := range strings.FieldsFunc(query+"&"+fragment, func(r rune) bool { return r == '&' || r == ';' }) {
			name, _, _ := strings.Cut(part, "=")
			if plain, err := url.QueryUnescape(name); err == nil {
				name = plain
			}
			if slices.Contains(secretKeys, name) {
				return true
			}
		}
	}
	return false
}
