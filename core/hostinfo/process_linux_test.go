package hostinfo

import (
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/shoenig/test/must"

	"github.com/rbee-project/rbee/core"
)

func TestParseStat(t *testing.T) {
	t.Parallel()
	tail := " 7 9 8 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 4242 1000 100"
	for name, c := range map[string]struct {
		in   string
		want stat
		bad  bool
	}{
		"plain":                 {in: "12 (sleep) S" + tail, want: stat{state: 'S', parent: 7, group: 9, start: 4242}},
		"parentheses and space": {in: "12 (a) Z 1 2 (b) Z" + tail, want: stat{state: 'Z', parent: 7, group: 9, start: 4242}},
		"kernel thread":         {in: "2 (kthreadd) S 0 0 0 0 -1 2129984 0 0 0 0 0 0 0 0 20 0 1 0 3 0 0", want: stat{state: 'S', kernel: true, start: 3}},
		"its environment":       {in: "12 (sleep) S" + tail + strings.Repeat(" 0", 25) + " 4096 5000 0", want: stat{state: 'S', parent: 7, group: 9, start: 4242, envStart: 4096, envEnd: 5000}},
		"half of it":            {in: "12 (sleep) S" + tail + strings.Repeat(" 0", 25) + " 4096", want: stat{state: 'S', parent: 7, group: 9, start: 4242, envStart: 4096}},
		"no more than a start":  {in: "12 (a) S 7 9 8 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 4242", want: stat{state: 'S', parent: 7, group: 9, start: 4242}},
		"less than a start":     {in: "12 (a) S 7 9 8 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0", bad: true},
		"no state":              {in: "12 (a) SS 7 9 8 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 4242", bad: true},
		"no name":               {in: "S" + tail, bad: true},
		"empty":                 {bad: true},
		"short":                 {in: "12 (sleep) S 7 9", bad: true},
		"no number":             {in: "12 (sleep) S x" + tail, bad: true},
		"negative start":        {in: "12 (sleep) S 7 9 9 0 -1 4194560 100 0 0 0 1 2 0 0 20 0 1 0 -1 1000", bad: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			got, err := parseStat([]byte(c.in))
			if c.bad {
				must.Error(t, err)
				return
			}
			must.NoError(t, err)
			must.True(t, c.want == got, must.Sprintf("got %+v", got))
		})
	}
	must.True(t, stat{state: 'Z'}.ended())
	must.False(t, stat{state: 'S'}.ended())
}

// A process without an environment is known to have no mark.
func TestMarked(t *testing.T) {
	t.Parallel()
	cmd, _ := child(t, nil, []string{"RBEE_TEST_MARK=a"}, "sleep", "60")
	bare := exec.Command("sleep", "60")
	bare.Env = []string{}
	must.NoError(t, bare.Start())
	t.Cleanup(func() {
		_ = bare.Process.Kill()
		_ = bare.Wait()
	})
	ended := exec.Command("true")
	ended.Env = []string{"RBEE_TEST_MARK=a"}
	must.NoError(t, ended.Start())
	t.Cleanup(func() { _ = ended.Wait() })
	for name, tt := range map[string]struct {
		pid        int
		mark       string
		has, known bool
	}{
		"its own":        {cmd.Process.Pid, "RBEE_TEST_MARK=a", true, true},
		"another":        {cmd.Process.Pid, "RBEE_TEST_MARK=b", false, true},
		"longer":         {cmd.Process.Pid, "RBEE_TEST_MARK=aa", false, true},
		"no environment": {bare.Process.Pid, "RBEE_TEST_MARK=a", false, true},
		"ended":          {ended.Process.Pid, "RBEE_TEST_MARK=a", false, true},
		"no process":     {1 << 30, "RBEE_TEST_MARK=a", false, true},
	} {
		// Until the program is in place, the environment is that of this process, or missing.
		eventually(t, func() bool {
			has, known := marked(tt.pid, tt.mark)
			return has == tt.has && known == tt.known
		})
		has, known := marked(tt.pid, tt.mark)
		must.Eq(t, []bool{tt.has, tt.known}, []bool{has, known}, must.Sprint(name))
	}
}

// A group is signalled by its number only if the kernel cannot do better.
func TestCannotByHandle(t *testing.T) {
	t.Parallel()
	for err, want := range map[error]bool{
		nil: false, syscall.EINVAL: true, syscall.ENOSYS: true, os.ErrNoHandle: true, syscall.ESRCH: false, syscall.EPERM: false, os.ErrProcessDone: false,
	} {
		must.Eq(t, want, cannotByHandle(err), must.Sprint(err))
	}
	cmd, _ := child(t, nil, nil, "true")
	held, err := os.FindProcess(cmd.Process.Pid)
	must.NoError(t, err)
	must.NoError(t, cmd.Wait())
	must.ErrorIs(t, signalGroup(held, Identity{PID: cmd.Process.Pid}, syscall.SIGTERM), syscall.ESRCH)
	must.NoError(t, held.Release())
}

// A process belongs to its effective user.
func TestOwnUser(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{
		"Name:\ta\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\n": 2, "Uid:\t0\t0\t0\t0": 0, "Uid:\t1\t2\t3\n": -1, "Uid:\t1\tx\t3\t4\n": -1, "Uid:\t0\t4294967294\t0\t0": 4294967294, "Uid:\t1\t4294967296\t3\t4\n": -1,
		"Gid:\t1\t2\t3\t4\n": -1, "": -1,
	} {
		uid, ok := effectiveUser([]byte(text))
		must.Eq(t, want >= 0, ok, must.Sprintf("%q", text))
		if ok {
			must.Eq(t, want, int(uid), must.Sprintf("%q", text))
		}
	}
	must.NoError(t, ownUser(os.Getpid(), nil))
	must.Eq(t, core.NotFound, core.KindOf(ownUser(1<<30, nil)))
}

// An environment that reads as empty does not prove that there is no mark: its program may still be
// loading.
func TestShows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		env        string
		has, known bool
	}{
		"alone":      {"A=1\x00", true, true},
		"the last":   {"B=1\x00A=1", true, true},
		"a prefix":   {"A=12\x00", false, true},
		"a suffix":   {"BA=1\x00", false, true},
		"nothing":    {"", false, false},
		"an empty 1": {"\x00", false, true},
	} {
		has, known := shows([]byte(c.env), "A=1")
		must.Eq(t, []bool{c.has, c.known}, []bool{has, known}, must.Sprint(name))
	}
}

// A process that has since taken the pid is not the one whose mark was read.
func TestKillStarted(t *testing.T) {
	t.Parallel()
	cmd, _ := child(t, nil, nil, "sleep", "60")
	id := identityOf(t, cmd.Process.Pid)
	must.False(t, killStarted(id.PID, id.Start+1, nil))
	must.False(t, killStarted(id.PID, id.Start-1, nil))
	must.False(t, killStarted(1<<30, id.Start, nil))
	must.False(t, killStarted(os.Getppid(), identityOf(t, os.Getppid()).Start, nil)) // never its parent
	must.True(t, id.Alive())
	must.True(t, killStarted(id.PID, id.Start, nil))
	must.Error(t, cmd.Wait())
}

// A refused process is not held, and the handles of killed ones are closed. Not parallel: it counts
// the handles of the whole process.
func TestHandlesAreClosed(t *testing.T) {
	handles := func() (n int) {
		entries, err := os.ReadDir("/proc/self/fd")
		must.NoError(t, err)
		for _, e := range entries {
			if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.Contains(to, "pidfd") {
				n++
			}
		}
		return n
	}
	mark := "RBEE_TEST_MARK=" + t.TempDir()
	cmd, _ := child(t, nil, []string{mark}, "sleep", "60")
	id := identityOf(t, cmd.Process.Pid)
	before := handles()
	other := id
	other.Start++
	for range 10 {
		_, err := Open(other)
		must.Eq(t, core.NotFound, core.KindOf(err))
	}
	p, err := Open(id)
	must.NoError(t, err)
	must.Eq(t, before+1, handles())
	must.NoError(t, p.Close())
	must.Eq(t, before, handles())
	eventually(t, func() bool { has, _ := marked(id.PID, mark); return has })
	killed, err := KillMarked(mark)
	must.NoError(t, err)
	must.Eq(t, []int{id.PID}, killed)
	must.Eq(t, before, handles())
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	must.NoError(f, err)
	f.Add(own)
	f.Add([]byte("1 ( ) ) R 0"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if s, err := parseStat(b); err == nil && s.state == 0 {
			t.Fatal("taken without a state")
		}
	})
}
