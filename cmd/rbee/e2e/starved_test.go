package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/shoenig/test/must"
)

// starve limits a process to a percentage of one core until the test ends. It needs root and a
// writable cgroup file system.
func starve(t *testing.T, pid, percent int) {
	t.Helper()
	const periodMicros = 100_000
	quota := strconv.Itoa(periodMicros * percent / 100)
	name := fmt.Sprintf("rbee-test-%d", pid)
	dir, files := filepath.Join("/sys/fs/cgroup/cpu", name), map[string]string{"cpu.cfs_period_us": strconv.Itoa(periodMicros), "cpu.cfs_quota_us": quota}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil { // version 2
		dir, files = filepath.Join("/sys/fs/cgroup", name), map[string]string{"cpu.max": quota + " " + strconv.Itoa(periodMicros)}
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Skipf("no cgroup can be made here: %v", err)
	}
	t.Cleanup(func() { // a group must be empty to be removed
		_ = os.WriteFile(filepath.Join(filepath.Dir(dir), "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600)
		_ = os.Remove(dir)
	})
	for file, text := range files {
		if err := os.WriteFile(filepath.Join(dir, file), []byte(text), 0o600); err != nil {
			t.Skipf("the share of a cgroup cannot be set here: %v", err)
		}
	}
	must.NoError(t, os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o600))
}

// changes counts how often a queen of the cluster became the leader.
func (c *cluster) changes() int {
	n := 0
	for _, q := range c.nodes {
		n += strings.Count(q.log.String(), "leading the cluster")
	}
	return n
}

// A leader that gets a twentieth of a core may lose the leadership once, to one that has more; then
// leadership is stable (C-21). With unsuitable timeouts for such a node, it and the others would
// keep electing each other.
func TestStarvedLeader(t *testing.T) {
	if os.Getenv("RBEE_FAULTS") == "" {
		t.Skip("RBEE_FAULTS is not set: `make faults` runs it, with nothing else beside it that takes the processor")
	}
	c := newCluster(t)
	c.start(3, 0)
	leader := c.leader()
	var other *node
	for _, q := range c.queens() {
		if q != leader {
			other = q
		}
	}
	before := c.changes()
	starve(t, leader.pid(), 5)
	l := newLoad(c)
	defer l.http.CloseIdleConnections()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	l.writes(&wg, stop, other)
	seconds := envOr(t, "RBEE_STARVED_SECONDS", 12)
	timer := time.NewTimer(time.Duration(seconds) * time.Second)
	<-timer.C
	close(stop)
	wg.Wait()
	changes := c.changes() - before
	fmt.Printf("a leader with 5 %% of a core for %d s: %d changes of leadership, %d writes\n", seconds, changes, len(l.acks))
	must.LessEq(t, 1+seconds/60, changes)
	must.Positive(t, len(l.acks))
}
