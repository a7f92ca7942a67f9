package hive

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// An operation cannot be in the table without a function, nor have one without being there.
func TestEveryOperationOfAHiveHasItsFunction(t *testing.T) {
	t.Parallel()
	have := (&Hive{}).operations()
	for _, s := range core.Operations() {
		switch s.Runs {
		case core.RunsOnHive, core.RunsOnChosenHive, core.RunsOnWorker:
			must.MapContainsKey(t, have, s.Name)
			delete(have, s.Name)
		}
	}
	must.MapEmpty(t, have)
}
