package hive

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// Every operation in the table has a function, and every function is in the table.
func TestHiveOperationsHaveFunctions(t *testing.T) {
	t.Parallel()
	have := (&Hive{}).operations()
	for _, s := range operation.All() {
		switch s.Runs {
		case operation.RunsOnHive, operation.RunsOnChosenHive, operation.RunsOnWorker:
			must.MapContainsKey(t, have, s.Name)
			delete(have, s.Name)
		}
	}
	must.MapEmpty(t, have)
	reads := (&Hive{}).readFuncs()
	for _, s := range operation.All() {
		if s.AsksHive {
			must.MapContainsKey(t, reads, s.Name)
			delete(reads, s.Name)
		}
	}
	// A queen also answers this one, for all hives together.
	delete(reads, core.OpModelList)
	delete(reads, core.OpModelGet)
	must.MapEmpty(t, reads)
}
