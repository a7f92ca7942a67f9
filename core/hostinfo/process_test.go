package hostinfo

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/shirou/gopsutil/v4/common"
	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

// child starts a command that leads its own group unless attr says otherwise, and ends it with the
// test.
func child(t *testing.T, attr *syscall.SysProcAttr, env []string, name string, args ...string) (*exec.Cmd, io.Reader) {
	t.Helper()
	cmd := exec.Command(name, args...)
	if attr == nil {
		attr = &syscall.SysProcAttr{Setpgid: true}
	}
	cmd.SysProcAttr = attr
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.StdoutPipe()
	must.NoError(t, err)
	must.NoError(t, cmd.Start())
	t.Cleanup(func() {
		if cmd.ProcessState == nil { // not collected yet, so it still has its number
			_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		}
		_ = cmd.Wait()
	})
	return cmd, out
}

func line(t *testing.T, r io.Reader) string {
	t.Helper()
	s := bufio.NewScanner(r)
	must.True(t, s.Scan())
	return s.Text()
}

func identityOf(t *testing.T, pid int) Identity {
	t.Helper()
	id, err := Identify(pid)
	must.NoError(t, err)
	return id
}

func TestIdentityIsStable(t *testing.T) {
	t.Parallel()
	cmd, _ := child(t, nil, nil, "sleep", "60")
	id := identityOf(t, cmd.Process.Pid)
	must.Eq(t, id, identityOf(t, cmd.Process.Pid))
	must.True(t, id.Alive())
	must.NotEq(t, id, identityOf(t, os.Getpid()))
	must.Eq(t, runtime.GOOS == "linux", id.BootID != "", must.Sprint("a start counts from a boot"))
	must.Positive(t, id.Start)

	b, err := json.Marshal(id)
	must.NoError(t, err)
	var back Identity
	must.NoError(t, json.Unmarshal(b, &back))
	must.Eq(t, id, back)
}

func TestSignalReachesTheProcess(t *testing.T) {
	t.Parallel()
	cmd, _ := child(t, nil, nil, "sleep", "60")
	p, err := Open(identityOf(t, cmd.Process.Pid))
	must.NoError(t, err)
	defer p.Close()
	must.True(t, p.Alive())
	must.NoError(t, p.Signal(syscall.SIGTERM))
	must.Error(t, cmd.Wait())
	must.Eq(t, syscall.SIGTERM, cmd.ProcessState.Sys().(syscall.WaitStatus).Signal())

	must.False(t, p.Alive())
	must.Eq(t, core.NotFound, core.KindOf(p.Signal(syscall.SIGTERM)))
	must.Eq(t, core.NotFound, core.KindOf(p.KillGroup()))
}

func TestOpenOtherProcess(t *testing.T) {
	t.Parallel()
	// The shell reports every signal, so silence proves that none arrived.
	cmd, out := child(t, nil, nil, "sh", "-c", `trap 'echo signal' TERM INT HUP; echo up; while :; do sleep 60 & wait; done`)
	stdout := bufio.NewScanner(out)
	must.True(t, stdout.Scan())
	must.Eq(t, "up", stdout.Text())

	own := identityOf(t, cmd.Process.Pid)
	for name, id := range map[string]Identity{
		"start time": {PID: own.PID, Start: own.Start + 1, BootID: own.BootID},
		"boot":       {PID: own.PID, Start: own.Start, BootID: own.BootID + "x"},
	} {
		must.False(t, id.Alive(), must.Sprint(name))
		_, err := Open(id)
		must.Eq(t, core.NotFound, core.KindOf(err), must.Sprint(name))
		_, err = ReadUsage(t.Context(), id)
		must.Eq(t, core.NotFound, core.KindOf(err), must.Sprint(name))
		_, err = ReadDetails(t.Context(), id)
		must.Eq(t, core.NotFound, core.KindOf(err), must.Sprint(name))
	}
	must.True(t, own.Alive())
	// The right identity gets the signal, which shows that the earlier silence is significant.
	p, err := Open(own)
	must.NoError(t, err)
	defer p.Close()
	must.NoError(t, p.Signal(syscall.SIGTERM))
	must.True(t, stdout.Scan())
	must.Eq(t, "signal", stdout.Text())
}

func TestProcessesThatAreNeverSignalled(t *testing.T) {
	t.Parallel()
	for name, pid := range map[string]int{"first": 1, "own": os.Getpid(), "parent": os.Getppid(), "zero": 0, "group": -1} {
		id, err := Identify(pid)
		if err != nil {
			id = Identity{PID: pid}
		}
		_, err = Open(id)
		must.Eq(t, core.Forbidden, core.KindOf(err), must.Sprint(name))
	}
}

func TestForeignUserIsRefused(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("only the superuser can start a process of another user")
	}
	cmd, _ := child(t, &syscall.SysProcAttr{Setpgid: true, Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}, nil, "sleep", "60")
	_, err := Open(identityOf(t, cmd.Process.Pid))
	must.Eq(t, core.Forbidden, core.KindOf(err))
	must.True(t, identityOf(t, cmd.Process.Pid).Alive())
}

func TestIdentifyZombie(t *testing.T) {
	t.Parallel()
	cmd, out := child(t, nil, nil, "sh", "-c", "echo up")
	_, err := io.ReadAll(out) // ends with the process, which stays a zombie until Wait
	must.NoError(t, err)
	eventually(t, func() bool { _, err := Identify(cmd.Process.Pid); return err != nil })
	must.NoError(t, syscall.Kill(cmd.Process.Pid, 0)) // the number is still in use
	_, err = Identify(cmd.Process.Pid)
	must.Eq(t, core.NotFound, core.KindOf(err))
	must.NoError(t, cmd.Wait())
	_, err = Identify(cmd.Process.Pid)
	must.Eq(t, core.NotFound, core.KindOf(err))
}

func TestKillGroup(t *testing.T) {
	t.Parallel()
	// Neither of them reacts to a milder signal.
	cmd, out := child(t, nil, nil, "sh", "-c", "trap '' TERM INT HUP; sleep 60 & echo $!; wait")
	grandchild, err := strconv.Atoi(line(t, out))
	must.NoError(t, err)
	small := identityOf(t, grandchild)

	// A process that does not lead its group is refused: the group is its parent's.
	held, err := Open(small)
	must.NoError(t, err)
	must.Eq(t, core.Forbidden, core.KindOf(held.KillGroup()))
	must.NoError(t, held.Close())
	must.True(t, small.Alive())

	p, err := Open(identityOf(t, cmd.Process.Pid))
	must.NoError(t, err)
	defer p.Close()
	must.NoError(t, p.KillGroup())
	must.Error(t, cmd.Wait())
	eventually(t, func() bool { return !small.Alive() })
}

// The group of an exited process is not signalled, even if others remain in it.
func TestSignalGroupExited(t *testing.T) {
	t.Parallel()
	cmd, out := child(t, nil, nil, "sh", "-c", "sleep 60 & echo $!")
	left, err := strconv.Atoi(line(t, out))
	must.NoError(t, err)
	id := identityOf(t, left)
	held, err := os.FindProcess(cmd.Process.Pid)
	must.NoError(t, err)
	p := &Process{id: Identity{PID: cmd.Process.Pid}, held: held}
	eventually(t, func() bool { _, err := Identify(cmd.Process.Pid); return err != nil }) // not collected yet
	must.Eq(t, core.NotFound, core.KindOf(p.KillGroup()))
	must.NoError(t, p.Close())
	must.True(t, id.Alive())
}

func TestKillMarkedOtherSession(t *testing.T) {
	t.Parallel()
	mark := "RBEE_TEST_MARK=" + t.TempDir()
	cmd, out := child(t, nil, []string{mark}, "sh", "-c", "setsid sleep 60 & echo $!; wait")
	escaped, err := strconv.Atoi(line(t, out))
	must.NoError(t, err)
	left := identityOf(t, escaped)
	bystander, _ := child(t, nil, []string{mark + "x"}, "sleep", "60")

	must.NoError(t, cmd.Process.Kill())
	must.Error(t, cmd.Wait())
	must.True(t, left.Alive())
	killed, err := KillMarked(mark)
	must.NoError(t, err)
	must.SliceContains(t, killed, escaped)
	must.SliceNotContains(t, killed, bystander.Process.Pid)
	eventually(t, func() bool { return !left.Alive() })
	must.True(t, identityOf(t, bystander.Process.Pid).Alive())

	for _, bad := range []string{"", "X", "X=", "=x"} {
		_, err := KillMarked(bad)
		must.Eq(t, core.Invalid, core.KindOf(err))
	}
}

// While the program of a process is being replaced, its environment reads as empty: KillMarked
// looks again. Each try starts a process that replaces its program twice, and looks in the middle
// of that. Before KillMarked looked again, one try in a hundred missed the process.
func TestKillMarkedDuringExec(t *testing.T) {
	t.Parallel()
	for try := range 60 {
		mark := "RBEE_TEST_MARK=" + t.TempDir()
		cmd, out := child(t, nil, []string{mark}, "sh", "-c", "setsid env sleep 60 & echo $!; wait")
		pid, err := strconv.Atoi(line(t, out))
		must.NoError(t, err)
		killed, err := KillMarked(mark)
		must.NoError(t, err)
		must.SliceContains(t, killed, pid, must.Sprint("try ", try))
		_ = cmd.Wait() // it was killed, or exited because its child was
	}
}

func TestReadDetails(t *testing.T) {
	t.Parallel()
	before := time.Now()
	cmd, out := child(t, nil, nil, "sh", "-c", "sleep 60 & echo $!; wait")
	grandchild, err := strconv.Atoi(line(t, out))
	must.NoError(t, err)
	d, err := ReadDetails(t.Context(), identityOf(t, cmd.Process.Pid))
	must.NoError(t, err)
	must.Eq(t, []string{"sh", "-c", "sleep 60 & echo $!; wait"}, d.CommandLine)
	must.Eq(t, []int{grandchild}, d.Children)
	must.Positive(t, d.MemoryBytes)
	must.GreaterEq(t, 0, d.CPUPercent)
	must.Between(t, before.Add(-2*time.Second).Unix(), d.StartedAt.Unix(), time.Now().Add(2*time.Second).Unix())

	family := d.MemoryBytes
	p, err := Open(identityOf(t, grandchild))
	must.NoError(t, err)
	must.NoError(t, p.Signal(syscall.SIGSTOP)) // alive but stopped; its memory counts
	must.NoError(t, p.Close())
	u, err := ReadUsage(t.Context(), identityOf(t, grandchild))
	must.NoError(t, err)
	must.Less(t, family, u.MemoryBytes)
}

// The CPU time of child processes counts as the parent's own.
func TestUsageCountsChildren(t *testing.T) {
	t.Parallel()
	cmd, out := child(t, nil, nil, "sh", "-c", `sh -c 'while :; do :; done' & echo $!; wait`)
	busy, err := strconv.Atoi(line(t, out))
	must.NoError(t, err)
	leader := identityOf(t, cmd.Process.Pid)
	eventually(t, func() bool {
		u, err := ReadUsage(t.Context(), leader)
		return err == nil && u.CPUPercent > 2
	})
	p, err := Open(identityOf(t, busy))
	must.NoError(t, err)
	must.NoError(t, p.Signal(syscall.SIGSTOP))
	must.NoError(t, p.Close())
}

// CPUPercent relates to one processor, since the process began.
func TestCPUPercent(t *testing.T) {
	t.Parallel()
	self := identityOf(t, os.Getpid())
	eventually(t, func() bool {
		began := time.Now()
		u, err := ReadUsage(t.Context(), self)
		ended := time.Now()
		must.NoError(t, err)
		if u.CPUTime == 0 {
			return false // the clock is coarse
		}
		percent := func(at time.Time) float64 { return 100 * u.CPUTime.Seconds() / at.Sub(u.StartedAt).Seconds() }
		must.Between(t, percent(ended)*0.9999, u.CPUPercent, percent(began)*1.0001)
		return percent(began) < 1.05*percent(ended) // otherwise the bounds are too loose
	})
}

// Time in the kernel counts as well.
func TestUsageCountsTheKernel(t *testing.T) {
	t.Parallel()
	cmd, _ := child(t, nil, nil, "sh", "-c", "exec cat /dev/zero > /dev/null")
	id := identityOf(t, cmd.Process.Pid)
	eventually(t, func() bool {
		u, err := ReadUsage(t.Context(), id)
		return err == nil && u.CPUTime >= 50*time.Millisecond && u.CPUPercent > 0
	})
}

// A closed handle reaches no process.
func TestClosedHandle(t *testing.T) {
	t.Parallel()
	cmd, _ := child(t, nil, nil, "sleep", "60")
	id := identityOf(t, cmd.Process.Pid)
	p, err := Open(id)
	must.NoError(t, err)
	must.Eq(t, id, p.Identity())
	must.NoError(t, p.Close())
	must.Error(t, p.Signal(syscall.SIGKILL))
	must.Error(t, p.KillGroup())
	must.True(t, id.Alive())
}

func TestReadDetailsShowsSockets(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for i := range 10 { // not in alphabetical order
		path := filepath.Join(dir, strconv.Itoa(i*7%10))
		l, err := net.Listen("unix", path)
		must.NoError(t, err)
		defer l.Close()
		c, err := net.Dial("unix", path) // the other end has the name, too
		must.NoError(t, err)
		defer c.Close()
		a, err := l.Accept()
		must.NoError(t, err)
		defer a.Close()
	}
	d, err := ReadDetails(t.Context(), identityOf(t, os.Getpid()))
	must.NoError(t, err)
	for i := range 10 {
		must.SliceContains(t, d.Sockets, filepath.Join(dir, strconv.Itoa(i)))
	}
	must.True(t, slices.IsSorted(d.Sockets))
	must.Len(t, len(d.Sockets), slices.Compact(slices.Clone(d.Sockets)))
	must.SliceNotContains(t, d.Sockets, "")
}

// Descendants count at any depth, even if each is in its own session.
func TestUsageCountsDescendants(t *testing.T) {
	t.Parallel()
	const depth = 6
	mark := "RBEE_TEST_MARK=" + t.TempDir()
	script := `if [ "$1" -gt 0 ]; then setsid sh -c "$0" "$0" $(($1-1)) & wait; else echo $$; sleep 60; fi`
	cmd, out := child(t, nil, []string{mark}, "sh", "-c", script, script, strconv.Itoa(depth))
	t.Cleanup(func() {
		_, err := KillMarked(mark)
		must.NoError(t, err)
	})
	deepest, err := strconv.Atoi(line(t, out))
	must.NoError(t, err)
	d, err := ReadDetails(t.Context(), identityOf(t, cmd.Process.Pid))
	must.NoError(t, err)
	must.SliceContains(t, d.Children, deepest)
	must.GreaterEq(t, depth, len(d.Children))
	must.True(t, slices.IsSorted(d.Children))
}

// A process of the group counts although the process that started it has exited.
func TestUsageCountsTheGroup(t *testing.T) {
	t.Parallel()
	cmd, out := child(t, nil, nil, "sh", "-c", `sh -c 'sleep 60 & echo $!'; echo ended; sleep 60`)
	lines := bufio.NewScanner(out)
	must.True(t, lines.Scan())
	orphan, err := strconv.Atoi(lines.Text())
	must.NoError(t, err)
	must.True(t, lines.Scan())
	d, err := ReadDetails(t.Context(), identityOf(t, cmd.Process.Pid))
	must.NoError(t, err)
	must.SliceContains(t, d.Children, orphan)
}

func TestReadHost(t *testing.T) {
	t.Parallel()
	h, err := Read(t.Context(), t.TempDir())
	must.NoError(t, err)
	must.NotEq(t, "", h.Name)
	must.Positive(t, h.LogicalCPUs)
	must.Between(t, 1, h.PhysicalCPUs, h.LogicalCPUs)
	must.Positive(t, h.Memory.AvailableBytes)
	must.LessEq(t, h.Memory.TotalBytes, h.Memory.AvailableBytes)
	must.Positive(t, h.DiskFreeBytes)
	_, err = Read(t.Context(), filepath.Join(t.TempDir(), "none"))
	must.Error(t, err)
}

// Missing facts are not invented: a machine without core counts has as many cores as threads.
func TestReadHostMissingFacts(t *testing.T) {
	t.Parallel()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux has these files")
	}
	proc := t.TempDir()
	must.NoError(t, os.WriteFile(filepath.Join(proc, "meminfo"), []byte("MemTotal: 1000 kB\nMemFree: 100 kB\nMemAvailable: 500 kB\n"), 0o600))
	ctx := context.WithValue(t.Context(), common.EnvKey, common.EnvMap{common.HostProcEnvKey: proc, common.HostSysEnvKey: t.TempDir()})
	h, err := Read(ctx, "")
	must.NoError(t, err)
	must.Eq(t, runtime.NumCPU(), h.LogicalCPUs)
	must.Eq(t, h.LogicalCPUs, h.PhysicalCPUs)
	must.Zero(t, h.DiskFreeBytes)
	must.LessEq(t, 1000<<10, h.Memory.TotalBytes)
	must.LessEq(t, 500<<10, h.Memory.AvailableBytes)
	for _, empty := range []string{"cpuinfo", "stat"} {
		must.NoError(t, os.WriteFile(filepath.Join(proc, empty), nil, 0o600))
	}
	h, err = Read(ctx, "")
	must.NoError(t, err)
	must.Eq(t, runtime.NumCPU(), h.LogicalCPUs)
	must.Eq(t, h.LogicalCPUs, h.PhysicalCPUs)

	// Two threads of one core, with its load.
	const cpus = "processor: %d\nphysical id: 0\ncore id: 0\ncpu cores: 1\n\n"
	must.NoError(t, os.WriteFile(filepath.Join(proc, "loadavg"), []byte("0.25 0.50 0.75 1/2 3\n"), 0o600))
	for threads := 1; threads < 3; threads++ {
		text := ""
		for i := range threads {
			text += fmt.Sprintf(cpus, i)
		}
		must.NoError(t, os.WriteFile(filepath.Join(proc, "cpuinfo"), []byte(text), 0o600))
		h, err = Read(ctx, "")
		must.NoError(t, err)
		must.Eq(t, threads, h.LogicalCPUs)
		must.Eq(t, 1, h.PhysicalCPUs)
		must.Eq(t, []float64{0.25, 0.5, 0.75}, []float64{h.Load1, h.Load5, h.Load15})
	}
	must.NoError(t, os.Remove(filepath.Join(proc, "meminfo")))
	_, err = Read(ctx, "")
	must.Eq(t, core.Internal, core.KindOf(err))
}

func TestClamp(t *testing.T) {
	t.Parallel()
	for _, v := range []uint64{0, 1, math.MaxInt64 - 1, math.MaxInt64} {
		must.Eq(t, v, uint64(clamp(v)))
	}
	must.Eq(t, int64(math.MaxInt64), clamp(math.MaxInt64+1))
	must.Eq(t, int64(math.MaxInt64), clamp(math.MaxUint64))
}

// eventually waits for something that the operating system does asynchronously.
func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(5 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatal("did not happen within 5 s")
		}
	}
}
