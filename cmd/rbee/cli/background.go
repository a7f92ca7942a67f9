package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/hostinfo"
)

const (
	// backgroundStart is how long a background agent may take until it serves.
	backgroundStart = 20 * time.Second
	// backgroundStop is how long it may take to stop its workers and exit.
	backgroundStop = 90 * time.Second
	// backgroundPoll is the interval between checks of it.
	backgroundPoll = 50 * time.Millisecond
)

// agentRecord identifies the agent that runs in the background. The agent itself writes it, once it
// listens.
type agentRecord struct {
	Process   hostinfo.Identity `json:"process"`
	Address   string            `json:"address"` // host:port of its HTTP API
	Version   string            `json:"version"`
	StartedAt time.Time         `json:"started_at"`
}

// stateDir is the folder with the record of the background agent: $XDG_STATE_HOME/rbee or
// ~/.local/state/rbee.
func (m *machine) stateDir() (string, error) {
	if dir := m.getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "rbee"), nil
	}
	home := m.getenv("HOME")
	if !filepath.IsAbs(home) {
		return "", core.Errorf(core.Invalid, "no folder for the state of a background agent").Hint(
			"Set HOME or XDG_STATE_HOME, or start an agent yourself with \"rbee agent -dev\".")
	}
	return filepath.Join(home, ".local", "state", "rbee"), nil
}

func recordPath(dir string) string { return filepath.Join(dir, "agent.json") }
func logPath(dir string) string    { return filepath.Join(dir, "agent.log") }

// backgroundAgent returns the record of the background agent, or nil when none runs.
func (m *machine) backgroundAgent() *agentRecord {
	dir, err := m.stateDir()
	if err != nil {
		return nil
	}
	r, err := readRecord(recordPath(dir))
	if err != nil || !r.Process.Alive() {
		return nil
	}
	return r
}

func readRecord(path string) (*agentRecord, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r agentRecord
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &r, nil
}

// writeRecord publishes this process as the background agent that listens on addr.
func writeRecord(path, addr, version string, now time.Time) (err error) {
	id, err := hostinfo.Identify(os.Getpid())
	if err != nil {
		return err
	}
	b, err := json.Marshal(agentRecord{Process: id, Address: addr, Version: version, StartedAt: now})
	if err != nil {
		return err
	}
	temp, err := os.CreateTemp(filepath.Dir(path), ".agent-*.json") // 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(temp.Name())
		}
	}()
	_, err = temp.Write(b)
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), path)
}

// startBackground starts "rbee agent -dev" detached from this terminal, waits until ready(addr) is
// nil, and returns its address. Concurrent calls start only one agent.
func (m *machine) startBackground(ctx context.Context, ready func(ctx context.Context, addr string) error) (string, error) {
	dir, err := m.stateDir()
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", startFailed(err)
	}
	ctx, cancel := context.WithTimeout(ctx, backgroundStart)
	defer cancel()
	unlock, err := lockFile(ctx, filepath.Join(dir, "agent.lock"))
	if err != nil {
		return "", startFailed(err)
	}
	defer unlock()
	// Another command may have started it while this one waited for the lock.
	if r := m.backgroundAgent(); r != nil {
		return r.Address, m.awaitReady(ctx, r.Process, func() string { return r.Address }, ready)
	}
	if err := os.Remove(recordPath(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", startFailed(err)
	}
	cmd, err := m.spawnAgent(dir)
	if err != nil {
		return "", startFailed(err)
	}
	id, err := hostinfo.Identify(cmd.Process.Pid)
	addr := ""
	if err == nil {
		err = m.awaitReady(ctx, id, func() string {
			if r, err := readRecord(recordPath(dir)); err == nil && r.Process == id {
				addr = r.Address
			}
			return addr
		}, ready)
	}
	if err != nil {
		// A half-started agent is useless: end it, and reap it.
		_ = cmd.Process.Signal(syscall.SIGTERM)
		if ctx.Err() == nil || id.Alive() {
			time.AfterFunc(backgroundStop, func() { _ = cmd.Process.Kill() })
		}
		_ = cmd.Wait()
		return "", core.WithHint(err, "Its log is %s. \"rbee agent -dev\" in another terminal shows what is wrong.%s", logPath(dir), logTail(logPath(dir), 10))
	}
	return addr, cmd.Process.Release()
}

func startFailed(err error) error {
	return core.Errorf(core.KindOf(err), "start an agent in the background: %w", err).Hint(
		"Start one yourself with \"rbee agent -dev\" in another terminal.")
}

// spawnAgent starts the agent in its own session, so that neither ^C nor the end of this terminal
// reaches it.
func (m *machine) spawnAgent(dir string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	log, err := os.OpenFile(logPath(dir), os.O_CREATE|os.O_WRONLY|os.O_TRUNC|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	defer log.Close()
	//nolint:noctx // it outlives this command on purpose
	cmd := exec.Command(self, "agent", "--dev", "--record", recordPath(dir))
	cmd.Args[0] = "rbee"
	cmd.Dir = dir
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return cmd, nil
}

// awaitReady polls until the agent listens and ready succeeds. It fails if the agent exits
// meanwhile.
func (m *machine) awaitReady(ctx context.Context, id hostinfo.Identity, addr func() string, ready func(context.Context, string) error) error {
	tick := time.NewTicker(backgroundPoll)
	defer tick.Stop()
	var last error
	for {
		if at := addr(); at != "" {
			if last = ready(ctx, at); last == nil {
				return nil
			}
		}
		if !id.Alive() {
			return core.Errorf(core.Unavailable, "the agent that was started in the background ended at once")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if errors.Is(ctx.Err(), context.Canceled) {
				return ctx.Err()
			}
			if last == nil {
				last = errors.New("it does not listen yet")
			}
			return core.Errorf(core.Unavailable, "the agent that was started in the background is not ready after %s: %w", backgroundStart, last)
		}
	}
}

// lockFile takes an exclusive lock that ends with the process or with unlock.
func lockFile(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(backgroundPoll)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("another command is starting an agent: %w", ctx.Err())
		}
	}
}

// logTail returns the last lines of a log, indented under a heading, or the empty string.
func logTail(path string, lines int) string {
	f, err := os.Open(path)
	if err != nil {
		return ""
	}
	defer f.Close()
	const window = 16 << 10
	if info, err := f.Stat(); err == nil && info.Size() > window {
		if _, err := f.Seek(-window, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, err := io.ReadAll(io.LimitReader(f, window))
	if err != nil || len(b) == 0 {
		return ""
	}
	all := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	all = all[max(0, len(all)-lines):]
	return "\nThe end of the log:\n  " + strings.Join(all, "\n  ")
}

// stopBackground ends the background agent and waits until it has exited. Without one it returns
// nil, nil.
func (m *machine) stopBackground(ctx context.Context) (*agentRecord, error) {
	dir, err := m.stateDir()
	if err != nil {
		return nil, err
	}
	path := recordPath(dir)
	r, err := readRecord(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, core.Errorf(core.Integrity, "stop the agent: %w", err).Hint("Remove the file, and end the agent by its process id if it still runs.")
	}
	// Opening by identity prevents signalling a process that got the same pid later.
	p, err := hostinfo.Open(r.Process)
	if core.KindOf(err) == core.NotFound {
		return nil, removeRecord(path)
	}
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if err := p.Signal(syscall.SIGTERM); err != nil && core.KindOf(err) != core.NotFound {
		return nil, err
	}
	deadline := time.NewTimer(backgroundStop)
	defer deadline.Stop()
	tick := time.NewTicker(backgroundPoll)
	defer tick.Stop()
	for p.Alive() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-deadline.C:
			return nil, core.Errorf(core.DeadlineExceeded, "stop the agent: process %d still runs %s after it was asked to end", r.Process.PID, backgroundStop).Hint(
				"Its log is %s. \"kill -9 %d\" ends it; its workers end by themselves.", logPath(dir), r.Process.PID)
		}
	}
	return r, removeRecord(path)
}

func removeRecord(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// otherAgent explains how to stop an agent of this machine that was not started in the background;
// nil: none runs.
func (m *machine) otherAgent(ctx context.Context) error {
	l := m.localAgent()
	if r, ok := runningRecord(l.dir); ok {
		return core.Errorf(core.InUse, "the agent of this machine, process %d, was not started in the background", r.PID).Hint("%s", howToStop(r.PID, cgroupOf(r.PID)))
	}
	c, err := client.New(client.Options{Addresses: []string{l.usualAddress()}})
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if c.Healthy(ctx) != nil {
		return nil // nothing listens, or it is not an agent
	}
	return core.Errorf(core.InUse, "an agent at %s was not started in the background", c.Address()).Hint("Press ^C in its terminal, or end it as it was started.")
}

func cgroupOf(pid int) string {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)) // if that fails, the process id has to do
	return string(b)
}

// howToStop explains how to stop an agent, given its control group from /proc.
func howToStop(pid int, cgroup string) string {
	for line := range strings.Lines(cgroup) {
		_, path, _ := strings.Cut(strings.TrimSpace(line), ":/")
		unit := filepath.Base(path)
		if !strings.HasSuffix(unit, ".service") || strings.HasPrefix(unit, "user@") {
			continue
		}
		if strings.Contains(path, "/user@") {
			return "It is a service of this user: systemctl --user stop " + unit
		}
		return "It is a service of systemd: systemctl stop " + unit
	}
	return fmt.Sprintf("Press ^C in its terminal, or: kill %d", pid)
}
