package hive

import (
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/rpc"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
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

func TestOperationThatAHiveDoesNotKnow(t *testing.T) {
	t.Parallel()
	r := run(t, setup{alone: true})
	// A newer queen's: neither the operation nor its field is known here.
	_, err := r.jobs.Submit(t.Context(), &jobv1.SubmitRequest{Operation: "worker_fly", RequestJson: []byte(`{"operation":"worker_fly","wings":2}`)})
	err = rpc.FromStatus(err)
	must.ErrorContains(t, err, `does not know the operation "worker_fly"`)
	must.Eq(t, core.Unsupported, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "same version")
	_, err = r.jobs.Submit(t.Context(), &jobv1.SubmitRequest{Operation: "worker_spawn", RequestJson: []byte(`{"operation":"model_download","model":"m"}`)})
	must.Eq(t, core.Invalid, core.KindOf(rpc.FromStatus(err)))
}
