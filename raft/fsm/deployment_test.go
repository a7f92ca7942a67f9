package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
)

// deployments applies commands, one index after the other.
type deployments struct {
	t     *testing.T
	f     *fsm.FSM
	index uint64
}

func (d *deployments) do(c *raftv1.Command) error {
	d.t.Helper()
	d.index++
	c.AtUnixNano = born.Add(time.Duration(d.index) * time.Second).UnixNano()
	must.NoError(d.t, fsm.Validate(c))
	must.EqOp(d.t, 3, fsm.Required(c))
	return apply(d.t, d.f, d.index, c).Err
}

func (d *deployments) get(name string) core.Deployment {
	found, _ := d.f.State().Snapshot().Deployment(nil, name)
	return found
}

func (d *deployments) all() []core.Deployment { return d.f.State().Snapshot().Deployments(nil) }

// put declares a deployment with a plan that is not stale.
func (d *deployments) put(s core.DeploymentSpec) error {
	d.t.Helper()
	return d.do(fsm.PutDeployments([]core.DeploymentSpec{s}, core.DeploymentsIndex(d.all())))
}

// A deployment is created by a plan, changed, stopped and started; a stale plan changes nothing.
func TestDeployment(t *testing.T) {
	t.Parallel()
	d := &deployments{t: t, f: fsm.New()}
	spec := core.DeploymentSpec{
		Name: "chat", Model: "m", Replicas: 2, Type: "cpu", Devices: []string{"cpu"}, Hives: []string{"desk"}, Slots: 3, ContextTokens: 4, Priority: 5,
	}
	for i := range reflect.TypeFor[core.DeploymentSpec]().NumField() {
		must.False(t, reflect.ValueOf(spec).Field(i).IsZero(), must.Sprint(i))
	}
	must.NoError(t, d.put(spec))
	must.Eq(t, core.Deployment{
		DeploymentSpec: spec, Version: 1, StartVersion: 1, ChangedAt: born.Add(time.Second),
		Placed: []core.Replica{}, History: []core.DeploymentVersion{}, SpecIndex: 1, CreateIndex: 1, ModifyIndex: 1,
	}, d.get("chat"))

	t.Log("The same again changes nothing, by whatever plan.")
	must.NoError(t, d.do(fsm.PutDeployments([]core.DeploymentSpec{spec}, 99)))
	must.EqOp(t, 1, d.get("chat").ModifyIndex)

	t.Log("A stale plan is refused, all of it.")
	more := spec
	more.Replicas = 3
	other := core.DeploymentSpec{Name: "other", Model: "m"}
	must.EqOp(t, core.Conflict, core.KindOf(d.do(fsm.PutDeployments([]core.DeploymentSpec{other, more}, 0))))
	must.Len(t, 1, d.all())

	t.Log("More replicas leave its workers as they are, another model does not.")
	must.NoError(t, d.put(more))
	must.EqOp(t, 2, d.get("chat").Version)
	must.EqOp(t, 1, d.get("chat").StartVersion)
	another := more
	another.Model = "n"
	must.NoError(t, d.put(another))
	must.EqOp(t, 3, d.get("chat").StartVersion)
	must.NoError(t, d.do(fsm.StopDeployment("chat")))
	must.NoError(t, d.do(fsm.StopDeployment("chat")))
	must.True(t, d.get("chat").Stopped)
	must.EqOp(t, 4, d.get("chat").Version)
	must.EqOp(t, 0, d.get("chat").Wanted())
	must.NoError(t, d.put(another))
	must.EqOp(t, 3, d.get("chat").Wanted())
	must.EqOp(t, core.NotFound, core.KindOf(d.do(fsm.StopDeployment("none"))))

	t.Log("Its past is kept, some of it, and outlasts a snapshot.")
	now := d.get("chat")
	must.Eq(t, []core.DeploymentVersion{
		{Version: 1, Spec: spec, ChangedAt: born.Add(time.Second)},
		{Version: 2, Spec: more, ChangedAt: now.History[1].ChangedAt},
		{Version: 3, Spec: another, ChangedAt: now.History[2].ChangedAt},
		{Version: 4, Spec: another, Stopped: true, ChangedAt: now.History[3].ChangedAt},
	}, now.History)
	must.NoError(t, d.f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, d.f)))))
	must.Eq(t, now, d.get("chat"))
	for i := range core.MaxDeploymentHistory {
		spec.Replicas = 10 + i
		must.NoError(t, d.put(spec))
	}
	must.Len(t, core.MaxDeploymentHistory, d.get("chat").History)
	must.EqOp(t, 5, d.get("chat").History[0].Version)
}

// Check-and-set decides where replicas run. Repeating a decision does not change it.
func TestPlaceReplicas(t *testing.T) {
	t.Parallel()
	d := &deployments{t: t, f: fsm.New()}
	must.EqOp(t, core.NotFound, core.KindOf(d.do(fsm.PlaceReplicas("chat", 0, nil))))
	must.NoError(t, d.put(core.DeploymentSpec{Name: "chat", Model: "m", Replicas: 2}))
	at := d.index
	two := []core.Replica{{Ordinal: 0, Version: 1, Hive: "a", Device: "cpu"}, {Ordinal: 1, Version: 1, Hive: "b"}}
	must.EqOp(t, core.Conflict, core.KindOf(d.do(fsm.PlaceReplicas("chat", at-1, two))))
	must.NoError(t, d.do(fsm.PlaceReplicas("chat", at, two)))
	placed := d.get("chat").Placed
	must.Eq(t, []core.Replica{{Ordinal: 0, Version: 1, Hive: "a", Device: "cpu", Index: 4}, {Ordinal: 1, Version: 1, Hive: "b", Index: 4}}, placed)
	must.EqOp(t, "chat/1/4", placed[1].Label("chat"))
	must.NoError(t, d.do(fsm.PlaceReplicas("chat", at, two)), must.Sprint("it is repeated"))
	must.Eq(t, placed, d.get("chat").Placed)
	must.EqOp(t, 4, d.get("chat").ModifyIndex)
	must.EqOp(t, at, d.get("chat").SpecIndex, must.Sprint("nobody's plan is stale by it"))

	t.Log("The second takes the first one's place, on the same hive: it is another worker.")
	moved := []core.Replica{{Ordinal: 0, Version: 1, Hive: "a", Device: "cpu"}, {Ordinal: 1, Index: 4, Hive: "forged"}}
	must.NoError(t, d.do(fsm.PlaceReplicas("chat", 4, moved)))
	must.Eq(t, []core.Replica{{Ordinal: 0, Version: 1, Hive: "a", Device: "cpu", Index: d.index}, {Ordinal: 1, Version: 1, Hive: "b", Index: 4}}, d.get("chat").Placed)
	must.EqOp(t, core.Conflict, core.KindOf(d.do(fsm.PlaceReplicas("chat", d.get("chat").ModifyIndex, []core.Replica{{Ordinal: 1, Index: 3, Hive: "b"}}))))
	must.NoError(t, d.f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, d.f)))))
	must.Len(t, 2, d.get("chat").Placed)
}

// If there are too many deployments, those that run nothing are removed, oldest first.
func TestManyDeployments(t *testing.T) {
	t.Parallel()
	d := &deployments{t: t, f: fsm.New()}
	for i := range core.MaxDeployments {
		must.NoError(t, d.put(core.DeploymentSpec{Name: fmt.Sprint("d", i), Model: "m"}))
	}
	must.EqOp(t, core.TooLarge, core.KindOf(d.put(core.DeploymentSpec{Name: "more", Model: "m"})))
	must.NoError(t, d.do(fsm.PlaceReplicas("d7", d.get("d7").ModifyIndex, []core.Replica{{Hive: "h"}})))
	for _, name := range []string{"d7", "d9", "d8"} {
		must.NoError(t, d.do(fsm.StopDeployment(name)))
	}
	must.NoError(t, d.put(core.DeploymentSpec{Name: "more", Model: "m"}))
	must.Eq(t, "", d.get("d9").Name)
	must.Eq(t, "d8", d.get("d8").Name)
	must.Eq(t, "d7", d.get("d7").Name, must.Sprint("it has a worker yet"))
}

// An invalid deployment never reaches the log.
func TestValidateDeployments(t *testing.T) {
	t.Parallel()
	good := core.DeploymentSpec{Name: "chat", Model: "m"}
	with := func(change func(*core.DeploymentSpec)) *raftv1.Command {
		s := good
		change(&s)
		return fsm.PutDeployments([]core.DeploymentSpec{s}, 0)
	}
	must.NoError(t, fsm.Validate(with(func(*core.DeploymentSpec) {})))
	for name, c := range map[string]*raftv1.Command{
		"none":              fsm.PutDeployments(nil, 0),
		"twice":             fsm.PutDeployments([]core.DeploymentSpec{good, good}, 0),
		"no name":           with(func(s *core.DeploymentSpec) { s.Name = "" }),
		"a slash":           with(func(s *core.DeploymentSpec) { s.Name = "a/b" }),
		"a long name":       with(func(s *core.DeploymentSpec) { s.Name = strings.Repeat("a", core.MaxDeploymentName+1) }),
		"no model":          with(func(s *core.DeploymentSpec) { s.Model = "" }),
		"many replicas":     with(func(s *core.DeploymentSpec) { s.Replicas = core.MaxReplicas + 1 }),
		"negative replicas": with(func(s *core.DeploymentSpec) { s.Replicas = -1 }),
		"a control":         with(func(s *core.DeploymentSpec) { s.Type = "c\x00" }),
		"many hives":        with(func(s *core.DeploymentSpec) { s.Hives = make([]string, core.MaxDeploymentPlaces+1) }),
		"an empty device":   with(func(s *core.DeploymentSpec) { s.Devices = []string{""} }),
		"stops nobody":      fsm.StopDeployment(""),
		"places nobody":     fsm.PlaceReplicas("", 0, nil),
		"places nowhere":    fsm.PlaceReplicas("chat", 0, []core.Replica{{}}),
		"places twice":      fsm.PlaceReplicas("chat", 0, []core.Replica{{Hive: "a"}, {Hive: "b"}}),
		"places too many":   fsm.PlaceReplicas("chat", 0, make([]core.Replica, 2*core.MaxReplicas+1)),
	} {
		must.Error(t, fsm.Validate(c), must.Sprint(name))
	}
}
