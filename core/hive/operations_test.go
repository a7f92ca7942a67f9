package hive

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/operation"
)

// An operation cannot be in the table without a function, nor have one without being there.
func TestEveryOperationOfAHiveHasItsFunction(t *testing.T) {
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
	// What a queen also says of all hives together.
	delete(reads, core.OpModelList)
	delete(reads, core.OpModelGet)
	must.MapEmpty(t, reads)
}
