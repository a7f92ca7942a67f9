package node_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	raftv1 "github.com/rbee-project/rbee/proto/raft/v1"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

func logger(t testing.TB) hclog.Logger {
	level := hclog.Info
	if testing.Verbose() {
		level = hclog.Debug
	}
	return hclog.New(&hclog.LoggerOptions{Output: coretest.Output(t), Level: level})
}

// open opens a node and shuts it down with the test.
func open(t testing.TB, opts node.Options) *node.Node {
	t.Helper()
	opts.Logger = logger(t)
	n, err := node.Open(opts)
	must.NoError(t, err)
	t.Cleanup(func() { must.NoError(t, n.Shutdown()) })
	return n
}

// run runs n until the returned function is called, and waits for its first leadership.
func run(t testing.TB, n *node.Node) (stop func()) {
	t.Helper()
	leading := make(chan struct{}, 1)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- n.Run(ctx, func(ctx context.Context) error {
			select {
			case leading <- struct{}{}:
			default:
			}
			<-ctx.Done()
			return nil
		})
	}()
	select {
	case <-leading:
	case <-time.After(10 * time.Second):
		t.Fatal("no leader")
	}
	return func() {
		cancel()
		must.NoError(t, <-done)
	}
}

func hive(id string, incarnation uint64) core.Hive {
	return core.Hive{ID: id, Name: id, Version: "1.0.0", OS: "linux", Arch: "amd64", Incarnation: incarnation}
}

// soonLeader opens a node that leads in less than a second, which is the time it takes without the
// early election. On a busy machine it may need several attempts.
func soonLeader(t *testing.T, dir string) (n *node.Node, stop func()) {
	t.Helper()
	for attempt := 1; ; attempt++ {
		folder := dir
		if dir != "" {
			folder = filepath.Join(dir, strconv.Itoa(attempt))
		}
		start := time.Now()
		n := open(t, node.Options{ID: "queen-a", Dir: folder})
		stop := run(t, n)
		took := time.Since(start)
		t.Logf("start to leader, empty: %s", took)
		if took < time.Second {
			return n, stop
		}
		must.Less(t, 10, attempt)
		stop()
		must.NoError(t, n.Shutdown())
	}
}

func TestStartToLeader(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct{ name, dir string }{{"memory", ""}, {"disk", t.TempDir()}} {
		t.Run(tt.name, func(t *testing.T) {
			n, stop := soonLeader(t, tt.dir)
			r, err := n.Apply(t.Context(), fsm.SyncHive(hive("h1", 1), nil))
			must.NoError(t, err)
			must.Eq(t, r.Index, n.AppliedIndex())
			must.Len(t, 1, n.State().Hives(nil))
			must.True(t, n.IsLeader())
			must.Eq(t, "queen-a", n.Leader())
			queens, err := n.Queens()
			must.NoError(t, err)
			must.Eq(t, []core.Queen{{ID: "queen-a", RaftID: n.ID(), Address: "in-process/queen-a", Leader: true, Voter: true}}, queens)
			stop()
			must.NoError(t, n.Shutdown())
		})
	}
}

func TestRestartKeepsEverything(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "raft")
	for round := range 4 {
		start := time.Now()
		n := open(t, node.Options{ID: "queen-a", Dir: dir})
		// Everything known to be committed is restored before there is a leader.
		if round > 0 {
			must.GreaterEq(t, round*50-1, len(n.State().Hives(nil)))
		}
		stop := run(t, n)
		t.Logf("start to leader with %d entries: %s", n.AppliedIndex(), time.Since(start))
		must.Len(t, round*50, n.State().Hives(nil))
		for i := range 50 {
			_, err := n.Apply(t.Context(), fsm.SyncHive(hive(fmt.Sprintf("h%d-%d", round, i), 1), nil))
			must.NoError(t, err)
		}
		if round == 1 {
			must.NoError(t, n.Snapshot(t.Context()))
		}
		stop()
		must.NoError(t, n.Shutdown())
	}
	for _, path := range []string{dir, filepath.Join(dir, "log.db")} {
		info, err := os.Stat(path)
		must.NoError(t, err)
		must.Eq(t, 0, info.Mode().Perm()&0o077, must.Sprint(path))
	}
}

// More entries than raft's own replay at the start can handle.
func TestRestartWithManyEntries(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("writes 9000 entries")
	}
	dir := t.TempDir()
	n := open(t, node.Options{ID: "queen-a", Dir: dir})
	stop := run(t, n)
	const count = 9000
	errs := make(chan error, 64)
	for w := range 64 {
		go func() {
			for i := w; i < count; i += 64 {
				if _, err := n.Apply(t.Context(), fsm.SyncHive(hive(fmt.Sprintf("h%d", i%10), uint64(1+i/10)), nil)); err != nil && core.KindOf(err) != core.Conflict {
					errs <- err
					return
				}
			}
			errs <- nil
		}()
	}
	for range 64 {
		must.NoError(t, <-errs)
	}
	want := n.State().Hives(nil)
	stop()
	must.NoError(t, n.Shutdown())

	start := time.Now()
	n = open(t, node.Options{ID: "queen-a", Dir: dir})
	stop = run(t, n)
	t.Logf("start to leader with %d entries: %s", count, time.Since(start))
	must.Eq(t, want, n.State().Hives(nil))
	stop()
}

// A damaged snapshot is skipped: the previous one and the log after it have everything.
func TestDamagedSnapshot(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, node.Options{ID: "queen-a", Dir: dir})
	stop := run(t, n)
	for i := range 3 {
		_, err := n.Apply(t.Context(), fsm.SyncHive(hive(fmt.Sprint("h", i), 1), nil))
		must.NoError(t, err)
		if i < 2 {
			must.NoError(t, n.Snapshot(t.Context()))
			must.NoError(t, n.Snapshot(t.Context())) // it is not an error if there is nothing new
		}
	}
	must.Eq(t, core.Unavailable, core.KindOf(n.LeadershipTransfer(t.Context()))) // there is no other voter
	stop()
	must.NoError(t, n.Shutdown())
	files, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
	must.NoError(t, err)
	must.Len(t, 2, files)
	for damaged := range 2 { // the newest, then both
		file := files[len(files)-1-damaged]
		data, err := os.ReadFile(file)
		must.NoError(t, err)
		data[len(data)-1] ^= 1
		must.NoError(t, os.WriteFile(file, data, 0o600))
		n = open(t, node.Options{ID: "queen-a", Dir: dir})
		stop = run(t, n)
		must.Len(t, 3, n.State().Hives(nil))
		stop()
		must.NoError(t, n.Shutdown())
	}

	// If the log is lost as well there is nothing to start from, and Open reports that instead of
	// starting with less.
	must.NoError(t, os.Remove(filepath.Join(dir, "log.db")))
	_, err = node.Open(node.Options{ID: "queen-a", Dir: dir})
	must.Eq(t, core.Integrity, core.KindOf(err), must.Sprint(err))
	must.StrContains(t, core.HintOf(err), "raft folder")
}

func TestOpenRefuses(t *testing.T) {
	t.Parallel()
	t.Run("a folder in use", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		open(t, node.Options{ID: "queen-a", Dir: dir})
		_, err := node.Open(node.Options{ID: "queen-a", Dir: dir})
		must.Eq(t, core.InUse, core.KindOf(err), must.Sprint(err))
		must.StrContains(t, core.HintOf(err), "Another rbee agent")
	})
	t.Run("another queen's folder", func(t *testing.T) {
		t.Parallel()
		dir := t.TempDir()
		must.NoError(t, open(t, node.Options{ID: "queen-a", Dir: dir}).Shutdown())
		_, err := node.Open(node.Options{ID: "queen-b", Dir: dir})
		must.Eq(t, core.Conflict, core.KindOf(err), must.Sprint(err))
		must.StrContains(t, err.Error(), "queen-a")
		must.NoError(t, open(t, node.Options{ID: "queen-a", Dir: dir}).Shutdown())
	})
	t.Run("no id", func(t *testing.T) {
		t.Parallel()
		_, err := node.Open(node.Options{})
		must.Eq(t, core.Invalid, core.KindOf(err))
	})
	t.Run("a folder that cannot be", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "file")
		must.NoError(t, os.WriteFile(file, []byte("x"), 0o600))
		_, err := node.Open(node.Options{ID: "queen-a", Dir: filepath.Join(file, "raft")})
		must.Eq(t, core.Unavailable, core.KindOf(err))
		must.NotEq(t, "", core.HintOf(err))
	})
}

func TestApplyErrors(t *testing.T) {
	t.Parallel()
	n := open(t, node.Options{ID: "queen-a"})
	stop := run(t, n)
	before := n.AppliedIndex()
	for _, tt := range []struct {
		name   string
		cmd    *raftv1.Command
		kind   core.Kind
		logged bool
	}{
		{"nothing to do", &raftv1.Command{}, core.Invalid, false},
		{"empty id", fsm.RetireWorker("", ""), core.Invalid, false},
		{"refused by the state", fsm.RetireWorker("", "nobody"), core.NotFound, true},
	} {
		r, err := n.Apply(t.Context(), tt.cmd)
		must.Eq(t, tt.kind, core.KindOf(err), must.Sprint(tt.name))
		must.Eq(t, tt.logged, r.Index > before, must.Sprint(tt.name))
		must.Eq(t, tt.logged, n.AppliedIndex() > before, must.Sprint(tt.name))
	}

	cmd := fsm.SyncHive(hive("h1", 1), nil)
	_, err := n.Apply(t.Context(), cmd)
	must.NoError(t, err)
	must.Eq(t, 0, cmd.GetAtUnixNano()) // the caller's command is not changed

	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = n.Apply(cancelled, cmd)
	must.Eq(t, core.Cancelled, core.KindOf(err))
	must.False(t, errors.Is(err, node.ErrOutcomeUnknown)) // it was never started

	stop()
	must.NoError(t, n.Shutdown())
	_, err = n.Apply(t.Context(), cmd)
	must.Eq(t, core.Unavailable, core.KindOf(err))
	must.Eq(t, core.Unavailable, core.KindOf(n.Barrier(t.Context())))
}

func TestLeadAfterError(t *testing.T) {
	t.Parallel()
	n := open(t, node.Options{ID: "queen-a"})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	calls := 0
	err := n.Run(ctx, func(ctx context.Context) error {
		must.NoError(t, ctx.Err())
		if calls++; calls < 3 {
			return errors.New("duties went wrong")
		}
		cancel()
		return nil
	})
	must.NoError(t, err)
	must.Eq(t, 3, calls)
}

// Why Config.RestoreCommittedLogs is not used: when this test fails, raft has fixed it and
// replay.go can be removed.
func TestRaftCannotRestoreCommittedLogs(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	n := open(t, node.Options{ID: "queen-a", Dir: dir})
	stop := run(t, n)
	for range 3 {
		_, err := n.Apply(t.Context(), fsm.SyncHive(hive("h1", 1), nil))
		must.NoError(t, err)
	}
	stop()
	must.NoError(t, n.Shutdown())

	servers := restoreCommittedLogs(t, dir)
	must.Len(t, 0, servers) // it has lost its membership
}

var _ raft.FSM = discard{}

type discard struct{}

func (discard) Apply(*raft.Log) any                 { return nil }
func (discard) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("none") }
func (discard) Restore(r io.ReadCloser) error       { return r.Close() }

// From Open to lead: part of the time until an agent counts as ready.
func BenchmarkStart(b *testing.B) {
	for _, tt := range []struct{ name, dir string }{{"memory", ""}, {"disk", b.TempDir()}} {
		b.Run(tt.name, func(b *testing.B) {
			for b.Loop() {
				n, err := node.Open(node.Options{ID: "queen-a", Dir: tt.dir})
				must.NoError(b, err)
				run(b, n)()
				must.NoError(b, n.Shutdown())
			}
		})
	}
}

func BenchmarkApply(b *testing.B) {
	for _, tt := range []struct{ name, dir string }{{"memory", ""}, {"disk", b.TempDir()}} {
		b.Run(tt.name, func(b *testing.B) {
			n, err := node.Open(node.Options{ID: "queen-a", Dir: tt.dir})
			must.NoError(b, err)
			defer run(b, n)()
			cmd := fsm.SyncHive(hive("h1", 1), nil)
			b.ReportAllocs()
			for b.Loop() {
				_, err := n.Apply(b.Context(), cmd)
				must.NoError(b, err)
			}
		})
	}
}
