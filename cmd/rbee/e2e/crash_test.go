package e2e

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// configured returns the configuration of an agent with a registry on disk, whose workers outlive
// it, and which may load the slow model.
func configured(t testing.TB) string {
	return oneMachine + fileCatalog(slowDir(t))
}

// stream requests an answer of so many tokens and returns the lines of the event stream as they
// arrive.
func (a *agent) stream(model string, tokens int) (*http.Response, *bufio.Reader) {
	a.t.Helper()
	body := fmt.Sprintf(`{"model":%q,"stream":true,"ignore_eos":true,"max_tokens":%d,"temperature":0,"messages":[{"role":"user","content":"Tell me a story."}]}`, model, tokens)
	req, err := http.NewRequestWithContext(patient(a.t), http.MethodPost, "http://"+a.addr+"/v1/chat/completions", strings.NewReader(body))
	must.NoError(a.t, err)
	resp, err := http.DefaultClient.Do(req)
	must.NoError(a.t, err)
	a.t.Cleanup(func() { _ = resp.Body.Close() })
	must.Eq(a.t, http.StatusOK, resp.StatusCode)
	return resp, bufio.NewReader(resp.Body)
}

// events reads n data events of a stream.
func events(t testing.TB, r *bufio.Reader, n int) {
	t.Helper()
	for n > 0 {
		line, err := r.ReadString('\n')
		must.NoError(t, err)
		if strings.HasPrefix(line, "data: ") {
			n--
		}
	}
}

func TestKilledWorker(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{config: configured(t)})
	spawned := a.spawnModel("file:" + slowModel(t))
	_, r := a.stream(spawned.Worker.Model, 100_000)
	events(t, r, 5)

	must.NoError(t, syscall.Kill(spawned.PID, syscall.SIGKILL))
	killed := time.Now()
	rest, err := io.ReadAll(r)
	must.Error(t, err) // cut, not ended: clients recognize an incomplete answer
	must.StrNotContains(t, string(rest), "[DONE]")
	var last struct {
		Error struct {
			Message, Type, Code string
		}
	}
	for line := range strings.Lines(string(rest)) {
		if data, ok := strings.CutPrefix(line, "data: "); ok {
			must.NoError(t, json.Unmarshal([]byte(data), &last))
		}
	}
	must.Eq(t, "worker_lost", last.Error.Code)
	must.NotEq(t, "", last.Error.Message)

	coretest.Eventually(t, time.Second-min(time.Since(killed), 900*time.Millisecond), func() error {
		c := a.client()
		workers, err := c.Workers(t.Context())
		must.NoError(t, err)
		processes, err := c.Processes(t.Context(), core.LocalHive)
		must.NoError(t, err)
		if len(workers)+len(processes) > 0 {
			return fmt.Errorf("still %d workers and %d processes", len(workers), len(processes))
		}
		return nil
	})
	t.Logf("registry and process list are right %s after the kill", time.Since(killed))
	must.Len(t, 0, jsonOf[[]core.Worker](a, "ps"))
	must.Len(t, 0, jsonOf[[]core.Process](a, "worker", "process", "list", "--hive", "localhost"))

	// The next request works: a new worker is started for it.
	must.StrContains(t, a.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "queen")
	again := a.spawnModel(spawned.Worker.Model)
	must.NotEq(t, spawned.PID, again.PID)
}

func TestKilledAgentFindsItsWorkerAgain(t *testing.T) {
	t.Parallel()
	dir := shortDir(t)
	config := configured(t)
	a := startAgent(t, agentOptions{config: config, dir: dir})
	spawned := a.spawnModel("file:" + slowModel(t))
	answer := a.must("infer", "--model", spawned.Worker.Model, "--temperature", "0", "--max-tokens", "8", "--prompt", "hello")
	_, r := a.stream(spawned.Worker.Model, 100_000)
	events(t, r, 5)
	a.stop(syscall.SIGKILL)
	_, err := io.ReadAll(r)
	must.Error(t, err)
	must.NoError(t, syscall.Kill(spawned.PID, 0)) // it keeps running

	b := startAgent(t, agentOptions{config: config, dir: dir})
	workers := jsonOf[[]core.Worker](b, "ps")
	must.Len(t, 1, workers)
	must.Eq(t, spawned.Worker.ID, workers[0].ID)
	must.Eq(t, core.WorkerReady, workers[0].State)
	processes := jsonOf[[]core.Process](b, "worker", "process", "list", "--hive", "localhost")
	must.Len(t, 1, processes)
	must.Eq(t, spawned.PID, processes[0].PID)
	must.Eq(t, answer, b.must("infer", "--model", spawned.Worker.Model, "--temperature", "0", "--max-tokens", "8", "--prompt", "hello"))
	must.Len(t, 1, jsonOf[[]core.Worker](b, "ps")) // the old worker served it, not a new one

	// It dies while no agent runs: the next agent reports the current state.
	b.stop(syscall.SIGKILL)
	must.NoError(t, syscall.Kill(spawned.PID, syscall.SIGKILL))
	c := startAgent(t, agentOptions{config: config, dir: dir})
	must.Len(t, 0, jsonOf[[]core.Worker](c, "ps"))
	must.Len(t, 0, c.handles())
}

func TestEndedAgent(t *testing.T) {
	t.Parallel()
	t.Run("configured: its workers go on", func(t *testing.T) {
		t.Parallel()
		a := startAgent(t, agentOptions{config: configured(t)})
		pid := a.spawn().PID
		a.stop(syscall.SIGTERM)
		must.Eq(t, 0, a.cmd.ProcessState.ExitCode())
		must.NoError(t, syscall.Kill(pid, 0))
	})
	t.Run("dev: they end with it", func(t *testing.T) {
		t.Parallel()
		a := startAgent(t, agentOptions{})
		pid := a.spawn().PID
		a.stop(syscall.SIGTERM)
		must.Eq(t, 0, a.cmd.ProcessState.ExitCode())
		must.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH)
	})
}

// The first TERM waits for running streams as long as configured, a second one no longer; streams
// end with a reason.
func TestSecondTermTellsStreams(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{config: configured(t), env: []string{"RBEE_HIVE_STOP_GRACE=10m"}})
	spawned := a.spawnModel("file:" + slowModel(t))
	_, r := a.stream(spawned.Worker.Model, 100_000)
	events(t, r, 2)
	must.NoError(t, a.cmd.Process.Signal(syscall.SIGTERM))
	coretest.Eventually(t, patience, func() error {
		if !strings.Contains(a.log.String(), "http server stopping") {
			return errors.New("it does not stop yet")
		}
		return nil
	})
	events(t, r, 2)
	must.NoError(t, a.cmd.Process.Signal(syscall.SIGTERM))
	rest, err := io.ReadAll(r)
	must.Error(t, err)
	must.StrContains(t, string(rest), "this server is stopping")
	must.StrNotContains(t, string(rest), "[DONE]")
	<-a.done
	must.Eq(t, 0, a.cmd.ProcessState.ExitCode())
}

func TestRetire(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{config: configured(t)})
	spawned := a.spawnModel("file:" + slowModel(t))
	_, r := a.stream(spawned.Worker.Model, 200)
	events(t, r, 2)
	job, err := a.client().Submit(t.Context(), core.Request{Operation: core.OpActiveWorkerRetire, Worker: spawned.Worker.ID})
	must.NoError(t, err)
	// The running request finishes uncut, though the worker accepts no new ones.
	w, err := a.client().Worker(t.Context(), spawned.Worker.ID)
	must.NoError(t, err)
	must.Eq(t, core.WorkerRetiring, w.State)
	rest, err := io.ReadAll(r)
	must.NoError(t, err)
	must.StrContains(t, string(rest), "[DONE]")
	var end core.Event
	must.NoError(t, a.client().FollowJob(t.Context(), job.ID, 0, func(e core.Event) error { end = e; return nil }))
	must.Eq(t, core.JobSucceeded, end.State, must.Sprintf("%+v", end.Error))
	must.Len(t, 0, jsonOf[[]core.Worker](a, "ps"))
	must.ErrorIs(t, syscall.Kill(spawned.PID, 0), syscall.ESRCH)
}

func TestProcessDelete(t *testing.T) {
	t.Parallel()
	a := startAgent(t, agentOptions{})
	spawned := a.spawn()
	must.Eq(t, 0, a.rbee("worker", "process", "delete", fmt.Sprint(spawned.PID), "--hive", "localhost", "--yes").code)
	must.ErrorIs(t, syscall.Kill(spawned.PID, 0), syscall.ESRCH)
	must.Len(t, 0, jsonOf[[]core.Worker](a, "ps"))
}

// spawnModel starts a worker for a model.
func (a *agent) spawnModel(model string) core.SpawnResult {
	a.t.Helper()
	out := a.must("worker", "spawn", "--model", model, "--threads", "1", "--format", "json")
	var r core.SpawnResult
	must.NoError(a.t, json.Unmarshal([]byte(out), &r), must.Sprint(out))
	return r
}
