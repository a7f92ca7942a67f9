package hive

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/operation"
	jobv1 "github.com/rbee-project/rbee/proto/job/v1"
)

func TestSpawnListDelete(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	must.Eq(t, []string{"fake"}, r.queen.hive().WorkerTypes)
	coretest.Eventually(t, patience, func() error { // a hive reports before its types are probed
		if d := r.queen.hive().Devices; len(d) != 1 || d[0].ID != "fake:0" {
			return fmt.Errorf("told of %+v", d)
		}
		return nil
	})

	j, events := r.follow(r.submit(core.Request{Operation: core.OpWorkerSpawn, Model: "tiny", Slots: 3, ContextTokens: 64, Threads: 2}).ID)
	must.Eq(t, core.JobSucceeded, j.State, must.Sprintf("%+v", j.Error))
	phases := map[string]bool{}
	for _, e := range events {
		if e.Progress != nil {
			phases[e.Progress.Phase] = true
		}
	}
	must.MapContainsKey(t, phases, "reading the model")

	// The queen knows it as soon as the job has ended.
	told := r.queen.workers()
	must.Len(t, 1, told)
	w := told[0]
	must.Eq(t, core.WorkerReady, w.State)
	must.Eq(t, "tiny", w.Model)
	must.Eq(t, "fake", w.Type)
	must.Eq(t, "1.2.3", w.Version)
	must.Eq(t, "fake:0", w.Device)
	must.Eq(t, 3, w.Slots)
	must.Eq(t, 64, w.ContextTokens)
	must.Eq(t, core.Capabilities("chat completions"), w.Capabilities)
	must.NotEq(t, "", w.Nonce)
	must.StrHasPrefix(t, "sha256:", w.ModelDigest)

	text, err := r.ask(t.Context(), w.ID, "one two")
	must.NoError(t, err)
	must.StrContains(t, text, "one two")

	list := r.processes()
	must.Len(t, 1, list)
	p := list[0]
	must.Eq(t, w.ID, p.WorkerID)
	must.Eq(t, core.WorkerReady, p.State)
	must.Positive(t, p.MemoryBytes)
	must.Len(t, 0, p.CommandLine)
	must.Between(t, time.Now().Add(-time.Minute).Unix(), p.StartedAt.Unix(), time.Now().Add(time.Second).Unix())

	full, err := operation.WorkerProcessGet.Ask(t.Context(), r, core.Request{PID: p.PID})
	must.NoError(t, err)
	must.StrContains(t, strings.Join(full.CommandLine, " "), "rbee-worker-fake")
	must.SliceContains(t, full.Sockets, handles(t, r.dir)[0].Attachment.DataSocket)
	must.StrContains(t, strings.Join(full.Log, "\n"), "model loaded")

	models, err := operation.ModelList.Ask(t.Context(), r, core.Request{})
	must.NoError(t, err)
	must.Eq(t, []string{w.ID}, models[0].LoadedBy)
	binaries, err := operation.WorkerBinaryList.Ask(t.Context(), r, core.Request{})
	must.NoError(t, err)
	must.Eq(t, []string{w.ID}, binaries[0].InUseBy)
	must.Eq(t, "fake@1.2.3", binaries[0].ID)

	exit := result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: p.PID})
	must.Eq(t, core.ExitResult{WorkerID: w.ID, PID: p.PID, Exit: "exit code 0"}, exit)
	must.Len(t, 0, r.queen.workers())
	r.nothingLeft()
	again := result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: p.PID})
	must.True(t, again.AlreadyGone)
	must.Eq(t, w.ID, again.WorkerID)
	_, err = r.hive.DialWorker(t.Context(), w.ID)
	must.Eq(t, core.NotFound, core.KindOf(err))
	_, err = operation.WorkerProcessGet.Ask(t.Context(), r, core.Request{PID: p.PID})
	must.Eq(t, core.NotFound, core.KindOf(err))
}

func TestEverythingWorksWithoutAQueen(t *testing.T) {
	t.Parallel()
	r := run(t, setup{alone: true})
	w := r.spawn("fake")
	must.Len(t, 1, r.processes())
	exit := result1[core.ExitResult](r, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID[:6]})
	must.Eq(t, w.PID, exit.PID)
	r.nothingLeft()
}

func TestUnreachableQueenHoldsNothingUp(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	r.queen.set(func(q *queen) { q.err = core.Errorf(core.Unavailable, "no leader") })
	w := r.spawn("fake")
	must.Len(t, 1, r.processes())
	r.queen.set(func(q *queen) { q.err = nil })
	r.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].ID != w.Worker.ID || list[0].State != core.WorkerReady {
			return fmt.Errorf("told of %v", list)
		}
		return nil
	})
}

func TestKilledWorkerIsGoneFromTheRegistryAtOnce(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "parent" {
  plugin = "rbee-worker-fake"
  config {
    child = true
  }
}`})
	w := r.spawn("parent")
	r.told(patience, count(1))
	p, err := operation.WorkerProcessGet.Ask(t.Context(), r, core.Request{PID: w.PID})
	must.NoError(t, err)
	must.Len(t, 1, p.Children)
	child, err := hostinfo.Identify(p.Children[0])
	must.NoError(t, err)

	must.NoError(t, syscall.Kill(w.PID, syscall.SIGKILL))
	r.told(20*time.Second, count(0))
	must.Len(t, 0, r.processes())
	coretest.Eventually(t, patience, func() error {
		if child.Alive() {
			return errors.New("the worker's child lives")
		}
		return nil
	})
	coretest.Eventually(t, patience, func() error {
		if left := entries(t, filepath.Join(r.dir, "hive", "workers")); len(left) > 0 {
			return fmt.Errorf("%v is left", left)
		}
		return nil
	})
	r.nothingLeft()
	exit := result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: w.PID})
	must.True(t, exit.AlreadyGone)
	must.Eq(t, "signal killed", exit.Exit)
}

// FAULTS C-30: a pid that does not belong to a worker of this hive is refused, and its process gets
// no signal.
func TestStrangersAreNeverSignalled(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	cmd := exec.Command("sh", "-c", `trap 'echo signal' TERM INT HUP; echo up; while :; do sleep 60 & wait; done`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(out)
	must.True(t, lines.Scan())

	// The unrelated process, init, the agent itself (queen and hive), its parent, a process of
	// another user, and an unused number.
	pids := []int{cmd.Process.Pid, 1, os.Getpid(), os.Getppid(), 1 << 22}
	if os.Geteuid() == 0 {
		other := exec.Command("sleep", "600")
		other.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		must.NoError(t, other.Start())
		t.Cleanup(func() {
			must.Nil(t, other.ProcessState) // it was never ended
			_ = other.Process.Kill()
			_ = other.Wait()
		})
		pids = append(pids, other.Process.Pid)
	}
	for _, pid := range pids {
		f := r.failure(core.Request{Operation: core.OpWorkerProcessDelete, PID: pid})
		must.Eq(t, core.NotFound, f.Kind)
		must.StrContains(t, f.Message, fmt.Sprint(pid))
		must.NotEq(t, "", f.Hint)
		_, err := operation.WorkerProcessGet.Ask(t.Context(), r, core.Request{PID: pid})
		must.Eq(t, core.NotFound, core.KindOf(err))
	}
	must.NoError(t, syscall.Kill(cmd.Process.Pid, syscall.SIGTERM))
	must.True(t, lines.Scan())
	must.Eq(t, "signal", lines.Text())
	must.NoError(t, syscall.Kill(cmd.Process.Pid, 0))
}

// FAULTS C-33: a worker that does not end when asked and ignores SIGTERM is killed after the grace,
// and its exit is recorded.
func TestStubbornWorkerIsKilledAfterTheGrace(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "stubborn" {
  plugin = "rbee-worker-fake"
  config {
    child = true
    hang  = ["drain", "stop"]
  }
}`})
	w := r.spawn("stubborn")
	start := time.Now()
	exit := result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: w.PID, Grace: core.Duration(500 * time.Millisecond)})
	must.True(t, exit.Forced)
	must.Eq(t, "signal killed", exit.Exit)
	must.Between(t, 500*time.Millisecond, time.Since(start), 10*time.Second)
	r.nothingLeft()
	again := result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: w.PID})
	must.True(t, again.AlreadyGone)
	must.Eq(t, "signal killed", again.Exit)
}

func TestLoadFailureSaysWhatTheEngineSaid(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "broken" {
  plugin = "rbee-worker-fake"
  config {
    fail_start = "unknown architecture 'gpt9'"
  }
}`})
	f := r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "broken", Model: "tiny"})
	must.StrContains(t, f.Message, "unknown architecture 'gpt9'")
	must.StrContains(t, f.Message, "tiny")
	r.told(patience, count(0))
	r.nothingLeft()
}

func TestCancelledSpawnLeavesNothing(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    load_time = "10m"
  }
}`})
	j := r.submit(core.Request{Operation: core.OpWorkerSpawn, Type: "slow", Model: "tiny"})
	r.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].State != core.WorkerLoading {
			return fmt.Errorf("told of %v", list)
		}
		return nil
	})
	list := r.processes()
	must.Len(t, 1, list)
	must.Eq(t, core.WorkerLoading, list[0].State)
	_, err := r.hive.DialWorker(t.Context(), list[0].WorkerID)
	must.Eq(t, core.Unavailable, core.KindOf(err))

	start := time.Now()
	_, err = r.jobs.Cancel(t.Context(), &jobv1.CancelRequest{Id: j.ID})
	must.NoError(t, err)
	ended, _ := r.follow(j.ID)
	must.Eq(t, core.JobCancelled, ended.State)
	must.Less(t, 5*time.Second, time.Since(start))
	r.nothingLeft()
	r.told(patience, count(0))
}

func TestDeletingALoadingWorkerEndsItsSpawn(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    load_time = "10m"
  }
}`})
	j := r.submit(core.Request{Operation: core.OpWorkerSpawn, Type: "slow", Model: "tiny"})
	r.told(patience, count(1))
	pid := r.processes()[0].PID
	exit := result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: pid, Grace: core.Duration(time.Second)})
	must.Eq(t, pid, exit.PID)
	ended, _ := r.follow(j.ID)
	must.Eq(t, core.JobFailed, ended.State)
	must.Eq(t, core.Conflict, ended.Error.Kind)
	r.nothingLeft()
}

func TestSameRequestSpawnsOnce(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	req := core.Request{Operation: core.OpWorkerSpawn, Model: "tiny", RequestID: "req-1", ContextTokens: 64}
	a, b := r.submit(req), r.submit(req)
	must.Eq(t, a.ID, b.ID)
	must.Eq(t, core.JobSucceeded, r.do(req).State)
	must.Len(t, 1, r.processes())
}

func TestConcurrentSpawns(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	jobs := make([]core.Job, 4)
	for i := range jobs {
		jobs[i] = r.submit(core.Request{Operation: core.OpWorkerSpawn, Model: "tiny", Slots: 1, ContextTokens: 64})
	}
	for _, j := range jobs {
		ended, _ := r.follow(j.ID)
		must.Eq(t, core.JobSucceeded, ended.State, must.Sprintf("%+v", ended.Error))
	}
	list := r.processes()
	must.Len(t, 4, list)
	seen := map[int]bool{}
	for _, p := range list {
		seen[p.PID] = true
	}
	must.MapLen(t, 4, seen)
	r.told(patience, count(4))

	var wg sync.WaitGroup
	for _, p := range list {
		wg.Go(func() { r.do(core.Request{Operation: core.OpWorkerProcessDelete, PID: p.PID}) })
	}
	wg.Wait()
	r.nothingLeft()
}

func TestConcurrentSpawnsDoNotShareMemory(t *testing.T) {
	t.Parallel()
	// The device has room for one and a half workers, and always reports all of it as free.
	r := run(t, setup{workers: `
worker "small" {
  plugin = "rbee-worker-fake"
  config {
    load_time = "2s"
    device {
      id          = "fake:0"
      total_bytes = 52000000
      free_bytes  = 52000000
    }
  }
}`})
	req := core.Request{Operation: core.OpWorkerSpawn, Type: "small", Model: "tiny", Slots: 1, ContextTokens: 64}
	a, b := r.submit(req), r.submit(req)
	ja, _ := r.follow(a.ID)
	jb, _ := r.follow(b.ID)
	if ja.State != core.JobSucceeded {
		ja, jb = jb, ja
	}
	must.Eq(t, core.JobSucceeded, ja.State, must.Sprintf("%+v", ja.Error))
	must.Eq(t, core.JobFailed, jb.State)
	must.Eq(t, core.TooLarge, jb.Error.Kind)
	must.StrContains(t, jb.Error.Message, "are missing")
	// Once the first is loaded, its reservation is released: its device now reports what is taken.
	r.spawn("small")
}

func TestModelDoesNotFit(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "tight" {
  plugin = "rbee-worker-fake"
  config {
    device {
      id          = "fake:0"
      total_bytes = 1000
      free_bytes  = 1000
    }
  }
}`})
	f := r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "tight", Model: "tiny"})
	must.Eq(t, core.TooLarge, f.Kind)
	must.StrContains(t, f.Message, "1000 are free")
	must.NotEq(t, "", f.Hint)
	f = r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "tight", Model: "tiny", Device: "fake:9"})
	must.Eq(t, core.NotFound, f.Kind)
	f = r.failure(core.Request{Operation: core.OpWorkerSpawn, Type: "tight", Model: "tiny", ContextTokens: 1 << 20})
	must.Eq(t, core.Invalid, f.Kind)
	r.nothingLeft()
}

func TestRetiringLetsRequestsFinish(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    token_delay = "300ms"
  }
}`})
	w := r.spawn("slow")
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		text, err := r.ask(t.Context(), w.Worker.ID, strings.Repeat("word ", 16))
		answers <- answer{text, err}
	}()
	r.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].Load.Active != 1 {
			return fmt.Errorf("told of %+v", list)
		}
		return nil
	})
	r.queen.set(func(q *queen) { q.retire = []string{w.Worker.ID} })
	r.hive.beat.bump()
	r.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].State != core.WorkerRetiring {
			return fmt.Errorf("told of %+v", list)
		}
		return nil
	})
	coretest.Eventually(t, patience, func() error { // the queens are notified first
		if _, err := r.ask(t.Context(), w.Worker.ID, "more"); err == nil {
			return errors.New("a retiring worker takes a new request")
		}
		return nil
	})
	exit := result1[core.ExitResult](r, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID})
	must.False(t, exit.Forced)
	a := <-answers
	must.NoError(t, a.err)
	must.Eq(t, 16, len(strings.Fields(a.text)))
	r.told(patience, count(0))
	again := result1[core.ExitResult](r, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID})
	must.True(t, again.AlreadyGone)
	r.nothingLeft()
}

func TestShorterGraceHurriesARetirement(t *testing.T) {
	t.Parallel()
	r := run(t, setup{workers: `
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    token_delay = "10m"
  }
}`})
	w := r.spawn("slow")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	asked := make(chan struct{})
	go func() { defer close(asked); _, _ = r.ask(ctx, w.Worker.ID, "word") }()
	r.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].Load.Active != 1 {
			return fmt.Errorf("told of %+v", list)
		}
		return nil
	})
	long := r.submit(core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID})
	start := time.Now()
	exit := result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: w.PID, Grace: core.Duration(200 * time.Millisecond)})
	must.True(t, exit.Forced)
	must.Less(t, 5*time.Second, time.Since(start))
	ended, _ := r.follow(long.ID)
	must.Eq(t, core.JobSucceeded, ended.State)
	<-asked
	r.nothingLeft()
}

func TestUnknownWorkersAndPrefixes(t *testing.T) {
	t.Parallel()
	r := run(t, setup{})
	f := r.failure(core.Request{Operation: core.OpActiveWorkerRetire, Worker: "0"})
	must.Eq(t, core.NotFound, f.Kind)
	must.StrContains(t, f.Hint, "none")
	a := r.spawn("fake")
	f = r.failure(core.Request{Operation: core.OpActiveWorkerRetire, Worker: "x"})
	must.Eq(t, core.NotFound, f.Kind)
	must.StrContains(t, f.Hint, a.Worker.ID)

	_, err := r.jobs.Submit(t.Context(), &jobv1.SubmitRequest{RequestJson: []byte(`{"operation":"worker_fly"}`)})
	must.Eq(t, core.Invalid, core.KindOf(err))
	must.StrContains(t, core.HintOf(err), "worker_spawn")
	_, err = r.jobs.Submit(t.Context(), &jobv1.SubmitRequest{Operation: "worker_spawn", RequestJson: []byte(`{"operation":"model_download","model":"tiny"}`)})
	must.Eq(t, core.Invalid, core.KindOf(err))
	_, err = r.jobs.Get(t.Context(), &jobv1.GetRequest{Id: "none"})
	must.Eq(t, core.NotFound, core.KindOf(err))
}

func TestExitTakesWorkersAlongOrLeavesThem(t *testing.T) {
	t.Parallel()
	for name, keep := range map[string]bool{"along": false, "leaves": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := run(t, setup{keep: keep})
			w := r.spawn("fake")
			id, err := hostinfo.Identify(w.PID)
			must.NoError(t, err)
			r.stop()
			must.Eq(t, keep, id.Alive())
			must.Eq(t, keep, len(handles(t, r.dir)) == 1)
		})
	}
}
