package operation_test

import (
	"encoding/json"
	"regexp"
	"slices"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// The schema of a request agrees with Check.
func TestDescribeOperations(t *testing.T) {
	t.Parallel()
	infos := operation.Describe()
	for i, s := range operation.All() {
		info := infos[i]
		must.Eq(t, s.Name, info.Name)
		must.Eq(t, string(s.Name), info.Request.Properties["operation"].Const)
		must.MapLen(t, len(s.FieldNames()), info.Request.Properties)
		for _, name := range s.FieldNames() {
			p, ok := info.Request.Properties[name]
			must.True(t, ok, must.Sprint(name))
			must.NotEq(t, "", p.Type)
			if f, ok := fieldOf(s, name); ok {
				must.Eq(t, f.Required, slices.Contains(info.Request.Required, name))
				must.StrContains(t, p.Description, f.Doc)
			}
		}
		// A request with every field of the schema is accepted.
		full := requestOf(s)
		b, err := json.Marshal(full)
		must.NoError(t, err)
		var given map[string]any
		must.NoError(t, json.Unmarshal(b, &given))
		for name, v := range given {
			p, ok := info.Request.Properties[name]
			must.True(t, ok, must.Sprintf("%s of %s is not in its schema", name, s.Name))
			kind := map[bool]string{true: "string"}[p.Type == "string"]
			switch v.(type) {
			case bool:
				kind = "boolean"
			case float64:
				kind = "integer"
			case []any:
				kind = "array"
			}
			must.Eq(t, p.Type, kind, must.Sprint(name))
		}
	}
	spawn := infos[slices.IndexFunc(infos, func(i operation.Info) bool { return i.Name == core.OpWorkerSpawn })]
	must.Eq(t, core.MaxSlots, spawn.Request.Properties["slots"].Maximum)
	must.Eq(t, "SpawnResult", spawn.Result)
	retire := infos[slices.IndexFunc(infos, func(i operation.Info) bool { return i.Name == core.OpActiveWorkerRetire })]
	pattern := regexp.MustCompile(retire.Request.Properties["grace"].Pattern)
	for _, d := range []time.Duration{0, 90 * time.Second, 1500 * time.Millisecond, 3 * time.Microsecond} {
		must.True(t, pattern.MatchString(d.String()), must.Sprint(d))
	}
}
