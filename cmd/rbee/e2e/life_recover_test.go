package e2e

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/coretest"
	"github.com/rbee-project/rbee/core/pki"
)

// Two of three queens are lost for good. The remaining one reports it, keeps answering, becomes the
// cluster through the peers file, and admits a new queen.
func TestLostQuorum(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 1)
	c.serve()
	survivor := c.nodes[0]
	gone := c.nodes[1:3]
	for _, q := range gone {
		q.kill()
		must.NoError(t, os.RemoveAll(q.dir))
	}
	c.await(func(s core.Status) error {
		if s.Leader != "" || !s.Read.Stale {
			return errors.New("there is still a leader")
		}
		for _, q := range s.Queens {
			if q.ID != s.Node && q.Gossip == "alive" {
				return fmt.Errorf("gossip still believes in %s", q.Name)
			}
		}
		return nil
	})
	r, took := survivor.runFor(8*time.Second, "status")
	must.Eq(t, 0, r.code, must.Sprint(r.stderr))
	fmt.Printf("status without a majority, after %d ms:\n%s", took.Milliseconds(), r.stdout)
	must.StrContains(t, r.stdout, "PROBLEM: the cluster has no leader")
	must.StrContains(t, r.stdout, "Majority")
	must.StrContains(t, r.stdout, "stale: ")
	must.StrContains(t, survivor.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")
	// Commands that would change the registry explain how to recover.
	r, _ = survivor.runFor(20*time.Second, "operator", "raft", "remove", "queen-2", "--yes")
	refused(t, r, 1, "raft/peers.json")
	peers := regexp.MustCompile(`\[\{.*\}\]`).FindString(r.stderr)
	must.NotEq(t, "", peers, must.Sprint(r.stderr))

	survivor.stop(syscall.SIGTERM)
	must.NoError(t, os.WriteFile(filepath.Join(survivor.dir, "raft", "peers.json"), []byte(peers), 0o600))
	began := time.Now()
	survivor.start()
	survivor.awaitAnswer()
	c.await(func(s core.Status) error {
		if s.Leader == "" || len(s.Hives) != 1 || s.Hives[0].Status != core.HiveReady {
			return fmt.Errorf("no leader yet: %v", s.Problems)
		}
		return nil
	})
	fmt.Printf("a leader %d ms after the start with %s\n", time.Since(began).Milliseconds(), peers)
	_, err := os.Stat(filepath.Join(survivor.dir, "raft", "peers.json"))
	must.ErrorIs(t, err, os.ErrNotExist) // it is applied once
	must.SliceLen(t, 1, asJSON[[]core.Worker](survivor, "ps"))
	must.StrContains(t, survivor.must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")
	for _, q := range gone {
		survivor.must("tls", "revoke", q.name, "--yes")
	}

	// A machine with the name of a lost one replaces it.
	fresh := c.add("queen-4", true, false)
	fresh.start("-join", survivor.joinToken(fresh)+"@"+survivor.ip)
	fresh.awaitAnswer()
	c.await(func(s core.Status) error {
		if len(s.Queens) != 2 || len(s.Hives) != 1 || len(s.Problems) > 0 {
			return fmt.Errorf("%d queens, problems: %v", len(s.Queens), s.Problems)
		}
		return nil
	})
	coretest.Eventually(t, patience, func() error {
		if r := fresh.run("hive", "list"); r.code != 0 || !strings.Contains(r.stdout, "hive-1") {
			return errors.New(r.stderr)
		}
		return nil
	})
}

// A snapshot restores the registry as it was, only in its own cluster, and reveals no secret.
func TestSnapshots(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.start(3, 1)
	c.serve()
	first := c.nodes[0]
	token := asJSON[core.NewToken](first, "token", "create", "--type", "api", "--scope", "read", "--name", "back")
	file := filepath.Join(t.TempDir(), "registry.snap")
	saved := asJSON[core.SnapshotInfo](c.nodes[1], "operator", "snapshot", "save", file)
	inspected := asJSON[core.SnapshotInfo](first, "operator", "snapshot", "inspect", file)
	must.Eq(t, saved, inspected)
	must.Eq(t, 4, saved.Nodes)
	must.Eq(t, 1, saved.Hives)
	must.Eq(t, 1, saved.Workers)
	refused(t, first.run("operator", "snapshot", "save", file), 1, "exists")

	// Nothing in it grants access.
	data, err := os.ReadFile(file)
	must.NoError(t, err)
	block, _ := pem.Decode(c.signer.KeyPEM())
	must.NotNil(t, block)
	id, err := pki.Load(first.dir)
	must.NoError(t, err)
	keys, err := id.GossipKeys()
	must.NoError(t, err)
	must.SliceNotEmpty(t, keys)
	secrets := map[string][]byte{
		"the key of the CA, as PEM": bytes.TrimSpace(c.signer.KeyPEM())[30:80], "the key of the CA": block.Bytes, "PEM of a key": []byte("PRIVATE KEY"),
		"the operator's token": []byte(c.token[strings.LastIndex(c.token, "_")+1:]), "a token": []byte(token.Secret[strings.LastIndex(token.Secret, "_")+1:]),
		"the seal key": id.SealKey(), "a node's key": readNodeKey(t, first),
	}
	for i, k := range keys {
		secrets[fmt.Sprintf("gossip key %d", i)] = k
	}
	for what, secret := range secrets {
		must.Greater(t, 8, len(secret), must.Sprint(what))
		must.False(t, bytes.Contains(data, secret), must.Sprint(what))
	}
	must.True(t, bytes.Contains(data, []byte("hive-1"))) // not everything is encrypted

	// What was created since is gone afterwards, what was revoked stays revoked, and the cluster
	// keeps its current keys.
	revoked := asJSON[core.NewToken](first, "token", "create", "--type", "api", "--scope", "read", "--name", "revoked")
	must.NoError(t, os.Remove(file))
	first.must("operator", "snapshot", "save", file)
	data, err = os.ReadFile(file)
	must.NoError(t, err)
	first.must("token", "revoke", revoked.ID, "--yes")
	first.must("operator", "keyring", "install")
	keyring := asJSON[core.Keyring](first, "operator", "keyring", "list")
	must.SliceLen(t, 2, keyring.Keys)
	later := asJSON[core.NewToken](first, "token", "create", "--type", "api", "--scope", "read", "--name", "later")
	asJSON[core.SnapshotInfo](c.nodes[2], "operator", "snapshot", "restore", file, "--yes")
	for _, q := range c.queens() {
		coretest.Eventually(t, patience, func() error {
			tokens := asJSON[[]core.Token](q, "token", "list")
			has := func(id string) bool {
				return slices.ContainsFunc(tokens, func(x core.Token) bool { return x.ID == id })
			}
			if !has(token.ID) || has(later.ID) || has(revoked.ID) {
				return fmt.Errorf("%s has %v", q.name, tokens)
			}
			if have := asJSON[core.Keyring](q, "operator", "keyring", "list"); !slices.Equal(keyring.Keys, have.Keys) {
				return fmt.Errorf("%s has the gossip keys %v, not %v", q.name, have.Keys, keyring.Keys)
			}
			return nil
		})
		was := c.token
		c.token = token.Secret
		must.StrContains(t, q.must("hive", "list"), "hive-1")
		c.token = was
	}
	c.awaitHealth(3, 1)
	must.StrContains(t, c.nodes[1].must("infer", "--model", "rbee-tiny", "--prompt", "What is a queen?"), "coordinates")
	first.must("token", "create", "--type", "api", "--scope", "read")

	// It cannot be restored in another cluster, or if damaged.
	other := newCluster(t)
	other.start(1, 0)
	refused(t, other.nodes[0].run("operator", "snapshot", "restore", file, "--yes"), 1, "of cluster")
	must.SliceLen(t, 1, asJSON[[]core.Token](other.nodes[0], "token", "list"))
	data[len(data)/2] ^= 0x55
	must.NoError(t, os.WriteFile(file, data, 0o600))
	refused(t, first.run("operator", "snapshot", "restore", file, "--yes"), 1, "it was changed")
	refused(t, first.run("operator", "snapshot", "inspect", file), 1, "it was changed")
	must.NoError(t, os.WriteFile(file, data[:len(data)/2], 0o600))
	refused(t, first.run("operator", "snapshot", "inspect", file), 1, "its end is missing")
}

func readNodeKey(t testing.TB, n *node) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(n.dir, "cluster", "node.key"))
	must.NoError(t, err)
	block, _ := pem.Decode(b)
	must.NotNil(t, block)
	return block.Bytes
}

// copyFolder copies what a backup would: folders and files, but no sockets, while an agent writes
// there.
func copyFolder(t testing.TB, from, to string) {
	t.Helper()
	must.NoError(t, filepath.WalkDir(from, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // removed since the listing
		}
		if err != nil {
			return err
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		switch {
		case d.IsDir():
			return os.MkdirAll(target, 0o700)
		case !d.Type().IsRegular():
			return nil
		}
		b, err := os.ReadFile(path)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return errors.Join(err, os.WriteFile(target, b, 0o600))
	}))
}

// Two agents have one identity, from a copy of a data folder: the second one is refused and reports
// it, the first is unaffected.
func TestCopiedDataFolder(t *testing.T) {
	t.Parallel()
	for _, role := range []string{"queen", "hive"} {
		t.Run(role, func(t *testing.T) {
			c := newCluster(t)
			c.start(3, 2)
			c.nodes[0].must("worker", "spawn", "--model", "rbee-tiny", "--hive", "hive-1")
			original := c.nodeNamed(role + "-2")
			tr := newTraffic(c.allClient())
			tr.answers(200 * time.Millisecond)
			tr.writes(50*time.Millisecond, "hive-2")
			second := c.add(original.name, original.queen, original.hive)
			must.NoError(t, os.RemoveAll(second.dir))
			copyFolder(t, original.dir, second.dir)
			second.start()
			began := time.Now()
			select {
			case <-second.process.Load().done:
			case <-time.After(patience):
				t.Fatal("the copy runs")
			}
			must.Eq(t, 1, second.process.Load().cmd.ProcessState.ExitCode())
			must.StrContains(t, second.log.String(), "another agent runs with this machine's identity")
			fmt.Printf("the copy of a %s was refused after %d ms\n", role, time.Since(began).Milliseconds())
			pause := time.NewTimer(time.Second)
			<-pause.C
			tr.end()
			must.SliceEmpty(t, tr.failed)
			c.nodes = c.nodes[:len(c.nodes)-1]
			c.awaitHealth(3, 2)
			for _, q := range asJSON[core.Status](c.nodes[0], "status").Queens {
				if q.Name == original.name {
					must.StrHasPrefix(t, original.ip+":", q.Address)
				}
			}
		})
	}
}
