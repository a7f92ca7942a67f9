package fsm

import (
	"cmp"
	"slices"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
)

// PutDeployments makes the command that declares deployments. Result: Conflict if anything would
// change and expected is not the core.DeploymentsIndex; TooLarge if there are too many.
func PutDeployments(specs []core.DeploymentSpec, expected uint64) *raftv1.Command {
	op := &raftv1.PutDeployments{ExpectedIndex: expected}
	for _, s := range specs {
		op.Specs = append(op.Specs, specToProto(s))
	}
	return &raftv1.Command{Op: &raftv1.Command_PutDeployments{PutDeployments: op}}
}

// StopDeployment makes the command that stops a deployment. Result: NotFound.
func StopDeployment(name string) *raftv1.Command {
	return &raftv1.Command{Op: &raftv1.Command_StopDeployment{StopDeployment: &raftv1.StopDeployment{Name: name}}}
}

// PlaceReplicas makes the command that records where the replicas of a deployment run, if its
// ModifyIndex is the expected one. Result: NotFound, Conflict.
func PlaceReplicas(name string, expected uint64, replicas []core.Replica) *raftv1.Command {
	op := &raftv1.PlaceReplicas{Name: name, ExpectedIndex: expected}
	for _, r := range replicas {
		op.Replicas = append(op.Replicas, replicaToProto(r))
	}
	return &raftv1.Command{Op: &raftv1.Command_PlaceReplicas{PlaceReplicas: op}}
}

func (e *entry) putDeployments(op *raftv1.PutDeployments) error {
	all := e.Deployments()
	var changed []core.Deployment
	added := 0
	for _, p := range op.GetSpecs() {
		spec := specFromProto(p)
		old, known := e.Deployment(spec.Name)
		next, news := old.Change(spec, false, e.at)
		if !news {
			continue
		}
		if next.SpecIndex, next.ModifyIndex = e.index, e.index; !known {
			next.CreateIndex = e.index
			added++
		}
		changed = append(changed, next)
	}
	if len(changed) == 0 {
		return nil
	}
	if now := core.DeploymentsIndex(all); now != op.GetExpectedIndex() {
		return core.Errorf(core.Conflict, "the plan is stale: it was made at index %d, but the deployments were changed at index %d", op.GetExpectedIndex(), now).Hint(
			"Look at `rbee plan` again.")
	}
	if err := e.makeRoom(all, added); err != nil {
		return err
	}
	for _, d := range changed {
		e.PutDeployment(d)
	}
	return nil
}

// makeRoom removes as many deployments that run nothing as necessary, oldest first.
func (e *entry) makeRoom(all []core.Deployment, added int) error {
	over := len(all) + added - core.MaxDeployments
	if over <= 0 {
		return nil
	}
	idle := slices.DeleteFunc(all, func(d core.Deployment) bool { return !d.Stopped || len(d.Placed) > 0 })
	if len(idle) < over {
		return core.Errorf(core.TooLarge, "the cluster would have %d deployments, at most %d are allowed", core.MaxDeployments+over, core.MaxDeployments).Hint(
			"Stop some: `rbee deployment list`, `rbee deployment stop`.")
	}
	slices.SortFunc(idle, func(a, b core.Deployment) int { return cmp.Compare(a.ModifyIndex, b.ModifyIndex) })
	for _, d := range idle[:over] {
		e.DeleteDeployment(d.Name)
	}
	return nil
}

func (e *entry) stopDeployment(name string) error {
	old, ok := e.Deployment(name)
	if !ok {
		return core.Errorf(core.NotFound, "there is no deployment %s", name).Hint("See all with `rbee deployment list`.")
	}
	next, news := old.Change(old.DeploymentSpec, true, e.at)
	if news {
		next.SpecIndex, next.ModifyIndex = e.index, e.index
		e.PutDeployment(next)
	}
	return nil
}

func (e *entry) placeReplicas(op *raftv1.PlaceReplicas) error {
	d, ok := e.Deployment(op.GetName())
	if !ok {
		return core.Errorf(core.NotFound, "there is no deployment %s", op.GetName())
	}
	next := make([]core.Replica, 0, len(op.GetReplicas()))
	for _, p := range op.GetReplicas() {
		next = append(next, replicaFromProto(p))
	}
	if d.ModifyIndex != op.GetExpectedIndex() {
		if repeated(d.Placed, next, op.GetExpectedIndex()) {
			return nil
		}
		return core.Errorf(core.Conflict, "deployment %s has changed in the meantime", d.Name)
	}
	for i, r := range next {
		if r.Index == 0 {
			next[i].Index = e.index
			continue
		}
		at := slices.IndexFunc(d.Placed, func(x core.Replica) bool { return x.Index == r.Index && x.Ordinal == r.Ordinal })
		if at < 0 {
			return core.Errorf(core.Conflict, "deployment %s has no replica %s", d.Name, r.Label(d.Name))
		}
		next[i] = d.Placed[at]
	}
	if slices.Equal(next, d.Placed) {
		return nil
	}
	d.Placed, d.ModifyIndex = next, e.index
	e.PutDeployment(d)
	return nil
}

// repeated reports whether now is the result of a command with the asked replicas that was applied
// after the expected index.
func repeated(now, asked []core.Replica, expected uint64) bool {
	return slices.EqualFunc(now, asked, func(is, was core.Replica) bool {
		if was.Index == 0 && is.Index > expected {
			was.Index = is.Index
		}
		return is == was
	})
}

func specToProto(s core.DeploymentSpec) *raftv1.DeploymentSpec {
	return &raftv1.DeploymentSpec{
		Name: s.Name, Model: s.Model, Replicas: int32Of(s.Replicas), Type: s.Type, Devices: slices.Clone(s.Devices), Hives: slices.Clone(s.Hives),
		Slots: int32Of(s.Slots), ContextTokens: int32Of(s.ContextTokens), Priority: int32Of(s.Priority),
	}
}

func specFromProto(p *raftv1.DeploymentSpec) core.DeploymentSpec {
	return core.DeploymentSpec{
		Name: p.GetName(), Model: p.GetModel(), Replicas: int(p.GetReplicas()), Type: p.GetType(), Devices: slices.Clone(p.GetDevices()), Hives: slices.Clone(p.GetHives()),
		Slots: int(p.GetSlots()), ContextTokens: int(p.GetContextTokens()), Priority: int(p.GetPriority()),
	}
}

func replicaToProto(r core.Replica) *raftv1.Replica {
	return &raftv1.Replica{Ordinal: int32Of(r.Ordinal), Version: r.Version, Hive: r.Hive, Device: r.Device, Index: r.Index}
}

func replicaFromProto(p *raftv1.Replica) core.Replica {
	return core.Replica{Ordinal: int(p.GetOrdinal()), Version: p.GetVersion(), Hive: p.GetHive(), Device: p.GetDevice(), Index: p.GetIndex()}
}

func deploymentToProto(d core.Deployment) *raftv1.Deployment {
	p := &raftv1.Deployment{
		Spec: specToProto(d.DeploymentSpec), Version: d.Version, StartVersion: d.StartVersion, Stopped: d.Stopped, ChangedUnix: unixOf(d.ChangedAt),
		SpecIndex: d.SpecIndex, CreateIndex: d.CreateIndex, ModifyIndex: d.ModifyIndex,
	}
	for _, r := range d.Placed {
		p.Replicas = append(p.Replicas, replicaToProto(r))
	}
	for _, h := range d.History {
		p.History = append(p.History, &raftv1.DeploymentVersion{Version: h.Version, Spec: specToProto(h.Spec), Stopped: h.Stopped, ChangedUnix: unixOf(h.ChangedAt)})
	}
	return p
}

func deploymentFromProto(p *raftv1.Deployment) core.Deployment {
	d := core.Deployment{
		DeploymentSpec: specFromProto(p.GetSpec()), Version: p.GetVersion(), StartVersion: p.GetStartVersion(), Stopped: p.GetStopped(), ChangedAt: timeOf(p.GetChangedUnix()),
		Placed: []core.Replica{}, History: []core.DeploymentVersion{},
		SpecIndex: p.GetSpecIndex(), CreateIndex: p.GetCreateIndex(), ModifyIndex: p.GetModifyIndex(),
	}
	for _, r := range p.GetReplicas() {
		d.Placed = append(d.Placed, replicaFromProto(r))
	}
	for _, h := range p.GetHistory() {
		d.History = append(d.History, core.DeploymentVersion{Version: h.GetVersion(), Spec: specFromProto(h.GetSpec()), Stopped: h.GetStopped(), ChangedAt: timeOf(h.GetChangedUnix())})
	}
	return d
}

// specs checks declared deployments.
func (v *validator) specs(list []*raftv1.DeploymentSpec) {
	if len(list) == 0 || len(list) > core.MaxDeployments {
		v.fail(core.Invalid, "%d deployments are not within 1 to %d", len(list), core.MaxDeployments)
		return
	}
	seen := map[string]bool{}
	for _, s := range list {
		if err := specFromProto(s).Check(); err != nil {
			v.fail(core.Invalid, "%s", err)
			return
		}
		if seen[s.GetName()] {
			v.fail(core.Invalid, "deployment %s appears twice", s.GetName())
		}
		seen[s.GetName()] = true
	}
}

// replicas checks the places of a deployment.
func (v *validator) replicas(op *raftv1.PlaceReplicas) {
	v.id("deployment", op.GetName())
	// Each replica may have a successor while it leaves.
	if n := len(op.GetReplicas()); n > 2*core.MaxReplicas {
		v.fail(core.TooLarge, "deployment %s has %d replicas, at most %d are allowed", op.GetName(), n, 2*core.MaxReplicas)
	}
	seen := map[int32]bool{}
	for _, r := range op.GetReplicas() {
		v.id("hive of a replica", r.GetHive())
		v.text("device of a replica", r.GetDevice(), MaxIDBytes)
		v.number("ordinal of a replica", int64(r.GetOrdinal()), 2*core.MaxReplicas)
		if seen[r.GetOrdinal()] {
			v.fail(core.Invalid, "deployment %s has two replicas %d", op.GetName(), r.GetOrdinal())
		}
		seen[r.GetOrdinal()] = true
	}
}
