// Package plugintest runs the conformance suite of plugins (plugins/sdk/sdktest) against an
// executable.
//
// The suite consists of Go tests, which may print anything and end their process when they hang. It
// therefore runs in a separate process, a second instance of this program: Run starts it, and Child
// runs in it.
package plugintest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// Options describe what to test, and how.
type Options struct {
	Self    []string      `json:"-"` // the command that calls Child: this program with arguments
	Timeout time.Duration `json:"-"` // for the whole suite; 0: 5 minutes
	// Start starts the command; nil: the command's own Start.
	Start      func(cmd *exec.Cmd) error `json:"-"`
	Kind       sdk.Kind                  `json:"kind"`       // kind of the plugin
	Executable string                    `json:"executable"` // absolute path
	EngineDir  string                    `json:"engine_dir"` // unpacked engine of a worker plugin; empty: none
	ModelPath  string                    `json:"model_path"` // a GGUF file for a worker plugin; empty: an empty file, with which many cannot start
	Device     string                    `json:"device"`     // for a worker plugin; empty: the first one that it reports
	Config     json.RawMessage           `json:"config"`     // overrides the schema's defaults; empty: only the defaults
	NoStart    bool                      `json:"no_start"`   // do not start a worker plugin with a model; tests that need one are skipped
	Ref        string                    `json:"ref"`        // a small item of a catalog plugin; empty: nothing is resolved or fetched
}

// environment returns the variables that the suite may see: the plugin under test could read all of
// them.
func environment(environ []string) []string {
	var out []string
	for _, e := range environ {
		switch name, _, _ := strings.Cut(e, "="); name {
		case "PATH", "HOME", "TMPDIR", "LANG", "LD_LIBRARY_PATH", "GORACE", "GOCOVERDIR":
			out = append(out, e)
		}
	}
	return out
}

const defaultTimeout = 5 * time.Minute

// Run runs the suite. emit is called with each test as it ends; it may be nil. An error means that
// the suite could not run to its end; failed tests are in the report instead. Errors:
// DeadlineExceeded, ctx's, Internal.
func Run(ctx context.Context, o Options, emit func(core.TestResult)) (core.PluginReport, error) {
	const op = "test plugin"
	if o.Timeout == 0 {
		o.Timeout = defaultTimeout
	}
	spec, err := json.Marshal(o)
	if err != nil {
		return core.PluginReport{}, core.Wrap(err, core.Internal, op)
	}
	bounded, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	cmd := exec.CommandContext(bounded, o.Self[0], o.Self[1:]...)
	cmd.Args[0] = os.Args[0] // a program may depend on the name by which it is called
	cmd.Env = environment(os.Environ())
	// The plugins that it launches have their own process groups, and end when the standard input
	// that the suite holds is closed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = strings.NewReader(string(spec))
	r, w := io.Pipe()
	cmd.Stdout, cmd.Stderr = w, w
	start := o.Start
	if start == nil {
		start = (*exec.Cmd).Start
	}
	if err := start(cmd); err != nil {
		return core.PluginReport{}, core.Wrap(err, core.Internal, op)
	}
	ended := make(chan error, 1)
	go func() {
		err := cmd.Wait()
		_ = w.Close() // ends p.read below
		ended <- err
	}()
	p := parser{emit: emit}
	p.read(r)
	err = <-ended
	report := core.PluginReport{Executable: o.Executable, Results: p.results}
	failed := false
	for _, x := range p.results {
		failed = failed || x.Outcome == core.TestFailed
	}
	switch {
	case ctx.Err() != nil:
		return report, fmt.Errorf("%s: %w", op, core.FromContext(ctx))
	case bounded.Err() != nil:
		return report, core.Errorf(core.DeadlineExceeded, "%s: the suite takes longer than %s", op, o.Timeout).Hint("The plugin hangs in the test %q.", p.running)
	case err != nil && !failed, len(p.results) == 0:
		if err == nil {
			err = errors.New("no test ran")
		}
		return report, core.Errorf(core.Internal, "%s: the suite ended by itself (%w): %s", op, err, strings.Join(p.tail, "; "))
	}
	report.Passed = err == nil
	return report, nil
}
