package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/hcl/v2"
	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/pluginhost"
)

func configCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "config", Short: "Check and show configurations"}
	cmd.AddCommand(configValidateCommand(a), configShowCommand(a))
	return cmd
}

// diagnosticJSON is one diagnostic as JSON.
type diagnosticJSON struct {
	Severity string `json:"severity"` // "error" or "warning"
	Summary  string `json:"summary"`
	Detail   string `json:"detail,omitempty"`
	File     string `json:"file,omitempty"`
	Line     int    `json:"line,omitempty"`
	Column   int    `json:"column,omitempty"`
}

func diagnosticsJSON(list hcl.Diagnostics) []diagnosticJSON {
	out := []diagnosticJSON{}
	for _, d := range list {
		j := diagnosticJSON{Severity: "error", Summary: d.Summary, Detail: d.Detail}
		if d.Severity == hcl.DiagWarning {
			j.Severity = "warning"
		}
		if d.Subject != nil {
			j.File, j.Line, j.Column = d.Subject.Filename, d.Subject.Start.Line, d.Subject.Start.Column
		}
		out = append(out, j)
	}
	return out
}

func configValidateCommand(a *app) *cobra.Command {
	var (
		source    configSource
		noPlugins bool
	)
	cmd := &cobra.Command{
		Use:   "validate FILE|FOLDER...",
		Short: "Check a configuration, plugins' blocks included",
		Long: `Check a configuration as an agent on this machine would when it starts with it: files that it names, this machine's place in its
cluster, and addresses included. Every plugin that has a block is started for a moment and judges its own configuration.
What is wrong is shown with its source lines on stderr. Exit code 1 when there are errors; warnings are none.`,
		Example: "  rbee config validate /etc/rbee.d",
		Args:    cobra.ArbitraryArgs,
		RunE: do(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			source.paths = append(source.paths, args...)
			if len(source.paths) == 0 && !source.dev {
				return usagef("FILE|FOLDER is missing: %s FILE|FOLDER...", cmd.CommandPath())
			}
			cfg, diags := source.load(a, cmd, "/nonexistent")
			if cfg != nil {
				var plugins *pluginhost.Host
				if !noPlugins {
					walls, err := agent.PluginWalls(cfg, a.getenv("HOME"))
					if err != nil {
						return err
					}
					plugins = newPluginHost(a, cfg.PluginDir, walls)
				}
				diags.Append(agent.Check(ctx, cfg, plugins).List)
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			if a.wantJSON() {
				if err := writeJSON(a.stdout, map[string]any{"valid": !diags.HasErrors(), "diagnostics": diagnosticsJSON(diags.List)}); err != nil {
					return err
				}
			} else {
				if err := writeDiagnostics(a, diags); err != nil {
					return err
				}
				if !diags.HasErrors() {
					fmt.Fprintln(a.stdout, "The configuration is valid.")
				}
			}
			if diags.HasErrors() {
				return errShown
			}
			return nil
		}),
	}
	source.flags(cmd)
	cmd.Flags().BoolVar(&noPlugins, "no-plugins", false, "do not start plugins: leave their config blocks unchecked")
	return cmd
}

// settingJSON is one setting as JSON.
type settingJSON struct {
	Name   string `json:"name"`
	Value  any    `json:"value"`
	Source string `json:"source"`          // "default", "file", "env" or "flag"
	Where  string `json:"where,omitempty"` // file:line, or the variable or flag
}

// pluginBlockJSON is one worker or catalog block. Its config is not shown: it may contain secrets.
type pluginBlockJSON struct {
	Kind       string `json:"kind"`
	Label      string `json:"label"`
	Executable string `json:"executable"`
	Where      string `json:"where,omitempty"`
}

func configShowCommand(a *app) *cobra.Command {
	var source configSource
	cmd := &cobra.Command{
		Use:   "show [FILE|FOLDER...]",
		Short: "Show every setting with where it comes from",
		Long:  "Show every setting as an agent with these files, flags and this environment has it. The contents of plugins' config blocks are not shown.",
		Args:  cobra.ArbitraryArgs,
		RunE: do(func(_ context.Context, cmd *cobra.Command, args []string) error {
			source.paths = append(source.paths, args...)
			cfg, diags := source.load(a, cmd, "/a temporary folder")
			if err := writeDiagnostics(a, diags); err != nil {
				return err
			}
			if diags.HasErrors() {
				return errShown
			}
			settings, blocks := describeConfig(cfg)
			return a.show(map[string]any{"settings": settings, "plugins": blocks}, func(w io.Writer) error {
				t := term.NewTable("", "SETTING", "VALUE", "FROM")
				for _, s := range settings {
					t.Add(s.Name, fmt.Sprint(s.Value), orElse(s.Where, s.Source))
				}
				for _, b := range blocks {
					t.Add(fmt.Sprintf("%s %q", b.Kind, b.Label), b.Executable, orElse(b.Where, "default"))
				}
				return t.Write(w)
			})
		}),
	}
	source.flags(cmd)
	return cmd
}

func describeConfig(cfg *config.Config) ([]settingJSON, []pluginBlockJSON) {
	settings := []settingJSON{}
	for _, s := range cfg.Settings() {
		j := settingJSON{Name: s.Name, Value: s.Value, Source: string(s.Origin.Source), Where: s.Origin.Name}
		if d, ok := s.Value.(time.Duration); ok {
			j.Value = d.String()
		}
		if s.Origin.Range.Filename != "" {
			j.Where = fmt.Sprintf("%s:%d", s.Origin.Range.Filename, s.Origin.Range.Start.Line)
		}
		settings = append(settings, j)
	}
	blocks := []pluginBlockJSON{}
	for _, list := range [][]config.Plugin{cfg.Workers, cfg.Catalogs} {
		for _, p := range list {
			b := pluginBlockJSON{Kind: p.Kind, Label: p.Label, Executable: p.Executable}
			if p.Range.Filename != "" {
				b.Where = fmt.Sprintf("%s:%d", p.Range.Filename, p.Range.Start.Line)
			}
			blocks = append(blocks, b)
		}
	}
	return settings, blocks
}

// newPluginHost returns a host for the plugins of a folder, for commands that start them briefly.
// Zero walls do not isolate.
func newPluginHost(a *app, dir string, walls pluginhost.Walls) *pluginhost.Host {
	return pluginhost.New(pluginhost.Options{PluginDir: dir, Logger: hclog.NewNullLogger(), Walls: walls})
}
