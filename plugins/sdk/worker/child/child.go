// Package child runs a server beside a worker: a program that answers HTTP on this machine and
// lives no longer than the worker does.
//
// The program runs in a process group of its own. It ends with End, and on Linux also when this
// process dies. Whatever it leaves in its group is killed. A server that ends by itself is not
// started again: the worker fails, with the server's last words.
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

// Command says what to run.
type Command struct {
	// Args are the program and its arguments. A program without a slash is looked up in this
	// process's PATH.
	Args []string
	Env  []string // the whole environment; nil: Environ()
	Dir  string   // working folder; empty: this process's
	// Log is called with each line of the server's output, cut to MaxLineBytes, by one goroutine.
	// Lines beyond the rate that package-level limits allow are counted and left out. nil: nothing
	// is logged.
	Log func(line string)
}

// Child is a running server. It is safe for concurrent use.
type Child struct {
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{}

	mu     sync.Mutex // guards below
	reaped bool       // the process id may belong to somebody else
	how    string     // how it ended
	asked  bool       // End or Kill was called
}

// Start starts the server. It returns when the program runs, which says nothing about whether it
// answers. The caller must call End.
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

// run owns the process from its start to its end. The kernel ends the server when the thread that
// started it ends, so that this goroutine keeps its thread.
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

// noMore says that the process id may belong to somebody else from now on.
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

// PID returns the server's process id, which is its group's as well.
func (c *Child) PID() int { return c.cmd.Process.Pid }

// Done returns a channel that is closed when the server is gone and its output is read.
func (c *Child) Done() <-chan struct{} { return c.done }

// Err says how the server ended, with its last words; nil while it runs, and when End ended it.
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

// LastWords returns the last lines that the server wrote, oldest first, at most TailLines.
func (c *Child) LastWords() []string { return c.out.tail() }

// End ends the server and returns when it is gone: SIGTERM at once and again after half of the
// grace, as some servers lose the first, then SIGKILL to the whole group. A grace of 0 kills at
// once, as does the end of ctx. It may be called more than once.
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
		_ = syscall.Kill(c.cmd.Process.Pid, s) // it may have ended meanwhile
	}
}

func (c *Child) killGroup() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.reaped {
		_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // likewise
	}
}

// Environ returns this process's environment without what a host of plugins sets for the plugin
// itself. The host has picked it from its own by an allow-list, see env of the plugin's block. The
// variables by which a host finds the processes of a worker stay.
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

// FreePort returns a port of the loopback address that nobody listens on at the moment.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}
