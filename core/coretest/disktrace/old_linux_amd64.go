package disktrace

import (
	"strings"

	"golang.org/x/sys/unix"
)

// enterOld and exitOld handle system calls that newer architectures lack.
func (m *model) enterOld(c *call, tid int) {
	here := unix.AT_FDCWD
	cwd := uint64(int64(here)) //nolint:gosec // the bits of a number
	switch c.number {
	case unix.SYS_MKDIR, unix.SYS_UNLINK, unix.SYS_RMDIR:
		c.path = pathAt(tid, cwd, c.args[0])
	case unix.SYS_RENAME, unix.SYS_LINK:
		c.path, c.other = pathAt(tid, cwd, c.args[0]), pathAt(tid, cwd, c.args[1])
	case unix.SYS_SYMLINK:
		c.path = pathAt(tid, cwd, c.args[1])
	case unix.SYS_OPEN, unix.SYS_CREAT:
		c.path = pathAt(tid, cwd, c.args[0])
		_, exists := inodeOf(c.path)
		c.fresh = !exists && (c.number == unix.SYS_CREAT || c.args[1]&unix.O_CREAT != 0)
	case unix.SYS_ACCESS:
		if name, ok := strings.CutPrefix(text(tid, c.args[0]), ackPrefix); ok {
			m.acknowledged(name)
		}
	}
}

func (m *model) exitOld(c *call) {
	switch c.number {
	case unix.SYS_OPEN, unix.SYS_CREAT:
		if c.fresh {
			m.changed(c.path, "made")
		} else if id, ok := inodeOf(c.path); ok && (c.number == unix.SYS_CREAT || c.args[1]&unix.O_TRUNC != 0) {
			if rel, below := m.below(c.path); below {
				m.dirty[id] = rel
			}
		}
	case unix.SYS_MKDIR, unix.SYS_SYMLINK:
		m.changed(c.path, "made")
	case unix.SYS_UNLINK, unix.SYS_RMDIR:
		m.changed(c.path, "removed")
	case unix.SYS_RENAME:
		m.changed(c.path, "moved away")
		m.changed(c.other, "moved here")
	case unix.SYS_LINK:
		m.changed(c.other, "made")
	}
}
