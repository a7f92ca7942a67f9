package hive

import (
	"context"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	sdkworker "github.com/rbee-project/rbee/plugins/sdk/worker"
)

// statusProcess is a process that only reports its state.
type statusProcess struct {
	workerProcess
	shared int
}

func (p *statusProcess) Share(n int) { p.shared = n }

func (*statusProcess) Status(context.Context) (sdkworker.Status, error) {
	return sdkworker.Status{State: sdkworker.StateReady}, nil
}

// Each poll tells a worker how many workers compute on the processor now.
func TestPollTellsOfWorkers(t *testing.T) {
	t.Parallel()
	sv := &supervisor{now: time.Now, roster: newRoster("")}
	a := &statusProcess{}
	add := func(id, device string) {
		sv.roster.workers[id] = &worker{handle: handle{Device: device}, proc: a, statusAt: time.Now(), heard: time.Now()}
	}
	poll := func() int {
		t.Helper()
		must.NoError(t, sv.poll(t.Context(), sv.roster.workers["a"]))
		return a.shared
	}
	add("a", "cpu")
	must.Eq(t, 1, poll())
	add("b", "cpu")
	add("c", "cuda:0")
	must.Eq(t, 2, poll())
	delete(sv.roster.workers, "b")
	must.Eq(t, 1, poll())
}
