package confine

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Rights on a file; folders pass them on to their contents.
const (
	readFile  = unix.LANDLOCK_ACCESS_FS_READ_FILE
	writeFile = unix.LANDLOCK_ACCESS_FS_WRITE_FILE
)

// Rights on folders alone. Listing a folder and executing a file are not handled, and so remain
// allowed everywhere.
const changeDir = unix.LANDLOCK_ACCESS_FS_REMOVE_DIR | unix.LANDLOCK_ACCESS_FS_REMOVE_FILE |
	unix.LANDLOCK_ACCESS_FS_MAKE_CHAR | unix.LANDLOCK_ACCESS_FS_MAKE_DIR | unix.LANDLOCK_ACCESS_FS_MAKE_REG |
	unix.LANDLOCK_ACCESS_FS_MAKE_SOCK | unix.LANDLOCK_ACCESS_FS_MAKE_FIFO | unix.LANDLOCK_ACCESS_FS_MAKE_BLOCK |
	unix.LANDLOCK_ACCESS_FS_MAKE_SYM

// Versions of Landlock's interface.
const (
	abiRefer    = 2 // Linux 5.19
	abiTruncate = 3 // Linux 6.2
	abiSignal   = 6 // Linux 6.12
)

// abi returns the kernel's version of Landlock's interface.
func abi() (int, error) {
	version, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	if errno != 0 {
		return 0, errno
	}
	return int(version), nil
}

// Problem returns the reason why Start cannot confine on this machine; empty: it can.
func Problem() string {
	switch _, err := abi(); {
	case err == nil:
		scope, _ := os.ReadFile("/proc/sys/kernel/yama/ptrace_scope") // absent: the kernel has no Yama
		return tracingProblem(string(scope), unix.PtraceCont(os.Getpid(), 0))
	case errors.Is(err, unix.EOPNOTSUPP):
		return "Landlock is switched off in this kernel (boot it with landlock among the LSMs)"
	case errors.Is(err, unix.ENOSYS):
		return "this kernel has no Landlock (Linux 5.13 has it)"
	default:
		return "Landlock cannot be used: " + err.Error()
	}
}

// tracingProblem returns the reason why the thread that starts a process cannot trace it; empty: it
// can. scope is Yama's setting. refused is the kernel's answer to a request about a process that is
// not traced: ESRCH, unless a system call filter, such as a container's, forbids tracing.
func tracingProblem(scope string, refused error) string {
	switch {
	case strings.TrimSpace(scope) == "3":
		return "tracing is switched off in this kernel, which confinement needs (kernel.yama.ptrace_scope is 3)"
	case !errors.Is(refused, unix.ESRCH):
		return "tracing is forbidden here, which confinement needs (allow the system call ptrace in this container)"
	}
	return ""
}

// Start starts cmd under the rules. If Problem is not empty, it starts cmd unconfined. The process
// cannot gain privileges through setuid programs. As far as the kernel's Landlock supports it, the
// process cannot signal, trace or read the memory of processes other than its own children.
func Start(cmd *exec.Cmd, rules Rules) error {
	version, err := abi()
	if err != nil || Problem() != "" {
		return cmd.Start()
	}
	ruleset, err := newRuleset(version, rules)
	if err != nil {
		return fmt.Errorf("confine %s: %w", cmd.Path, err)
	}
	defer unix.Close(ruleset)
	return startOn(cmd, ruleset, func() {})
}

// newRuleset creates a kernel ruleset from the rules and returns its descriptor.
func newRuleset(version int, rules Rules) (int, error) {
	file, dir := uint64(readFile|writeFile), uint64(changeDir)
	if version >= abiRefer {
		dir |= unix.LANDLOCK_ACCESS_FS_REFER
	}
	if version >= abiTruncate {
		file |= unix.LANDLOCK_ACCESS_FS_TRUNCATE
	}
	attr := unix.LandlockRulesetAttr{Handled_access_fs: file | dir}
	if version >= abiSignal {
		attr.Scoped = unix.LANDLOCK_SCOPE_SIGNAL
	}
	rules, err := rules.resolved()
	if err != nil {
		return -1, err
	}
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return -1, fmt.Errorf("create ruleset: %w", errno)
	}
	for _, g := range rules.grants() {
		rights := uint64(readFile)
		if g.access == Full {
			rights = file
			if g.dir {
				rights |= dir
			}
		}
		if err := addRule(int(fd), g.path, rights); err != nil {
			_ = unix.Close(int(fd))
			return -1, fmt.Errorf("allow %s: %w", g.path, err)
		}
	}
	return int(fd), nil
}

func addRule(ruleset int, path string, rights uint64) error {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES), errors.Is(err, unix.ENOTDIR):
		return nil // it no longer exists, or is out of reach anyway
	case err != nil:
		return err
	}
	defer unix.Close(fd)
	beneath := unix.LandlockPathBeneathAttr{Allowed_access: rights, Parent_fd: int32(fd)}
	if _, _, errno := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, uintptr(ruleset), unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&beneath)), 0, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

// startOn starts cmd from a thread that is restricted by the ruleset and ends afterwards. The
// thread calls beforeEnd last.
//
// Until it ends, the thread belongs to the child's domain, and the child could read this process's
// memory through it. So the thread traces the child, which stops at its first instruction: the
// kernel releases the child when the thread ends.
func startOn(cmd *exec.Cmd, ruleset int, beforeEnd func()) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			// The first thread of a process never ends. Keep it busy while another thread starts
			// cmd.
			done <- startOn(cmd, ruleset, beforeEnd)
			runtime.UnlockOSThread()
			return
		}
		err := restrict(ruleset)
		if err == nil {
			err = startStopped(cmd)
		}
		beforeEnd()
		done <- err
	}()
	return <-done
}

// restrict permanently restricts the calling thread to what the ruleset allows.
func restrict(ruleset int) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("confine: %w", err)
	}
	if _, _, errno := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, uintptr(ruleset), 0, 0); errno != 0 {
		return fmt.Errorf("confine: %w", errno)
	}
	return nil
}

// startStopped starts cmd as a tracee of the calling thread and returns when it has stopped.
func startStopped(cmd *exec.Cmd) error {
	attr := syscall.SysProcAttr{}
	if cmd.SysProcAttr != nil {
		attr = *cmd.SysProcAttr
	}
	attr.Ptrace = true
	cmd.SysProcAttr = &attr
	if err := cmd.Start(); err != nil {
		return err
	}
	// The child stops or was killed. cmd.Wait must collect its end; the stop is collected here,
	// since the kernel would otherwise deliver the signal that stopped the process.
	for _, options := range []int{unix.WSTOPPED | unix.WEXITED | unix.WNOWAIT, unix.WSTOPPED | unix.WNOHANG} {
		var err error = unix.EINTR
		for errors.Is(err, unix.EINTR) {
			err = unix.Waitid(unix.P_PID, cmd.Process.Pid, nil, options|unix.WALL, nil)
		}
		if err != nil && !errors.Is(err, unix.ECHILD) {
			return fmt.Errorf("confine: wait for %s: %w", cmd.Path, err)
		}
	}
	return nil
}
