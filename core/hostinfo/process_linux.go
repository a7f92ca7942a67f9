package hostinfo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/process"

	"github.com/rbee-project/rbee/core"
)

// exactHandles reports that os.FindProcess holds the process itself (a pidfd), not only its number.
const exactHandles = true

// stat holds the needed fields of /proc/<pid>/stat; see proc_pid_stat(5).
type stat struct {
	state  byte   // field 3
	parent int    // field 4
	group  int    // field 5
	kernel bool   // field 9 has PF_KTHREAD: a kernel thread, without a program
	start  uint64 // field 22, clock ticks since boot
	// Fields 50 and 51: where the environment begins and ends in memory. The end is 0 for a kernel
	// thread, while a program is being replaced, and for another user's process.
	envStart, envEnd uint64
}

func (s stat) ended() bool { return s.state == 'Z' || s.state == 'X' }

func readStat(pid int) (stat, error) {
	b, err := os.ReadFile(procFile(pid, "stat"))
	if err != nil {
		return stat{}, err
	}
	return parseStat(b)
}

func parseStat(b []byte) (stat, error) {
	// The command name is enclosed in parentheses and may contain anything, even parentheses: the
	// last one closes it.
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return stat{}, errors.New("process status has no command name")
	}
	f := bytes.Fields(b[end+1:])
	const (
		firstField, startField = 3, 22
		kernelThread           = 0x00200000 // PF_KTHREAD of linux/sched.h
	)
	if len(f) <= startField-firstField || len(f[0]) != 1 {
		return stat{}, fmt.Errorf("process status has %d fields, too few", len(f))
	}
	s := stat{state: f[0][0]}
	var problem error
	number := func(field int) uint64 {
		if field-firstField >= len(f) {
			return 0
		}
		n, err := strconv.ParseUint(string(f[field-firstField]), 10, 64)
		problem = errors.Join(problem, err)
		return n
	}
	s.parent, s.group, s.start = int(number(4)), int(number(5)), number(startField) //nolint:gosec // the kernel's pids are below 2^22
	s.kernel = number(9)&kernelThread != 0
	s.envStart, s.envEnd = number(50), number(51)
	return s, problem
}

func identify(pid int) (id Identity, ended bool, err error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return Identity{}, false, core.Errorf(core.Internal, "identify process: boot id: %w", err)
	}
	s, err := readStat(pid)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ESRCH) {
			return Identity{}, false, gone(pid)
		}
		return Identity{}, false, core.Errorf(core.Internal, "identify process: process %d: %w", pid, err)
	}
	return Identity{PID: pid, Start: s.start, BootID: strings.TrimSpace(string(boot))}, s.ended(), nil
}

// ownUser refuses a process of a user that is neither this process's nor among others. The
// operating system does not do so for the superuser, who may signal any process.
func ownUser(pid int, others []uint32) error {
	b, err := os.ReadFile(procFile(pid, "status"))
	if err != nil {
		return gone(pid)
	}
	uid, ok := effectiveUser(b)
	switch {
	case !ok:
		return core.Errorf(core.Internal, "open process: process %d has an unknown owner", pid)
	case int(uid) != os.Geteuid() && !slices.Contains(others, uid):
		return core.Errorf(core.Forbidden, "open process: process %d belongs to another user", pid).Hint("Run the command as that user, or as root.")
	}
	return nil
}

// effectiveUser reads the second of the four ids in /proc/<pid>/status: real, effective, saved, of
// the file system.
func effectiveUser(status []byte) (uid uint32, ok bool) {
	for line := range strings.Lines(string(status)) {
		if ids, found := strings.CutPrefix(line, "Uid:"); found {
			f := strings.Fields(ids)
			if len(f) != 4 {
				return 0, false
			}
			n, err := strconv.ParseUint(f[1], 10, 32)
			return uint32(n), err == nil
		}
	}
	return 0, false
}

// signalGroup signals exactly the group of the held process on Linux 6.9 and later. Earlier kernels
// identify groups only by number.
func signalGroup(held *os.Process, id Identity, sig syscall.Signal) error {
	const (
		pidfdSendSignal = 424 // the same on every architecture
		toProcessGroup  = 1 << 2
	)
	var errno syscall.Errno
	err := held.WithHandle(func(handle uintptr) {
		_, _, errno = syscall.Syscall6(pidfdSendSignal, handle, uintptr(sig), 0, toProcessGroup, 0, 0)
	})
	if err == nil && errno != 0 {
		err = errno
	}
	if cannotByHandle(err) {
		return syscall.Kill(-id.PID, sig)
	}
	return err
}

// cannotByHandle reports whether the error means that this kernel cannot signal groups by handle.
// No other error may lead to a signal by number: the number may belong to another group by now.
func cannotByHandle(err error) bool {
	return errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENOSYS) || errors.Is(err, os.ErrNoHandle)
}

// descendants returns the processes that p started, directly or indirectly, and those of its group.
func descendants(ctx context.Context, p *process.Process) []*process.Process {
	stats := allStats()
	family := map[int]bool{int(p.Pid): true}
	for grown := true; grown; {
		grown = false
		for pid, s := range stats {
			if !family[pid] && (family[s.parent] || s.group == int(p.Pid)) {
				family[pid], grown = true, true
			}
		}
	}
	delete(family, int(p.Pid))
	out := make([]*process.Process, 0, len(family))
	for pid := range family {
		if c, err := process.NewProcessWithContext(ctx, int32(pid)); err == nil {
			out = append(out, c)
		}
	}
	return out
}

func allStats() map[int]stat {
	entries, _ := os.ReadDir("/proc") // without it, no process can be found
	out := make(map[int]stat, len(entries))
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if s, err := readStat(pid); err == nil {
			out[pid] = s
		}
	}
	return out
}

// KillMarked kills every process of this user, or of one of users, that was started with the
// environment entry mark, "NAME=value", and returns their pids, ascending. It also finds processes
// left behind by an exited one, and those that changed their group or session. A mark must be
// unique to its owner. It finds nothing if the operating system hides environments. Errors: Invalid
// for a mark without a value.
func KillMarked(mark string, users ...uint32) ([]int, error) {
	if name, value, ok := strings.Cut(mark, "="); !ok || name == "" || value == "" {
		return nil, core.Errorf(core.Invalid, "kill leftovers: %q marks nothing", mark)
	}
	killed := map[int]bool{}
	for range looks {
		if !killMarked(mark, users, killed) {
			break
		}
		time.Sleep(lookAgain)
	}
	return slices.Sorted(maps.Keys(killed)), nil
}

// Replacing a program takes less than a millisecond, or a few if its file must be read first: 0.1 s
// in all is ample.
const (
	looks     = 50
	lookAgain = 2 * time.Millisecond
)

// killMarked kills processes that have the mark and are not in killed, and adds them to killed. It
// reports whether to look again: a killed process may have started another one in the meantime, and
// a process whose program is being replaced shows its mark only afterwards.
func killMarked(mark string, users []uint32, killed map[int]bool) (again bool) {
	for pid, s := range allStats() {
		if s.kernel || killed[pid] {
			continue
		}
		has, known := marked(pid, mark)
		again = again || !known
		if has && killStarted(pid, s.start, users) {
			killed[pid], again = true, true
		}
	}
	return again
}

// killStarted kills the process with the pid if it still has the start time from the first look. If
// it has both then and while its handle is open, everything read about the pid in between was about
// this process.
func killStarted(pid int, start uint64, users []uint32) bool {
	id, err := Identify(pid)
	if err != nil || id.Start != start {
		return false
	}
	p, err := Open(id, users...)
	if err != nil {
		return false
	}
	defer p.Close()
	return p.Signal(syscall.SIGKILL) == nil
}

// marked reports whether a process has the mark. known is false while the process's program is
// being replaced, because its environment then reads as empty.
func marked(pid int, mark string) (has, known bool) {
	for range looks {
		env, err := os.ReadFile(procFile(pid, "environ"))
		if err != nil {
			return false, true // it has exited, or belongs to another user
		}
		if has, known := shows(env, mark); known {
			return has, true
		}
		switch s, err := readStat(pid); {
		case err != nil || s.ended():
			return false, true
		case s.envEnd == 0:
			return false, false
		case s.envEnd == s.envStart:
			return false, true // it has no environment
		}
		// By now the new program is in place.
	}
	return false, false
}

// shows reports whether an environment has the mark. An empty one does not tell: known is false.
func shows(env []byte, mark string) (has, known bool) {
	for entry := range bytes.SplitSeq(env, []byte{0}) {
		if string(entry) == mark {
			return true, true
		}
	}
	return false, len(env) > 0
}

func procFile(pid int, name string) string {
	return filepath.Join("/proc", strconv.Itoa(pid), name)
}
