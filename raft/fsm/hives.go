package fsm

import (
	"slices"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/state"
)

// syncHives returns a separate result for each hive.
func (e *entry) syncHives(op *raftv1.SyncHives) {
	e.errs = make([]error, len(op.GetHives()))
	for i, hive := range op.GetHives() {
		e.errs[i] = e.syncHive(hive)
	}
}

// syncHive changes nothing on an error: in a batch the other hives' changes stay.
func (e *entry) syncHive(op *raftv1.SyncHive) error {
	hive := hiveFromProto(op.GetHive())
	if hive.Status == "" {
		hive.Status = core.HiveReady
	}
	old, known := e.Hive(hive.ID)
	hive.Draining = old.Draining // a fact of the registry, not of the hive's report
	stone, removed := e.Tombstone(hive.ID)
	if err := e.mayRegister(hive, old.Incarnation, stone.Incarnation, removed); err != nil {
		return err
	}
	workers := make([]core.Worker, 0, len(op.GetWorkers()))
	for _, p := range op.GetWorkers() {
		w := workerFromProto(p)
		w.Hive = hive.ID
		if w.ID == "" {
			return core.Errorf(core.Invalid, "sync hive: a worker of hive %s has no id", hive.ID)
		}
		if _, has := e.Worker(w.Hive, w.ID); !has && !op.GetOwnIds() {
			for _, other := range e.WorkersWithID(w.ID) {
				if other.Hive != w.Hive {
					return core.Errorf(core.Conflict, "sync hive: worker %s belongs to hive %s, not to %s", w.ID, other.Hive, w.Hive).Hint(
						"Stop the worker on one of the two hives.")
				}
			}
		}
		workers = append(workers, w)
	}

	if removed {
		e.DeleteTombstone(hive.ID)
	}
	hive.CreateIndex, hive.ModifyIndex = e.index, e.index
	if known {
		hive.CreateIndex, hive.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if !state.SameHive(&hive, &old) {
			hive.ModifyIndex = e.index
		}
	}
	if hive.ModifyIndex == e.index {
		e.PutHive(hive)
	}
	// Read everything before writing, which is faster.
	registered, intents := e.WorkersOfHive(hive.ID), e.RetireIntentsOfHive(hive.ID)
	given := make(map[string]bool, len(workers))
	for _, w := range workers {
		given[w.ID] = true
		e.syncWorker(w, slices.Contains(intents, state.RetireIntent{Hive: w.Hive, Nonce: w.Nonce}))
	}
	for _, w := range registered {
		if !given[w.ID] {
			e.DeleteWorker(w.Hive, w.ID)
		}
	}
	for _, i := range intents {
		if !slices.ContainsFunc(workers, func(w core.Worker) bool { return w.Nonce == i.Nonce }) {
			e.DeleteRetireIntent(i) // the hive is registered without the worker: it exited for good
		}
	}
	return nil
}

// mayRegister returns an error if the registry must refuse this start of the hive.
func (e *entry) mayRegister(hive core.Hive, registered, buried uint64, removed bool) error {
	if hive.ID == "" {
		return core.Errorf(core.Invalid, "sync hive: the hive has no id")
	}
	if n, ok := e.Node(hive.ID); ok && n.Revoked {
		return core.Errorf(core.Forbidden, "sync hive: node %s (%s) is revoked", n.ID, n.Name).Hint(
			"If the machine may be in the cluster after all: remove the data_dir/cluster and data_dir/node-id of its agent and let it join with a new token.")
	}
	if hive.Incarnation < registered {
		return core.Errorf(core.Conflict, "sync hive: hive %s has incarnation %d, this is the older %d", hive.ID, registered, hive.Incarnation).Hint(
			"Another agent runs with this hive's id: give each its own data_dir, or restart this one if it is the right one.")
	}
	if removed && hive.Incarnation <= buried {
		return core.Errorf(core.Conflict, "sync hive: hive %s was removed at incarnation %d, this is %d", hive.ID, buried, hive.Incarnation).Hint(
			"Restart the hive's agent to have it back in the cluster.")
	}
	return nil
}

func (e *entry) syncWorker(w core.Worker, retire bool) {
	if retire {
		w.State = core.WorkerRetiring
	}
	w.CreateIndex, w.ModifyIndex = e.index, e.index
	if old, known := e.Worker(w.Hive, w.ID); known && old.Nonce == w.Nonce {
		w.CreateIndex, w.ModifyIndex = old.CreateIndex, old.ModifyIndex
		if w = state.KeepRetiring(w, &old); state.SameWorker(w, &old) {
			return
		}
		w.ModifyIndex = e.index
	}
	for _, s := range e.StartsServing(w.Model) {
		if s.Hive == w.Hive && !s.Registered {
			s.Registered = true
			e.PutStart(s)
		}
	}
	e.PutWorker(w)
}

// claimStart replaces the last decision on where a worker with the model starts, if the caller
// knows that decision.
func (e *entry) claimStart(op *raftv1.ClaimStart) error {
	s := startFromProto(op.GetStart())
	last, _ := e.Start(s.Model)
	switch last.Request {
	case s.Request:
		return nil // repeated
	case op.GetPrevious():
	default:
		return core.Errorf(core.Conflict, "start a worker with %s: another queen has decided where", s.Model).Hint("Try again.")
	}
	s.Index = e.index
	e.PutStart(s)
	return nil
}

func (e *entry) setHiveStatus(op *raftv1.SetHiveStatus) error {
	h, ok := e.Hive(op.GetHive())
	if !ok {
		return noHive("set hive status", op.GetHive())
	}
	if op.GetIncarnation() != 0 && op.GetIncarnation() != h.Incarnation {
		return core.Errorf(core.Conflict, "set hive status: hive %s has incarnation %d, not %d", h.ID, h.Incarnation, op.GetIncarnation())
	}
	status := core.HiveStatus(op.GetStatus())
	if h.Status != status {
		h.Status, h.ModifyIndex = status, e.index
		e.PutHive(h)
	}
	if status == core.HiveDown {
		e.deleteWorkers(h.ID)
	}
	return nil
}

func (e *entry) setHiveDraining(op *raftv1.SetHiveDraining) error {
	h, ok := e.Hive(op.GetHive())
	if !ok {
		return noHive("drain hive", op.GetHive())
	}
	if h.Draining != op.GetDraining() {
		h.Draining, h.ModifyIndex = op.GetDraining(), e.index
		e.PutHive(h)
	}
	return nil
}

func noHive(op, id string) error {
	return core.Errorf(core.NotFound, "%s: there is no hive %q", op, id).Hint("List the hives to see their ids.")
}

func (e *entry) retireWorker(op *raftv1.RetireWorker) error {
	found := e.WorkersWithID(op.GetWorker())
	if hive := op.GetHive(); hive != "" {
		found = slices.DeleteFunc(found, func(w core.Worker) bool { return w.Hive != hive })
	}
	switch len(found) {
	case 0:
		return core.Errorf(core.NotFound, "retire worker: there is no active worker %q", op.GetWorker()).Hint("List the workers to see their ids.")
	case 1:
	default:
		return core.Errorf(core.Conflict, "retire worker: %d hives have a worker %q", len(found), op.GetWorker()).Hint("Name the hive.")
	}
	w := found[0]
	if e.rules >= 2 && w.Nonce != "" && !e.RetireIntent(w.Hive, w.Nonce) {
		e.PutRetireIntent(state.RetireIntent{Hive: w.Hive, Nonce: w.Nonce})
	}
	if w.State != core.WorkerRetiring {
		w.State, w.ModifyIndex = core.WorkerRetiring, e.index
		e.PutWorker(w)
	}
	return nil
}

func (e *entry) removeHive(hive string) {
	h, ok := e.Hive(hive)
	if ok && e.rules >= 2 {
		e.PutTombstone(state.Tombstone{Hive: h.ID, Incarnation: h.Incarnation, Index: e.index})
	}
	e.DeleteHive(hive)
	e.deleteWorkers(hive)
	for _, i := range e.RetireIntentsOfHive(hive) {
		e.DeleteRetireIntent(i)
	}
}

func (e *entry) deleteWorkers(hive string) {
	for _, w := range e.WorkersOfHive(hive) {
		e.DeleteWorker(w.Hive, w.ID)
	}
}

// sharedWorkerIDs reports whether two hives have a worker with the same id.
func sharedWorkerIDs(s *state.Snapshot) bool {
	last, shared := "", false
	s.EachWorker(nil, func(w *core.Worker) bool {
		shared = w.ID == last
		last = w.ID
		return !shared
	})
	return shared
}
