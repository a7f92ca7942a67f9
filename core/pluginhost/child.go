package pluginhost

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/go-plugin/runner"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/hostinfo"
)

// child is a process as go-plugin's runner sees it, launched or reattached.
type child struct {
	id       hostinfo.Identity // written under mu during the launch; read without it afterwards
	cmd      *exec.Cmd         // nil if reattached
	user     uint32            // uid that it runs as; 0: this process's
	nonce    string
	tether   *os.File // write end of the child's standard input; nil: not tethered
	stdout   *firstBytes
	logs     *logPump // nil: the child writes to a file
	out      *outputs
	cleanup  func()
	started  bool  // set by Start, and read after go-plugin's Start returned
	startErr error // keeps the error's type, which go-plugin may hide
	released chan struct{}
	release  sync.Once
	done     chan struct{}

	mu     sync.Mutex // guards below
	exit   string
	doomed bool // kill was called, possibly before the process existed
	ended  bool
	onGone func() // called when the process has exited
}

var _ runner.Runner = (*child)(nil)

// outputs holds the standard files of a child.
type outputs struct {
	logFile  string
	tethered bool
	log      hclog.Logger
	start    func(*exec.Cmd) error

	logStart int64 // size of the log file before the launch
}

// launch starts the process, with go-plugin's variables in its environment.
func (c *child) launch(o *outputs) error {
	var childEnds []*os.File
	defer func() {
		for _, f := range childEnds {
			_ = f.Close()
		}
	}()
	outR, outW, err := os.Pipe()
	if err != nil {
		return err
	}
	childEnds = append(childEnds, outW)
	c.cmd.Stdout, c.stdout = outW, &firstBytes{f: outR}
	var ours []*os.File // closed if the process does not start
	ours = append(ours, outR)
	fail := func(err error) error {
		for _, f := range ours {
			_ = f.Close()
		}
		return err
	}
	if o.logFile != "" {
		// The child gets the file itself instead of a pipe: the process, including its C libraries,
		// can write after this one has exited. It appends, since the file may be truncated to bound
		// it.
		f, err := os.OpenFile(o.logFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		if err != nil {
			return fail(err)
		}
		childEnds = append(childEnds, f)
		if info, err := f.Stat(); err == nil {
			o.logStart = info.Size()
		}
		c.cmd.Stderr = f
	} else {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		childEnds, ours = append(childEnds, w), append(ours, r)
		c.cmd.Stderr, c.logs = w, newLogPump(r, o.log)
	}
	if o.tethered {
		r, w, err := os.Pipe()
		if err != nil {
			return fail(err)
		}
		childEnds, ours = append(childEnds, r), append(ours, w)
		c.cmd.Stdin, c.tether = r, w
	}
	if err := o.start(c.cmd); err != nil {
		return fail(err)
	}
	// The pid cannot be reused before the process is reaped, which only watch does.
	id, err := hostinfo.Identify(c.cmd.Process.Pid)
	if err != nil {
		id = hostinfo.Identity{PID: c.cmd.Process.Pid} // it exited at once
	}
	c.mu.Lock()
	c.id = id
	doomed := c.doomed
	c.mu.Unlock()
	if c.logs != nil {
		go c.logs.run()
	}
	go c.watch()
	if doomed {
		return c.kill()
	}
	return nil
}

// watch waits until the process exits, ends what it left behind, reaps it and signals done.
func (c *child) watch() {
	if !waitGone(c.id, c.released) && c.cmd == nil {
		return // detached: others may own it from now on
	}
	if c.cmd != nil {
		if c.id.BootID != "" || c.id.Start != 0 {
			waitGone(c.id, nil)
		}
		// It is not reaped yet, so its pid and process group id are still its own.
		_ = syscall.Kill(-c.id.PID, syscall.SIGKILL)
		err := c.cmd.Wait()
		c.mu.Lock()
		c.exit = exitText(c.cmd.ProcessState, err)
		c.mu.Unlock()
		_ = c.stdout.f.SetReadDeadline(time.Now().Add(time.Second)) // an unrelated process may hold the other end
		if c.logs != nil {
			c.logs.finish(time.Second)
		}
		if c.tether != nil {
			_ = c.tether.Close()
		}
	}
	if c.nonce != "" {
		_, _ = hostinfo.KillMarked(markName+"="+c.nonce, c.user) // descendants that left the group
	}
	if c.cleanup != nil {
		c.cleanup()
	}
	c.mu.Lock()
	c.ended = true
	onGone := c.onGone
	c.mu.Unlock()
	if onGone != nil {
		onGone()
	}
	close(c.done)
}

func exitText(state *os.ProcessState, err error) string {
	if state == nil {
		return fmt.Sprint(err)
	}
	if ws, ok := state.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		return "signal " + ws.Signal().String()
	}
	return fmt.Sprintf("exit code %d", state.ExitCode())
}

// exitSaid returns how the process ended, as far as known.
func (c *child) exitSaid() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.exit
}

func (c *child) gone() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// kill kills the process and its group, if it is still the same process.
func (c *child) kill() error {
	if c.gone() {
		return nil
	}
	// A caller may cancel while the launch is still under way.
	c.mu.Lock()
	id := c.id
	c.doomed = true
	c.mu.Unlock()
	if id.PID == 0 {
		return nil // launch kills it
	}
	p, err := hostinfo.Open(id, c.user)
	if err == nil {
		err = p.KillGroup()
		_ = p.Close()
	}
	if core.KindOf(err) == core.NotFound {
		return nil
	}
	return err
}

// Start, Wait, Kill and the rest implement go-plugin's view of the process.

// Start starts the process.
func (c *child) Start(context.Context) error {
	c.startErr = c.launch(c.out)
	c.started = c.startErr == nil
	return c.startErr
}

// Wait returns when the process has exited.
func (c *child) Wait(ctx context.Context) error {
	select {
	case <-c.done:
	case <-c.released:
	case <-ctx.Done():
	}
	return nil
}

// Kill ends the process and its group.
func (c *child) Kill(context.Context) error { return c.kill() }

// Stdout returns the stream that carries the handshake.
func (c *child) Stdout() io.ReadCloser { return c.stdout }

// Stderr is empty for go-plugin: log lines are read by the pump, or go to a file.
func (c *child) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name returns a name for messages.
func (c *child) Name() string { return "plugin" }

// ID returns the process id.
func (c *child) ID() string { return fmt.Sprint(c.id.PID) }

// Diagnose adds nothing: startError explains failures.
func (c *child) Diagnose(context.Context) string { return "" }

// PluginToHost is the identity: host and plugin see the same files.
func (c *child) PluginToHost(network, address string) (hostNetwork, hostAddress string, err error) {
	return network, address, nil
}

// HostToPlugin is the identity.
func (c *child) HostToPlugin(network, address string) (pluginNetwork, pluginAddress string, err error) {
	return network, address, nil
}
