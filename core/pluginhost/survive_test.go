package pluginhost_test

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/hashicorp/hcl/v2"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk/worker"
)

// helper is this test executable as another hive: it launches and starts a worker, prints its
// attachment, and waits to be killed.
func helper() {
	var in struct {
		PluginDir, Dir, Model string
		Tethered              bool
	}
	fail := func(err error) {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	fail(json.Unmarshal([]byte(os.Getenv("RBEE_TEST_HELPER")), &in))
	h := pluginhost.New(pluginhost.Options{PluginDir: in.PluginDir})
	spec, err := h.Spec(config.Plugin{Kind: "worker", Label: "fake", Executable: "rbee-worker-fake", Body: hcl.EmptyBody()})
	fail(err)
	w, err := h.LaunchWorker(context.Background(), pluginhost.WorkerLaunch{
		Spec: spec, WorkerID: "survivor", Nonce: "nonce-" + filepath.Base(in.Dir), RunDir: filepath.Join(in.Dir, "run"), LogFile: filepath.Join(in.Dir, "log"), Tethered: in.Tethered,
	})
	fail(err)
	fail(w.Start(context.Background(), worker.StartSpec{ModelPath: in.Model, ModelID: "m", Device: "fake:0", Slots: 1}, nil))
	fail(json.NewEncoder(os.Stdout).Encode(w.Attachment()))
	select {}
}

// otherHive starts a helper and returns it with the attachment of its worker.
func otherHive(t *testing.T, tethered bool) (*exec.Cmd, pluginhost.Attachment) {
	t.Helper()
	exe, err := os.Executable()
	must.NoError(t, err)
	in, err := json.Marshal(map[string]any{"PluginDir": built, "Dir": shortDir(t), "Model": startSpec(t).ModelPath, "Tethered": tethered})
	must.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe)
	cmd.Env = append(os.Environ(), "RBEE_TEST_HELPER="+string(in))
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	must.NoError(t, err)
	var a pluginhost.Attachment
	must.NoError(t, json.Unmarshal(line, &a))
	return cmd, a
}

// A hive that is killed leaves its worker running; the worker answers, logs, and is taken over by
// the next hive.
func TestWorkerSurvivesItsHive(t *testing.T) {
	t.Parallel()
	hive, a := otherHive(t, false)
	must.NoError(t, hive.Process.Kill())
	_ = hive.Wait()

	h := newHost(t)
	t.Cleanup(func() { _, _ = h.EndAttachment(context.Background(), a) })
	// It logs at every request; an orphan that logs into a broken pipe would die of it.
	for range 20 {
		_, err := askOver(t.Context(), a.DataSocket, a.DataOpening, "one two")
		must.NoError(t, err)
	}
	w, err := h.Reattach(t.Context(), a)
	must.NoError(t, err)
	must.Eq(t, a.Process.PID, w.PID())
	st, err := w.Status(t.Context())
	must.NoError(t, err)
	must.Eq(t, "survivor", st.WorkerID)
	must.Eq(t, int64(40), st.TokensTotal)
	must.SliceNotEmpty(t, w.Tail())

	forced, err := w.Stop(t.Context(), time.Second)
	must.NoError(t, err)
	must.False(t, forced)
	<-w.Done()
	gone(t, w.PID())
}

func TestReattachScript(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("not tested: only Linux tells what a process runs")
	}
	// For such a worker /proc names the interpreter, which here is the fake worker itself.
	script := filepath.Join(shortDir(t), "rbee-worker-fake")
	must.NoError(t, os.WriteFile(script, []byte("#!"+filepath.Join(built, "rbee-worker-fake")+"\n"), 0o700))
	h := newHost(t)
	first := launched(t, h, "", func(l *pluginhost.WorkerLaunch) { l.Executable = script })
	must.NoError(t, first.Start(t.Context(), startSpec(t), nil))
	a := first.Attachment()
	must.NotEq(t, a.Digest, a.Runs)

	second, err := newHost(t).Reattach(t.Context(), a)
	must.NoError(t, err)
	must.NoError(t, second.Close())
	// Another program in a process with the same pid and start time is not this worker.
	other := a
	other.Runs = a.Digest
	_, err = newHost(t).Reattach(t.Context(), other)
	must.Eq(t, core.NotFound, core.KindOf(err))
	// It can also be ended.
	ended, err := newHost(t).EndAttachment(t.Context(), a)
	must.NoError(t, err)
	must.True(t, ended)
	<-first.Done()
}

func TestTetheredWorkerDiesWithItsHive(t *testing.T) {
	t.Parallel()
	hive, a := otherHive(t, true)
	must.NoError(t, hive.Process.Kill())
	_ = hive.Wait()
	coretest.Eventually(t, 5*time.Second, func() error {
		if a.Process.Alive() {
			return fmt.Errorf("process %d is there", a.Process.PID)
		}
		return nil
	})
}
