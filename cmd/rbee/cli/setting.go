package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/operation"
)

func settingCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "setting",
		Aliases: []string{"settings"},
		Short:   "Settings that all queens share",
	}
	cmd.AddCommand(settingListCommand(a), settingSetCommand(a), settingResetCommand(a))
	return cmd
}

func settingListCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the settings that all queens share",
		Long:    `List the settings that all queens share. They are in the registry; what one machine's agent does is in its configuration ("rbee config show").`,
		Args:    exactly(),
	}, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		settings, err := operation.SettingList.Ask(ctx, c.Reading(read...), core.Request{})
		if err != nil {
			return err
		}
		return a.show(list(settings), func(w io.Writer) error {
			t := term.NewTable("There are no settings.", "SETTING", "VALUE", "VALUES", "PROBLEM")
			for _, s := range settings {
				value := s.Value
				if !s.Set {
					value = orElse(s.Value, "-") + " (default)"
				}
				t.Add(s.Name, value, s.Values, s.Problem)
			}
			if err := t.Write(w); err != nil {
				return err
			}
			for _, s := range settings {
				if s.Doc != "" {
					fmt.Fprintf(a.stderr, "%s: %s\n", s.Name, term.Line(s.Doc))
				}
			}
			return nil
		})
	})
}

func settingSetCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "set NAME VALUE",
		Short:             "Set a setting for all queens",
		Example:           "  rbee operator setting set token_grace 30m",
		Args:              exactly("NAME", "VALUE"),
		ValidArgsFunction: first(a.names(settingNames)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		return changeSetting(ctx, a, c, core.Request{Operation: core.OpSettingSet, Setting: args[0], Value: args[1]})
	})
	return cmd
}

func settingResetCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:               "reset NAME",
		Short:             "Return a setting to its default",
		Args:              exactly("NAME"),
		ValidArgsFunction: first(a.names(settingNames)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		return changeSetting(ctx, a, c, core.Request{Operation: core.OpSettingSet, Setting: args[0], Unset: true})
	})
	return cmd
}

func changeSetting(ctx context.Context, a *app, c *client.Client, r core.Request) error {
	job, err := a.runJob(ctx, c, r)
	if err != nil {
		return err
	}
	s, err := client.Result[core.Setting](job)
	if err != nil {
		return err
	}
	return a.show(s, func(w io.Writer) error {
		text := fmt.Sprintf("%s is %q at every queen.", s.Name, s.Value)
		if !s.Set {
			text = fmt.Sprintf("%s is back at its default.", s.Name)
		}
		_, err := fmt.Fprintln(w, term.Line(text))
		return err
	})
}
