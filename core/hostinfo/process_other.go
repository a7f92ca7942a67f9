//go:build unix && !linux

package hostinfo

import (
	"context"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/shirou/gopsutil/v4/process"

	"github.com/rbee-project/rbee/core"
)

const exactHandles = false

func identify(pid int) (id Identity, ended bool, err error) {
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		return Identity{}, false, gone(pid)
	}
	ms, err := p.CreateTime()
	if err != nil {
		return Identity{}, false, gone(pid)
	}
	if state, err := p.Status(); err == nil && slices.Contains(state, process.Zombie) {
		ended = true
	}
	return Identity{PID: pid, Start: uint64(ms)}, ended, nil
}

func ownUser(pid int, others []uint32) error {
	p, err := process.NewProcess(int32(pid))
	if err != nil {
		return gone(pid)
	}
	uids, err := p.Uids()
	if err != nil {
		return core.Errorf(core.Internal, "open process: owner of process %d: %w", pid, err)
	}
	if !slices.ContainsFunc(uids, func(uid uint32) bool { return uid == uint32(os.Geteuid()) || slices.Contains(others, uid) }) {
		return core.Errorf(core.Forbidden, "open process: process %d belongs to another user", pid).Hint("Run the command as that user, or as root.")
	}
	return nil
}

func signalGroup(_ *os.Process, id Identity, sig syscall.Signal) error {
	return syscall.Kill(-id.PID, sig)
}

func descendants(ctx context.Context, p *process.Process) []*process.Process {
	children, err := p.ChildrenWithContext(ctx)
	if err != nil {
		return nil
	}
	out := slices.Clone(children)
	for _, c := range children {
		out = append(out, descendants(ctx, c)...)
	}
	slices.SortFunc(out, func(a, b *process.Process) int { return int(a.Pid - b.Pid) })
	return out
}

// KillMarked does nothing here: the environment of a process cannot be read.
func KillMarked(mark string, _ ...uint32) ([]int, error) {
	if name, value, ok := strings.Cut(mark, "="); !ok || name == "" || value == "" {
		return nil, core.Errorf(core.Invalid, "kill leftovers: %q marks nothing", mark)
	}
	return nil, nil
}
