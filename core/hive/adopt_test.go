package hive

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/hostinfo"
	"github.com/rbee-project/rbee/core/pluginhost"
)

// agentMain is an agent that will be killed: it spawns as many workers as its environment asks for,
// then reports that they run.
func agentMain(dir string) {
	opts, _, err := options(dir, "", hclog.NewNullLogger())
	if err != nil {
		fmt.Println(err)
		return
	}
	h, err := New(opts)
	if err != nil {
		fmt.Println(err)
		return
	}
	go func() { fmt.Println(h.Run(context.Background())) }()
	for range 4 {
		j, err := h.jobs.Submit(core.Request{Operation: core.OpWorkerSpawn, Model: "tiny", Slots: 1, ContextTokens: 64})
		if err != nil {
			fmt.Println(err)
			return
		}
		if err := h.jobs.Events(context.Background(), j.ID, 0, func(core.Event) error { return nil }); err != nil {
			fmt.Println(err)
			return
		}
		if j, err = h.jobs.Get(j.ID); err != nil || j.State != core.JobSucceeded {
			fmt.Printf("%+v %v\n", j.Error, err)
			return
		}
	}
	fmt.Println("up")
	select {}
}

func TestAgentIsKilled(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	plugins, err := pluginDir()
	must.NoError(t, err)
	agent := exec.Command(os.Args[0])
	agent.Env = append(os.Environ(), agentVariable+"="+dir, agentVariable+"_PLUGINS="+plugins)
	out, err := agent.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, agent.Start())
	defer func() { _ = agent.Process.Kill() }()
	first := bufio.NewScanner(out)
	must.True(t, first.Scan())
	must.Eq(t, "up", first.Text())
	must.NoError(t, agent.Process.Kill())
	_ = agent.Wait()

	left := handles(t, dir)
	must.Len(t, 4, left)
	// One worker died together with the agent, another is stopped and does not answer.
	dead, stopped := left[0].Attachment.Process, left[1].Attachment.Process
	must.NoError(t, syscall.Kill(dead.PID, syscall.SIGKILL))
	must.NoError(t, syscall.Kill(stopped.PID, syscall.SIGSTOP))
	coretest.Eventually(t, patience, func() error {
		if dead.Alive() {
			return fmt.Errorf("%d lives", dead.PID)
		}
		return nil
	})

	r := run(t, setup{dir: dir})
	list := r.processes()
	must.Len(t, 2, list)
	byID := map[string]core.Process{}
	for _, p := range list {
		byID[p.WorkerID] = p
	}
	for _, h := range left[2:] {
		p, ok := byID[h.id()]
		must.True(t, ok)
		must.Eq(t, h.Attachment.Process.PID, p.PID)
		must.Eq(t, core.WorkerReady, p.State)
		text, err := r.ask(t.Context(), h.id(), "still here")
		must.NoError(t, err)
		must.StrContains(t, text, "still here")
	}
	must.False(t, stopped.Alive())
	told := r.queen.workers()
	must.Len(t, 2, told)
	must.Eq(t, "1.2.3", told[0].Version)
	must.Eq(t, 1, told[0].Slots)
	must.Len(t, 2, entries(t, filepath.Join(dir, "hive", "workers")))

	// An adopted worker can be ended and its death is noticed, like any other's.
	result1[core.ExitResult](r, core.Request{Operation: core.OpWorkerProcessDelete, PID: list[0].PID})
	must.NoError(t, syscall.Kill(list[1].PID, syscall.SIGKILL))
	r.told(20*time.Second, count(0))
	coretest.Eventually(t, patience, func() error {
		if n := len(entries(t, filepath.Join(dir, "hive", "workers"))); n > 0 {
			return fmt.Errorf("%d handles are left", n)
		}
		return nil
	})
	r.nothingLeft()
}

func TestRestartKeepsTheWorker(t *testing.T) {
	t.Parallel()
	a := run(t, setup{keep: true})
	w := a.spawn("fake")
	a.stop()
	b := run(t, setup{dir: a.dir})
	must.Greater(t, a.queen.hive().Incarnation, b.queen.hive().Incarnation)
	told := b.queen.workers()
	must.Len(t, 1, told)
	must.Eq(t, w.Worker.ID, told[0].ID)
	must.Eq(t, w.Worker.Nonce, told[0].Nonce)
	must.Eq(t, w.PID, b.processes()[0].PID)
	binaries, err := b.hive.claims.store.Binaries()
	must.NoError(t, err)
	must.Eq(t, []string{w.Worker.ID}, b.hive.roster.withUsers(binaries[0]).InUseBy)
}

func TestDamagedAndForeignHandles(t *testing.T) {
	t.Parallel()
	a := run(t, setup{keep: true})
	w := a.spawn("fake")
	a.stop()
	dir := filepath.Join(a.dir, "hive", "workers")

	// An unrelated process that reports signals, and a handle with its pid but another start time.
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
	stranger, err := hostinfo.Identify(cmd.Process.Pid)
	must.NoError(t, err)

	sound := handles(t, a.dir)[0]
	write := func(id string, change func(*handle)) {
		h := sound
		h.Attachment.WorkerID, h.Attachment.Nonce = id, randomHex(16)
		change(&h)
		must.NoError(t, writeJSON(filepath.Join(dir, id+".json"), h))
		must.NoError(t, os.MkdirAll(filepath.Join(a.dir, "run", id), 0o700))
	}
	write("00000000000a", func(h *handle) { h.Attachment.Process = stranger; h.Attachment.Process.Start++ })
	write("00000000000b", func(h *handle) { h.Attachment.Process = hostinfo.Identity{PID: 1 << 22, Start: 1, BootID: "x"} })
	write("00000000000c", func(h *handle) { h.Format = 99 })
	must.NoError(t, os.WriteFile(filepath.Join(dir, "00000000000d.json"), []byte(`{"format":1,`), 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, "..json"), nil, 0o600))
	must.NoError(t, os.WriteFile(filepath.Join(dir, ".tmp-1"), []byte("{"), 0o600))
	must.NoError(t, os.Mkdir(filepath.Join(dir, "00000000000e.json"), 0o700))
	must.NoError(t, os.Symlink("/etc/passwd", filepath.Join(dir, "00000000000f.json")))
	must.NoError(t, os.MkdirAll(filepath.Join(a.dir, "run", "0123456789ab", "x"), 0o700))
	precious := filepath.Join(a.dir, "precious")
	must.NoError(t, os.MkdirAll(precious, 0o700))
	write("000000000010", func(h *handle) {
		h.Attachment.RunDir = precious
		h.Attachment.Process = hostinfo.Identity{PID: 1 << 22, Start: 1}
	})

	b := run(t, setup{dir: a.dir})
	list := b.processes()
	must.Len(t, 1, list)
	must.Eq(t, w.PID, list[0].PID)
	must.Eq(t, []string{w.Worker.ID + ".json"}, entries(t, dir))
	must.SliceContainsAll(t, entries(t, filepath.Join(a.dir, "hive", "damaged")),
		[]string{"..json", "00000000000c.json", "00000000000d.json", "00000000000e.json", "00000000000f.json"})
	for _, id := range []string{"00000000000a", "00000000000b", "000000000010", "0123456789ab"} {
		_, err := os.Stat(filepath.Join(a.dir, "run", id))
		must.ErrorIs(t, err, os.ErrNotExist)
	}
	_, err = os.Stat(precious)
	must.NoError(t, err)
	must.True(t, stranger.Alive())
	must.NoError(t, syscall.Kill(cmd.Process.Pid, syscall.SIGTERM))
	must.True(t, lines.Scan()) // the first signal it hears is ours
	must.Eq(t, "signal", lines.Text())
}

// A handle with a flipped bit may name anything: its worker is ended, not adopted.
func TestHandleFlippedBit(t *testing.T) {
	t.Parallel()
	a := run(t, setup{keep: true})
	w := a.spawn("fake")
	a.stop()
	process := handles(t, a.dir)[0].Attachment.Process
	file := filepath.Join(a.dir, "hive", "workers", w.Worker.ID+".json")
	b, err := os.ReadFile(file)
	must.NoError(t, err)
	b[bytes.Index(b, []byte("context_tokens"))+len(`context_tokens": `)] ^= 1 // changes the number
	must.NoError(t, os.WriteFile(file, b, 0o600))

	r := run(t, setup{dir: a.dir})
	must.Len(t, 0, r.processes())
	must.False(t, process.Alive())
	must.Eq(t, []string{w.Worker.ID + ".json"}, entries(t, filepath.Join(a.dir, "hive", "damaged")))
	r.nothingLeft()
}

func TestRetirementContinuesUnderNextAgent(t *testing.T) {
	t.Parallel()
	gate := filepath.Join(t.TempDir(), "gate")
	slow := fmt.Sprintf(`
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    last_token = %q
  }
}`, gate)
	a := run(t, setup{workers: slow, keep: true})
	w := a.spawn("slow")
	type answer struct {
		text string
		err  error
	}
	answers := make(chan answer, 1)
	go func() {
		text, err := a.ask(t.Context(), w.Worker.ID, strings.Repeat("word ", 10))
		answers <- answer{text, err}
	}()
	a.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].Load.Active != 1 {
			return fmt.Errorf("told of %+v", list)
		}
		return nil
	})
	a.submit(core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID})
	a.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].State != core.WorkerRetiring {
			return fmt.Errorf("told of %+v", list)
		}
		return nil
	})
	coretest.Eventually(t, patience, func() error { // the drain has reached the worker
		h, _ := a.hive.roster.worker(w.Worker.ID)
		if s, err := h.proc.Status(t.Context()); err != nil || s.State != "draining" {
			return fmt.Errorf("it is %s: %w", s.State, err)
		}
		return nil
	})
	a.stop()
	b := run(t, setup{workers: slow, dir: a.dir})
	b.told(patience, func(list []core.Worker) error {
		if len(list) != 1 || list[0].State != core.WorkerRetiring {
			return fmt.Errorf("told of %+v", list)
		}
		return nil
	})
	must.NoError(t, os.WriteFile(gate, nil, 0o600))
	got := <-answers
	must.NoError(t, got.err)
	must.Eq(t, 10, len(strings.Fields(got.text)))
	b.told(patience, count(0))
	coretest.Eventually(t, patience, func() error {
		if n := len(entries(t, filepath.Join(b.dir, "hive", "workers"))); n > 0 {
			return fmt.Errorf("%d handles are left", n)
		}
		return nil
	})
	b.nothingLeft()
}

func TestReplacedExecutableIsNotTakenOver(t *testing.T) {
	t.Parallel()
	a := run(t, setup{keep: true})
	w := a.spawn("fake")
	id, err := hostinfo.Identify(w.PID)
	must.NoError(t, err)
	a.stop()
	h := handles(t, a.dir)[0]
	h.Attachment.Runs = "sha256:" + strings.Repeat("0", 64)
	must.NoError(t, writeJSON(filepath.Join(a.dir, "hive", "workers", h.id()+".json"), h))
	b := run(t, setup{dir: a.dir})
	must.Len(t, 0, b.processes())
	must.False(t, id.Alive())
	b.nothingLeft()
	exit := result1[core.ExitResult](b, core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.Worker.ID})
	must.True(t, exit.AlreadyGone)
}

func TestLoadingWorkerOfDeadAgentEnded(t *testing.T) {
	t.Parallel()
	const slow = `
worker "slow" {
  plugin = "rbee-worker-fake"
  config {
    load_time = "10m"
  }
}`
	a := run(t, setup{workers: slow, keep: true})
	_ = a.submit(core.Request{Operation: core.OpWorkerSpawn, Type: "slow", Model: "tiny"})
	a.told(patience, count(1))
	// The handle stays as a killed agent leaves it, and the process keeps running.
	h := handles(t, a.dir)[0]
	file := filepath.Join(a.dir, "hive", "workers", h.id()+".json")
	content, err := os.ReadFile(file)
	must.NoError(t, err)
	a.stop() // ends the job and with it the process
	must.False(t, h.Attachment.Process.Alive())
	must.NoError(t, os.WriteFile(file, content, 0o600))
	b := run(t, setup{dir: a.dir, workers: slow})
	b.nothingLeft()
}

func FuzzParseHandle(f *testing.F) {
	good, err := json.Marshal(handle{
		Format: handleFormat, Model: "m", Slots: 1,
		Attachment: pluginhost.Attachment{WorkerID: "0123456789ab", Nonce: "n", Address: "/x", Type: "cpu", Process: hostinfo.Identity{PID: 7, Start: 1}},
	})
	must.NoError(f, err)
	if _, err := parseHandle("0123456789ab", good); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add([]byte(`{"format":1,"attachment":{"worker_id":"../../../etc","process":{"pid":-1}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHandle("0123456789ab", b)
		if err != nil {
			must.Eq(t, core.Integrity, core.KindOf(err))
			return
		}
		must.Eq(t, "0123456789ab", h.id())
		must.Greater(t, 1, h.Attachment.Process.PID)
	})
}
