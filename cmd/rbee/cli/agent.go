package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pki"
	"github.com/rbee-project/rbee/core/token"
)

// settingFlags are the flags of "rbee agent" and "rbee config" that set a setting of the
// configuration.
var settingFlags = [...]struct{ flag, setting, usage string }{
	{"data-dir", "data_dir", "`FOLDER` for the state of the agent"},
	{"store-dir", "store_dir", "`FOLDER` for models and worker binaries"},
	{"plugin-dir", "plugin_dir", "`FOLDER` with the plugins (default: plugins, beside this program)"},
	{"bind", "bind.address", "`ADDRESS` to listen on (default: 127.0.0.1; all of them in a cluster)"},
	{"http-port", "bind.http_port", "`PORT` of the HTTP API (default: 7833; 0: any free one)"},
	{"rpc-port", "bind.rpc_port", "`PORT` of what machines of a cluster say to each other (default: 7834)"},
	{"gossip-port", "bind.gossip_port", "`PORT` of gossip in a cluster (default: 7835)"},
	{"advertise", "bind.advertise", "`HOST`: IP address or name at which the other machines reach this one"},
	{"name", "name", "`NAME` of this machine (default: the host's)"},
	{"log-level", "log_level", "`LEVEL` of the log: trace, debug, info, warn or error"},
	{"log-json", "log_json", "`true|false`: log lines as JSON"},
}

// configSource holds the flags that select where the configuration comes from.
type configSource struct {
	dev       bool
	paths     []string
	queenOnly bool
	hiveOnly  bool
}

func (s *configSource) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.dev, "dev", false, "queen and hive on loopback; everything but the store in a temporary folder")
	s.fileFlags(cmd)
}

// fileFlags adds the flags of commands without -dev.
func (s *configSource) fileFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringArrayVar(&s.paths, "config", nil, "`FILE|FOLDER` with the configuration; may be repeated, merged in order")
	f.BoolVar(&s.queenOnly, "queen-only", false, "this machine is a queen and runs no workers")
	f.BoolVar(&s.hiveOnly, "hive-only", false, "this machine is a hive and no queen")
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

// check reports flags that conflict.
func (s *configSource) check() error {
	switch {
	case s.dev && len(s.paths) > 0:
		return usageHint("-dev needs no configuration; flags change single settings.", "-dev and -config do not go together")
	case s.queenOnly && s.hiveOnly:
		return usageHint("Without either of them this machine is both.", "--queen-only and --hive-only do not go together")
	case s.dev && (s.queenOnly || s.hiveOnly):
		return usageHint("Leave --queen-only and --hive-only out.", "an agent with -dev is queen and hive")
	}
	return nil
}

// load reads the configuration. With dev, dataDir is the temporary folder. The configuration is nil
// when the diagnostics have errors.
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
	if s.queenOnly || s.hiveOnly {
		flags = append(flags, config.Flag{Name: "queen.enabled", Value: strconv.FormatBool(s.queenOnly)}, config.Flag{Name: "hive.enabled", Value: strconv.FormatBool(s.hiveOnly)})
	}
	cfg, diags := config.Load(s.paths, a.env, flags...)
	if cfg == nil || cfg.TLS.Given() {
		return cfg, diags
	}
	// A machine of a cluster keeps the roles it joined with, unless a role is configured
	// explicitly.
	if id, err := pki.Load(cfg.DataDir); err == nil {
		cfg.DefaultRoles(id.Has(core.RoleQueen), id.Has(core.RoleHive))
	}
	return cfg, diags
}

func agentCommand(a *app) *cobra.Command {
	var (
		source       configSource
		record, join string
	)
	cmd := &cobra.Command{
		Use:   "agent",
		Short: "Run the agent of this machine",
		Long: `Run the agent of this machine, queen and hive, until ^C or SIGTERM.

-dev needs no configuration and keeps nothing but the store; its workers end with it. Otherwise workers go on when the agent ends, and
the next one takes them over. What -config does not say is taken from RBEE_<SETTING> variables, such as RBEE_BIND_HTTP_PORT; flags win
over both.

On a machine that is in a cluster no flag is needed: "rbee cluster init" begins a cluster, and -join TOKEN@host joins one first, where
the token is from "rbee token create --type join" and the host is any queen. -join may stay in the file of a service: a machine that has
joined says so and goes on.`,
		Example: "  rbee agent -dev\n  rbee agent -config /etc/rbee.d\n  rbee agent -join TOKEN@10.0.0.1",
		RunE: do(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
			if err := source.check(); err != nil {
				return err
			}
			if source.dev && join != "" {
				return usageHint("An agent in a cluster keeps its files: leave -dev out.", "-dev and -join do not go together")
			}
			if join == "" && !source.dev {
				join = a.getenv("RBEE_JOIN")
			}
			if join != "" {
				if _, _, err := token.ParseJoin(join); err != nil {
					return &usageError{err: err, hint: core.HintOf(err)}
				}
			}
			return runAgent(ctx, a, cmd, &source, join, record)
		}),
	}
	source.flags(cmd)
	cmd.Flags().StringVar(&record, "record", "", "`FILE` that remembers this agent as the one in the background")
	_ = cmd.Flags().MarkHidden("record")
	cmd.Flags().StringVar(&join, "join", "", "`TOKEN@HOST[:PORT]`: join the cluster of that queen first, unless that was done (default: RBEE_JOIN)")
	cmd.AddCommand(agentStopCommand(a))
	return cmd
}

// runAgent runs the agent until ctx ends, which is not an error.
func runAgent(ctx context.Context, a *app, cmd *cobra.Command, source *configSource, join, record string) (err error) {
	temp := ""
	if source.dev && !cmd.Flags().Changed("data-dir") {
		if temp, err = os.MkdirTemp("", "rbee-dev-"); err != nil {
			return core.Errorf(core.Internal, "make a temporary folder: %w", err).Hint("Set TMPDIR to a folder with space, or say -data-dir.")
		}
		defer func() { err = errors.Join(err, os.RemoveAll(temp)) }()
	}
	cfg, diags := source.load(a, cmd, temp)
	if err := writeDiagnostics(a, diags); err != nil {
		return err
	}
	if diags.HasErrors() {
		return errShown
	}
	switch {
	case source.dev:
	case join != "":
		if _, err := joinCluster(ctx, a, cfg, join); err != nil {
			return err
		}
	case len(source.paths) == 0:
		if _, err := pki.Load(cfg.DataDir); core.KindOf(err) == core.NotFound {
			return usageHint("\"rbee agent -dev\" tries rbee out; \"rbee agent -config FILE\" runs it for good; \"rbee cluster init\" begins a cluster, and \"rbee agent -join TOKEN@host\" joins one.",
				"-dev, -config or -join is missing, and this machine is in no cluster (%s)", cfg.DataDir)
		} else if err != nil {
			return err
		}
	}
	if source.dev && record == "" {
		told := context.AfterFunc(ctx, func() { fmt.Fprintln(a.stderr, "Stopping; once more ends it at once.") })
		defer told()
	}
	log := agentLogger(a, cfg)
	ready := func(address string) {
		switch {
		case record != "":
			if err := writeRecord(record, address, a.build.Version, a.now()); err != nil {
				log.Error("cannot remember this agent as the one in the background", "error", err)
			}
		case source.dev:
			writeBanner(a, address)
		}
	}
	suite, err := suiteCommand()
	if err != nil {
		return err
	}
	reload := make(chan struct{}, 1)
	if !source.dev { // a dev agent ends with its terminal
		defer onHangup(a, reload)()
	}
	hurry, told := onSecondSignal(a)
	defer told()
	err = agent.Run(ctx, cfg, agent.Options{
		Reload: reload, Hurry: hurry,
		Load: func() (*config.Config, error) {
			cfg, diags := source.load(a, cmd, temp)
			if err := writeDiagnostics(a, diags); err != nil {
				return nil, err
			}
			return cfg, diags.Err()
		},
		Suite:   suite,
		Version: a.build.Version, Logger: log, NotifySocket: a.getenv("NOTIFY_SOCKET"), Ready: ready,
		SSH: agent.SSH{Home: a.getenv("HOME"), Agent: a.getenv("SSH_AUTH_SOCK")},
	})
	if ctx.Err() != nil && (err == nil || core.KindOf(err) == core.Cancelled) {
		if source.dev && record == "" {
			fmt.Fprintln(a.stderr, "The agent has ended.")
		}
		return nil // an orderly end on request
	}
	return err
}

// onHangup makes SIGHUP fill reload instead of ending the command. stop must be called; it waits
// for the watching goroutine.
func onHangup(a *app, reload chan<- struct{}) (stop func()) {
	if signal.Ignored(syscall.SIGHUP) { // respect nohup
		return func() {}
	}
	hangups := make(chan os.Signal, 1)
	signal.Reset(syscall.SIGHUP)
	signal.Notify(hangups, syscall.SIGHUP)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-hangups:
				select {
				case reload <- struct{}{}:
				default: // a reload is pending already
				}
			}
		}
	}()
	return func() {
		signal.Stop(hangups)
		close(quit)
		<-done
	}
}

// onSecondSignal returns a channel that is closed on the second SIGINT or SIGTERM; a third one has
// its usual effect. stop must be called; it waits for the watching goroutine.
func onSecondSignal(a *app) (hurry <-chan struct{}, stop func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	second, quit, done := make(chan struct{}), make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for range 2 {
			select {
			case <-signals:
			case <-quit:
				return
			}
		}
		signal.Stop(signals)
		close(second)
	}()
	return second, func() {
		signal.Stop(signals)
		close(quit)
		<-done
	}
}

func agentLogger(a *app, cfg *config.Config) hclog.Logger {
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

// writeBanner explains the next steps with an agent that was started to try rbee out.
func writeBanner(a *app, address string) {
	at := ""
	if address != defaultHostPort {
		at = "RBEE_ADDR=http://" + address + " "
	}
	fmt.Fprintf(a.stderr, `
rbee %s is ready: OpenAI API at http://%s/v1

In another terminal:
  %srbee run rbee-tiny "What is a queen?"
  %srbee status
  %srbee ps

^C ends it and its workers; only the store stays.

`, a.build.Version, address, at, at, at)
}

// defaultHostPort is where the command line looks for an agent by default.
const defaultHostPort = "127.0.0.1:7833"

// writeDiagnostics prints the problems of a configuration, with source lines, to stderr.
func writeDiagnostics(a *app, d *config.Diagnostics) error {
	width := uint(0)
	if a.stderrTerminal {
		width = 100
	}
	v, set := a.env("NO_COLOR")
	return d.Write(a.stderr, width, a.stderrTerminal && (!set || v == ""))
}

func agentStopCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "End the agent that was started in the background",
		Long: `End the agent that "rbee infer", "run" or "chat" started in the background, and its workers.
An agent that was started otherwise is ended where it was started: exit code 1 and how, when one runs.`,
		Args: exactly(),
		RunE: do(func(ctx context.Context, _ *cobra.Command, _ []string) error {
			r, err := a.stopBackground(ctx)
			if err != nil {
				return err
			}
			if r == nil {
				if err := a.otherAgent(ctx); err != nil {
					return err
				}
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
