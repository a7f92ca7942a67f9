// Package child runs a server beside a worker: a program that answers HTTP on this machine and
// lives no longer than the worker does.
//
// The program runs in its own process group. End terminates it, and on Linux it also ends when this
// process dies. Any processes that it leaves in its group are killed. A server that exits by itself
// is not restarted: the worker fails and reports the server's last lines.
package child

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// drainTime bounds the wait for the rest of a dead server's output: a process that left the group
// may hold the pipe open.
const drainTime = time.Second

// Command describes the program to run.
type Command struct {
	// Args are the program and its arguments. A program without a slash is looked up in this
	// process's PATH.
	Args []string
	Env  []string // the whole environment; nil: Environ()
	Dir  string   // working folder; empty: this process's
	// Log is called by one goroutine with each line of the server's output, cut to MaxLineBytes.
	// Lines beyond the package's rate limit are counted and dropped. nil: nothing is logged.
	Log func(line string)
}

// Child is a running server. It is safe for concurrent use.
type Child struct {
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}

	mu     sync.Mutex // guards below
	reaped bool       // the process id may be reused by now
	how    string     // how the process ended
	asked  bool       // End or Kill was called
}

// Start starts the server. It returns once the program runs, whether or not it answers requests
// yet. The caller must call End.
func Start(c Command) (*Child, error) {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return nil, errors.New("start server: no program is given")
	}
	path, err := exec.LookPath(c.Args[0])
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start server: %w", err)
	}
	defer w.Close()
	cmd := exec.Command(path, c.Args[1:]...) //nolint:noctx // it lives as long as the worker
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = c.Dir, c.Env, w, w
	if cmd.Env == nil {
		cmd.Env = Environ()
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	dieWithParent(cmd.SysProcAttr)
	ch := &Child{name: filepath.Base(path), cmd: cmd, out: newOutput(r, c.Log), done: make(chan struct{})}
	started := make(chan error, 1)
	go ch.run(started)
	if err := <-started; err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start server %s: %w", ch.name, err)
	}
	return ch, nil
}

// run owns the process from its start to its end. It locks its goroutine to a thread, because the
// kernel kills the server when the thread that started it exits.
func (c *Child) run(started chan<- error) {
	unlock := keepThread()
	defer unlock()
	if err := c.cmd.Start(); err != nil {
		started <- err
		return
	}
	var read sync.WaitGroup
	read.Go(c.out.read)
	started <- nil
	err := c.collect()
	_ = c.out.r.SetReadDeadline(time.Now().Add(drainTime)) // a pipe always has deadlines
	read.Wait()
	_ = c.out.r.Close()
	c.mu.Lock()
	c.how = exitText(c.cmd.ProcessState, err)
	c.mu.Unlock()
	close(c.done)
}

// noMore records that the process id may be reused from now on.
func (c *Child) noMore() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reaped = true
}

func exitText(st *os.ProcessState, err error) string {
	if st == nil {
		return err.Error()
	}
	if ws, ok := st.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return "signal " + ws.Signal().String()
	}
	return fmt.Sprintf("exit code %d", st.ExitCode())
}

// PID returns the server's process id, which is also its group's id.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Done returns a channel that is closed once the server has exited and its output is read.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err returns how the server ended, with its last lines. It is nil while the server runs, and if
// End ended it.
func (c *Child) Err() error {
	select {
	case <-c.done:
	default:
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.asked {
		return nil
	}
	text := fmt.Sprintf("the server %s ended by itself (%s)", c.name, c.how)
	if last := c.out.tail(); len(last) > 0 {
		text += "; its last words:\n  " + strings.Join(last, "\n  ")
	}
	return errors.New(text)
}

// LastWords returns the server's last output lines, oldest first, at most TailLines.
func (c *Child) LastWords() []string { return c.out.tail() }

// End terminates the server and waits for it to exit. It sends SIGTERM at once and again after half
// of the grace, as some servers miss the first, then SIGKILL to the whole group. It kills at once
// if the grace is 0 or when ctx ends. It may be called more than once.
func (c *Child) End(ctx context.Context, grace time.Duration) {
	c.mu.Lock()
	c.asked = true
	c.mu.Unlock()
	for range 2 {
		if grace <= 0 {
			break
		}
		c.signal(syscall.SIGTERM)
		if c.wait(ctx, grace/2) {
			return
		}
	}
	c.killGroup()
	<-c.done
}

func (c *Child) wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-c.done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}

func (c *Child) signal(s syscall.Signal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		_ = syscall.Kill(c.cmd.Process.Pid, s) // the process may have exited already
	}
}

func (c *Child) killGroup() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // likewise
	}
}

// Environ returns this process's environment without the variables that a plugin host sets for the
// plugin itself. The host has already picked the rest by an allow-list: see env of the plugin's
// block. The variables by which a host finds the processes of a worker stay.
func Environ() []string {
	var out []string
	for _, e := range os.Environ() {
		name, _, _ := strings.Cut(e, "=")
		if strings.HasPrefix(name, "RBEE_PLUGIN") || strings.HasPrefix(name, "PLUGIN_") && name != "PLUGIN_UNIX_SOCKET_DIR" {
			continue
		}
		out = append(out, e)
	}
	return out
}

// FreePort returns a loopback port on which nothing listens at the moment.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
