package cli

import (
	"context"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func catalogCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{Use: "catalog", Short: "Catalog sources: what can be fetched"}
	var (
		hive string
		q    client.CatalogQuery
	)
	search := &cobra.Command{
		Use:   "search [TEXT]",
		Short: "Search the catalog sources of a hive",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageHint("Put several words in quotes.", "one argument too many: %q", args[1])
			}
			return nil
		},
	}
	search.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		q.Text = strings.Join(args, "")
		items, err := c.Catalog(ctx, hive, q)
		if err != nil {
			return err
		}
		slices.SortFunc(items, func(x, y core.CatalogItem) int { return strings.Compare(x.Ref, y.Ref) })
		t := term.NewTable("Nothing found.", "REF", "KIND", "NAME", "SIZE", "LICENCE", "SUMMARY")
		for _, i := range items {
			t.Add(i.Ref, i.Kind, i.Name, term.Bytes(i.SizeBytes), i.License, shorten(i.Summary, 60))
		}
		return a.show(list(items), t.Write)
	})
	search.Flags().StringVar(&q.Kind, "kind", "", "only `model|engine`")
	search.Flags().IntVar(&q.Limit, "limit", 0, "at most this many of each source (default: the queen's)")
	a.hiveFlag(search, &hive, core.LocalHive, "`HIVE` whose sources are asked")
	cmd.AddCommand(search)
	return cmd
}
