package hostinfo

import (
	"context"
	"errors"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/shirou/gopsutil/v4/net"
	"github.com/shirou/gopsutil/v4/process"

	"github.com/rbee-project/rbee/core"
)

// Identity distinguishes a process from every other process that has had or will have its pid. It
// is comparable and survives JSON.
type Identity struct {
	PID int `json:"pid"`
	// Start is the start time: clock ticks since boot on Linux, milliseconds since 1970 elsewhere.
	Start uint64 `json:"start"`
	// BootID names the boot that Start counts from; empty if Start needs none.
	BootID string `json:"boot_id,omitempty"`
}

// Identify returns the identity of the process that has pid now. A zombie counts as exited. Errors:
// NotFound.
func Identify(pid int) (Identity, error) {
	if pid <= 0 {
		return Identity{}, gone(pid)
	}
	id, ended, err := identify(pid)
	switch {
	case err != nil:
		return Identity{}, err
	case ended:
		return Identity{}, gone(pid)
	}
	return id, nil
}

// Alive reports whether the identified process still runs.
func (id Identity) Alive() bool {
	now, err := Identify(id.PID)
	return err == nil && now == id
}

// Process is a process handle: a signal through it reaches the identified process or none. The
// caller closes it. Methods may be called concurrently.
type Process struct {
	id   Identity
	held *os.Process
}

// Open opens a handle to the identified process. Errors: NotFound if it has exited or its pid now
// belongs to another process; Forbidden for a process that must never be signalled: pid 1, this
// process, its parent, or one of a user that is neither this process's nor among users.
func Open(id Identity, users ...uint32) (*Process, error) {
	if id.PID <= 1 || id.PID == os.Getpid() || id.PID == os.Getppid() {
		return nil, core.Errorf(core.Forbidden, "open process: process %d is not one that may be signalled", id.PID)
	}
	held, err := os.FindProcess(id.PID)
	if err != nil {
		return nil, gone(id.PID)
	}
	// Check the pid again: only while the handle is open does this prove which process it refers
	// to.
	now, err := Identify(id.PID)
	if err == nil && now != id {
		err = core.Errorf(core.NotFound, "open process: process %d is now another one: it started at another time", id.PID)
	}
	if err == nil {
		err = ownUser(id.PID, users)
	}
	if err != nil {
		return nil, errors.Join(err, held.Release())
	}
	return &Process{id: id, held: held}, nil
}

// Identity returns the identity given to Open.
func (p *Process) Identity() Identity { return p.id }

// Alive reports whether the process still runs.
func (p *Process) Alive() bool { return p.id.Alive() }

// Signal sends sig to the process alone. Errors: NotFound if it has exited.
func (p *Process) Signal(sig syscall.Signal) error {
	if !exactHandles && !p.id.Alive() {
		return gone(p.id.PID)
	}
	return p.signalled(p.held.Signal(sig))
}

// SignalGroup sends sig to the process and its whole group. Errors: NotFound if it has exited;
// Forbidden if it does not lead its group, since the signal would hit unrelated processes.
func (p *Process) SignalGroup(sig syscall.Signal) error {
	if !p.id.Alive() {
		return gone(p.id.PID)
	}
	group, err := syscall.Getpgid(p.id.PID)
	if err != nil {
		return p.signalled(err)
	}
	if group != p.id.PID {
		return core.Errorf(core.Forbidden, "signal group: process %d does not lead its process group", p.id.PID)
	}
	return p.signalled(signalGroup(p.held, p.id, sig))
}

// KillGroup kills the process and its whole group at once. Errors: as for SignalGroup.
func (p *Process) KillGroup() error { return p.SignalGroup(syscall.SIGKILL) }

// Close releases the handle; the process keeps running.
func (p *Process) Close() error { return p.held.Release() }

func (p *Process) signalled(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrProcessDone), errors.Is(err, syscall.ESRCH):
		return gone(p.id.PID)
	case errors.Is(err, syscall.EPERM):
		return core.Wrap(err, core.Forbidden, "signal process")
	}
	return core.Wrap(err, core.Internal, "signal process")
}

// Usage is the resource use of a process, as the operating system counts it.
type Usage struct {
	StartedAt   time.Time
	MemoryBytes int64 // resident set, the process and its descendants
	// of one core, the process and its descendants, over the life of the process
	CPUPercent float64
	CPUTime    time.Duration // used by the process and its descendants
}

// Details is Usage with further facts about one process.
type Details struct {
	Usage
	CommandLine []string
	Children    []int    // pids of all descendants, ascending
	Sockets     []string // paths of its unix sockets, ascending
}

// ReadUsage returns the resource use of the identified process. Errors: NotFound if it has exited.
func ReadUsage(ctx context.Context, id Identity) (Usage, error) {
	u, _, err := usage(ctx, id)
	return u, err
}

// ReadDetails returns facts about the identified process and its resource use. Errors: NotFound if
// it has exited.
func ReadDetails(ctx context.Context, id Identity) (Details, error) {
	u, family, err := usage(ctx, id)
	if err != nil {
		return Details{}, err
	}
	d := Details{Usage: u}
	for _, p := range family[1:] {
		d.Children = append(d.Children, int(p.Pid))
	}
	slices.Sort(d.Children)
	if d.CommandLine, err = family[0].CmdlineSliceWithContext(ctx); err != nil {
		return Details{}, core.Errorf(core.NotFound, "read process: command line of process %d: %w", id.PID, err)
	}
	// Without the sockets, the rest is still worth returning.
	if conns, err := net.ConnectionsPidWithContext(ctx, "unix", int32(id.PID)); err == nil {
		for _, c := range conns {
			if c.Laddr.IP != "" {
				d.Sockets = append(d.Sockets, c.Laddr.IP)
			}
		}
	}
	slices.Sort(d.Sockets)
	d.Sockets = slices.Compact(d.Sockets)
	if !id.Alive() {
		return Details{}, gone(id.PID)
	}
	return d, nil
}

// usage reads the process and its descendants; the process itself comes first.
func usage(ctx context.Context, id Identity) (Usage, []*process.Process, error) {
	if !id.Alive() {
		return Usage{}, nil, gone(id.PID)
	}
	p, err := process.NewProcessWithContext(ctx, int32(id.PID))
	if err != nil {
		return Usage{}, nil, gone(id.PID)
	}
	family := []*process.Process{p}
	family = append(family, descendants(ctx, p)...)
	var u Usage
	busy := 0.0 // seconds
	for _, f := range family {
		if m, err := f.MemoryInfoWithContext(ctx); err == nil {
			u.MemoryBytes += clamp(m.RSS)
		}
		if t, err := f.TimesWithContext(ctx); err == nil {
			busy += t.User + t.System
		}
	}
	u.CPUTime = time.Duration(busy * float64(time.Second))
	if ms, err := p.CreateTimeWithContext(ctx); err == nil {
		u.StartedAt = time.UnixMilli(ms)
		if age := time.Since(u.StartedAt).Seconds(); age > 0 {
			u.CPUPercent = 100 * busy / age
		}
	}
	// The values belong to the identity only if the pid belonged to it all the time.
	if !id.Alive() {
		return Usage{}, nil, gone(id.PID)
	}
	return u, family, nil
}

func gone(pid int) error {
	return core.Errorf(core.NotFound, "read process: process %d no longer exists", pid)
}
