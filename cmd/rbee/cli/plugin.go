package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/pluginhost"
	"github.com/rbee-project/rbee/plugins/sdk"
)

// describeTimeout bounds how long one plugin may take to start and describe itself.
const describeTimeout = 15 * time.Second

func pluginCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "plugin",
		Aliases: []string{"plugins"},
		Short:   "Plugins of this machine: worker types and catalog sources",
	}
	cmd.AddCommand(pluginListCommand(a), pluginSchemaCommand(a), pluginNewCommand(a), pluginTestCommand(a), pluginSuiteCommand(a))
	return cmd
}

// pluginJSON is one plugin as JSON.
type pluginJSON struct {
	pluginhost.Executable
	Version      string   `json:"version"`
	Summary      string   `json:"summary"`
	Capabilities []string `json:"capabilities"`
	Engine       string   `json:"engine,omitempty"` // name and version
	EngineRef    string   `json:"engine_ref,omitempty"`
}

func pluginListCommand(a *app) *cobra.Command {
	var source configSource
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the plugins of this machine",
		Long:    "List the plugins in the plugin folder. Each is started for a moment to say who it is.",
		Args:    exactly(),
	}
	cmd.RunE = do(func(ctx context.Context, cmd *cobra.Command, _ []string) error {
		host, dir, err := hostOf(a, &source, cmd)
		if err != nil {
			return err
		}
		found, err := host.List()
		if err != nil {
			return err
		}
		out := make([]pluginJSON, 0, len(found))
		for _, x := range found {
			p := pluginJSON{Executable: x, Capabilities: []string{}}
			if x.Problem == "" {
				info, _, err := describe(ctx, host, x)
				if err != nil {
					p.Problem = err.Error()
				}
				p.Version, p.Summary, p.Capabilities = info.Version, info.Summary, list(info.Capabilities)
				p.Engine, p.EngineRef = strings.TrimSpace(info.Engine.Name+" "+info.Engine.Version), info.Engine.Ref
			}
			if ctx.Err() != nil {
				return ctx.Err()
			}
			out = append(out, p)
		}
		t := term.NewTable(fmt.Sprintf("No plugins in %s.", dir), "KIND", "NAME", "VERSION", "ENGINE", "SUMMARY", "PATH")
		for _, p := range out {
			summary := p.Summary
			if p.Problem != "" {
				summary = "PROBLEM: " + strings.ReplaceAll(p.Problem, "\n", " ")
			}
			t.Add(string(p.Kind), p.Name, p.Version, p.Engine, summary, p.Path)
		}
		return a.show(out, t.Write)
	})
	source.flags(cmd)
	return cmd
}

// hostOf returns a host of the plugins that an agent with this configuration would find. Without
// -config, it is that of -dev.
func hostOf(a *app, source *configSource, cmd *cobra.Command) (*pluginhost.Host, string, error) {
	source.dev = source.dev || len(source.paths) == 0
	cfg, diags := source.load(a, cmd, "/nonexistent")
	if err := writeDiagnostics(a, diags); err != nil {
		return nil, "", err
	}
	if diags.HasErrors() {
		return nil, "", errShown
	}
	walls, err := agent.PluginWalls(cfg, a.getenv("HOME"))
	if err != nil {
		return nil, "", err
	}
	return newPluginHost(a, cfg.PluginDir, walls), cfg.PluginDir, nil
}

func describe(ctx context.Context, host *pluginhost.Host, x pluginhost.Executable) (sdk.Info, sdk.Schema, error) {
	ctx, cancel := context.WithTimeout(ctx, describeTimeout)
	defer cancel()
	spec, err := host.DefaultSpec(x.Kind, x.Name)
	if err != nil {
		return sdk.Info{}, sdk.Schema{}, err
	}
	return host.Describe(ctx, spec)
}

func pluginSchemaCommand(a *app) *cobra.Command {
	var source configSource
	cmd := &cobra.Command{
		Use:     "schema PLUGIN",
		Short:   "Show what may stand in a plugin's config block",
		Long:    "Show what may stand in a plugin's config block, as a documented block to start from. PLUGIN is worker/NAME, catalog/NAME, or NAME where that is enough.",
		Example: "  rbee plugin schema worker/cpu",
		Args:    exactly("PLUGIN"),
	}
	cmd.RunE = do(func(ctx context.Context, cmd *cobra.Command, args []string) error {
		host, _, err := hostOf(a, &source, cmd)
		if err != nil {
			return err
		}
		x, err := findPlugin(host, args[0])
		if err != nil {
			return err
		}
		info, schema, err := describe(ctx, host, x)
		if err != nil {
			return err
		}
		return a.show(map[string]any{"kind": info.Kind, "name": info.Name, "version": info.Version, "schema": pluginhost.SchemaOf(schema)}, func(w io.Writer) error {
			_, err := fmt.Fprintln(w, strings.TrimRight(pluginhost.SchemaHCL(info, schema), "\n"))
			return err
		})
	})
	source.flags(cmd)
	cmd.ValidArgsFunction = first(func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		var names []string
		if host, _, err := hostOf(a, &source, cmd); err == nil {
			found, _ := host.List()
			for _, x := range found {
				if name := string(x.Kind) + "/" + x.Name; strings.HasPrefix(name, prefix) {
					names = append(names, name)
				}
			}
		}
		return names, cobra.ShellCompDirectiveNoFileComp
	})
	return cmd
}

// findPlugin finds a plugin by kind/name, by the name of its executable, or by a name that only one
// has.
func findPlugin(host *pluginhost.Host, arg string) (pluginhost.Executable, error) {
	if kind, name, ok := strings.Cut(arg, "/"); ok {
		return host.Find(sdk.Kind(kind), name)
	}
	found, err := host.List()
	if err != nil {
		return pluginhost.Executable{}, err
	}
	var matches []pluginhost.Executable
	var names []string
	for _, x := range found {
		if x.Name == arg || string(x.Kind)+"-"+x.Name == strings.TrimPrefix(arg, "rbee-") {
			matches = append(matches, x)
		}
		names = append(names, x.Name)
	}
	switch len(matches) {
	case 1:
		return matches[0], nil
	case 0:
		hint := "\"rbee plugin list\" shows them."
		if n := nearest(arg, names); n != "" {
			hint = fmt.Sprintf("Did you mean %q? %s", n, hint)
		}
		return pluginhost.Executable{}, core.Errorf(core.NotFound, "no plugin %q", arg).Hint("%s", hint)
	}
	return pluginhost.Executable{}, core.Errorf(core.Invalid, "%d plugins are named %q", len(matches), arg).Hint(
		"Say which: %s/%s or %s/%s.", matches[0].Kind, arg, matches[1].Kind, arg)
}
