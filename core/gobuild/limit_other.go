//go:build unix && !linux

package gobuild

import "syscall"

// niceness is the nice value of a build, so that workers have priority.
const niceness = 10

// limit lowers the priority of a process group. It ignores what the system does not allow.
func limit(pid int, _ int64) { _ = syscall.Setpriority(syscall.PRIO_PGRP, pid, niceness) }

// endedUncollected reports false: here, waiting for a child always collects it.
func endedUncollected(int) bool { return false }
