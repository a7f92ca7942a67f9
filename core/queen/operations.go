package queen

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Limits of a request. They keep nonsense out, not large machines.
const (
	MaxRequestIDBytes = 128
	MaxTextBytes      = 1 << 10 // of a type, a reference, a model, a device or a worker
	MaxSlots          = 1024
	MaxContextTokens  = 1 << 24
	MaxThreads        = 4096
	MaxGrace          = 24 * time.Hour
)

// Operation describes an operation that is a job: what POST /v1/jobs takes for it. It is the one place that validation and documentation come from.
type Operation struct {
	Name    core.Operation
	Summary string
	Hive    string // what happens where the request names no hive
	Fields  []Field
	Result  string // type of the result, with its JSON in core
}

// Field is one field of core.Request that an operation knows, beside operation, hive and request_id, which all know.
type Field struct {
	Name     string // in JSON
	Required bool
	Doc      string
}

// Operations lists every operation that is a job, in the order of the documentation.
func Operations() []Operation {
	return []Operation{
		{
			Name: core.OpWorkerDownload, Summary: "Install a worker type: fetch its engine, verify, unpack, publish and probe it.",
			Hive: "the only hive; with several it must be named", Result: "WorkerBinary",
			Fields: []Field{
				{"type", true, "worker type, such as cpu"},
				{"from", false, "catalog reference of the engine instead of the plugin's own"},
				{"force", false, "renew what is there already"},
			},
		},
		{
			Name: core.OpWorkerSpawn, Summary: "Start a worker with a model, fetching what is missing.",
			Hive: "the scheduler chooses", Result: "SpawnResult",
			Fields: []Field{
				{"model", true, "id, alias or catalog reference"},
				{"type", false, "worker type; empty: the hive chooses"},
				{"device", false, "device id, such as cuda:0; empty: the hive chooses"},
				{"slots", false, "requests served at once; 0: the hive's default"},
				{"context_tokens", false, "positions per slot; 0: the model's own, as far as memory allows"},
				{"threads", false, "processor threads; 0: the hive's default"},
			},
		},
		{
			Name: core.OpWorkerProcessDelete, Summary: "End a worker process: drain, terminate, then kill.",
			Hive: "the only hive; with several it must be named", Result: "ExitResult",
			Fields: []Field{
				{"pid", true, "process id of a worker process of the hive"},
				{"grace", false, "how long running requests may go on"},
			},
		},
		{
			Name: core.OpModelDownload, Summary: "Fetch a model into the hive's store.",
			Hive: "the only hive; with several it must be named", Result: "Model",
			Fields: []Field{{"model", true, "catalog reference, or the name of a model in a catalog source"}},
		},
		{
			Name: core.OpActiveWorkerRetire, Summary: "Give a worker no new request, let the running ones finish, then stop it.",
			Hive: "the worker's", Result: "ExitResult",
			Fields: []Field{
				{"worker", true, "worker id or a unique prefix of it"},
				{"grace", false, "how long running requests may go on"},
			},
		},
	}
}

// CheckRequest says whether a request names a known operation and holds that operation's fields, all that are required and no others, within the
// limits. It does not look whether what it names exists. Errors: Invalid.
func CheckRequest(r core.Request) error {
	ops := Operations()
	i := slices.IndexFunc(ops, func(o Operation) bool { return o.Name == r.Operation })
	if i < 0 {
		var names []string
		for _, o := range ops {
			names = append(names, string(o.Name))
		}
		if r.Operation == "" {
			return core.WithHint(core.Errorf("", core.Invalid, "the request names no operation"), "The operations are %s.", strings.Join(names, ", "))
		}
		return core.WithHint(core.Errorf("", core.Invalid, "there is no operation %q", r.Operation), "The operations are %s.", strings.Join(names, ", "))
	}
	op := ops[i]
	set := setFields(r)
	for _, name := range set {
		if !slices.ContainsFunc(op.Fields, func(f Field) bool { return f.Name == name }) {
			return core.WithHint(core.Errorf("", core.Invalid, "%s has no field %q", op.Name, name), "Its fields are %s.", fieldNames(op))
		}
	}
	for _, f := range op.Fields {
		if f.Required && !slices.Contains(set, f.Name) {
			return core.WithHint(core.Errorf("", core.Invalid, "%s needs %q", op.Name, f.Name), "Give the %s.", f.Doc)
		}
	}
	return checkLimits(r)
}

func fieldNames(op Operation) string {
	names := []string{"operation", "hive", "request_id"}
	for _, f := range op.Fields {
		names = append(names, f.Name)
	}
	return strings.Join(names, ", ")
}

// setFields gives the JSON names of the fields that are not zero, but for those that every operation knows.
func setFields(r core.Request) []string {
	var names []string
	v := reflect.ValueOf(r)
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		switch name {
		case "operation", "hive", "request_id":
			continue
		}
		if !v.Field(i).IsZero() {
			names = append(names, name)
		}
	}
	return names
}

func checkLimits(r core.Request) error {
	bad := func(format string, args ...any) error {
		return core.WithHint(core.E("", core.Invalid, fmt.Errorf(format, args...)), "Correct the field and send the request again.")
	}
	if len(r.RequestID) > MaxRequestIDBytes {
		return bad("request_id has %d bytes, at most %d are allowed", len(r.RequestID), MaxRequestIDBytes)
	}
	for _, f := range []struct{ name, text string }{
		{"hive", r.Hive}, {"type", r.Type}, {"from", r.From}, {"model", r.Model}, {"device", r.Device}, {"worker", r.Worker},
	} {
		if len(f.text) > MaxTextBytes {
			return bad("%s has %d bytes, at most %d are allowed", f.name, len(f.text), MaxTextBytes)
		}
	}
	for _, f := range []struct {
		name   string
		n, top int
	}{{"slots", r.Slots, MaxSlots}, {"context_tokens", r.ContextTokens, MaxContextTokens}, {"threads", r.Threads, MaxThreads}} {
		if f.n < 0 || f.n > f.top {
			return bad("%s is %d, it must be between 0 and %d", f.name, f.n, f.top)
		}
	}
	if r.PID < 0 {
		return bad("pid is %d, it must be positive", r.PID)
	}
	if g := time.Duration(r.Grace); g < 0 || g > MaxGrace {
		return bad("grace is %s, it must be between 0 and %s", g, MaxGrace)
	}
	return nil
}
