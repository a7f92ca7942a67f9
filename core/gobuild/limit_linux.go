package gobuild

import (
	"errors"
	"syscall"

	"golang.org/x/sys/unix"
)

// niceness is the nice value of a build, so that workers have priority.
const niceness = 10

// limit lowers the priority of a process group and bounds the bytes that its processes can write
// into one file. It ignores what the system does not allow.
func limit(pid int, fileBytes int64) {
	_ = syscall.Setpriority(syscall.PRIO_PGRP, pid, niceness)
	_ = unix.Prlimit(pid, unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(fileBytes), Max: uint64(fileBytes)}, nil)
	_ = unix.Prlimit(pid, unix.RLIMIT_CORE, &unix.Rlimit{}, nil)
}

// endedUncollected waits for the end of a child without collecting it, so that its PID stays
// reserved. It reports whether that was possible.
func endedUncollected(pid int) bool {
	for {
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return err == nil
		}
	}
}
