package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func (a *app) hiveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "hive",
		Aliases: []string{"hives"},
		Short:   "Hives: the machines that run workers",
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "list",
			Aliases: []string{"ls"},
			Short:   "List the hives",
			Args:    exactly(),
			RunE: a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
				hives, err := c.Hives(ctx)
				if err != nil {
					return err
				}
				workers, err := c.Workers(ctx)
				if err != nil {
					return err
				}
				sortHives(hives)
				return a.show(list(hives), a.hiveTable(hives, workers).write)
			}),
		},
		&cobra.Command{
			Use:               "get HIVE",
			Aliases:           []string{"show"},
			Short:             "Show a hive with its devices",
			Long:              "Show a hive with its devices. \"localhost\" is the hive of the queen that is asked.",
			Args:              exactly("HIVE"),
			ValidArgsFunction: first(a.names(hiveNames)),
			RunE: a.asking(func(ctx context.Context, c *client.Client, args []string) error {
				h, err := c.Hive(ctx, args[0])
				if err != nil {
					return err
				}
				return a.show(h, a.hiveFacts(h).write)
			}),
		},
	)
	return cmd
}

func sortHives(hives []core.Hive) {
	slices.SortFunc(hives, func(x, y core.Hive) int { return strings.Compare(x.Name+"\x00"+x.ID, y.Name+"\x00"+y.ID) })
}

func (a *app) hiveTable(hives []core.Hive, workers []core.Worker) *table {
	t := newTable("No hives.", "NAME", "STATUS", "DEVICES", "WORKERS", "OS/ARCH", "VERSION", "LAST BEAT", "ID")
	for _, h := range hives {
		n := 0
		for _, w := range workers {
			if w.Hive == h.ID {
				n++
			}
		}
		t.add(h.Name, string(h.Status), deviceText(h.Devices), fmt.Sprint(n), h.OS+"/"+h.Arch, h.Version, a.ago(h.LastBeat), h.ID)
	}
	return t
}

func (a *app) hiveFacts(h core.Hive) *facts {
	f := &facts{}
	f.add("Name", h.Name)
	f.add("ID", h.ID)
	f.add("Status", string(h.Status))
	f.add("Last beat", a.ago(h.LastBeat))
	f.add("Version", h.Version)
	f.add("System", h.OS+"/"+h.Arch)
	f.add("Worker types", strings.Join(h.WorkerTypes, ", "))
	f.add("Devices", deviceLines(h.Devices))
	f.addf("Incarnation", "%d", h.Incarnation)
	f.addf("Indexes", "created at %d, changed at %d", h.CreateIndex, h.ModifyIndex)
	return f
}

func (a *app) catalogCommand() *cobra.Command {
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
		t := newTable("Nothing found.", "REF", "KIND", "NAME", "SIZE", "LICENCE", "SUMMARY")
		for _, i := range items {
			t.add(i.Ref, i.Kind, i.Name, bytesText(i.SizeBytes), i.License, shorten(i.Summary, 60))
		}
		return a.show(list(items), t.write)
	})
	search.Flags().StringVar(&q.Kind, "kind", "", "only `model|engine`")
	search.Flags().IntVar(&q.Limit, "limit", 0, "at most this many of each source (default: the queen's)")
	a.hiveFlag(search, &hive, core.LocalHive, "`HIVE` whose sources are asked")
	cmd.AddCommand(search)
	return cmd
}
