package hive

import (
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// A replica of a deployment is started once, even by a job of another name, and is labelled in the
// reports and in the handle that the next agent adopts it by.
func TestReplicaIsStartedOnce(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	spawn := core.Request{Operation: core.OpWorkerSpawn, Type: "fake", Model: "tiny", Replica: "chat/0/7", Pin: true}
	first := result1[core.SpawnResult](r, spawn)
	must.EqOp(t, "chat/0/7", first.Worker.Replica)
	must.EqOp(t, first.PID, result1[core.SpawnResult](r, spawn).PID)
	must.EqOp(t, "chat/0/7", handles(t, r.dir)[0].Replica)
	r.told(10*time.Second, func(list []core.Worker) error {
		must.Len(t, 1, list)
		must.EqOp(t, "chat/0/7", list[0].Replica)
		return nil
	})
	spawn.Replica = "chat/1/7"
	must.NotEq(t, first.PID, result1[core.SpawnResult](r, spawn).PID)
	r.do(core.Request{Operation: core.OpActiveWorkerRetire, Worker: first.Worker.ID})
	spawn.Replica = "chat/0/7"
	must.NotEq(t, first.PID, result1[core.SpawnResult](r, spawn).PID)
}
