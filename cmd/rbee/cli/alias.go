package cli

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/operation"
)

func aliasCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "alias",
		Aliases: []string{"aliases"},
		Short:   "Names of your own for models",
		Long:    `Names of your own for models, such as the one that a program insists on. The whole cluster knows them, and every API takes them.`,
	}
	set := &cobra.Command{
		Use:     "set NAME MODEL",
		Short:   "Name a model, or give the name to another one",
		Example: "  rbee alias set gpt-4o-mini rbee-tiny\n  rbee alias set chat bartowski/Llama-3.2-1B-Instruct-GGUF:Q4_K_M",
		Args:    exactly("NAME", "MODEL"),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
			switch len(args) {
			case 0:
				return a.names(aliasNames)(cmd, args, prefix)
			case 1:
				return a.names(modelIDs)(cmd, args, prefix)
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
	}
	set.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		return changeAlias(ctx, a, c, core.Request{Operation: core.OpAliasSet, Name: args[0], Model: args[1]}, "%s is %s now.\n")
	})
	show := &cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the names", Args: exactly()}
	show.RunE = a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
		aliases, err := operation.AliasList.Ask(ctx, c, core.Request{})
		if err != nil {
			return err
		}
		slices.SortFunc(aliases, func(x, y core.Alias) int { return strings.Compare(x.Name, y.Name) })
		t := term.NewTable("No names yet. \"rbee alias set NAME MODEL\" makes one.", "NAME", "MODEL")
		for _, x := range aliases {
			t.Add(x.Name, x.Model)
		}
		return a.show(list(aliases), t.Write)
	})
	remove := &cobra.Command{
		Use: "remove NAME", Aliases: []string{"rm"}, Short: "Take a name away; the model stays", Args: exactly("NAME"),
		ValidArgsFunction: first(a.names(aliasNames)),
	}
	remove.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		return changeAlias(ctx, a, c, core.Request{Operation: core.OpAliasRemove, Name: args[0]}, "%s is no longer an alias of %s.\n")
	})
	cmd.AddCommand(set, show, remove)
	return cmd
}

// changeAlias runs an operation on an alias and reports it, in a format for name and model.
func changeAlias(ctx context.Context, a *app, c *client.Client, r core.Request, format string) error {
	job, err := a.runJob(ctx, c, r)
	if err != nil {
		return err
	}
	alias, err := client.Result[core.Alias](job)
	if err != nil {
		return err
	}
	return a.show(alias, func(w io.Writer) error {
		_, err := fmt.Fprintf(w, format, term.Line(alias.Name), term.Line(alias.Model))
		return err
	})
}

func aliasNames(ctx context.Context, c *client.Client) ([]string, error) {
	aliases, err := operation.AliasList.Ask(ctx, c, core.Request{})
	var names []string
	for _, x := range aliases {
		names = append(names, x.Name)
	}
	return names, err
}
