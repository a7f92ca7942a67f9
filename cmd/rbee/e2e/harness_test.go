// Package e2e drives the real binary with the real plugins and the real engine, as a person would.
// `make test` builds them and sets their location (RBEE_TEST_BIN); without that these tests are
// skipped.
package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/coretest"
)

// patience is how long a step may take on a busy machine of two cores. Claimed speeds are measured
// separately.
const patience = 60 * time.Second

// binDir returns the folder of the built program; the test is skipped without one.
func binDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("RBEE_TEST_BIN")
	if dir == "" {
		t.Skip("RBEE_TEST_BIN is not set: `make test` builds the program and sets it")
	}
	return dir
}

// sharedStore returns a store folder that already has the engine, so that only the tests of the
// download download it.
func sharedStore(t testing.TB) string { return filepath.Join(binDir(t), "test-store") }

// oneMachine configures queen and hive in one process.
const oneMachine = "queen {\n  enabled = true\n}\nhive {\n  enabled = true\n}\n"

// fileCatalog returns a configuration that allows the models of a folder.
func fileCatalog(dir string) string {
	return fmt.Sprintf("catalog \"file\" {\n  config {\n    paths = [%q]\n  }\n}\n", dir)
}

// agent is a running `rbee agent`.
type agent struct {
	t    testing.TB
	dir  string // data folder
	home string
	addr string
	cmd  *exec.Cmd
	log  *lockedBuffer
	done chan struct{} // closed when the process has exited
	env  []string
}

// agentOptions describe how to start an agent. The zero value is a dev agent on a fresh data folder
// and the shared store.
type agentOptions struct {
	dir    string // data folder; empty: a new one
	store  string // store folder; empty: the shared one
	config string // HCL of a configured agent; empty: -dev
	env    []string
	args   []string
	files  int // limit of open files; 0: the test's own
}

// startAgent starts an agent and waits until it can serve. It is ended with the test, as is every
// worker it left behind.
func startAgent(t testing.TB, o agentOptions) *agent {
	t.Helper()
	bin := binDir(t)
	if o.dir == "" {
		o.dir = shortDir(t)
	}
	if o.store == "" {
		o.store = sharedStore(t)
	}
	home := t.TempDir()
	args := []string{"agent", "-dev"}
	if o.config != "" {
		file := filepath.Join(home, "rbee.hcl")
		must.NoError(t, os.WriteFile(file, []byte(o.config), 0o600))
		args = []string{"agent", "-config", file}
	}
	args = append(args, "-data-dir", o.dir, "-store-dir", o.store, "-http-port", "0")
	args = append(args, o.args...)
	a := &agent{
		t: t, dir: o.dir, home: home, log: &lockedBuffer{}, done: make(chan struct{}),
		env: append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + home, "TMPDIR=" + os.TempDir()}, o.env...),
	}
	a.cmd = exec.Command(filepath.Join(bin, "rbee"), args...)
	if o.files > 0 {
		limited := []string{"-c", fmt.Sprintf(`ulimit -n %d; exec "$0" "$@"`, o.files), filepath.Join(bin, "rbee")}
		a.cmd = exec.Command("sh", append(limited, args...)...)
	}
	a.cmd.Env = a.env
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	// A worker that outlives the agent inherits no pipe of the test, but make sure not to wait for
	// one.
	a.cmd.WaitDelay = time.Second
	_ = os.Remove(filepath.Join(o.dir, "agent.json"))
	must.NoError(t, a.cmd.Start())
	go func() {
		defer close(a.done)
		_ = a.cmd.Wait()
	}()
	t.Cleanup(a.cleanup)
	coretest.Eventually(t, patience, func() error {
		select {
		case <-a.done:
			t.Fatalf("the agent ended:\n%s", a.log)
		default:
		}
		b, err := os.ReadFile(filepath.Join(o.dir, "agent.json"))
		if err != nil {
			return err
		}
		var record struct {
			HTTPAddress string `json:"http_address"`
		}
		if err := json.Unmarshal(b, &record); err != nil {
			return err
		}
		a.addr = record.HTTPAddress
		resp, err := http.Get("http://" + a.addr + "/readyz")
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("/readyz: %s", resp.Status)
		}
		return nil
	})
	return a
}

// shortDir returns a temporary folder with a short path: the path of a unix socket may have about
// 100 bytes.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "rb") //nolint:usetesting // t.TempDir has the name of the test in its path
	must.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// cleanup ends the agent and the workers that it left running.
func (a *agent) cleanup() {
	if a.t.Failed() {
		a.t.Logf("the agent's log:\n%s", a.log)
	}
	a.stop(syscall.SIGTERM)
	for _, pid := range a.handlePIDs() {
		_ = syscall.Kill(-pid, syscall.SIGKILL)
	}
}

// stop sends a signal to the agent and waits until it has exited.
func (a *agent) stop(sig syscall.Signal) {
	a.t.Helper()
	_ = a.cmd.Process.Signal(sig)
	select {
	case <-a.done:
	case <-time.After(patience):
		_ = a.cmd.Process.Kill()
		a.t.Errorf("the agent did not end after %s:\n%s", sig, a.log)
		<-a.done
	}
}

// handlePIDs returns the process ids in the handle files of the agent's data folder.
func (a *agent) handlePIDs() []int {
	files, _ := filepath.Glob(filepath.Join(a.dir, "hive", "workers", "*.json"))
	var pids []int
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		if pid := findPID(b); pid > 1 {
			pids = append(pids, pid)
		}
	}
	return pids
}

// findPID finds a member "pid" anywhere in a JSON document.
func findPID(doc []byte) int {
	var v any
	if json.Unmarshal(doc, &v) != nil {
		return 0
	}
	var walk func(any) int
	walk = func(v any) int {
		object, ok := v.(map[string]any)
		if !ok {
			return 0
		}
		if pid, ok := object["pid"].(float64); ok {
			return int(pid)
		}
		for _, child := range object {
			if pid := walk(child); pid != 0 {
				return pid
			}
		}
		return 0
	}
	return walk(v)
}

// client returns a client of the agent's HTTP API.
func (a *agent) client() *client.Client {
	a.t.Helper()
	c, err := client.New(client.Options{Addresses: []string{a.addr}})
	must.NoError(a.t, err)
	return c
}

// result is how a command ended.
type result struct {
	stdout, stderr string
	code           int
}

// command returns `rbee args…` against this agent.
func (a *agent) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, filepath.Join(binDir(a.t), "rbee"), args...)
	cmd.Env = append([]string{"RBEE_ADDR=" + a.addr}, a.env...)
	return cmd
}

// rbee runs `rbee args…` against this agent.
func (a *agent) rbee(args ...string) result {
	a.t.Helper()
	return run(a.t, a.command(a.t.Context(), args...))
}

// must runs `rbee args…` and fails the test unless it succeeds.
func (a *agent) must(args ...string) string {
	a.t.Helper()
	r := a.rbee(args...)
	if r.code != 0 {
		a.t.Fatalf("rbee %s: exit code %d\n%s%s", strings.Join(args, " "), r.code, r.stdout, r.stderr)
	}
	return r.stdout
}

func run(t testing.TB, cmd *exec.Cmd) result {
	t.Helper()
	var out, talk bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &talk
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok {
		t.Fatalf("%s: %v", cmd, err)
	}
	return result{out.String(), talk.String(), cmd.ProcessState.ExitCode()}
}

// spawn starts a worker for rbee-tiny and returns it.
func (a *agent) spawn(args ...string) core.SpawnResult {
	a.t.Helper()
	out := a.must(append([]string{"worker", "spawn", "--model", "rbee-tiny", "--format", "json"}, args...)...)
	var r core.SpawnResult
	must.NoError(a.t, json.Unmarshal([]byte(out), &r), must.Sprint(out))
	return r
}

// jsonOf runs a command with --format json and decodes its output.
func jsonOf[T any](a *agent, args ...string) T {
	a.t.Helper()
	var v T
	out := a.must(append(args, "--format", "json")...)
	must.NoError(a.t, json.Unmarshal([]byte(out), &v), must.Sprint(out))
	return v
}

// lockedBuffer is a buffer that a process writes while a test reads.
type lockedBuffer struct {
	mu  sync.Mutex // guards below
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}
