package fsm_test

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/shoenig/test/must"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	"github.com/rbee-project/rbee/core"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/state"
)

// random makes a random command with few names, so that commands collide. It can return every kind
// of command.
func random(r *rand.Rand, f *fsm.FSM) *raftv1.Command {
	placed, _ := f.State().Snapshot().Deployment(nil, "d0")
	h := func() string { return fmt.Sprintf("h%d", r.IntN(4)) }
	sync := func(id string) fsm.HiveState {
		s := fsm.HiveState{Hive: hive(id, uint64(1+r.IntN(4)), ""), OwnIDs: r.IntN(2) == 0}
		if r.IntN(2) == 0 {
			s.Hive.RPCAddress = fmt.Sprint("10.0.0.1:", 1+r.IntN(3))
		}
		for _, n := range r.Perm(12)[:r.IntN(5)] {
			w := worker(id, fmt.Sprintf("w%d", n), []core.WorkerState{loading, wReady, wReady, core.WorkerFailed}[r.IntN(4)], fmt.Sprint(n, r.IntN(2)))
			s.Workers = append(s.Workers, w)
		}
		return s
	}
	c := func() *raftv1.Command {
		switch r.IntN(34) {
		case 0:
			return fsm.RemoveHive(h())
		case 1:
			return fsm.SetHiveStatus(h(), []core.HiveStatus{core.HiveReady, core.HiveSuspect, core.HiveDown}[r.IntN(3)], uint64(r.IntN(3)))
		case 2, 3:
			return fsm.RetireWorker([]string{"", "", h()}[r.IntN(3)], fmt.Sprintf("w%d", r.IntN(12)))
		case 4:
			return fsm.SetHiveDraining(h(), r.IntN(2) == 0)
		case 5:
			return fsm.InitCluster(cluster(fmt.Sprint("c", r.IntN(2))), new(apiToken(fmt.Sprint("t", r.IntN(3)))), new(node(h(), "first")))
		case 6, 7, 8:
			n := node(h(), fmt.Sprint("N", r.IntN(5)))
			n.KeyHash[0] = byte(r.IntN(8) / 7)
			return fsm.PutNode(n, []string{"", "t0", "t1", "j0", "j1", "j2"}[r.IntN(6)])
		case 9:
			if r.IntN(4) == 0 {
				return fsm.RevokeNode(h())
			}
			return fsm.RemoveNode(h())
		case 10, 11:
			t := joinToken(fmt.Sprint("j", r.IntN(3)))
			t.TTL = core.Duration(time.Duration(1+r.IntN(2)) * time.Hour)
			return fsm.PutToken(t)
		case 12:
			if r.IntN(2) == 0 {
				return fsm.RevokeToken(fmt.Sprint("j", r.IntN(3)))
			}
			return fsm.DeleteToken(fmt.Sprint("j", r.IntN(3)))
		case 13:
			return fsm.SetKeyring([]byte{byte(r.IntN(3))}, uint64(r.IntN(5)))
		case 20, 21:
			n := r.IntN(3)
			previous := []string{"", fmt.Sprint("r", (n+1)%3)}[r.IntN(2)]
			return fsm.ClaimStart(state.Start{Model: "m", Hive: h(), Served: "rbee-tiny", Request: fmt.Sprint("r", n)}, previous)
		case 22:
			return fsm.PutSetting(fmt.Sprint("s", r.IntN(2)), fmt.Sprint(r.IntN(3)))
		case 23:
			return fsm.ResetSetting(fmt.Sprint("s", r.IntN(2)))
		case 24:
			name := fmt.Sprint("a", r.IntN(3))
			if r.IntN(3) == 0 {
				return fsm.DeleteAlias(name)
			}
			return fsm.PutAlias(core.Alias{Name: name, Model: fmt.Sprint("m", r.IntN(2))})
		case 25:
			return fsm.RotateToken(fmt.Sprint([]string{"t", "j"}[r.IntN(5)/4], r.IntN(3)), hash(byte(10+r.IntN(2))), time.Duration(r.IntN(2))*time.Hour)
		case 26, 28, 29, 30:
			return fsm.EndOverlap(fmt.Sprint("t", r.IntN(3)), hash([]byte{1, 10, 11}[r.IntN(3)]))
		case 27:
			return fsm.TouchTokens(map[string]time.Time{fmt.Sprint("t", r.IntN(3)): born.Add(time.Duration(r.IntN(100)) * time.Minute), "none": born})
		case 31:
			if r.IntN(4) == 0 {
				return fsm.StopDeployment(fmt.Sprint("d", r.IntN(2)))
			}
			return fsm.PutDeployments([]core.DeploymentSpec{{Name: fmt.Sprint("d", r.IntN(2)), Model: "m", Replicas: r.IntN(3)}}, core.DeploymentsIndex(f.State().Snapshot().Deployments(nil)))
		case 32, 33:
			var list []core.Replica
			for i := range r.IntN(3) {
				list = append(list, core.Replica{Ordinal: i, Hive: h()})
			}
			if r.IntN(2) == 0 {
				list = placed.Placed
			}
			return fsm.PlaceReplicas("d0", placed.ModifyIndex-uint64(r.IntN(2)), list)
		case 14, 15, 16:
			var list []fsm.HiveState
			for _, n := range r.Perm(4)[:1+r.IntN(3)] {
				list = append(list, sync(fmt.Sprintf("h%d", n)))
			}
			return fsm.SyncHives(list)
		}
		s := sync(h())
		return fsm.SyncHiveState(s)
	}()
	c.MinFsm = fsm.Required(c)
	if r.IntN(4) == 0 && (c.GetRetireWorker() != nil || c.GetRemoveHive() != nil) {
		c.MinFsm = 1 // as in a log that an older version began
	}
	return c
}

// Two state machines that get the same commands, one of them with restores in between, have
// byte-identical snapshots.
func TestDeterminism(t *testing.T) {
	t.Parallel()
	seen := map[string]int{} // commands that changed something
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 1))
		a, b := fsm.New(), fsm.New()
		refused := 0
		before := records(t, a)
		for i := range uint64(300) {
			c := random(r, a)
			c.AtUnixNano = born.Add(time.Duration(i) * time.Second).UnixNano()
			must.NoError(t, fsm.Validate(c))
			ra, rb := apply(t, a, i+1, c), apply(t, b, i+1, proto.CloneOf(c))
			must.Eq(t, fmt.Sprint(ra.Err, ra.Errs), fmt.Sprint(rb.Err, rb.Errs))
			must.Eq(t, append(kinds(ra.Errs), core.KindOf(ra.Err)), append(kinds(rb.Errs), core.KindOf(rb.Err)))
			after := records(t, a)
			if ra.Err != nil {
				refused++
				must.True(t, bytes.Equal(before, after))
			} else if !bytes.Equal(before, after) {
				seen[fmt.Sprintf("%T", c.GetOp())]++
			}
			before = after
			if i%100 == 50 {
				must.NoError(t, b.Restore(io.NopCloser(bytes.NewReader(snapshot(t, b)))))
			}
		}
		must.Between(t, 1, refused, 299) // commands collided, but not all of them were refused
		must.True(t, bytes.Equal(snapshot(t, a), snapshot(t, b)), must.Sprintf("seed %d", seed))
	}
	ops := (&raftv1.Command{}).ProtoReflect().Descriptor().Oneofs().ByName("op").Fields().Len()
	must.MapLen(t, ops, seen, must.Sprint(seen)) // a new kind of command must be added to random
}

// A command that is repeated because its outcome was unknown changes nothing more and has the same
// result.
func TestRepeatedCommand(t *testing.T) {
	t.Parallel()
	for seed := range uint64(6) {
		r := rand.New(rand.NewPCG(seed, 2))
		f := fsm.New()
		for i := uint64(1); i < 600; i += 2 {
			c := random(r, f)
			first := apply(t, f, i, c)
			once := records(t, f)
			second := apply(t, f, i+1, c)
			if refusedAny(first) && c.GetSyncHives() != nil {
				continue // what one hive gave up, another may get at the second attempt
			}
			must.Eq(t, fmt.Sprint(first.Err, first.Errs), fmt.Sprint(second.Err, second.Errs))
			must.True(t, bytes.Equal(once, records(t, f)), must.Sprint(c))
		}
	}
}

func refusedAny(r fsm.Result) bool {
	for _, err := range append(r.Errs, r.Err) {
		if err != nil {
			return true
		}
	}
	return false
}

// records returns a snapshot without its header, which has the index.
func records(t testing.TB, f *fsm.FSM) []byte {
	t.Helper()
	r := bytes.NewReader(snapshot(t, f))
	must.NoError(t, protodelim.UnmarshalFrom(r, &raftv1.SnapshotHeader{}))
	data, err := io.ReadAll(r)
	must.NoError(t, err)
	return data
}

// Everything stored through raft survives command and snapshot. It is found by reflection, so that
// a new field cannot be missed.
func TestEveryFieldSurvives(t *testing.T) {
	t.Parallel()
	h := core.Hive{}
	fill(t, reflect.ValueOf(&h).Elem(), "LastBeat", "FreeBytes", "Unconfined", "Problems", "Probing", "CreateIndex", "ModifyIndex")
	h.Status, h.RPCAddress = core.HiveSuspect, "h:1"
	w := core.Worker{}
	fill(t, reflect.ValueOf(&w).Elem(), "Load", "CreateIndex", "ModifyIndex")
	w.Hive, w.State, w.Capabilities = h.ID, core.WorkerReady, "chat tools"
	c := core.Cluster{}
	fill(t, reflect.ValueOf(&c).Elem(), "CreateIndex", "ModifyIndex")
	api := core.Token{}
	fill(t, reflect.ValueOf(&api).Elem(), "CreateIndex", "ModifyIndex", "Roles", "UsedBy", "UsedAt", "UsedKeyHash", "LastUsedAt", "RotatedAt", "Overlap", "PreviousSecretHash", "Limits")
	api.Limits, api.Priority = []core.Limit{{Of: core.LimitTokens, Count: 7, Per: time.Hour}, {Of: core.LimitConcurrent, Count: 2}}, core.PriorityHigh
	api.Kind, api.SecretHash, api.Scopes, api.TTL = core.TokenAPI, hash(1), core.Scopes(), core.Duration(time.Hour)
	join := core.Token{}
	fill(t, reflect.ValueOf(&join).Elem(), "CreateIndex", "ModifyIndex", "Scopes", "LastUsedAt", "RotatedAt", "Overlap", "PreviousSecretHash", "Models", "Limits", "Priority")
	join.ID, join.Kind, join.SecretHash, join.Roles, join.TTL = "join", core.TokenJoin, hash(2), []core.Role{core.RoleHive}, core.Duration(time.Hour)
	n := core.Node{}
	fill(t, reflect.ValueOf(&n).Elem(), "CreateIndex", "ModifyIndex")
	n.Roles, n.RPCAddress, n.KeyHash = []core.Role{core.RoleHive}, "n:1", hash(3)
	first := node("first", "first")

	f := fsm.New()
	for i, cmd := range []*raftv1.Command{
		fsm.InitCluster(c, &api, &first),
		fsm.PutToken(join),
		fsm.PutNode(n, join.ID),
		fsm.SyncHive(core.Hive{ID: "gone", Incarnation: 7}, nil),
		fsm.RemoveHive("gone"),
		fsm.RevokeNode("first"),
		fsm.SyncHive(core.Hive{ID: "other"}, []core.Worker{{ID: "other", Type: "cpu", State: core.WorkerReady, Nonce: "nonce"}}),
		fsm.RetireWorker("", "other"),
		fsm.SyncHive(h, []core.Worker{w}),
		fsm.SetHiveDraining(h.ID, true),
		fsm.RotateToken(api.ID, hash(9), time.Hour),
		fsm.TouchTokens(map[string]time.Time{api.ID: born.Add(time.Minute)}),
	} {
		must.NoError(t, fsm.Validate(cmd))
		must.NoError(t, apply(t, f, uint64(i+1), cmd).Err, must.Sprint(i))
	}
	join.UsedBy, join.UsedAt, join.UsedKeyHash = n.ID, born, n.KeyHash
	first.Revoked = true
	h.CreateIndex, h.ModifyIndex = 9, 10
	w.CreateIndex, w.ModifyIndex = 9, 9
	c.CreateIndex, c.ModifyIndex = 1, 1
	api.CreateIndex, api.ModifyIndex = 1, 11
	api.PreviousSecretHash, api.SecretHash, api.RotatedAt, api.Overlap = api.SecretHash, hash(9), born, core.Duration(time.Hour)
	api.LastUsedAt = born.Add(time.Minute)
	join.CreateIndex, join.ModifyIndex = 2, 3
	n.CreateIndex, n.ModifyIndex, n.Revoked = 3, 3, false
	first.CreateIndex, first.ModifyIndex = 1, 6
	for range 2 {
		s := f.State().Snapshot()
		hive, _ := s.Hive(nil, h.ID)
		must.Eq(t, h, hive)
		worker, _ := s.Worker(nil, w.Hive, w.ID)
		must.Eq(t, w, worker)
		cluster, _ := s.Cluster(nil)
		must.Eq(t, c, cluster)
		must.Eq(t, []core.Token{join, api}, s.Tokens(nil))
		must.Eq(t, []core.Node{first, n}, s.Nodes(nil))
		must.Eq(t, []state.Tombstone{{Hive: "gone", Incarnation: 7, Index: 5}}, s.Tombstones(nil))
		must.Eq(t, []state.RetireIntent{{Hive: "other", Nonce: "nonce"}}, s.RetireIntents(nil))
		must.NoError(t, f.Restore(io.NopCloser(bytes.NewReader(snapshot(t, f)))))
	}
}

// fill sets every field to something that is not its zero value.
func fill(t *testing.T, v reflect.Value, except ...string) {
	t.Helper()
	if v.Type() == reflect.TypeFor[time.Time]() {
		v.Set(reflect.ValueOf(time.Unix(1_800_000_000, 0).UTC()))
		return
	}
	switch v.Kind() {
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString("x" + v.Type().Name())
	case reflect.Int, reflect.Int64, reflect.Int32:
		v.SetInt(7)
	case reflect.Uint8, reflect.Uint64:
		v.SetUint(8)
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(t, v.Index(0), except...)
	case reflect.Struct:
	fields:
		for i := range v.NumField() {
			for _, name := range except {
				if v.Type().Field(i).Name == name {
					continue fields
				}
			}
			fill(t, v.Field(i), except...)
		}
	default:
		t.Fatalf("cannot fill %s", v.Type())
	}
}
