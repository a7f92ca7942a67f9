package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/core/plugintest"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// suiteCommandName is the hidden command that runs the conformance suite in its own process.
const suiteCommandName = "run-suite"

// suiteCommand returns the command that core/plugintest starts: this program once more.
func suiteCommand() ([]string, error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, core.Wrap(err, core.Internal, "find this program")
	}
	return []string{exe, "plugin", suiteCommandName}, nil
}

func pluginSuiteCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: suiteCommandName, Hidden: true, Short: "Run the conformance suite that is described on standard input", Args: exactly()}
	cmd.RunE = do(func(context.Context, *cobra.Command, []string) error {
		plugintest.Child() // ends the process
		return nil
	})
	return cmd
}

func pluginTestCommand(a *app) *cobra.Command {
	var (
		source  configSource
		o       plugintest.Options
		kind    string
		config  string
		timeout time.Duration
	)
	cmd := &cobra.Command{
		Use:   "test PATH|PLUGIN",
		Short: "Run the conformance suite against a plugin",
		Long: `Run the conformance suite of plugins against an executable: what a hive relies on. PATH is a file or a plugin's folder; PLUGIN is worker/NAME, catalog/NAME, or NAME where
that is enough. The plugin is configured with its schema's defaults and what --plugin-config says. A worker type that needs an engine is started with a model only when --engine-dir and --model say where they are; what needs that is
skipped otherwise. A catalog source is asked for something only when --ref names a small thing that it has.`,
		Example: "  rbee plugin test ./rbee-worker-mine\n  rbee plugin test worker/cpu --engine-dir ~/.cache/rbee/workers/cpu/…/engine --model tiny.gguf\n  rbee plugin test catalog/builtin --ref rbee-tiny",
		Args:    exactly("PATH|PLUGIN"),
	}
	cmd.RunE = do(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		if timeout < 0 {
			return usagef("--timeout must not be negative")
		}
		host, _, err := hostOf(a, &source, cmd)
		if err != nil {
			return err
		}
		if err := findPluginToTest(host, &o, args[0], kind); err != nil {
			return err
		}
		for _, path := range []*string{&o.Executable, &o.EngineDir, &o.ModelPath} {
			if *path == "" {
				continue
			}
			abs, err := filepath.Abs(*path)
			if err == nil {
				_, err = os.Stat(abs)
			}
			if err != nil {
				return core.WithKind(err, core.NotFound)
			}
			*path = abs
		}
		if o.Config, err = pluginConfig(config); err != nil {
			return err
		}
		if err := canStart(ctx, a, host, &o); err != nil {
			return err
		}
		if o.Self, err = suiteCommand(); err != nil {
			return err
		}
		dir, err := os.MkdirTemp("", "rbee-test-")
		if err != nil {
			return core.Wrap(err, core.Internal, "test plugin")
		}
		defer os.RemoveAll(dir)
		o.Start = func(cmd *exec.Cmd) error {
			return host.StartConfined(cmd, pluginhost.Confined{Name: string(o.Kind) + "-test", Executable: o.Executable, Dir: dir, Read: []string{o.EngineDir, o.ModelPath}})
		}
		if problem := host.Confinement(); problem != "" {
			fmt.Fprintf(a.stderr, "The plugin is not fully confined: %s.\n", term.Line(problem))
		}
		o.Timeout = timeout
		report, err := plugintest.Run(ctx, o, func(r core.TestResult) {
			if !a.wantJSON() {
				fmt.Fprintf(a.stderr, "%-7s  %s\n", r.Outcome, term.Line(r.Name))
			}
		})
		if err != nil {
			return err
		}
		if err := a.show(report, func(w io.Writer) error { return writeReport(w, report) }); err != nil {
			return err
		}
		if !report.Passed {
			return errShown
		}
		return nil
	})
	f := cmd.Flags()
	f.StringVar(&o.EngineDir, "engine-dir", "", "`FOLDER` of the unpacked engine")
	f.StringVar(&o.ModelPath, "model", "", "GGUF `FILE` to start a worker with")
	f.StringVar(&o.Device, "device", "", "`DEVICE` to start a worker on (default: the first it reports)")
	f.StringVar(&config, "plugin-config", "", "settings of the plugin's block as JSON, or a `FILE` of it")
	f.StringVar(&o.Ref, "ref", "", "`REF` of a small thing that a catalog source has")
	f.StringVar(&kind, "kind", "", "`KIND` of a file that is not named rbee-KIND-NAME: worker or catalog")
	f.DurationVar(&timeout, "timeout", 0, "of the whole suite (default: 5m)")
	source.flags(cmd)
	return cmd
}

// maxPluginConfig bounds the settings that are given for a test.
const maxPluginConfig = 1 << 20

// pluginConfig reads settings: a JSON object, or a file with one.
func pluginConfig(arg string) (json.RawMessage, error) {
	if arg == "" {
		return nil, nil
	}
	text := []byte(arg)
	if !strings.HasPrefix(strings.TrimSpace(arg), "{") {
		f, err := os.Open(arg)
		if err != nil {
			return nil, core.WithHint(core.WithKind(err, core.NotFound), "Give a JSON object, such as '{\"url\":\"http://localhost:8080\"}', or a file of one.")
		}
		defer f.Close()
		if text, err = io.ReadAll(io.LimitReader(f, maxPluginConfig)); err != nil {
			return nil, core.Wrap(err, core.Internal, "read settings")
		}
	}
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, core.Errorf(core.Invalid, "the settings of --plugin-config are not a JSON object: %w", err)
	}
	return text, nil
}

// findPluginToTest finds the executable and its kind.
func findPluginToTest(host *pluginhost.Host, o *plugintest.Options, arg, kind string) error {
	if info, err := os.Stat(arg); err == nil && (info.Mode().IsRegular() || info.IsDir()) {
		o.Executable = arg
		if info.IsDir() { // the executable in it has its name
			o.Executable = filepath.Join(arg, filepath.Base(arg))
		}
		for _, k := range []sdk.Kind{sdk.KindWorker, sdk.KindCatalog} {
			if strings.HasPrefix(filepath.Base(arg), "rbee-"+string(k)+"-") || kind == string(k) {
				o.Kind = k
			}
		}
		if o.Kind == "" {
			return usageHint("Say --kind worker or --kind catalog.", "%s is not named rbee-worker-NAME or rbee-catalog-NAME", arg)
		}
		return nil
	}
	if strings.HasPrefix(arg, ".") || filepath.IsAbs(arg) {
		return core.Errorf(core.NotFound, "there is no file %s", arg)
	}
	x, err := findPlugin(host, arg)
	if err != nil {
		return err
	}
	o.Kind, o.Executable = x.Kind, x.Path
	return nil
}

// canStart decides whether to start a worker plugin with a model.
func canStart(ctx context.Context, a *app, host *pluginhost.Host, o *plugintest.Options) error {
	if o.Kind != sdk.KindWorker {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	spec, err := host.FileSpec(o.Kind, "test", o.Executable)
	if err != nil {
		return err
	}
	info, _, err := host.Describe(ctx, spec)
	if err != nil {
		return err
	}
	if info.Engine.Name != "" && (o.EngineDir == "" || o.ModelPath == "") {
		o.NoStart = true
		fmt.Fprintf(a.stderr, "It needs %s: what needs a worker that serves is skipped without --engine-dir and --model.\n", term.Line(info.Engine.Name))
	}
	return nil
}

func writeReport(w io.Writer, report core.PluginReport) error {
	t := term.NewTable("", "RESULT", "TEST", "SECONDS")
	count := map[core.TestOutcome]int{}
	for _, r := range report.Results {
		count[r.Outcome]++
		t.Add(string(r.Outcome), r.Name, fmt.Sprintf("%.2f", r.Seconds))
	}
	err := t.Write(w)
	for _, r := range report.Results {
		if r.Outcome != core.TestFailed {
			continue
		}
		_, lineErr := fmt.Fprintf(w, "\n%s failed:\n", term.Line(r.Name))
		err = errors.Join(err, lineErr)
		for _, rule := range r.Rules {
			_, lineErr := fmt.Fprintf(w, "  %s: %s\n", rule.Name, rule.Text)
			err = errors.Join(err, lineErr)
		}
		for _, line := range r.Output {
			_, lineErr := fmt.Fprintln(w, "  "+term.Line(line))
			err = errors.Join(err, lineErr)
		}
	}
	_, lineErr := fmt.Fprintf(w, "\n%d passed, %d failed, %d skipped.\n", count[core.TestPassed], count[core.TestFailed], count[core.TestSkipped])
	return errors.Join(err, lineErr)
}
