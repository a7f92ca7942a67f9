package remote

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// An operation cannot be in the table without a function, nor have one without being there. All of
// them need the strongest scope: they use the SSH identity of a machine, and take others into the
// cluster.
func TestEveryOperationOverSSHHasItsFunction(t *testing.T) {
	t.Parallel()
	have := (&Remote{}).Operations()
	for _, s := range core.Operations() {
		if s.Runs == core.RunsOverSSH {
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

func field(s core.OperationSpec, name string) (core.FieldSpec, bool) {
	for _, f := range s.Fields {
		if f.Name == name {
			return f, true
		}
	}
	return core.FieldSpec{}, false
}
