package pluginhost

import (
	"os"

	"golang.org/x/sys/unix"

	"github.com/rbee-project/rbee/core/hostinfo"
)

// waitGone returns true when the process has exited, reaped or not, and false when released is
// closed first.
func waitGone(id hostinfo.Identity, released <-chan struct{}) bool {
	fd, err := unix.PidfdOpen(id.PID, unix.PIDFD_NONBLOCK)
	if err != nil {
		return pollGone(id, released)
	}
	// Non-blocking, so the runtime's poller waits for it and no thread is held.
	f := os.NewFile(uintptr(fd), "pidfd")
	if !id.Alive() {
		_ = f.Close()
		return true // it exited before the descriptor could be opened
	}
	conn, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return pollGone(id, released)
	}
	ended := make(chan struct{})
	go func() {
		select {
		case <-released:
			_ = f.Close() // wakes the read below
		case <-ended:
		}
	}()
	err = conn.Read(func(fd uintptr) bool {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		return n > 0 || (err != nil && err != unix.EINTR)
	})
	close(ended)
	_ = f.Close()
	if err != nil {
		return pollGone(id, released)
	}
	return true
}
