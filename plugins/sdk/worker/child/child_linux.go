package child

import (
	"errors"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent makes the kernel kill the server when the thread that started it exits.
func dieWithParent(a *syscall.SysProcAttr) { a.Pdeathsig = syscall.SIGKILL }

func keepThread() (unlock func()) {
	runtime.LockOSThread()
	return runtime.UnlockOSThread
}

// collect waits for the process to exit, and kills what is left of its group before the process id
// can be reused.
func (c *Child) collect() error {
	for errors.Is(unix.Waitid(unix.P_PID, c.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil), unix.EINTR) {
		continue
	}
	c.killGroup()
	c.noMore()
	return c.cmd.Wait()
}
