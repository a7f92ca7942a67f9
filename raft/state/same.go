package state

import (
	"reflect"
	"slices"
	"time"

	"github.com/rbee-project/rbee/core"
)

// SameHive reports whether the registry already has what a hive reports about itself, so that a
// write would change nothing. It ignores fields that a hive does not decide, or that change with
// its load; every other field counts, including fields added later to core.Hive or core.Device.
func SameHive(told, registered *core.Hive) bool {
	return reflect.DeepEqual(recordOf(told), recordOf(registered))
}

// recordOf returns the part of a hive that SameHive compares.
func recordOf(h *core.Hive) *core.Hive {
	r := *h
	r.Unconfined, r.Problems, r.Probing, r.LastBeat = "", nil, false, time.Time{} // only in reports
	r.Draining, r.CreateIndex, r.ModifyIndex = false, 0, 0
	r.Devices = slices.Clone(nonNil(r.Devices))
	for i := range r.Devices {
		r.Devices[i].FreeBytes = 0
	}
	r.WorkerTypes = nonNil(r.WorkerTypes)
	return &r
}

func nonNil[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// SameWorker reports, in the same way, whether the registry already has what a hive reports about
// its worker.
func SameWorker(told core.Worker, registered *core.Worker) bool {
	told = KeepRetiring(told, registered)
	told.Load = registered.Load
	told.CreateIndex, told.ModifyIndex = registered.CreateIndex, registered.ModifyIndex
	return told == *registered
}

// KeepRetiring returns the worker as the registry keeps it: a retiring one retires permanently, as
// its hive's report may be older than the intent.
func KeepRetiring(told core.Worker, registered *core.Worker) core.Worker {
	if registered.State == core.WorkerRetiring && told.Nonce == registered.Nonce {
		told.State = core.WorkerRetiring
	}
	return told
}
