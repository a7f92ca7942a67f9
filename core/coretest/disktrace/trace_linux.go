package disktrace

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// acknowledge notifies the tracer by looking up a path that does not exist.
func acknowledge(name string) { _ = unix.Access(ackPrefix+name, unix.F_OK) }

// trace runs the calling test once more, as a process whose system calls it traces.
func trace(t *testing.T, dir string, s Scenario) []string {
	t.Helper()
	test, _, _ := strings.Cut(t.Name(), "/")
	if test != t.Name() {
		t.Fatal("a scenario is a test of its own")
	}
	out, err := os.CreateTemp(t.TempDir(), "output")
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	done := make(chan error, 1)
	m := newModel(dir, s)
	go func() { // a dedicated thread is the tracer; it ends with the goroutine
		runtime.LockOSThread()
		done <- follow(test, dir, out, m)
	}()
	err = <-done
	if errors.Is(err, syscall.EPERM) || errors.Is(err, syscall.ENOSYS) {
		t.Skip("processes cannot be traced here:", err)
	}
	if err != nil {
		text, _ := os.ReadFile(out.Name())
		t.Fatalf("the scenario: %v\n%s", err, text)
	}
	if m.acks == 0 {
		t.Fatal("the scenario acknowledged nothing")
	}
	t.Logf("%d acknowledgements, %d syncs", m.acks, m.syncs)
	return m.violations
}

// notThread is __WNOTHREAD: wait only for the children of this thread.
const notThread = 0x20000000

func follow(test, dir string, out *os.File, m *model) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return err
	}
	defer null.Close()
	process, err := os.StartProcess(self, []string{self, "-test.run=^" + test + "$", "-test.timeout=120s", "-test.count=1"}, &os.ProcAttr{
		Env: append(os.Environ(), environment+"="+dir), Files: []*os.File{null, out, out}, Sys: &syscall.SysProcAttr{Ptrace: true},
	})
	if err != nil {
		return err
	}
	pid := process.Pid
	_ = process.Release() // this function waits for it instead
	var status unix.WaitStatus
	if _, err := unix.Wait4(pid, &status, unix.WALL|notThread, nil); err != nil {
		return err
	}
	options := unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_TRACEEXEC | unix.PTRACE_O_EXITKILL
	if err := unix.PtraceSetOptions(pid, options); err != nil {
		_ = unix.Kill(pid, unix.SIGKILL)
		return err
	}
	if err := unix.PtraceSyscall(pid, 0); err != nil {
		return err
	}
	m.pid = pid
	calls := map[int]*call{} // by thread: the system call in progress
	for {
		tid, err := unix.Wait4(-1, &status, unix.WALL|notThread, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait: %w", err)
		}
		signal := 0
		switch {
		case status.Exited() || status.Signaled():
			delete(calls, tid)
			if tid != pid {
				continue
			}
			if status.Signaled() || status.ExitStatus() != 0 {
				return fmt.Errorf("it ended with %d (signal %v)", status.ExitStatus(), status.Signal())
			}
			return nil
		case status.StopSignal() == unix.SIGTRAP|0x80:
			if c := calls[tid]; c != nil {
				delete(calls, tid)
				m.exit(c, tid)
			} else if c, err := enter(tid); errors.Is(err, unix.ESRCH) {
				continue // its process has ended since; Wait4 reports that
			} else if err != nil {
				return fmt.Errorf("read a system call: %w", err)
			} else {
				calls[tid] = c
				m.enter(c, tid)
			}
		case status.StopSignal() == unix.SIGTRAP, status.StopSignal() == unix.SIGSTOP: // exec, clone, a new thread
		default:
			signal = int(status.StopSignal())
		}
		if err := unix.PtraceSyscall(tid, signal); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("go on: %w", err)
		}
	}
}

// call is a system call that a thread is executing.
type call struct {
	number uint64
	args   [6]uint64
	path   string // path that it names, absolute; empty: not below the folder
	other  string // the new name of a rename or link
	fresh  bool   // path did not exist before
}

// syscallInfo returns the kernel's description of a thread's stop.
func syscallInfo(tid int) ([]byte, error) {
	const getSyscallInfo = 0x420e
	b := make([]byte, 88)
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), uintptr(len(b)), uintptr(unsafe.Pointer(&b[0])), 0, 0)
	if errno != 0 {
		return nil, errno
	}
	return b, nil
}

func enter(tid int) (*call, error) {
	b, err := syscallInfo(tid)
	if err != nil {
		return nil, err
	}
	c := &call{number: binary.NativeEndian.Uint64(b[24:])}
	for i := range c.args {
		c.args[i] = binary.NativeEndian.Uint64(b[32+8*i:])
	}
	return c, nil
}

func failed(tid int) (int64, bool) {
	b, err := syscallInfo(tid)
	if err != nil {
		return 0, true
	}
	return int64(binary.NativeEndian.Uint64(b[24:])), b[32] != 0 //nolint:gosec // the bits of a number
}

// inode identifies a file independently of its names.
type inode struct{ dev, ino uint64 }

// model tracks what is certainly on disk.
type model struct {
	dir string
	s   Scenario
	pid int

	dirty      map[inode]string            // files with data not on disk, each with a name
	names      map[inode]map[string]string // by folder: names that differ from the disk, and why
	acks       int
	syncs      int
	violations []string
}

func newModel(dir string, s Scenario) *model {
	return &model{dir: dir, s: s, dirty: map[inode]string{}, names: map[inode]map[string]string{}}
}

func (m *model) fail(format string, args ...any) {
	v := fmt.Sprintf(format, args...)
	if !slices.Contains(m.violations, v) {
		m.violations = append(m.violations, v)
	}
}

// below returns the path relative to the folder; false: it lies elsewhere.
func (m *model) below(path string) (string, bool) {
	if path == m.dir {
		return ".", true
	}
	return strings.CutPrefix(path, m.dir+"/")
}

func (m *model) ofFD(tid int, fd uint64) (string, inode, bool) {
	link := fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)) //nolint:gosec // a number of a descriptor
	path, err := os.Readlink(link)
	if err != nil {
		return "", inode{}, false
	}
	path = strings.TrimSuffix(path, " (deleted)")
	rel, ok := m.below(path)
	if !ok {
		return "", inode{}, false
	}
	var st unix.Stat_t
	if unix.Stat(link, &st) != nil {
		return "", inode{}, false
	}
	return rel, inode{st.Dev, st.Ino}, true
}

func inodeOf(path string) (inode, bool) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return inode{}, false
	}
	return inode{st.Dev, st.Ino}, true
}

// text reads a path from the traced process's memory.
func text(tid int, at uint64) string {
	b := make([]byte, 4096)
	f, err := os.Open(fmt.Sprintf("/proc/%d/mem", tid))
	if err != nil {
		return ""
	}
	defer f.Close()
	n, _ := f.ReadAt(b, int64(at)) //nolint:gosec // an address
	name, _, _ := bytes.Cut(b[:n], []byte{0})
	return string(name)
}

func pathAt(tid int, fd, at uint64) string {
	name := text(tid, at)
	if filepath.IsAbs(name) || name == "" {
		return filepath.Clean(name)
	}
	link := fmt.Sprintf("/proc/%d/fd/%d", tid, int32(fd)) //nolint:gosec // a number of a descriptor
	if int32(fd) == unix.AT_FDCWD {                       //nolint:gosec // see above
		link = fmt.Sprintf("/proc/%d/cwd", tid)
	}
	base, err := os.Readlink(link)
	if err != nil {
		return ""
	}
	return filepath.Join(base, name)
}

// enter handles a call before it is executed.
func (m *model) enter(c *call, tid int) {
	switch c.number {
	case unix.SYS_OPENAT:
		c.path = pathAt(tid, c.args[0], c.args[1])
		_, exists := inodeOf(c.path)
		c.fresh = !exists && c.args[2]&unix.O_CREAT != 0
	case unix.SYS_MKDIRAT, unix.SYS_UNLINKAT:
		c.path = pathAt(tid, c.args[0], c.args[1])
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_LINKAT:
		c.path, c.other = pathAt(tid, c.args[0], c.args[1]), pathAt(tid, c.args[2], c.args[3])
	case unix.SYS_SYMLINKAT:
		c.path = pathAt(tid, c.args[1], c.args[2])
	case unix.SYS_FACCESSAT, unix.SYS_FACCESSAT2:
		if name, ok := strings.CutPrefix(text(tid, c.args[1]), ackPrefix); ok {
			m.acknowledged(name)
		}
	}
	m.enterOld(c, tid)
	rel, ok := m.below(c.path)
	if !ok {
		return
	}
	switch {
	case c.number == unix.SYS_UNLINKAT && m.s.Ordered(rel):
		for folder, changed := range m.names {
			for name, what := range changed {
				path := filepath.Join(m.nameOf(folder), name)
				if what == "removed" && !m.free(path) && !m.s.Ordered(path) {
					m.fail("%s goes while %s may come back", rel, path)
				}
			}
		}
	case c.other != "":
		if id, ok := inodeOf(c.path); ok {
			m.published(c.path, c.other, id)
		}
	}
}

// published checks a file or a folder that gets a name under which it is looked up.
func (m *model) published(from, to string, id inode) {
	rel, ok := m.below(to)
	if !ok || m.free(rel) || m.s.Late(rel) {
		return
	}
	if _, ok := m.dirty[id]; ok {
		m.fail("%s gets its name before its data are on the disk", rel)
	}
	_ = filepath.WalkDir(from, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went meanwhile
		}
		within, ok := inodeOf(path)
		inner := filepath.Join(rel, strings.TrimPrefix(path, from))
		if !ok || within == id || m.free(inner) {
			return nil
		}
		if _, ok := m.dirty[within]; ok {
			m.fail("%s gets its name before its data are on the disk", inner)
		}
		if len(m.names[within]) > 0 {
			m.fail("folder %s gets its name before the names in it are on the disk", inner)
		}
		return nil
	})
	if len(m.names[id]) > 0 {
		m.fail("folder %s gets its name before the names in it are on the disk", rel)
	}
}

// exit handles a call after it was executed.
func (m *model) exit(c *call, tid int) {
	value, bad := failed(tid)
	if bad {
		return
	}
	fd := uint64(1 << 32)
	switch c.number {
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_WRITEV, unix.SYS_PWRITEV, unix.SYS_PWRITEV2, unix.SYS_FTRUNCATE, unix.SYS_FALLOCATE, unix.SYS_SENDFILE:
		fd = c.args[0]
	case unix.SYS_COPY_FILE_RANGE, unix.SYS_SPLICE:
		fd = c.args[2]
	case unix.SYS_FSYNC, unix.SYS_FDATASYNC:
		if _, id, ok := m.ofFD(tid, c.args[0]); ok {
			m.syncs++
			delete(m.dirty, id)
			delete(m.names, id)
		}
		return
	case unix.SYS_SYNC:
		m.syncs++
		clear(m.dirty)
		clear(m.names)
		return
	case unix.SYS_OPENAT:
		if c.fresh {
			m.changed(c.path, "made")
		}
		if c.args[2]&unix.O_TRUNC != 0 && !c.fresh {
			fd = uint64(value) //nolint:gosec // a number of a descriptor
		}
	case unix.SYS_MKDIRAT, unix.SYS_SYMLINKAT:
		m.changed(c.path, "made")
	case unix.SYS_UNLINKAT:
		m.changed(c.path, "removed")
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		m.changed(c.path, "moved away")
		m.changed(c.other, "moved here")
	case unix.SYS_LINKAT:
		m.changed(c.other, "made")
	default:
		m.exitOld(c)
	}
	if fd != 1<<32 {
		if rel, id, ok := m.ofFD(tid, fd); ok {
			m.dirty[id] = rel
		}
	}
}

// changed records a name that now differs from the disk.
func (m *model) changed(path, what string) {
	rel, ok := m.below(path)
	if !ok || rel == "." {
		return
	}
	folder, ok := inodeOf(filepath.Dir(path))
	if !ok {
		return
	}
	if m.names[folder] == nil {
		m.names[folder] = map[string]string{}
	}
	m.names[folder][filepath.Base(rel)] = what
}

// free reports whether a path, or a folder above it, may be lost.
func (m *model) free(rel string) bool {
	for p := rel; p != "."; p = filepath.Dir(p) {
		if temporary(p) || m.s.Ignore(p) {
			return true
		}
	}
	return false
}

// acknowledged checks that nothing can be lost any more.
func (m *model) acknowledged(name string) {
	m.acks++
	for id, path := range m.dirty {
		if now := m.nameOf(id); now != "" && !m.free(now) {
			m.fail("%s: data of %s (%s) are not on the disk", name, now, path)
		}
	}
	for folder, changed := range m.names {
		now := m.nameOf(folder)
		if now == "" {
			continue // the folder itself no longer exists
		}
		for base, what := range changed {
			path := filepath.Join(now, base)
			if !m.free(path) && (what != "removed" || !m.s.Returns(path)) {
				m.fail("%s: %s was %s, and its folder is not on the disk", name, path, what)
			}
		}
	}
}

// nameOf finds a file's name by its inode; empty: it has no name any more.
func (m *model) nameOf(id inode) (found string) {
	_ = filepath.WalkDir(m.dir, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went meanwhile
		}
		if have, ok := inodeOf(path); ok && have == id {
			found, _ = m.below(path)
			return filepath.SkipAll
		}
		return nil
	})
	return found
}
