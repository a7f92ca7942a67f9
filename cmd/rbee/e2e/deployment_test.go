package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// deploymentFile writes a file with the deployment "chat".
func deploymentFile(t *testing.T, rest string) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "chat.hcl")
	must.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "deployment \"chat\" {\n  model = \"rbee-tiny\"\n%s\n}\n", rest), 0o600))
	return file
}

// Real workers on three queens and three hives: a plan, two replicas, a hive whose agent and worker
// are killed, one that drains, one more replica, and none.
func TestDeployments(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 3)
	first := c.nodes[0]
	await := func(what string, ready int, check func(d core.DeploymentStatus) error) core.DeploymentStatus {
		t.Helper()
		var d core.DeploymentStatus
		began := time.Now()
		coretest.Eventually(t, 2*patience, func() error {
			d = asJSON[core.DeploymentStatus](first, "deployment", "status", "chat")
			if d.Ready != ready || len(d.Workers) != ready {
				return fmt.Errorf("%s: %d ready, %+v %+v", what, d.Ready, d.Workers, d.Problems)
			}
			return check(d)
		})
		t.Logf("%s: %s", what, time.Since(began).Round(100*time.Millisecond))
		return d
	}
	fine := func(core.DeploymentStatus) error { return nil }

	file := deploymentFile(t, "replicas = 2\n  slots = 2\n  context_tokens = 256")
	r := first.run("plan", file, "--format", "json")
	must.EqOp(t, 1, r.code, must.Sprint(r.stderr))
	var plan core.DeploymentPlan
	must.NoError(t, json.Unmarshal([]byte(r.stdout), &plan))
	must.Len(t, 2, plan.Steps)
	must.NotEq(t, plan.Steps[0].Hive, plan.Steps[1].Hive)
	first.must("apply", file, "--index", fmt.Sprint(plan.Index))
	d := await("two replicas", 2, fine)
	must.EqOp(t, 0, first.run("plan", file).code)
	stale := first.run("apply", deploymentFile(t, "replicas = 9"), "--index", fmt.Sprint(plan.Index))
	refused(t, stale, 1, "the plan is stale")
	must.StrContains(t, first.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")

	t.Log("The agent of a hive is killed, and its worker with it.")
	lost, kept := d.Workers[0], d.Workers[1]
	for _, w := range asJSON[[]core.Process](first, "worker", "process", "list", "--hive", lost.HiveName) {
		must.NoError(t, syscall.Kill(w.PID, syscall.SIGKILL))
	}
	c.nodeNamed(lost.HiveName).kill()
	c.await(func(s core.Status) error {
		for _, h := range s.Hives {
			if h.ID == lost.Hive && h.Status != core.HiveDown {
				return errors.New("it is not down yet")
			}
		}
		return nil
	})
	down := time.Now()
	d = await("replaced", 2, func(d core.DeploymentStatus) error {
		for _, w := range d.Workers {
			if w.Hive == lost.Hive {
				return errors.New("one is on the hive that was lost")
			}
		}
		return nil
	})
	t.Logf("replaced %s after its hive was down", time.Since(down).Round(100*time.Millisecond))
	if moved := d.Workers[0].Worker != kept.Worker && d.Workers[1].Worker != kept.Worker; moved {
		t.Errorf("the other replica moved: %+v", d.Workers)
	}

	t.Log("The hive comes back, and the one with the other replica drains.")
	c.nodeNamed(lost.HiveName).start()
	c.awaitHealth(3, 3)
	first.must("hive", "drain", kept.HiveName)
	await("moved", 2, func(d core.DeploymentStatus) error {
		for _, w := range d.Workers {
			if w.Hive == kept.Hive {
				return errors.New("one is on the hive that drains")
			}
		}
		return nil
	})
	first.must("hive", "drain", kept.HiveName, "--undo")
	first.must("apply", deploymentFile(t, "replicas = 3\n  slots = 2\n  context_tokens = 256"))
	await("one more", 3, fine)
	first.must("deployment", "stop", "chat", "--yes")
	await("none", 0, fine)
	coretest.Eventually(t, patience, func() error {
		if left := asJSON[[]core.Worker](first, "ps"); len(left) > 0 {
			return fmt.Errorf("there are still %d", len(left))
		}
		return nil
	})
	first.must("deployment", "revert", "chat")
	await("again", 3, fine)

	t.Log("What finds no place says why.")
	must.StrContains(t, first.run("plan", deploymentFile(t, "hives = [\"moon\"]")).stdout, "is not among the hives of the deployment")
}
