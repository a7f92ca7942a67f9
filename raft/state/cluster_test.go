package state_test

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"

	"github.com/hashicorp/go-memdb"
	"github.com/shoenig/test"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/state"
)

func watchSet() memdb.WatchSet { return memdb.NewWatchSet() }

func update(t testing.TB, s *state.Store, fn func(*state.Txn)) {
	t.Helper()
	must.NoError(t, s.Update(s.AppliedIndex()+1, func(tx *state.Txn) error { fn(tx); return nil }))
}

func TestClusterRow(t *testing.T) {
	t.Parallel()
	s := state.New()
	_, ok := s.Cluster(nil)
	must.False(t, ok)
	update(t, s, func(tx *state.Txn) {
		tx.PutCluster(core.Cluster{ID: "c1"})
		tx.PutCluster(core.Cluster{ID: "c1", Name: "one", CACertificates: []byte("x"), SealedCAKey: []byte("x"), SealedGossipKeys: []byte("x")})
	})
	c, ok := s.Cluster(nil)
	must.True(t, ok)
	must.Eq(t, "one", c.Name)
	c.CACertificates[0], c.SealedCAKey[0], c.SealedGossipKeys[0] = '-', '-', '-' // the caller's
	again, _ := s.Cluster(nil)
	must.Eq(t, "xxx", string(again.CACertificates)+string(again.SealedCAKey)+string(again.SealedGossipKeys))
}

func TestNodes(t *testing.T) {
	t.Parallel()
	s := state.New()
	must.NotNil(t, s.Nodes(nil))
	update(t, s, func(tx *state.Txn) {
		tx.PutNode(core.Node{ID: "n3", Name: "Atlas", Revoked: true})
		tx.PutNode(core.Node{ID: "n1", Name: "atlas", Roles: []core.Role{core.RoleQueen}, KeyHash: []byte("x")})
		tx.PutNode(core.Node{ID: "n0", Name: "ATLAS", Revoked: true})
		tx.PutNode(core.Node{ID: "n2", Name: "Ärger", Revoked: true})
		tx.PutNode(core.Node{ID: "n4", Name: "atlas-2"})
	})
	for name, want := range map[string]string{"atlas": "n1", "aTLAS": "n1", "Ärger": "n2", "ärger": "", "atla": "", "": "", "atlas-2": "n4"} {
		n, ok := s.Snapshot().NodeNamed(nil, name)
		must.Eq(t, want, n.ID, must.Sprint(name))
		must.Eq(t, want != "", ok)
		update(t, s, func(tx *state.Txn) {
			n, _ := tx.NodeNamed(name)
			must.Eq(t, want, n.ID)
		})
	}
	var ids []string
	for _, n := range s.Nodes(nil) {
		must.NotNil(t, n.Roles)
		must.Eq(t, n.Revoked, s.Snapshot().Revoked(nil, n.ID))
		ids = append(ids, n.ID)
	}
	must.Eq(t, []string{"n0", "n1", "n2", "n3", "n4"}, ids)
	must.False(t, s.Snapshot().Revoked(nil, "nobody"))

	n, _ := s.Node(nil, "n1")
	n.Roles[0], n.KeyHash[0] = "changed", '-'
	n, _ = s.Node(nil, "n1")
	must.True(t, n.Has(core.RoleQueen))
	must.Eq(t, "x", string(n.KeyHash))

	update(t, s, func(tx *state.Txn) { tx.DeleteNode("n1"); tx.DeleteNode("nobody"); tx.DeleteNode("") })
	_, ok := s.Node(nil, "n1")
	must.False(t, ok)
	n, _ = s.Snapshot().NodeNamed(nil, "atlas")
	must.Eq(t, "n0", n.ID) // only revoked ones are left
}

func TestTokens(t *testing.T) {
	t.Parallel()
	s := state.New()
	must.NotNil(t, s.Tokens(nil))
	update(t, s, func(tx *state.Txn) {
		tx.PutToken(core.Token{ID: "t2", SecretHash: []byte("x"), UsedKeyHash: []byte("x"), UsedBy: "n1", Roles: []core.Role{core.RoleHive}, Scopes: []core.Scope{core.ScopeRead}})
		tx.PutToken(core.Token{ID: "t1", UsedBy: "n1"})
		tx.PutToken(core.Token{ID: "t3", UsedBy: "n10"})
		tx.PutToken(core.Token{ID: "t4"})
		used := tx.TokensUsedBy("n1")
		must.Len(t, 2, used)
		must.Eq(t, "t1", used[0].ID)
		must.Len(t, 0, tx.TokensUsedBy(""))
	})
	must.Len(t, 4, s.Tokens(nil))
	token, ok := s.Token(nil, "t2")
	must.True(t, ok)
	token.SecretHash[0], token.UsedKeyHash[0], token.Roles[0], token.Scopes[0] = '-', '-', "-", "-"
	token, _ = s.Token(nil, "t2")
	must.Eq(t, core.Token{ID: "t2", SecretHash: []byte("x"), UsedKeyHash: []byte("x"), UsedBy: "n1", Roles: []core.Role{core.RoleHive}, Scopes: []core.Scope{core.ScopeRead}}, token)
	update(t, s, func(tx *state.Txn) { tx.DeleteToken("t2"); tx.DeleteToken("t2") })
	_, ok = s.Token(nil, "t2")
	must.False(t, ok)
}

func TestStartsServing(t *testing.T) {
	t.Parallel()
	s := state.New()
	update(t, s, func(tx *state.Txn) {
		for _, start := range []state.Start{{Model: "m1", Served: "one"}, {Model: "m2", Served: "one"}, {Model: "m3", Served: "other"}, {Model: "m4"}} {
			tx.PutStart(start)
		}
		must.Len(t, 2, tx.StartsServing("one"))
		must.Len(t, 1, tx.StartsServing("other"))
		must.SliceEmpty(t, tx.StartsServing("on"))
		must.SliceEmpty(t, tx.StartsServing(""), must.Sprint("no name is nobody's, not everybody's"))
	})
}

// A retiring worker retires permanently, but only that process of it.
func TestKeepRetiring(t *testing.T) {
	t.Parallel()
	ready := core.Worker{ID: "w", Nonce: "a", State: core.WorkerReady}
	for _, c := range []struct {
		registered core.Worker
		want       core.WorkerState
	}{
		{core.Worker{ID: "w", Nonce: "a", State: core.WorkerRetiring}, core.WorkerRetiring},
		{core.Worker{ID: "w", Nonce: "b", State: core.WorkerRetiring}, core.WorkerReady},
		{core.Worker{ID: "w", Nonce: "a", State: core.WorkerLoading}, core.WorkerReady},
	} {
		must.Eq(t, c.want, state.KeepRetiring(ready, &c.registered).State)
	}
	registered := core.Worker{ID: "w", Nonce: "a", State: core.WorkerRetiring, CreateIndex: 3, ModifyIndex: 4, Load: core.Load{Active: 1}}
	must.True(t, state.SameWorker(ready, &registered))
	registered.Nonce = "b"
	must.False(t, state.SameWorker(ready, &registered))
}

func TestTombstonesAreBounded(t *testing.T) {
	t.Parallel()
	s := state.New()
	put := func(from, to int) {
		update(t, s, func(tx *state.Txn) {
			for i := from; i < to; i++ {
				// Their names are not in the order of their age.
				tx.PutTombstone(state.Tombstone{Hive: fmt.Sprintf("%x", i*40503%65536), Incarnation: uint64(i), Index: uint64(i)})
			}
		})
	}
	put(0, state.MaxTombstones)
	must.Len(t, state.MaxTombstones, s.Snapshot().Tombstones(nil))
	update(t, s, func(tx *state.Txn) {
		tx.DeleteTombstone("0")
		tx.DeleteTombstone("0")
		// the oldest tombstone's hive, removed again
		tx.PutTombstone(state.Tombstone{Hive: fmt.Sprintf("%x", 40503), Incarnation: 7, Index: 20_000})
	})
	must.Len(t, state.MaxTombstones-1, s.Snapshot().Tombstones(nil))
	put(state.MaxTombstones, state.MaxTombstones+11)
	stones := s.Snapshot().Tombstones(nil)
	must.Len(t, state.MaxTombstones, stones)
	for _, stone := range stones {
		// 0 was deleted and 1 is new, and the ten oldest of the others were dropped
		must.Greater(t, 11, stone.Index)
	}
	update(t, s, func(tx *state.Txn) {
		stone, ok := tx.Tombstone(fmt.Sprintf("%x", 40503))
		must.True(t, ok)
		must.Eq(t, 7, stone.Incarnation)
	})
}

func TestRetireIntents(t *testing.T) {
	t.Parallel()
	s := state.New()
	update(t, s, func(tx *state.Txn) {
		for _, i := range []state.RetireIntent{{Hive: "h1", Nonce: "b"}, {Hive: "h1", Nonce: "a"}, {Hive: "h10", Nonce: "a"}, {Hive: "h1", Nonce: "a"}} {
			tx.PutRetireIntent(i)
		}
		must.Eq(t, []state.RetireIntent{{Hive: "h1", Nonce: "a"}, {Hive: "h1", Nonce: "b"}}, tx.RetireIntentsOfHive("h1"))
		must.True(t, tx.RetireIntent("h1", "a"))
		for _, no := range []state.RetireIntent{{Hive: "h10", Nonce: "b"}, {Hive: "h1", Nonce: ""}, {Hive: "", Nonce: "a"}, {Hive: "", Nonce: ""}} {
			must.False(t, tx.RetireIntent(no.Hive, no.Nonce))
			tx.DeleteRetireIntent(no)
		}
		tx.DeleteRetireIntent(state.RetireIntent{Hive: "h1", Nonce: "a"})
	})
	must.Eq(t, []state.RetireIntent{{Hive: "h1", Nonce: "b"}, {Hive: "h10", Nonce: "a"}}, s.Snapshot().RetireIntents(nil))
}

// routesOf returns EachRoute's result as text, and the same computed without the index.
func routesOf(s *state.Snapshot, model string) (got, want string) {
	var g, w strings.Builder
	s.EachRoute(nil, model, func(worker *core.Worker, hive *core.Hive) bool { fmt.Fprintln(&g, *worker, hive); return true })
	for _, worker := range s.Workers(nil) {
		if worker.Model == model && model != "" {
			var hive *core.Hive
			if h, ok := s.Hive(nil, worker.Hive); ok {
				hive = &h
			}
			fmt.Fprintln(&w, worker, hive)
		}
	}
	return g.String(), w.String()
}

// The routes match the workers and hives, after any changes, in every snapshot, and by each query.
func TestRoutesAgree(t *testing.T) {
	t.Parallel()
	r := rand.New(rand.NewPCG(1, 2))
	s := state.New()
	models := []string{"", "a", "b", "ab", "a-much-longer-name"}
	check := func(snap *state.Snapshot) (found int) {
		for _, model := range models {
			got, want := routesOf(snap, model)
			must.Eq(t, want, got)
			var ids []string
			for _, w := range snap.WorkersOfModel(nil, model) {
				ids = append(ids, w.ID)
			}
			ws := watchSet()
			i := 0
			snap.EachWorkerOfModel(ws, model, func(w *core.Worker) bool { must.Eq(t, ids[i], w.ID); i++; return true })
			must.Len(t, i, ids)
			found += i
		}
		return found
	}
	var old []*state.Snapshot
	found := 0
	for range 300 {
		err := s.Update(s.AppliedIndex()+1, func(tx *state.Txn) error {
			for range r.IntN(6) {
				w, h := fmt.Sprint("w", r.IntN(20)), fmt.Sprint("h", r.IntN(4))
				switch r.IntN(6) {
				case 0:
					tx.DeleteWorker(h, w)
				case 1:
					tx.DeleteHive(h)
				case 2:
					tx.PutHive(core.Hive{ID: h, Devices: []core.Device{}, WorkerTypes: []string{}, Draining: r.IntN(2) == 0})
				default:
					tx.PutWorker(core.Worker{ID: w, Hive: h, Model: models[r.IntN(len(models))], Slots: r.IntN(3)})
				}
			}
			if r.IntN(5) == 0 {
				return fmt.Errorf("refused")
			}
			return nil
		})
		if err == nil {
			found += check(s.Snapshot())
		}
		if r.IntN(20) == 0 {
			old = append(old, s.Snapshot())
		}
	}
	must.Greater(t, 300, found)
	for _, snap := range old {
		check(snap)
	}
}

// Many goroutines can read a snapshot while the store is written.
func TestConcurrentReads(t *testing.T) {
	t.Parallel()
	s := filled(t)
	var readers sync.WaitGroup
	snap := s.Snapshot()
	for range 4 {
		readers.Go(func() {
			for range 200 {
				test.Len(t, 2, snap.WorkersOfModel(nil, "tiny"))
				test.Len(t, 2, snap.WorkersOfModel(watchSet(), "tiny"))
				test.Len(t, 3, snap.Hives(nil))
				now := s.Snapshot()
				test.Eq(t, int(now.AppliedIndex()), len(now.Nodes(nil))+7)
			}
		})
	}
	for i := range 200 {
		update(t, s, func(tx *state.Txn) {
			tx.PutNode(core.Node{ID: fmt.Sprint(i), Name: fmt.Sprint(i)})
			tx.PutWorker(core.Worker{ID: fmt.Sprint("new", i), Hive: "h1", Model: "tiny"})
		})
	}
	readers.Wait()
}

// A reader woken by a change finds it, however fast it is.
func TestWokenReaderSeesChange(t *testing.T) {
	t.Parallel()
	s := filled(t)
	for i := range 500 {
		ws := watchSet()
		must.Len(t, 2+i, s.WorkersOfModel(ws, "tiny"))
		looking, found := make(chan bool), make(chan int)
		go func() {
			close(looking)
			for {
				for c := range ws {
					select {
					case <-c:
						n := 0
						s.Snapshot().EachWorkerOfModel(nil, "tiny", func(*core.Worker) bool { n++; return true })
						found <- n
						return
					default:
					}
				}
				runtime.Gosched()
			}
		}()
		<-looking
		update(t, s, func(tx *state.Txn) { tx.PutWorker(core.Worker{ID: fmt.Sprint("z", i), Hive: "h1", Model: "tiny"}) })
		must.Eq(t, 3+i, <-found)
	}
}

func TestEachStops(t *testing.T) {
	t.Parallel()
	snap := filled(t).Snapshot()
	n := 0
	snap.EachHive(nil, func(*core.Hive) bool { n++; return false })
	snap.EachWorker(nil, func(*core.Worker) bool { n++; return false })
	snap.EachWorkerOfHive(nil, "h1", func(*core.Worker) bool { n++; return false })
	snap.EachWorkerOfModel(nil, "tiny", func(*core.Worker) bool { n++; return false })
	snap.EachRoute(nil, "tiny", func(*core.Worker, *core.Hive) bool { n++; return false })
	must.Eq(t, 5, n)
	must.Eq(t, "h1", snap.PeekHive(nil, "h1").ID)
	must.Nil(t, snap.PeekHive(nil, "h"))
}

func TestRouteLookupAllocatesNothing(t *testing.T) {
	s := filled(t)
	n := 0
	must.Eq(t, 0, testing.AllocsPerRun(100, func() {
		s.Snapshot().EachRoute(nil, "tiny", func(w *core.Worker, h *core.Hive) bool {
			if w.Slots == 0 && h != nil {
				n++
			}
			return true
		})
	}))
	must.Eq(t, 2*101, n)
}
