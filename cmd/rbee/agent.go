package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/config"
)

// settingFlags are the flags of "rbee agent" and "rbee config" that stand for a setting of the configuration.
var settingFlags = [...]struct{ flag, setting, usage string }{
	{"data-dir", "data_dir", "`FOLDER` for the state of the agent"},
	{"store-dir", "store_dir", "`FOLDER` for models and worker binaries"},
	{"plugin-dir", "plugin_dir", "`FOLDER` with the plugins (default: plugins, beside this program)"},
	{"bind", "bind.address", "`ADDRESS` to listen on (default: 127.0.0.1)"},
	{"http-port", "bind.http_port", "`PORT` of the HTTP API (default: 7833; 0: any free one)"},
	{"name", "name", "`NAME` of this machine (default: the host's)"},
	{"log-level", "log_level", "`LEVEL` of the log: trace, debug, info, warn or error"},
	{"log-json", "log_json", "`true|false`: log lines as JSON"},
}

// configSource is what the flags say about where the configuration comes from.
type configSource struct {
	dev   bool
	paths []string
}

func (s *configSource) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&s.dev, "dev", false, "queen and hive on loopback; everything but the store in a temporary folder")
	f.StringArrayVar(&s.paths, "config", nil, "`FILE|FOLDER` with the configuration; may be repeated, merged in order")
	for _, x := range settingFlags {
		f.String(x.flag, "", x.usage)
		switch x.setting {
		case "log_level":
			_ = cmd.RegisterFlagCompletionFunc(x.flag, cobra.FixedCompletions([]string{"trace", "debug", "info", "warn", "error"}, cobra.ShellCompDirectiveNoFileComp))
		case "log_json":
			f.Lookup(x.flag).NoOptDefVal = "true"
		}
	}
}

// load reads the configuration. With dev, dataDir is the temporary folder. The configuration is nil when the diagnostics have errors.
func (s *configSource) load(a *app, cmd *cobra.Command, dataDir string) (*config.Config, *config.Diagnostics) {
	var flags []config.Flag
	for _, x := range settingFlags {
		cmd.Flags().Visit(func(f *pflag.Flag) {
			if f.Name == x.flag {
				flags = append(flags, config.Flag{Name: x.setting, Value: f.Value.String()})
			}
		})
	}
	if s.dev {
		return config.Dev(dataDir, a.env, flags...)
	}
	return config.Load(s.paths, a.env, flags...)
}

func (a *app) agentCommand() *cobra.Command {
	var (
		source configSource
		record string
	)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this machine",
		Long: `Run the agent of this machine, queen and hive, until ^C or SIGTERM.

-dev needs no configuration and keeps nothing but the store; its workers end with it. With -config, workers go on when the agent
ends, and the next one takes them over. What is not said in files is taken from RBEE_<SETTING> variables, such as RBEE_BIND_HTTP_PORT;
flags win over both.`,
		Example: "  rbee agent -dev\n  rbee agent -config /etc/rbee.d",
		RunE: a.do(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if !source.dev && len(source.paths) == 0 {
				return usageHint("\"rbee agent -dev\" tries rbee out; \"rbee agent -config FILE\" runs it for good.", "-dev or -config is missing")
			}
			if source.dev && len(source.paths) > 0 {
				return usageHint("-dev needs no configuration; flags change single settings.", "-dev and -config do not go together")
			}
			return a.runAgent(ctx, cmd, &source, record)
		}),
	}
	source.flags(cmd)
	cmd.Flags().StringVar(&record, "record", "", "`FILE` that remembers this agent as the one in the background")
	_ = cmd.Flags().MarkHidden("record")
	cmd.AddCommand(a.agentStopCommand())
	return cmd
}

// runAgent runs the agent until ctx ends, which is no error.
func (a *app) runAgent(ctx context.Context, cmd *cobra.Command, source *configSource, record string) (err error) {
	temp := ""
	if source.dev && !cmd.Flags().Changed("data-dir") {
		if temp, err = os.MkdirTemp("", "rbee-dev-"); err != nil {
			return core.WithHint(core.Errorf("make a temporary folder", core.Internal, "%w", err), "Set TMPDIR to a folder with space, or say -data-dir.")
		}
		defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	}
	cfg, diags := source.load(a, cmd, temp)
	if err := a.writeDiagnostics(diags); err != nil {
		return err
	}
	if diags.HasErrors() {
		return errShown
	}
	if source.dev && record == "" {
		told := context.AfterFunc(ctx, func() { fmt.Fprintln(a.stderr, "Stopping; once more ends it at once.") })
		defer told()
	}
	log := a.agentLogger(cfg)
	ready := func(address string) {
		switch {
		case record != "":
			if err := writeRecord(record, address, thisBuild().Version, a.now()); err != nil {
				log.Error("cannot remember this agent as the one in the background", "error", err)
			}
		case source.dev:
			a.banner(address)
		}
	}
	err = agent.Run(ctx, cfg, agent.Options{Version: thisBuild().Version, Logger: log, Ready: ready})
	if ctx.Err() != nil && (err == nil || core.KindOf(err) == core.Cancelled) {
		if source.dev && record == "" {
			fmt.Fprintln(a.stderr, "The agent has ended.")
		}
		return nil // told to end, and did
	}
	return err
}

func (a *app) agentLogger(cfg *config.Config) hclog.Logger {
	color := hclog.ColorOff
	if v, set := a.env("NO_COLOR"); a.stderrTerminal && (!set || v == "") && !cfg.LogJSON {
		color = hclog.ForceColor
	}
	return hclog.New(&hclog.LoggerOptions{
		Name:       "rbee",
		Level:      hclog.LevelFromString(cfg.LogLevel),
		Output:     a.stderr,
		JSONFormat: cfg.LogJSON,
		Color:      color,
	})
}

// banner says what to do with an agent that was started to try rbee out.
func (a *app) banner(address string) {
	at := ""
	if address != defaultHostPort {
		at = "RBEE_ADDR=" + address + " "
	}
	fmt.Fprintf(a.stderr, `
rbee %s is ready: OpenAI API at http://%s/v1

In another terminal:
  %srbee run rbee-tiny "What is a queen?"
  %srbee status
  %srbee ps

^C ends it and its workers; only the store stays.

`, thisBuild().Version, address, at, at, at)
}

// defaultHostPort is where the command line looks for an agent by itself.
const defaultHostPort = "127.0.0.1:7833"

// writeDiagnostics shows what is wrong with a configuration, with source lines, on stderr.
func (a *app) writeDiagnostics(d *config.Diagnostics) error {
	width := uint(0)
	if a.stderrTerminal {
		width = 100
	}
	v, set := a.env("NO_COLOR")
	return d.Write(a.stderr, width, a.stderrTerminal && (!set || v == ""))
}

func (a *app) agentStopCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "End the agent that was started in the background",
		Long: `End the agent that "rbee infer", "run" or "chat" started in the background, and its workers.
Agents that were started otherwise are ended where they were started.`,
		Args: exactly(),
		RunE: a.do(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			r, err := a.stopBackground(ctx)
			if err != nil {
				return err
			}
			if a.wantJSON() {
				return writeJSON(a.stdout, map[string]any{"stopped": r != nil, "agent": r})
			}
			if r == nil {
				fmt.Fprintln(a.stdout, "No agent runs in the background: nothing to stop.")
				return nil
			}
			fmt.Fprintf(a.stdout, "The agent at %s (process %d) has ended, and its workers with it.\n", r.Address, r.Process.PID)
			return nil
		}),
	}
}
