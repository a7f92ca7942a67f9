package hive

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/rbee-project/rbee/core"
)

// Bounds of what a request may ask for. They keep nonsense out; whether a worker fits is judged by its memory.
const (
	maxRequestBytes   = 1 << 20
	maxRequestIDBytes = 128
	maxSlots          = 1024
	maxContextTokens  = 1 << 24
	maxThreads        = 4096
	maxGrace          = 24 * time.Hour
)

// fieldsOf names the fields that each operation knows beside those of every request, by their JSON names.
func fieldsOf(op core.Operation) (fields []string, ok bool) {
	switch op {
	case core.OpWorkerDownload:
		return []string{"type", "from", "force"}, true
	case core.OpWorkerSpawn:
		return []string{"type", "model", "device", "slots", "context_tokens", "threads"}, true
	case core.OpWorkerProcessDelete:
		return []string{"pid", "grace"}, true
	case core.OpModelDownload:
		return []string{"model"}, true
	case core.OpActiveWorkerRetire:
		return []string{"worker", "grace"}, true
	}
	return nil, false
}

// decodeRequest reads the body of a job request and judges it. Errors: Invalid, each naming the field.
func decodeRequest(body []byte) (core.Request, error) {
	const what = "read request"
	if len(body) > maxRequestBytes {
		return core.Request{}, core.Errorf(what, core.Invalid, "it has %d bytes; at most %d are read", len(body), maxRequestBytes)
	}
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.DisallowUnknownFields()
	var r core.Request
	if err := dec.Decode(&r); err != nil {
		return core.Request{}, core.E(what, core.Invalid, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return core.Request{}, core.Errorf(what, core.Invalid, "something follows the request's JSON object")
	}
	return r, checkRequest(r)
}

// checkRequest judges a request by its operation. Errors: Invalid.
func checkRequest(r core.Request) error {
	op := string(r.Operation)
	fields, ok := fieldsOf(r.Operation)
	if !ok {
		known := []string{
			string(core.OpWorkerDownload), string(core.OpWorkerSpawn), string(core.OpWorkerProcessDelete),
			string(core.OpModelDownload), string(core.OpActiveWorkerRetire),
		}
		return core.WithHint(core.Errorf("", core.Invalid, "a hive has no operation %q", op), "Known operations: %s.", strings.Join(known, ", "))
	}
	given, err := givenFields(r)
	if err != nil {
		return core.E(op, core.Invalid, err)
	}
	for _, name := range given {
		if !slices.Contains([]string{"operation", "hive", "request_id"}, name) && !slices.Contains(fields, name) {
			return core.WithHint(core.Errorf(op, core.Invalid, "there is no field %q", name), "Its fields are: %s.", strings.Join(fields, ", "))
		}
	}
	grace := time.Duration(r.Grace)
	for _, c := range []struct {
		bad   bool
		field string
		want  string
	}{
		{len(r.RequestID) > maxRequestIDBytes, "request_id", "has at most 128 bytes"},
		{r.Slots < 0 || r.Slots > maxSlots, "slots", "is between 1 and 1024, or 0 for the hive's default"},
		{r.ContextTokens < 0 || r.ContextTokens > maxContextTokens, "context_tokens", "is between 1 and 16777216, or 0 for the model's own"},
		{r.Threads < 0 || r.Threads > maxThreads, "threads", "is between 1 and 4096, or 0 for the hive's default"},
		{grace < 0 || grace > maxGrace, "grace", "is between 0s and 24h"},
		{r.Operation == core.OpWorkerDownload && r.Type == "", "type", "names a worker type, such as cpu"},
		{r.Operation == core.OpWorkerSpawn && r.Model == "", "model", "names a model: its id, an alias or a reference"},
		{r.Operation == core.OpModelDownload && r.Model == "", "model", "is the reference of a model, such as builtin:rbee-tiny"},
		{r.Operation == core.OpWorkerProcessDelete && r.PID <= 0, "pid", "is the process id of a worker of this hive"},
		{r.Operation == core.OpActiveWorkerRetire && r.Worker == "", "worker", "is the id of a worker, or a unique prefix of it"},
		{!printable(r.RequestID, r.Type, r.From, r.Model, r.Device, r.Worker), "text", "has no control characters"},
	} {
		if c.bad {
			return core.Errorf(op, core.Invalid, "%s %s", c.field, c.want)
		}
	}
	return nil
}

// givenFields lists the JSON names of the fields that are not zero, as the request would be written.
func givenFields(r core.Request) ([]string, error) {
	b, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	var m map[string]json.RawMessage
	if err := json.Unmarshal(b, &m); err != nil {
		return nil, err
	}
	names := make([]string, 0, len(m))
	for name := range m {
		// A zero Duration is written as text and so is never left out.
		if name == "grace" && r.Grace == 0 {
			continue
		}
		names = append(names, name)
	}
	slices.Sort(names)
	return names, nil
}

func printable(texts ...string) bool {
	for _, t := range texts {
		if strings.ContainsFunc(t, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return false
		}
	}
	return true
}
