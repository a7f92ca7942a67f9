package cli

import (
	"bytes"
	"cmp"
	"encoding"
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

const jsonFile = "../../../contributing/json.md"

// printed is what a command prints with --format json.
type printed struct {
	command string // without "rbee", run against a fake queen with the worker w1
	value   any    // of the type
}

func printedJSON() []printed {
	all := []printed{
		{"alias list", []core.Alias{}},
		{"alias set chat rbee-tiny", core.Alias{}},
		{"catalog search", []core.CatalogItem{}},
		{"apply testdata/chat.hcl", core.DeploymentPlan{}},
		{"deployment history chat", []core.DeploymentVersion{}},
		{"deployment list", []core.DeploymentStatus{}},
		{"deployment revert chat", core.DeploymentStatus{}},
		{"deployment status chat", core.DeploymentStatus{}},
		{"deployment stop chat --yes", core.DeploymentStatus{}},
		{"hive get desk", core.Hive{}},
		{"hive list", []core.Hive{}},
		{"hive refresh desk", core.RefreshResult{}},
		{"hive status desk", core.HiveHealth{}},
		{"job list", []core.Job{}},
		{"ls", []core.Model{}},
		{"model delete slow --yes", []core.ModelDeleteResult{}},
		{"model get rbee-tiny", core.Model{}},
		{"model list", []core.Model{}},
		{"operator setting list", []core.Setting{}},
		{"operator setting set token_grace 30m", core.Setting{}},
		{"ps", []core.Worker{}},
		{"pull builtin:rbee-tiny", core.Model{}},
		{"queen list", []core.Queen{}},
		{"rm broken --dry-run", []core.ModelDeleteResult{}},
		{"show rbee-tiny", core.Model{}},
		{"status", core.Status{}},
		{"tls list", []core.Node{}},
		{"token list", []core.Token{}},
		{"top", topView{}},
		{"why", []core.RouteRecord{}},
		{"worker binary get cpu", core.WorkerBinary{}},
		{"worker get w1", core.WorkerDetails{}},
		{"worker list", []core.Worker{}},
		{"worker process get 4242", core.Process{}},
		{"worker spawn --model rbee-tiny", core.SpawnResult{}},
		{"worker retire w1 --yes", []core.ExitResult{}},
	}
	for _, o := range operation.All() {
		if o.AsksOnlyHive() && o.Get != "" {
			all = append(all, printed{o.CLI[0], o.Zero()})
		}
	}
	slices.SortFunc(all, func(a, b printed) int { return strings.Compare(a.command, b.command) })
	return all
}

// The commands print what contributing/json.md documents: each runs, and its output is decoded
// strictly into its type.
func TestJSON(t *testing.T) {
	t.Parallel()
	for _, p := range printedJSON() {
		t.Run(p.command, func(t *testing.T) {
			t.Parallel()
			q := newFakeQueen(t)
			q.addWorker(fakeWorker("w1", "rbee-tiny"))
			r := start(t, q.http.URL, t.TempDir(), append(strings.Fields(p.command), "--format", "json")...)
			must.Eq(t, exitOK, r.code(t), must.Sprint(r.err.String()))
			v := reflect.New(reflect.TypeOf(p.value))
			dec := json.NewDecoder(bytes.NewReader([]byte(r.out.String())))
			dec.DisallowUnknownFields()
			must.NoError(t, dec.Decode(v.Interface()), must.Sprint(r.out.String()))
			must.False(t, dec.More())
			must.StrNotContains(t, r.out.String(), ": null", must.Sprint("a list is never null"))
		})
	}
}

// The document is generated from the types and their comments.
func TestJSONDocument(t *testing.T) {
	t.Parallel()
	want := jsonDocument(t)
	if os.Getenv("UPDATE_JSON") != "" {
		must.NoError(t, os.WriteFile(jsonFile, []byte(want), 0o644))
		return
	}
	have, err := os.ReadFile(jsonFile)
	must.NoError(t, err)
	must.Eq(t, want, string(have), must.Sprint("UPDATE_JSON=1 go test ./cmd/rbee/cli -run TestJSONDocument writes it anew"))
}

func jsonDocument(t *testing.T) string {
	t.Helper()
	comments := fieldComments(t, "../../../core", "../../../core/operation", ".")
	var b strings.Builder
	b.WriteString(`# What the commands print with --format json

Made from the Go types by UPDATE_JSON=1 go test ./cmd/rbee/cli -run TestJSONDocument. The HTTP API answers with the same types; its lists are {"object":"list","data":[…]}.
Sizes are bytes, times RFC 3339, durations text such as "1m30s"; a list without entries is [] and never null. Fields are only ever added: a program that reads
them ignores those that it does not know. "optional" fields are left out where they are empty. Errors are {"error":{"kind","message","hint"}} on stderr.

| Command | Prints |
|---|---|
`)
	types := map[string]reflect.Type{}
	for _, p := range printedJSON() {
		rt := reflect.TypeOf(p.value)
		collect(rt, types)
		name, _, _ := strings.Cut(p.command, " --")
		words := strings.Fields(name)
		for i, w := range words {
			if i > 0 && (strings.ContainsAny(w, "0123456789:") || slices.Contains([]string{"desk", "slow", "broken", "rbee-tiny", "cpu"}, w)) {
				words[i] = "…"
			}
		}
		fmt.Fprintf(&b, "| `rbee %s` | %s |\n", strings.Join(words, " "), typeText(rt))
	}
	for _, name := range slices.Sorted(maps.Keys(types)) {
		fmt.Fprintf(&b, "\n## %s\n\n| Field | Type | |\n|---|---|---|\n", name)
		writeFields(&b, types[name], comments)
	}
	return b.String()
}

func writeFields(b *strings.Builder, rt reflect.Type, comments map[string]string) {
	for f := range rt.Fields() {
		tag, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if f.Anonymous && tag == "" {
			writeFields(b, f.Type, comments)
			continue
		}
		text := comments[rt.Name()+"."+f.Name]
		if strings.Contains(options, "omitempty") || strings.Contains(options, "omitzero") {
			text = strings.TrimSuffix("optional; "+text, "; ")
		}
		fmt.Fprintf(b, "| `%s` | %s | %s |\n", cmp.Or(tag, f.Name), typeText(f.Type), strings.ReplaceAll(text, "|", "\\|"))
	}
}

var (
	timeType      = reflect.TypeFor[time.Time]()
	textMarshaler = reflect.TypeFor[encoding.TextMarshaler]()
	rawType       = reflect.TypeFor[json.RawMessage]()
)

// collect finds the structs that a type is made of.
func collect(rt reflect.Type, types map[string]reflect.Type) {
	switch {
	case rt == timeType || rt == rawType || rt.Implements(textMarshaler):
		return
	case rt.Kind() == reflect.Slice || rt.Kind() == reflect.Pointer || rt.Kind() == reflect.Map:
		collect(rt.Elem(), types)
	case rt.Kind() == reflect.Struct && types[rt.Name()] == nil:
		types[rt.Name()] = rt
		for f := range rt.Fields() {
			collect(f.Type, types)
		}
	}
}

func typeText(rt reflect.Type) string {
	switch {
	case rt == timeType:
		return "time"
	case rt == rawType:
		return "any"
	case rt.Implements(textMarshaler):
		return "duration"
	case rt == reflect.TypeFor[core.Capabilities]():
		return "list of text"
	}
	switch rt.Kind() {
	case reflect.Slice:
		return "list of " + typeText(rt.Elem())
	case reflect.Pointer:
		return typeText(rt.Elem())
	case reflect.Map:
		return "object of " + typeText(rt.Elem())
	case reflect.Struct:
		return "[" + rt.Name() + "](#" + strings.ToLower(rt.Name()) + ")"
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	}
	return "number"
}

// fieldComments returns the trailing comments of struct fields in the sources, by "Type.Field".
func fieldComments(t *testing.T, dirs ...string) map[string]string {
	t.Helper()
	out := map[string]string{}
	for _, dir := range dirs {
		files, err := filepath.Glob(filepath.Join(dir, "*.go"))
		must.NoError(t, err)
		for _, name := range files {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments|parser.SkipObjectResolution)
			must.NoError(t, err)
			ast.Inspect(f, func(n ast.Node) bool {
				s, ok := n.(*ast.TypeSpec)
				if !ok {
					return true
				}
				fields, ok := s.Type.(*ast.StructType)
				if !ok {
					return true
				}
				for _, field := range fields.Fields.List {
					text := cmp.Or(strings.TrimSpace(field.Comment.Text()), strings.Join(strings.Fields(field.Doc.Text()), " "))
					for _, id := range field.Names {
						out[s.Name.Name+"."+id.Name] = text
					}
				}
				return true
			})
		}
	}
	return out
}
