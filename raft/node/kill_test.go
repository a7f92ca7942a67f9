package node_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

// writerDir is set in the process that TestKill kills.
const writerDir = "RBEE_TEST_RAFT_DIR"

func TestMain(m *testing.M) {
	for env, do := range map[string]func(string) error{writerDir: write, fullDir: fill} {
		if dir := os.Getenv(env); dir != "" {
			if err := do(dir); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			return
		}
	}
	os.Exit(m.Run())
}

// A process is killed in the middle of its writes, repeatedly: everything it acknowledged is kept
// at the next start.
func TestKill(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	var acked uint64
	for round := range rounds {
		cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
		cmd.Env = append(os.Environ(), writerDir+"="+dir)
		cmd.Stderr = t.Output()
		out, err := cmd.StdoutPipe()
		must.NoError(t, err)
		must.NoError(t, cmd.Start())
		lines := bufio.NewScanner(out)
		for left := 1 + rand.IntN(200); left > 0 && lines.Scan(); left-- {
			acked = parse(t, lines.Text())
		}
		must.NoError(t, cmd.Process.Kill())
		for lines.Scan() { // acknowledged before the kill reached it
			acked = parse(t, lines.Text())
		}
		must.Error(t, cmd.Wait())

		n := open(t, node.Options{ID: "queen-a", Dir: dir})
		stop := run(t, n)
		h, ok := n.State().Hive(nil, "h1")
		must.True(t, ok)
		// The last write may have been logged although its answer did not get out.
		must.Between(t, acked, h.Incarnation, acked+1, must.Sprintf("round %d", round))
		acked = h.Incarnation
		stop()
		must.NoError(t, n.Shutdown())
	}
	t.Logf("%d writes over %d kills", acked, rounds)
}

func parse(t *testing.T, line string) uint64 {
	t.Helper()
	v, err := strconv.ParseUint(line, 10, 64)
	must.NoError(t, err)
	return v
}

// write renews a hive with increasing incarnations and prints each acknowledged one.
func write(dir string) error {
	log := hclog.New(&hclog.LoggerOptions{Output: os.Stderr, Level: hclog.Error})
	n, err := node.Open(node.Options{ID: "queen-a", Dir: dir, Logger: log})
	if err != nil {
		return err
	}
	ctx := context.Background() // until the process is killed
	for deadline := time.Now().Add(5 * time.Second); n.Barrier(ctx) != nil; {
		if time.Now().After(deadline) {
			return fmt.Errorf("no leader")
		}
	}
	h, _ := n.State().Hive(nil, "h1")
	for i := h.Incarnation + 1; ; i++ {
		if _, err := n.Apply(ctx, fsm.SyncHive(hive("h1", i), nil)); err != nil {
			return err
		}
		if i%50 == 0 {
			if err := n.Snapshot(ctx); err != nil {
				return err
			}
		}
		if _, err := fmt.Println(i); err != nil {
			return err
		}
	}
}
