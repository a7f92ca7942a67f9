package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// buildEnv lets hives build, offline, with the caches of the user who runs the tests.
func buildEnv(t testing.TB) []string {
	t.Helper()
	dir := t.TempDir()
	for folder, name := range map[string]string{"build": "GOCACHE", "modules": "GOMODCACHE"} {
		out, err := exec.CommandContext(t.Context(), "go", "env", name).Output()
		must.NoError(t, err)
		must.NoError(t, os.Symlink(strings.TrimSpace(string(out)), filepath.Join(dir, folder)))
	}
	return []string{"RBEE_HIVE_BUILD_ENABLED=true", "RBEE_HIVE_BUILD_CACHE_DIR=" + dir, "GOPROXY=off"}
}

// tidyParrot returns the parrot as a separate repository would contain it, with its requirements in
// go.mod. They are derived offline from what is built: "go mod tidy" would also need what only the
// tests of dependencies import, which a machine that built rbee may lack.
func tidyParrot(t testing.TB) string {
	t.Helper()
	dir := parrotModule(t)
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOFLAGS=-mod=mod", "GOPROXY=off", "GOSUMDB=off", "GOWORK=off")
	out, err := cmd.CombinedOutput()
	must.NoError(t, err, must.Sprint(string(out)))
	return dir
}

func (o *contract) workerBuild() {
	dir := tidyParrot(o.t)
	b := asJob[core.WorkerBinary](o, core.Request{Operation: core.OpWorkerBuild, Source: dir, Hive: "hive-2"})
	must.Eq(o.t, "parrot", b.Type)
	must.Eq(o.t, "build:"+dir, b.Source)
	again := cli[core.WorkerBinary](o, "worker", "build", dir, "--type", "cockatoo", "--hive", "hive-1")
	must.Eq(o.t, "cockatoo", again.Type)
	must.Eq(o.t, core.Conflict, core.KindOf(o.fails(core.Request{Operation: core.OpWorkerBuild, Source: dir, Type: "cpu", Hive: "hive-1"})))
	broken := o.t.TempDir()
	must.NoError(o.t, os.WriteFile(filepath.Join(broken, "go.mod"), []byte("module example.org/broken\n\ngo 1.26.0\n"), 0o600))
	must.NoError(o.t, os.WriteFile(filepath.Join(broken, "main.go"), []byte("package main\n\nfunc main() { undefined() }\n"), 0o600))
	err := o.fails(core.Request{Operation: core.OpWorkerBuild, Source: broken, Hive: "hive-1"})
	must.StrContains(o.t, core.HintOf(err), "undefined: undefined")
}

func (o *contract) workerBinaryDelete() {
	b := asJob[core.WorkerBinary](o, core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "parrot", Hive: "hive-2"})
	must.DirNotExists(o.t, b.Path)
	o.queen().must("worker", "binary", "delete", "cockatoo", "--hive", "hive-1", "--yes")
	for _, h := range []string{"hive-1", "hive-2"} {
		must.Len(o.t, 1, got[[]core.WorkerBinary](o, "/v1/hives/"+h+"/binaries"))
	}
	must.Eq(o.t, core.NotFound, core.KindOf(o.fails(core.Request{Operation: core.OpWorkerBinaryDelete, Binary: "../..", Hive: "hive-1"})))
}

// The process table of a machine is available when no queen can be reached: its own agent answers.
func TestProcessListWithoutAQueen(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(1, 1)
	queen, hive := c.nodes[0], c.nodes[1]
	spawned := asJSON[core.SpawnResult](queen, "worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1", "--threads", "1")
	queen.kill()
	local := func(args ...string) (stdout, stderr string, code int) {
		cmd := exec.CommandContext(t.Context(), filepath.Join(binDir(t), "rbee"), args...)
		cmd.Env = append([]string{"RBEE_TOKEN=" + c.token, "RBEE_DATA_DIR=" + hive.dir}, hive.env...)
		var out, talk bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &talk
		_ = cmd.Run() // the exit code reports it
		return out.String(), talk.String(), cmd.ProcessState.ExitCode()
	}
	out, talk, code := local("worker", "process", "list")
	must.Eq(t, 0, code, must.Sprint(talk))
	must.StrContains(t, out, spawned.Worker.ID)
	must.StrContains(t, talk, "No queen answers")
	out, talk, code = local("worker", "process", "get", fmt.Sprint(spawned.PID), "--format", "json")
	must.Eq(t, 0, code, must.Sprint(talk))
	must.StrContains(t, out, `"command_line"`)
	out, _, code = local("worker", "binary", "list")
	must.Eq(t, 0, code)
	must.StrContains(t, out, spawned.Worker.ID)
	_, _, code = local("worker", "process", "get", "1")
	must.Eq(t, 1, code)
	// Only the agent's user can open the socket, and it is removed with the agent.
	info, err := os.Lstat(filepath.Join(hive.dir, "run", "agent.sock"))
	must.NoError(t, err)
	must.Eq(t, os.FileMode(0o600), info.Mode().Perm())
	hive.kill()
	coretest.Eventually(t, patience, func() error {
		if _, _, code := local("worker", "process", "list"); code != 1 {
			return fmt.Errorf("exit code %d", code)
		}
		return nil
	})
}
