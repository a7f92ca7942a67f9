package remote

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// The table and the functions match: no operation is in only one of them. All operations need the
// strongest scope: they use a machine's SSH identity and add other machines to the cluster.
func TestOperationsHaveFunctions(t *testing.T) {
	t.Parallel()
	have := (&Remote{}).Operations()
	for _, s := range operation.All() {
		if s.Runs == operation.RunsOverSSH {
			must.MapContainsKey(t, have, s.Name)
			must.Eq(t, core.ScopeAdmin, s.Scope)
			delete(have, s.Name)
			if f, ok := field(s, "service"); ok {
				must.SliceContainsAll(t, Services(), f.Enum)
			}
		}
	}
	must.MapEmpty(t, have)
}

func field(s operation.Spec, name string) (operation.Field, bool) {
	for _, f := range s.Fields {
		if f.Name == name {
			return f, true
		}
	}
	return operation.Field{}, false
}
