package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func storeCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "store",
		Short: "What a hive has on its disk: verify it, clean it up",
	}
	cmd.AddCommand(storeVerifyCommand(a), storeGCCommand(a))
	return cmd
}

func storeVerifyCommand(a *app) *cobra.Command {
	var hive string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Read all models and worker binaries of a hive and compare their digests",
		Long: `Read all models and worker binaries of a hive and compare their digests. What is damaged is named, is not used any more, and is replaced when
it is downloaded again. The exit code is 1 if anything is damaged.`,
		Args: exactly(),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
		job, err := a.runJob(ctx, c, core.Request{Operation: core.OpStoreVerify, Hive: hive})
		if err != nil {
			return err
		}
		r, err := client.Result[core.StoreVerifyResult](job)
		if err != nil {
			return err
		}
		err = a.show(r, func(w io.Writer) error {
			if len(r.Damaged) == 0 {
				_, err := fmt.Fprintf(w, "All is well: models %d, worker binaries %d, %s read.\n", r.Models, r.Binaries, term.Size(r.CheckedBytes))
				return err
			}
			return itemTable(r.Damaged).Write(w)
		})
		if err == nil && len(r.Damaged) > 0 {
			err = core.Errorf(core.Integrity, "verify the store: %s damaged", damagedCount(len(r.Damaged))).Hint("Download them again: what is damaged is replaced.")
		}
		return err
	})
	a.hiveFlag(cmd, &hive, "", "`HIVE` whose store is read (default: the only one)")
	return cmd
}

func storeGCCommand(a *app) *cobra.Command {
	var (
		hive        string
		yes, dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Remove what nobody needs from the disk of a hive",
		Long: `Remove from the disk of a hive what nobody needs: files that belong to no model, downloads that were given up a day ago or more, files that did not have
their announced digest, and worker binaries that a later one has replaced. What is in use stays.`,
		Args: exactly(),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
		request := core.Request{Operation: core.OpStoreGC, Hive: hive, DryRun: dryRun}
		if !dryRun {
			if err := a.confirm(ctx, yes, "Remove what nobody needs from the store? --dry-run lists it."); err != nil {
				return err
			}
		}
		job, err := a.runJob(ctx, c, request)
		if err != nil {
			return err
		}
		r, err := client.Result[core.StoreGCResult](job)
		if err != nil {
			return err
		}
		return a.show(r, func(w io.Writer) error {
			if len(r.Removed) == 0 {
				_, err := fmt.Fprintln(w, "There is nothing to remove.")
				return err
			}
			if err := itemTable(r.Removed).Write(w); err != nil {
				return err
			}
			text := "%s freed.\n"
			if r.DryRun {
				text = "%s would be freed.\n"
			}
			_, err := fmt.Fprintf(w, text, term.Size(r.FreedBytes))
			return err
		})
	})
	a.hiveFlag(cmd, &hive, "", "`HIVE` whose store is cleaned up (default: the only one)")
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

func itemTable(items []core.StoreItem) *term.Table {
	t := term.NewTable("", "KIND", "NAME", "SIZE", "WHY")
	for _, i := range items {
		t.Add(string(i.Kind), i.Name, term.Bytes(i.SizeBytes), i.Reason)
	}
	return t
}

func damagedCount(n int) string {
	if n == 1 {
		return "1 entry is"
	}
	return fmt.Sprintf("%d entries are", n)
}
