package fsm_test

import (
	"reflect"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// alter returns another valid value for a field of a hive, a device or a worker.
func alter(t *testing.T, name string, v reflect.Value) {
	t.Helper()
	switch value := v.Addr().Interface().(type) {
	case *core.HiveStatus:
		*value = core.HiveSuspect
	case *core.WorkerState:
		*value = core.WorkerFailed
	case *core.Capabilities:
		*value = "tools"
	case *core.Load:
		*value = core.Load{Active: 7}
	case *time.Time:
		*value = time.Unix(7, 0)
	case *[]core.Device:
		*value = nil
	case *[]string:
		*value = []string{"another"}
	case *string:
		*value = "another"
		if name == "RPCAddress" {
			*value = "another:7"
		}
	case *int:
		*value += 7
	case *int64:
		*value += 7
	case *uint64:
		*value += 7
	case *bool:
		*value = !*value
	default:
		t.Fatalf("field %s: say here how it changes", name)
	}
}

// TestSameEveryField changes each field of what hives report. The comparison and the state machine
// agree whether that is a change, and the fields that do not count are listed here.
func TestSameEveryField(t *testing.T) {
	t.Parallel()
	notKept := map[string]bool{
		"Hive.Unconfined": true, "Hive.Problems": true, "Hive.Probing": true, "Hive.LastBeat": true, "Hive.Draining": true, "Hive.CreateIndex": true, "Hive.ModifyIndex": true, "Device.FreeBytes": true,
		"Worker.Load": true, "Worker.CreateIndex": true, "Worker.ModifyIndex": true,
	}
	// these change the identity
	identity := map[string]bool{"Hive.ID": true, "Worker.ID": true, "Worker.Hive": true}
	machine := fsm.New()
	index := uint64(0)
	sync := func(h core.Hive, w core.Worker) {
		t.Helper()
		entry, err := fsm.Encode(fsm.SyncHive(h, []core.Worker{w}))
		must.NoError(t, err)
		index++
		result, ok := machine.Apply(&raft.Log{Index: index, Data: entry}).(fsm.Result)
		must.True(t, ok)
		must.NoError(t, result.Err)
	}
	try := func(field string, change func(h *core.Hive, w *core.Worker)) {
		t.Helper()
		h := core.Hive{
			ID: "h", Name: "n", Version: "1", OS: "linux", Arch: "amd64", Incarnation: 100 * (index + 1), Status: core.HiveReady, RPCAddress: "a:1",
			Devices: []core.Device{{ID: "cpu", Kind: "cpu", Name: "n", TotalBytes: 7}}, WorkerTypes: []string{"cpu"},
		}
		w := core.Worker{
			ID: "w", Hive: "h", Type: "cpu", Version: "1", Model: "m", ModelDigest: "d", Device: "cpu", Slots: 1, ContextTokens: 2,
			State: core.WorkerReady, Nonce: "n", Capabilities: "chat",
		}
		sync(h, w)
		before := machine.State().Snapshot()
		oldHive := before.PeekHive(nil, "h")
		oldWorker, ok := before.Worker(nil, "h", "w")
		must.True(t, ok)
		must.True(t, state.SameHive(&h, oldHive), must.Sprint(field))
		must.True(t, state.SameWorker(w, &oldWorker), must.Sprint(field))
		h.Devices = append([]core.Device{}, h.Devices...)
		change(&h, &w)
		same := state.SameHive(&h, oldHive) && state.SameWorker(w, &oldWorker)
		must.Eq(t, notKept[field], same, must.Sprintf("field %s: no news is listed above", field))
		if identity[field] {
			return
		}
		h.Draining = false // a hive that reports it is refused
		sync(h, w)
		after := machine.State().Snapshot()
		newWorker, ok := after.Worker(nil, "h", "w")
		must.True(t, ok)
		wrote := after.PeekHive(nil, "h").ModifyIndex == index || newWorker.ModifyIndex == index
		must.Eq(t, !same, wrote, must.Sprintf("field %s in the state machine", field))
	}
	each := func(of reflect.Type, part func(h *core.Hive, w *core.Worker) reflect.Value) {
		for i := range of.NumField() {
			name := of.Field(i).Name
			try(of.Name()+"."+name, func(h *core.Hive, w *core.Worker) { alter(t, name, part(h, w).Field(i)) })
		}
	}
	each(reflect.TypeFor[core.Hive](), func(h *core.Hive, _ *core.Worker) reflect.Value { return reflect.ValueOf(h).Elem() })
	each(reflect.TypeFor[core.Device](), func(h *core.Hive, _ *core.Worker) reflect.Value { return reflect.ValueOf(&h.Devices[0]).Elem() })
	each(reflect.TypeFor[core.Worker](), func(_ *core.Hive, w *core.Worker) reflect.Value { return reflect.ValueOf(w).Elem() })
}

// A retiring worker stays retiring whatever its hive reports: such a report is no change. Another
// start of the worker is one.
func TestSameWorkerRetiring(t *testing.T) {
	t.Parallel()
	told := core.Worker{ID: "w", Hive: "h", State: core.WorkerReady, Nonce: "n"}
	registered := told
	registered.State = core.WorkerRetiring
	must.True(t, state.SameWorker(told, &registered))
	told.Nonce = "another"
	must.False(t, state.SameWorker(told, &registered))
}
