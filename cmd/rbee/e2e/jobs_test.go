package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/job"
)

// command is a command that runs in parallel with the test, and knows all queens.
type command struct {
	t    testing.TB
	cmd  *exec.Cmd
	out  lockedBuffer
	talk lockedBuffer
	done chan struct{}
}

// begin starts `rbee args…` for a person whose machine knows all queens, the first of them first.
func (c *cluster) begin(args ...string) *command {
	c.t.Helper()
	var addresses []string
	for _, n := range c.nodes {
		if n.queen {
			addresses = append(addresses, n.url())
		}
	}
	x := &command{t: c.t, cmd: exec.Command(filepath.Join(binDir(c.t), "rbee"), args...), done: make(chan struct{})}
	x.cmd.Env = append([]string{"RBEE_TOKEN=" + c.token, "RBEE_ADDR=" + strings.Join(addresses, ","), "RBEE_CACERT=" + filepath.Join(c.nodes[0].dir, "cluster", "ca.pem")}, c.nodes[0].env...)
	x.cmd.Stdout, x.cmd.Stderr = &x.out, &x.talk
	must.NoError(c.t, c.thread.start(x.cmd))
	go func() { defer close(x.done); _ = x.cmd.Wait() }()
	c.t.Cleanup(func() { _ = x.cmd.Process.Kill(); <-x.done })
	return x
}

// events returns those that the command has written so far, a JSON object a line.
func (x *command) events() []core.Event {
	x.t.Helper()
	var events []core.Event
	lines := strings.SplitAfter(x.out.String(), "\n")
	for _, line := range lines[:len(lines)-1] {
		var e core.Event
		must.NoError(x.t, json.Unmarshal([]byte(line), &e), must.Sprint(line))
		events = append(events, e)
	}
	return events
}

// await waits until the command has written n events.
func (x *command) await(n int) {
	x.t.Helper()
	coretest.Eventually(x.t, patience, func() error {
		if got := len(x.events()); got < n {
			return fmt.Errorf("%d events: %s", got, x.talk.String())
		}
		return nil
	})
}

// end waits until the command has exited and returns its exit code.
func (x *command) end() int {
	x.t.Helper()
	coretest.Eventually(x.t, 2*patience, func() error {
		select {
		case <-x.done:
			return nil
		default:
			return fmt.Errorf("it still runs: %s%s", x.out.String(), x.talk.String())
		}
	})
	return x.cmd.ProcessState.ExitCode()
}

// whole checks that the events are those of one job from beginning to end, without gaps or
// duplicates.
func whole(t *testing.T, events []core.Event, state core.JobState) {
	t.Helper()
	must.NotEq(t, 0, len(events))
	results := 0
	for i, e := range events {
		must.Eq(t, int64(i+1), e.Seq)
		if e.Kind == core.EventResult {
			results++
		}
		must.Eq(t, i == len(events)-1, e.Kind == core.EventEnd)
	}
	must.Eq(t, state, events[len(events)-1].State)
	if state == core.JobSucceeded {
		must.Eq(t, 1, results)
	} else {
		must.Zero(t, results)
	}
}

// Jobs survive the loss of queens and hives: three queens that are not hives, and a hive with slow
// downloads.
func TestJobs(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	store := t.TempDir()
	c.disk = func(n *node) {
		if n.hive {
			n.env = append(n.env, "RBEE_STORE_DIR="+store, "RBEE_HIVE_DOWNLOAD_RATE_LIMIT=3MiB")
		}
	}
	c.start(3, 1)
	queens := c.queens()
	hive := c.nodes[3]

	// Operations that only read are jobs of the queen that is asked, and any other queen finds
	// them.
	for i, r := range []core.Request{
		{Operation: core.OpWorkerBinaryList, Hive: "hive-1"},
		{Operation: core.OpWorkerProcessList, Hive: "hive-1"},
		{Operation: core.OpModelList},
		{Operation: core.OpModelList, Hive: "hive-1"},
		{Operation: core.OpHiveList},
		{Operation: core.OpHiveGet, Hive: "hive-1"},
		{Operation: core.OpHiveStatus, Hive: "hive-1"},
		{Operation: core.OpHiveRefreshCapabilities, Hive: "hive-1"},
		{Operation: core.OpActiveWorkerList},
		{Operation: core.OpStatus},
	} {
		asked, other := queens[i%3], c.client(queens[(i+1)%3])
		r.RequestID = fmt.Sprintf("read-%d", i)
		j, err := c.client(asked).Submit(t.Context(), r)
		must.NoError(t, err, must.Sprint(r.Operation))
		owner, err := job.Owner(j.ID)
		must.NoError(t, err)
		must.Eq(t, asked.id(), owner)
		var events []core.Event
		must.NoError(t, other.FollowJob(t.Context(), j.ID, 0, func(e core.Event) error { events = append(events, e); return nil }))
		whole(t, events, core.JobSucceeded)
		again, err := other.Submit(t.Context(), r)
		must.NoError(t, err)
		must.Eq(t, j.ID, again.ID)
		must.NotEq(t, 0, len(again.Result))
	}

	// If a queen dies in the middle of a download, the client continues through another one, and
	// misses no event.
	download := []string{"worker", "download", "cpu", "--hive", "hive-1", "--format", "json"}
	id := strings.TrimSpace(queens[1].must(append(download, "--detach", "--format", "table")...))
	reader, follower := c.begin("job", "logs", "-f", id, "--format", "json"), c.begin(download...)
	reader.await(5)
	seen := len(reader.events())
	queens[0].kill() // the first in both commands' lists
	reader.await(seen + 5)
	must.Eq(t, 0, reader.end(), must.Sprint(reader.talk.String()))
	must.Eq(t, 0, follower.end(), must.Sprint(follower.talk.String()))
	whole(t, reader.events(), core.JobSucceeded)
	late := c.begin("job", "logs", id, "--format", "json")
	must.Eq(t, 0, late.end())
	must.Eq(t, reader.out.String(), late.out.String())
	var b core.WorkerBinary
	must.NoError(t, json.Unmarshal([]byte(follower.out.String()), &b), must.Sprint(follower.out.String()))
	must.Eq(t, "cpu", b.Type)

	// A job whose hive is killed is found as failed, with every event seen so far, and its request
	// id still finds it.
	r := core.Request{Operation: core.OpWorkerDownload, Type: "cpu", Force: true, Hive: "hive-1", RequestID: "killed"}
	j, err := c.client(queens[1]).Submit(t.Context(), r)
	must.NoError(t, err)
	reader = c.begin("job", "logs", "-f", j.ID, "--format", "json")
	reader.await(5)
	hive.kill()
	seen = len(reader.events())
	hive.start()
	must.Eq(t, 1, reader.end())
	must.StrContains(t, reader.talk.String(), "restarted")
	events := reader.events()
	whole(t, events, core.JobFailed)
	must.GreaterEq(t, seen, len(events)-1)
	again, err := c.client(queens[2]).Submit(t.Context(), r)
	must.NoError(t, err)
	must.Eq(t, j.ID, again.ID)
	must.Eq(t, core.JobFailed, again.State)
	must.StrContains(t, again.Error.Hint, "Submit the request again")

	// One whose hive is stopped in an orderly way ends as cancelled, with the reason.
	r.RequestID = "stopped"
	j, err = c.client(queens[1]).Submit(t.Context(), r)
	must.NoError(t, err)
	reader = c.begin("job", "logs", "-f", j.ID, "--format", "json")
	reader.await(5)
	hive.stop(syscall.SIGTERM)
	list := c.begin("job", "list")
	must.Eq(t, 0, list.end())
	must.StrContains(t, list.talk.String(), "The jobs of hive hive-1 are not shown")
	hive.start()
	must.Eq(t, 1, reader.end())
	must.StrContains(t, reader.talk.String(), "shutting down")
	whole(t, reader.events(), core.JobCancelled)
}
