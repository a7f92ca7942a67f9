//go:build unix

package node_test

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/raft/fsm"
	"github.com/rbee-project/rbee/raft/node"
)

// fullDir is set in the process of TestDiskFails, which may not write files beyond a small size.
const fullDir = "RBEE_TEST_FULL_DIR"

// A write to the disk fails: Run returns the error, nothing is acknowledged afterwards even if
// there is room again, and the next start has everything that was acknowledged before.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^$")
	cmd.Env = append(os.Environ(), fullDir+"="+dir)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	var acked uint64
	var last string
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if last = lines.Text(); !strings.HasPrefix(last, "ended") {
			acked = parse(t, last)
		}
	}
	must.NoError(t, cmd.Wait())
	must.StrHasPrefix(t, "ended unavailable", last)
	must.StrContains(t, last, "log.db")
	must.Positive(t, acked)
	t.Log(last)

	n := open(t, node.Options{ID: "queen-a", Dir: dir})
	stop := run(t, n)
	defer stop()
	h, ok := n.State().Hive(nil, "h1")
	must.True(t, ok)
	must.Between(t, acked, h.Incarnation, acked+1)
}

// fill writes until the disk refuses.
func fill(dir string) error {
	limit := syscall.Rlimit{Cur: 200 << 10, Max: 1 << 30}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); err != nil {
		return err
	}
	n, err := node.Open(node.Options{ID: "queen-a", Dir: dir})
	if err != nil {
		return err
	}
	ctx := context.Background() // until the process ends
	err = n.Run(ctx, func(ctx context.Context) error {
		h := hive("h1", 0)
		for i := range fsm.MaxWorkerTypes {
			h.WorkerTypes = append(h.WorkerTypes, fmt.Sprint("type-", i))
		}
		for {
			h.Incarnation++
			if _, err := n.Apply(ctx, fsm.SyncHive(h, nil)); err != nil {
				break // the disk is full, which the parent waits for
			}
			fmt.Println(h.Incarnation)
		}
		<-ctx.Done()
		return ctx.Err()
	})
	limit.Cur = limit.Max
	if limitErr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit); limitErr != nil {
		return limitErr
	}
	// Long enough for raft to stand for election, which it cannot record: raft would end the
	// process there, before its owner does.
	<-time.After(time.Second)
	h := hive("h1", 1<<40)
	if _, err := n.Apply(ctx, fsm.SyncHive(h, nil)); err == nil {
		return fmt.Errorf("acknowledged after a failed write")
	}
	fmt.Println("ended", core.KindOf(err), err)
	return n.Shutdown()
}
