package sdktest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	goplugin "github.com/hashicorp/go-plugin"
	"github.com/hashicorp/go-plugin/runner"

	"github.com/rbee-project/rbee/plugins/sdk"
)

// process runs an executable for go-plugin, with a private folder and a standard error that tests
// can close.
type process struct {
	t    testing.TB
	cmd  *exec.Cmd
	dir  string
	done chan struct{}

	stdout, stderr *os.File // the host's ends
	tether         *os.File
	logs           sync.WaitGroup

	mu     sync.Mutex // guards below
	behind []byte     // beginning of the output after the first line
	lines  bool       // the first line is complete
}

var _ runner.Runner = (*process)(nil)

func newProcess(t testing.TB, path string, env []string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(path), dir: privateDir(t), done: make(chan struct{})}
	for _, name := range []string{"PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH"} {
		if v, ok := os.LookupEnv(name); ok {
			p.cmd.Env = append(p.cmd.Env, name+"="+v)
		}
	}
	p.cmd.Env = append(p.cmd.Env, sdk.EnvTether+"=1", sdk.EnvLogLevel+"=debug")
	p.cmd.Env = append(p.cmd.Env, env...)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	return p
}

func (p *process) runner(_ hclog.Logger, set *exec.Cmd, tempDir string) (runner.Runner, error) {
	_ = os.Remove(tempDir) // go-plugin's folder; ours is private and its path shorter
	p.cmd.Env = append(append(p.cmd.Env, set.Env...), goplugin.EnvUnixSocketDir+"="+p.dir)
	return p, nil
}

// Start starts the process.
func (p *process) Start(context.Context) error {
	var ends [3]*os.File // the child's ends
	defer func() {
		for _, f := range ends {
			if f != nil {
				_ = f.Close()
			}
		}
	}()
	var err error
	if ends[0], p.tether, err = os.Pipe(); err != nil {
		return err
	}
	if p.stdout, ends[1], err = os.Pipe(); err != nil {
		return err
	}
	if p.stderr, ends[2], err = os.Pipe(); err != nil {
		return err
	}
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = ends[0], ends[1], ends[2]
	if err := p.cmd.Start(); err != nil {
		close(p.done)
		return err
	}
	p.logs.Go(func() {
		lines := bufio.NewScanner(p.stderr)
		for lines.Scan() {
			fmt.Fprintln(p.t.Output(), lines.Text())
		}
	})
	go func() {
		_ = p.cmd.Wait() // tests check the effects of its exit
		_ = p.stderr.SetReadDeadline(time.Now().Add(time.Second))
		p.logs.Wait()
		close(p.done)
	}()
	return nil
}

// breakStderr closes the host's end of the plugin's standard error, as the death of the host would.
func (p *process) breakStderr() {
	_ = p.stderr.Close()
	p.logs.Wait()
}

// end kills the process group and waits for it.
func (p *process) end() {
	if p.cmd.Process == nil {
		return
	}
	select {
	case <-p.done:
	default:
		_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
		<-p.done
	}
	_ = p.tether.Close()
	_ = p.stdout.Close()
}

// Wait waits for the process to exit.
func (p *process) Wait(context.Context) error {
	<-p.done
	return nil
}

// Kill kills the process.
func (p *process) Kill(context.Context) error {
	p.end()
	return nil
}

// Stdout carries the handshake.
func (p *process) Stdout() io.ReadCloser { return tee{p} }

// maxPrinted is how much of the standard output after the handshake line is kept, in bytes.
const maxPrinted = 200

// tee passes standard output on and keeps what follows the handshake line.
type tee struct{ *process }

func (r tee) Read(b []byte) (int, error) {
	n, err := r.stdout.Read(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	rest := b[:n]
	if !r.lines {
		_, rest, r.lines = bytes.Cut(rest, []byte("\n"))
	}
	r.behind = append(r.behind, rest[:min(len(rest), maxPrinted-len(r.behind))]...)
	return n, err
}

func (r tee) Close() error { return r.stdout.Close() }

func (p *process) printed() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return string(p.behind)
}

// breakStdout closes the host's end of the plugin's standard output.
func (p *process) breakStdout() { _ = p.stdout.Close() }

// untether closes the plugin's standard input.
func (p *process) untether() { _ = p.tether.Close() }

// Stderr returns an empty reader for go-plugin: the output goes to the test's log.
func (p *process) Stderr() io.ReadCloser { return io.NopCloser(strings.NewReader("")) }

// Name returns the process's name for messages.
func (p *process) Name() string { return p.cmd.Path }

// ID returns the process id.
func (p *process) ID() string { return fmt.Sprint(p.cmd.Process.Pid) }

// Diagnose adds nothing: the plugin's output is in the test's log.
func (p *process) Diagnose(context.Context) string { return "what it said is in the log above" }

// PluginToHost returns the address unchanged.
func (p *process) PluginToHost(network, address string) (hostNetwork, hostAddress string, err error) {
	return network, address, nil
}

// HostToPlugin returns the address unchanged.
func (p *process) HostToPlugin(network, address string) (pluginNetwork, pluginAddress string, err error) {
	return network, address, nil
}
