package core

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math"
	"reflect"
	"slices"
	"strings"
	"time"
)

// Limits of a request. They keep nonsense out, not large machines.
const (
	MaxRequestBytes   = 1 << 20 // of the whole JSON
	MaxRequestIDBytes = 128
	MaxTextBytes      = 1 << 10 // of a text, where its field does not say otherwise
	MaxPromptBytes    = 256 << 10
	MaxTexts          = 256 // of a list of texts
	MaxSlots          = 1024
	MaxContextTokens  = 1 << 24
	MaxThreads        = 4096
	MaxGrace          = 24 * time.Hour
)

// Runs says who runs an operation as a job, and how that one is found where the request does not
// name it.
type Runs string

// Who runs an operation.
const (
	RunsOnHive       Runs = "hive"        // the hive that the request names; the only one where it names none
	RunsOnChosenHive Runs = "chosen_hive" // the hive that the request names, or that the scheduler chooses
	RunsOnWorker     Runs = "worker_hive" // the hive of the worker that the request names
	// RunsOnQueen is the machine of the queen that is asked. What "hive" means there, if anything,
	// is said by the operation's fields.
	RunsOnQueen Runs = "queen"
	// RunsOverSSH is the machine of the queen that is asked, which reaches another one with the SSH
	// identity of whoever runs its agent.
	RunsOverSSH Runs = "ssh"
)

// OnQueen says whether the queen that is asked runs the operation on its own machine.
func (r Runs) OnQueen() bool { return r == RunsOnQueen || r == RunsOverSSH }

// Text is who runs the operation, for people.
func (r Runs) Text() string {
	switch r {
	case RunsOnHive:
		return "the hive that is named; the only one where none is"
	case RunsOnChosenHive:
		return "the hive that is named, or that the scheduler chooses"
	case RunsOnWorker:
		return "the worker's hive"
	case RunsOverSSH:
		return "the queen that is asked, over SSH"
	case RunsOnQueen:
		return "the queen that is asked"
	}
	return string(r)
}

// OperationSpec describes one operation: what POST /v1/jobs takes for it, and by what other ways it
// can be reached. Operations lists all of them; validation, documentation and help come from there
// and from nowhere else.
type OperationSpec struct {
	Name    Operation
	Number  int    // of its row in contributing/operations.md; 0: beyond the contract's 28
	Title   string // its name there
	Summary string // one sentence
	Runs    Runs
	Scope   Scope       // that a token needs for it; empty: ScopeOperate
	Fields  []FieldSpec // beside operation, request_id and, but for RunsOnQueen, hive, which all know
	Result  any         // a zero value of the result's type
	Get     string      // pattern of the plain GET route that answers the same without a job; empty: none
	CLI     []string    // the commands that do it, the main one first, without "rbee"
	Private bool        // its request and result are nobody else's business: neither is ever on a disk
	Test    string      // the end-to-end test of it, in cmd/rbee/e2e
}

// FieldSpec is one field of Request that an operation knows. The kind of its value is that of the
// field of Request.
type FieldSpec struct {
	Name     string // in JSON
	Required bool
	Doc      string // a phrase that completes "Give the …"
	// Max is the greatest number; the most bytes of a text, or of each in a list; the longest time
	// in nanoseconds. 0: MaxTextBytes, MaxGrace, or for a number whatever an int32 holds.
	Max   int64
	Enum  []string // the only texts that are taken; nil: any
	Lines bool     // a text may have several lines
	Scope Scope    // that a token needs to give it, where the operation needs less; empty: the operation's
}

// Needs is the scope that a token needs for a request: the operation's, or that of a field that the
// request gives.
func (s OperationSpec) Needs(r Request) Scope {
	need := cmp.Or(s.Scope, ScopeOperate)
	for _, f := range s.Fields {
		if v, ok := requestField(r, f.Name); ok && f.Scope != "" && !v.IsZero() {
			need = f.Scope
		}
	}
	return need
}

// ResultType names the type of the result: "WorkerBinary", "[]Process"; empty where there is none.
func (s OperationSpec) ResultType() string {
	if s.Result == nil {
		return ""
	}
	return strings.ReplaceAll(reflect.TypeOf(s.Result).String(), "core.", "")
}

// common names the fields that the operation knows without having them in Fields.
func (s OperationSpec) common() []string {
	if s.Runs.OnQueen() {
		return []string{"operation", "request_id"}
	}
	return []string{"operation", "hive", "request_id"}
}

// FieldNames lists the JSON names of the fields that the operation knows, those that all know
// first.
func (s OperationSpec) FieldNames() []string {
	names := s.common()
	for _, f := range s.Fields {
		names = append(names, f.Name)
	}
	return names
}

// FindOperation returns the description of an operation. Errors: Invalid, with the names that are
// most like it.
func FindOperation(name Operation) (OperationSpec, error) {
	var names []string
	for _, s := range Operations() {
		if s.Name == name {
			return s, nil
		}
		names = append(names, string(s.Name))
	}
	slices.Sort(names)
	if name == "" {
		return OperationSpec{}, Errorf(Invalid, "the request names no operation").Hint("The operations are %s.", strings.Join(names, ", "))
	}
	err := Errorf(Invalid, "there is no operation %q", clipRequestText(string(name)))
	if near := Nearest(string(name), names); len(near) > 0 {
		return OperationSpec{}, WithHint(err, "Did you mean %s? The operations are %s.", near[0], strings.Join(names, ", "))
	}
	return OperationSpec{}, WithHint(err, "The operations are %s.", strings.Join(names, ", "))
}

func clipRequestText(s string) string { return string(clipRunes(s)) }

// DecodeRequest reads the JSON of a request and checks it as CheckRequest does. Errors: Invalid,
// each naming what is wrong.
func DecodeRequest(body []byte) (Request, error) {
	const what = "read request"
	if len(body) > MaxRequestBytes {
		return Request{}, Errorf(Invalid, "%s: it has %d bytes; at most %d are read", what, len(body), MaxRequestBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	var r Request
	if err := dec.Decode(&r); err != nil {
		return Request{}, Wrap(err, Invalid, what)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return Request{}, Errorf(Invalid, "%s: something follows the request's JSON object", what)
	}
	return r, CheckRequest(r)
}

// CheckRequest says whether a request names a known operation and holds that operation's fields,
// all that are required and no others, within the limits. It does not look whether what it names
// exists. Errors: Invalid.
func CheckRequest(r Request) error {
	spec, err := FindOperation(r.Operation)
	if err != nil {
		return err
	}
	known := spec.FieldNames()
	for name, v := range requestFields(r) {
		if !v.IsZero() && !slices.Contains(known, name) {
			return Errorf(Invalid, "%s has no field %q", spec.Name, name).Hint("Its fields are %s.", strings.Join(spec.FieldNames(), ", "))
		}
	}
	if err := (FieldSpec{Name: "request_id", Max: MaxRequestIDBytes}).check(reflect.ValueOf(r.RequestID)); err != nil {
		return err
	}
	if err := (FieldSpec{Name: "hive"}).check(reflect.ValueOf(r.Hive)); err != nil {
		return err
	}
	for _, f := range spec.Fields {
		v, ok := requestField(r, f.Name)
		if !ok {
			return Errorf(Internal, "%s has a field %q that Request has not", spec.Name, f.Name)
		}
		if f.Required && v.IsZero() {
			return Errorf(Invalid, "%s needs %q", spec.Name, f.Name).Hint("Give the %s.", f.Doc)
		}
		if err := f.check(v); err != nil {
			return err
		}
	}
	return nil
}

// requestFields ranges over the fields of a request by their JSON names, in the order of Request.
func requestFields(r Request) iter.Seq2[string, reflect.Value] {
	return func(yield func(string, reflect.Value) bool) {
		v := reflect.ValueOf(r)
		for i := range v.NumField() {
			name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
			if !yield(name, v.Field(i)) {
				return
			}
		}
	}
}

func requestField(r Request, name string) (reflect.Value, bool) {
	for n, v := range requestFields(r) {
		if n == name {
			return v, true
		}
	}
	return reflect.Value{}, false
}

// limit is Max, or what stands for 0.
func (f FieldSpec) limit(v reflect.Value) int64 {
	switch {
	case f.Max > 0:
		return f.Max
	case v.Type() == reflect.TypeFor[Duration]():
		return int64(MaxGrace)
	case v.CanInt():
		return math.MaxInt32
	}
	return MaxTextBytes
}

// check says whether a value is within the field's limits.
func (f FieldSpec) check(v reflect.Value) error {
	bad := func(format string, args ...any) error {
		return WithHint(WithKind(fmt.Errorf(format, args...), Invalid), "Correct the field and send the request again.")
	}
	top := f.limit(v)
	switch x := v.Interface().(type) {
	case bool:
	case Duration:
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
		if len(x) > MaxTexts {
			return bad("%s has %d entries, at most %d are allowed", f.Name, len(x), MaxTexts)
		}
		for _, s := range x {
			if err := f.checkText(s, top, bad); err != nil {
				return err
			}
		}
	default:
		return Errorf(Internal, "%s is a %s, which no request can have", f.Name, v.Type())
	}
	return nil
}

// checkText never repeats the text, which may be long, or nobody else's business.
func (f FieldSpec) checkText(s string, top int64, bad func(string, ...any) error) error {
	control := func(r rune) bool {
		return (r < ' ' || r == 0x7f) && (!f.Lines || r != '\n' && r != '\r' && r != '\t')
	}
	switch {
	case int64(len(s)) > top:
		return bad("%s has %d bytes, at most %d are allowed", f.Name, len(s), top)
	case strings.ContainsFunc(s, control):
		return bad("%s has control characters", f.Name)
	case f.Enum != nil && s != "" && !slices.Contains(f.Enum, s):
		return bad("%s is none of %s", f.Name, strings.Join(f.Enum, ", "))
	}
	return nil
}
