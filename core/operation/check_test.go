package operation_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

func jsonName(f reflect.StructField) string {
	name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
	return name
}

func fieldOf(s operation.Spec, name string) (operation.Field, bool) {
	i := slices.IndexFunc(s.Fields, func(f operation.Field) bool { return f.Name == name })
	if i < 0 {
		return operation.Field{}, false
	}
	return s.Fields[i], true
}

// requestOf returns a valid request of an operation, with every field it accepts set.
func requestOf(s operation.Spec) core.Request {
	r := core.Request{Operation: s.Name, Hive: "h1", RequestID: "id"}
	if s.Runs.OnQueen() {
		r.Hive = "" // unless it is one of its fields
	}
	for name, v := range fieldsOf(&r) {
		if f, ok := fieldOf(s, name); ok {
			setField(v, f)
		}
	}
	return r
}

// fieldsOf returns the fields of a request by their JSON names.
func fieldsOf(r *core.Request) map[string]reflect.Value {
	out := map[string]reflect.Value{}
	v := reflect.ValueOf(r).Elem()
	for i := range v.NumField() {
		if name := jsonName(v.Type().Field(i)); name != notSent {
			out[name] = v.Field(i)
		}
	}
	return out
}

func setField(v reflect.Value, f operation.Field) {
	text := "x"
	if f.Enum != nil {
		text = f.Enum[0]
	}
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Slice:
		v.Set(reflect.ValueOf([]string{text}))
	default:
		v.SetInt(1)
	}
}

// notSent is the name of a field that only queens set.
const notSent = "-"

func invalid(t *testing.T, err error, says string) {
	t.Helper()
	must.ErrorContains(t, err, says)
	must.Eq(t, core.Invalid, core.KindOf(err))
}

// Every operation accepts its own fields and no others.
func TestEveryOperationChecksItsFields(t *testing.T) {
	t.Parallel()
	known := map[string]bool{"operation": true, "hive": true, "request_id": true}
	for _, s := range operation.All() {
		t.Run(string(s.Name), func(t *testing.T) {
			full := requestOf(s)
			must.NoError(t, operation.Check(full))
			for _, f := range s.Fields {
				known[f.Name] = true
				must.NotEq(t, "", f.Doc, must.Sprint(f.Name))
				must.MapContainsKey(t, fieldsOf(&full), f.Name)
			}
			for name := range fieldsOf(&full) {
				r := full
				v := fieldsOf(&r)[name]
				f, ok := fieldOf(s, name)
				switch {
				case name == "operation" || name == "request_id" || name == "hive" && !s.Runs.OnQueen():
				case !ok: // a field of another operation
					setField(v, operation.Field{})
					invalid(t, operation.Check(r), fmt.Sprintf("%s has no field %q", s.Name, name))
				case f.Required:
					v.SetZero()
					invalid(t, operation.Check(r), fmt.Sprintf("%s needs %q", s.Name, name))
				default:
					v.SetZero()
					must.NoError(t, operation.Check(r))
				}
				if !ok {
					continue
				}
				r = full
				v = fieldsOf(&r)[name]
				switch { // one more than the field allows
				case f.Enum != nil:
					v.SetString("never an allowed word")
				case v.Kind() == reflect.Int || v.Kind() == reflect.Int64:
					v.SetInt(-1)
					invalid(t, operation.Check(r), name+" is -1")
					v.SetInt(max(f.Max, 1<<31-1, int64(core.MaxGrace)) + 1)
				case v.Kind() == reflect.String:
					v.SetString(strings.Repeat("x", int(max(f.Max, core.MaxTextBytes))+1))
				case v.Kind() == reflect.Slice:
					v.Set(reflect.ValueOf(make([]string, core.MaxTexts+1)))
				default:
					continue
				}
				invalid(t, operation.Check(r), name)
			}
		})
	}
	// Every field of a request belongs to some operation, so that a new one cannot be missing from
	// the table.
	for f := range reflect.TypeFor[core.Request]().Fields() {
		must.True(t, known[jsonName(f)] || jsonName(f) == notSent, must.Sprint(jsonName(f)))
	}
}

func TestOperationsAreDescribed(t *testing.T) {
	t.Parallel()
	names, numbers, commands := map[core.Operation]bool{}, map[int]bool{}, map[string]bool{}
	last := 0
	for _, s := range operation.All() {
		must.False(t, names[s.Name], must.Sprint(s.Name))
		names[s.Name] = true
		must.NotEq(t, "", s.Summary, must.Sprint(s.Name))
		must.NotEq(t, "", s.ResultType(), must.Sprint(s.Name))
		must.NotEq(t, string(s.Runs), s.Runs.Text(), must.Sprint(s.Name))
		for _, c := range s.CLI {
			must.False(t, commands[c], must.Sprint(c))
			commands[c] = true
		}
		if s.Number == 0 {
			continue
		}
		must.False(t, numbers[s.Number], must.Sprint(s.Number))
		must.Greater(t, last, s.Number, must.Sprintf("%s is not in the order of the contract", s.Name))
		numbers[s.Number], last = true, s.Number
		// "worker_download" is "WorkerDownload": one name, in two spellings.
		must.Eq(t, strings.ReplaceAll(string(s.Name), "_", ""), strings.ToLower(s.Title))
	}
}

// decoded parses and checks a request as a receiver does.
func decoded(body []byte) (core.Request, error) {
	r, err := operation.Decode(body)
	if err == nil {
		err = operation.Check(r)
	}
	return r, err
}

func TestDecodeRequest(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		in   string
		want core.Request
		says string // text in the error; empty: none
	}{
		"spawn": {
			in:   `{"operation":"worker_spawn","model":"m","device":"cpu","slots":2,"context_tokens":64,"threads":1,"request_id":"a","hive":"h"}`,
			want: core.Request{Operation: core.OpWorkerSpawn, Model: "m", Device: "cpu", Slots: 2, ContextTokens: 64, Threads: 1, RequestID: "a", Hive: "h"},
		},
		"delete": {
			in:   `{"operation":"worker_process_delete","pid":7,"grace":"5s"}`,
			want: core.Request{Operation: core.OpWorkerProcessDelete, PID: 7, Grace: core.Duration(5 * time.Second)},
		},
		"download":               {in: `{"operation":"worker_download","type":"cpu","force":true}`, want: core.Request{Operation: core.OpWorkerDownload, Type: "cpu", Force: true}},
		"model":                  {in: `{"operation":"model_download","model":"file:/x"}`, want: core.Request{Operation: core.OpModelDownload, Model: "file:/x"}},
		"retire":                 {in: `{"operation":"active_worker_retire","worker":"ab"}`, want: core.Request{Operation: core.OpActiveWorkerRetire, Worker: "ab"}},
		"empty":                  {in: ``, says: "EOF"},
		"no JSON":                {in: `{`, says: "unexpected EOF"},
		"two objects":            {in: `{"operation":"model_download","model":"x"} {}`, says: "follows"},
		"unknown operation":      {in: `{"operation":"worker_fly"}`, says: `no operation "worker_fly"`},
		"no operation":           {in: `{}`, says: "no operation"},
		"unknown field":          {in: `{"operation":"worker_spawn","model":"m","colour":"red"}`, says: "colour"},
		"another's field":        {in: `{"operation":"worker_spawn","model":"m","pid":7}`, says: `no field "pid"`},
		"retire with pid":        {in: `{"operation":"active_worker_retire","worker":"a","pid":7}`, says: `no field "pid"`},
		"spawn without model":    {in: `{"operation":"worker_spawn"}`, says: "model"},
		"download without type":  {in: `{"operation":"worker_download"}`, says: "type"},
		"delete without pid":     {in: `{"operation":"worker_process_delete"}`, says: "pid"},
		"delete of a group":      {in: `{"operation":"worker_process_delete","pid":-7}`, says: "pid"},
		"retire without worker":  {in: `{"operation":"active_worker_retire"}`, says: "worker"},
		"negative slots":         {in: `{"operation":"worker_spawn","model":"m","slots":-1}`, says: "slots"},
		"many slots":             {in: `{"operation":"worker_spawn","model":"m","slots":1025}`, says: "slots"},
		"negative context":       {in: `{"operation":"worker_spawn","model":"m","context_tokens":-1}`, says: "context_tokens"},
		"huge context":           {in: `{"operation":"worker_spawn","model":"m","context_tokens":16777217}`, says: "context_tokens"},
		"negative threads":       {in: `{"operation":"worker_spawn","model":"m","threads":-1}`, says: "threads"},
		"negative grace":         {in: `{"operation":"worker_process_delete","pid":7,"grace":"-1s"}`, says: "grace"},
		"long grace":             {in: `{"operation":"worker_process_delete","pid":7,"grace":"25h"}`, says: "grace"},
		"bad grace":              {in: `{"operation":"worker_process_delete","pid":7,"grace":"soon"}`, says: "soon"},
		"number out of range":    {in: `{"operation":"worker_spawn","model":"m","slots":1e99}`, says: "slots"},
		"long request id":        {in: `{"operation":"model_download","model":"m","request_id":"` + strings.Repeat("a", 129) + `"}`, says: "request_id"},
		"control character":      {in: `{"operation":"model_download","model":"m\n"}`, says: "control"},
		"wrong type":             {in: `{"operation":"model_download","model":7}`, says: "model"},
		"more than can be meant": {in: `"` + strings.Repeat("a", core.MaxRequestBytes) + `"`, says: "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := decoded([]byte(c.in))
			if c.says == "" {
				must.NoError(t, err)
				must.Eq(t, c.want, got)
				return
			}
			must.ErrorContains(t, err, c.says)
			must.Eq(t, core.Invalid, core.KindOf(err))
		})
	}
}

func TestCheckLimits(t *testing.T) {
	t.Parallel()
	spawn := core.Request{Operation: core.OpWorkerSpawn, Model: "m"}
	for says, change := range map[string]func(r *core.Request){
		"names no operation":    func(r *core.Request) { *r = core.Request{} },
		`no operation "reboot"`: func(r *core.Request) { r.Operation = "reboot" },
		"request_id has 129":    func(r *core.Request) { r.RequestID = strings.Repeat("x", 129) },
		"model has 1025":        func(r *core.Request) { r.Model = strings.Repeat("x", 1025) },
		"model has control":     func(r *core.Request) { r.Model = "a\nb" },
		"hive has 1025":         func(r *core.Request) { r.Hive = strings.Repeat("x", 1025) },
		"hive has control":      func(r *core.Request) { r.Hive = "a\x1b[2J" },
		"request_id has contr":  func(r *core.Request) { r.RequestID = "\x7f" },
		"slots is -1":           func(r *core.Request) { r.Slots = -1 },
		"slots is 1025":         func(r *core.Request) { r.Slots = 1025 },
		"context_tokens is -5":  func(r *core.Request) { r.ContextTokens = -5 },
		"threads is -1":         func(r *core.Request) { r.Threads = -1 },
		"pid is -1":             func(r *core.Request) { *r = core.Request{Operation: core.OpWorkerProcessDelete, PID: -1} },
		"grace is -1s": func(r *core.Request) {
			*r = core.Request{Operation: core.OpActiveWorkerRetire, Worker: "w", Grace: core.Duration(-time.Second)}
		},
	} {
		r := spawn
		change(&r)
		invalid(t, operation.Check(r), says)
	}
}

func TestUnknownOperationHint(t *testing.T) {
	t.Parallel()
	err := operation.Check(core.Request{Operation: "worker_spwan"})
	must.StrContains(t, core.HintOf(err), "Did you mean worker_spawn?")
	for _, s := range operation.All() {
		must.StrContains(t, core.HintOf(err), string(s.Name))
	}
	long := operation.Check(core.Request{Operation: core.Operation(strings.Repeat("x", 5000))})
	must.Less(t, 400, len(long.Error()))
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add([]byte(`{"operation":"worker_spawn","model":"m","slots":2}`))
	f.Add([]byte(`{"operation":"worker_process_delete","pid":7,"grace":"5s"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := decoded(body)
		if err != nil {
			if core.KindOf(err) != core.Invalid {
				t.Fatalf("%v is %s", err, core.KindOf(err))
			}
			return
		}
		// An accepted request is still accepted after encoding and decoding.
		b, err := json.Marshal(r)
		must.NoError(t, err)
		again, err := decoded(b)
		must.NoError(t, err)
		must.Eq(t, r, again)
	})
}

// TestCheckRefusesSecrets checks that an address with a secret is refused before a job could store
// it, and that the error does not repeat it.
func TestCheckRefusesSecrets(t *testing.T) {
	t.Parallel()
	for _, model := range []string{
		"https://user:hunter2@example.org/m.gguf", "http:https://hunter2@example.org/m.gguf", "HTTPS://u:hunter2@example.org", "https:///u:hunter2@example.org/m",
		"https://example.org/m.gguf?token=hunter2", "https://example.org/m.gguf?a=b&Access_Token=hunter2", "https://example.org/m?%74oken=hunter2",
		"https://example.org/m#token=hunter2", "https://example.org/m?X-Amz-Signature=hunter2", `https:\\u:hunter2@example.org\m`,
	} {
		err := operation.Check(core.Request{Operation: core.OpModelDownload, Hive: "h1", Model: model})
		must.Eq(t, core.Invalid, core.KindOf(err), must.Sprint(model))
		must.StrNotContains(t, err.Error()+core.HintOf(err), "hunter2")
	}
	for _, model := range []string{
		"https://example.org/a@b/m.gguf", "https://example.org/m.gguf?download=true", "https://example.org/m.gguf#sha256=00", "https://example.org/m.gguf@sha256:00",
		"hf.co/org/repo:Q4_K_M", "builtin:rbee-tiny", "file:/a/token=b@c.gguf",
	} {
		must.NoError(t, operation.Check(core.Request{Operation: core.OpModelDownload, Hive: "h1", Model: model}), must.Sprint(model))
	}
	must.NoError(t, operation.Check(core.Request{Operation: core.OpInfer, Model: "m", Prompt: "what is https://u:p@example.org?"}))
}
