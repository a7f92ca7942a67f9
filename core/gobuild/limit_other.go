//go:build unix && !linux

package gobuild

import "syscall"

// niceness is how much a build steps back for the workers.
const niceness = 10

// limit makes a process group step back. What the system does not allow is left out.
func limit(pid int, _ int64) { _ = syscall.Setpriority(syscall.PRIO_PGRP, pid, niceness) }

// endedUncollected says that a child cannot be waited for without collecting it.
func endedUncollected(int) bool { return false }
