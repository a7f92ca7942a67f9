package fsm_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// A command that was checked before it was logged never stops a queen, and the resulting state can
// be saved and restored.
func FuzzCommand(f *testing.F) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 100 {
		data, err := fsm.Encode(random(r, fsm.New()))
		must.NoError(f, err)
		f.Add(data)
	}
	f.Add([]byte{0xff})
	f.Fuzz(func(t *testing.T, data []byte) {
		var c raftv1.Command
		if proto.Unmarshal(data, &c) != nil || fsm.Validate(&c) != nil || c.GetMinFsm() > fsm.Version {
			return
		}
		m := inhabited(t)
		first := apply(t, m, 101, &c)
		once := records(t, m)
		again := apply(t, m, 102, &c)
		if c.GetSyncHives() == nil || !refusedAny(first) {
			must.True(t, bytes.Equal(once, records(t, m)))
			must.Eq(t, refusedAny(first), refusedAny(again))
		}
		saved := snapshot(t, m)
		must.NoError(t, m.Restore(io.NopCloser(bytes.NewReader(saved))))
		must.True(t, bytes.Equal(saved, snapshot(t, m)))
	})
}

// inhabited returns a state machine with some rows of every kind.
func inhabited(t testing.TB) *fsm.FSM {
	t.Helper()
	m := fsm.New()
	for i, c := range []*raftv1.Command{
		fsm.InitCluster(cluster("c1"), new(apiToken("t1")), new(node("h1", "one"))),
		fsm.PutToken(joinToken("j1")),
		fsm.PutToken(joinToken("j2")),
		fsm.PutNode(node("h2", "two"), "j1"),
		fsm.PutNode(node("h3", "three"), ""),
		fsm.SyncHives([]fsm.HiveState{
			{Hive: hive("h1", 3, ""), Workers: []core.Worker{worker("h1", "w1", wReady, "11"), worker("h1", "w2", wReady, "")}},
			{Hive: addressed(hive("h2", 3, ""), "h2:1"), Workers: []core.Worker{worker("h2", "w3", wReady, "31")}},
			{Hive: hive("h3", 3, "")},
			{Hive: hive("h4", 3, "")},
		}),
		fsm.RetireWorker("", "w1"),
		fsm.RevokeNode("h3"),
		fsm.RemoveHive("h4"),
		fsm.SetHiveDraining("h2", true),
		fsm.PutToken(apiToken("t2")),
		fsm.RevokeToken("t2"),
		fsm.ClaimStart(state.Start{Model: "m", Hive: "h1", Served: "m", Request: "r"}, ""),
		fsm.PutToken(with(apiToken("t3"), func(t *core.Token) {
			t.Models, t.Limits, t.Priority = []string{"m"}, []core.Limit{{Of: core.LimitRequests, Count: 2, Per: time.Minute}}, core.PriorityLow
		})),
		fsm.RotateToken("t3", hash(9), time.Hour),
		fsm.TouchTokens(map[string]time.Time{"t1": born}),
		fsm.PutAlias(core.Alias{Name: "gpt", Model: "m"}),
		fsm.PutDeployments([]core.DeploymentSpec{{Name: "chat", Model: "m", Replicas: 2, Devices: []string{"cpu"}, Hives: []string{"h"}}}, 0),
		fsm.PutSetting("token_grace", "2h"),
	} {
		r := apply(t, m, uint64(i+1), c)
		must.NoError(t, errors.Join(append(r.Errs, r.Err)...))
	}
	index := m.State().AppliedIndex()
	d, _ := m.State().Snapshot().Deployment(nil, "chat")
	must.NoError(t, apply(t, m, index+1, fsm.PlaceReplicas("chat", d.ModifyIndex, []core.Replica{{Hive: "h", Device: "cpu"}})).Err)
	must.NoError(t, apply(t, m, index+2, fsm.StopDeployment("chat")).Err)
	return m
}

// Any bytes as an entry of the log are applied, or cause a panic with a hint.
func FuzzApply(f *testing.F) {
	f.Add([]byte{0xff})
	data, err := fsm.Encode(fsm.SyncHive(hive("h1", 1, ""), nil))
	must.NoError(f, err)
	f.Add(data)
	f.Fuzz(func(t *testing.T, data []byte) {
		defer func() {
			if value := recover(); value != nil {
				must.StrContains(t, fmt.Sprint(value), "the replicated log")
			}
		}()
		fsm.New().Apply(&raft.Log{Index: 1, Data: data})
	})
}

// Any bytes as a snapshot are refused, or become a state that survives another save and restore
// unchanged.
func FuzzSnapshot(f *testing.F) {
	m := fsm.New()
	apply(f, m, 1, fsm.SyncHive(hive("h1", 1, ""), []core.Worker{worker("h1", "w1", wReady, "n")}))
	f.Add(snapshot(f, m))
	f.Add(snapshot(f, fsm.New()))
	f.Add(snapshot(f, inhabited(f)))
	f.Fuzz(func(t *testing.T, data []byte) {
		m := fsm.New()
		if err := m.Restore(io.NopCloser(bytes.NewReader(data))); err != nil {
			must.NotEq(t, core.Internal, core.KindOf(err), must.Sprint(err))
			_, inspected := fsm.Inspect(bytes.NewReader(data))
			must.Eq(t, core.KindOf(err), core.KindOf(inspected))
			return
		}
		saved := snapshot(t, m)
		must.NoError(t, m.Restore(io.NopCloser(bytes.NewReader(saved))))
		must.True(t, bytes.Equal(saved, snapshot(t, m)))
	})
}
