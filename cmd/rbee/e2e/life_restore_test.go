package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
)

// ended waits until the node's agent has exited by itself, and returns its output.
func (n *node) ended() string {
	n.c.t.Helper()
	select {
	case <-n.process.Load().done:
	case <-time.After(patience):
		n.c.t.Fatal("the agent runs on")
	}
	must.Eq(n.c.t, 1, n.process.Load().cmd.ProcessState.ExitCode())
	return n.log.String()
}

// awaitHive waits until the cluster has its leader and one hive that answers. A restored registry
// lists the hive as ready before it has reconnected.
func (c *cluster) awaitHive(q *node) {
	c.t.Helper()
	coretest.Eventually(c.t, patience, func() error {
		s := asJSON[core.Status](q, "status")
		if s.Leader == "" || len(s.Hives) != 1 || s.Hives[0].Status != core.HiveReady {
			return fmt.Errorf("no leader or hive yet: %v", s.Problems)
		}
		if r := q.run("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"); r.code != 0 || !strings.Contains(r.stdout, "coordinates") {
			return errors.New(r.stderr)
		}
		return nil
	})
}

// The only queen of a cluster loses its registry, then its whole data folder. A snapshot restores
// the cluster each time: with the rest of the registry, with the identity alone, and with only the
// recovery key.
func TestOfflineRestore(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(1, 1)
	c.serve()
	q := c.nodes[0]
	file := filepath.Join(t.TempDir(), "registry.snap")
	keyFile := filepath.Join(t.TempDir(), "recovery.key")
	revoked := asJSON[core.NewToken](q, "token", "create", "--type", "api", "--scope", "read", "--name", "revoked")
	q.must("operator", "snapshot", "save", file)
	recoveryKey := q.must("operator", "recovery-key", "--config", q.file)
	must.NoError(t, os.WriteFile(keyFile, []byte(recoveryKey), 0o600))
	refused(t, c.nodes[1].run("operator", "recovery-key", "--config", c.nodes[1].file), 1, "this node has none")
	q.must("token", "revoke", revoked.ID, "--yes")

	restore := func(args ...string) result {
		return q.run(append([]string{"operator", "snapshot", "restore", "--offline", file, "--config", q.file, "--yes"}, args...)...)
	}
	hasRevoked := func() bool {
		for _, tok := range asJSON[[]core.Token](q, "token", "list") {
			if tok.ID == revoked.ID {
				return true
			}
		}
		return false
	}

	t.Log("the registry is whole: what it knows to be revoked stays so")
	refused(t, restore(), 1, "another agent uses the data folder")
	q.stop(syscall.SIGTERM)
	r := restore()
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stderr, "The registry of before is in")
	q.start()
	q.awaitAnswer()
	c.awaitHive(q)
	must.False(t, hasRevoked())

	t.Log("the registry is lost: the agent says so and ends, and the identity is enough")
	q.stop(syscall.SIGKILL)
	entries, err := os.ReadDir(q.dir)
	must.NoError(t, err)
	for _, e := range entries {
		if e.Name() != "cluster" {
			must.NoError(t, os.RemoveAll(filepath.Join(q.dir, e.Name())))
		}
	}
	q.start()
	said := q.ended()
	must.StrContains(t, said, "its registry")
	must.StrContains(t, said, "snapshot restore --offline")
	must.Eq(t, 0, restore().code)
	q.start()
	q.awaitAnswer()
	c.awaitHive(q)
	must.True(t, hasRevoked()) // nothing was left that recorded the revocation
	again := c.add("hive-2", false, true)
	again.start("-join", q.joinToken(again)+"@"+q.ip) // the CA is restored
	c.await(func(s core.Status) error {
		if len(s.Hives) != 2 {
			return errors.New("the new hive is missing")
		}
		return nil
	})
	// Leaving rotates the gossip key, which only the registry and the nodes have: an earlier
	// snapshot is useless then.
	keyring := func() string { return asJSON[core.Keyring](q, "operator", "keyring", "list").Primary }
	old := keyring()
	q.must("cluster", "leave", "hive-2", "--yes")
	coretest.Eventually(t, patience, func() error {
		if keyring() == old {
			return errors.New("the gossip key is as before")
		}
		return nil
	})
	c.awaitHive(q)
	must.NoError(t, os.Remove(file))
	q.must("operator", "snapshot", "save", file)

	t.Log("everything is lost: the recovery key makes the machine a queen of the cluster")
	was := asJSON[core.Status](q, "status").Node
	q.stop(syscall.SIGKILL)
	must.NoError(t, os.RemoveAll(q.dir))
	refused(t, restore(), 1, "--recovery-key")
	must.NoError(t, os.WriteFile(keyFile, []byte(recoveryKey[:len(recoveryKey)-3]), 0o600))
	refused(t, restore("--recovery-key", keyFile), 1, "not a recovery key")
	must.NoError(t, os.WriteFile(keyFile, []byte(recoveryKey), 0o600))
	r = restore("--recovery-key", keyFile)
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	must.StrContains(t, r.stderr, was+", which had this machine's name, is revoked")
	q.start()
	q.awaitAnswer()
	c.awaitHive(q)
	must.NotEq(t, was, asJSON[core.Status](q, "status").Node)
	refused(t, q.run("operator", "snapshot", "restore", file, "--recovery-key", keyFile), 2, "--offline")
}
