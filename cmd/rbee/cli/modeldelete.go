package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func rmCommand(a *app) *cobra.Command {
	var (
		hive        string
		yes, dryRun bool
	)
	cmd := &cobra.Command{
		Use:   "rm ID...",
		Short: "Delete models from a hive",
		Long: `Delete models, named by id or alias, from the disk of a hive. Files that another model needs too stay. A model that a worker has loaded, or is
about to load, is not deleted.`,
		Example:           "  rbee rm rbee-tiny --dry-run\n  rbee model delete rbee-tiny --hive desk --yes",
		Args:              atLeast("ID"),
		ValidArgsFunction: a.names(modelIDs),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		targets := make([]modelOn, 0, len(args))
		for _, arg := range args {
			t, err := findModelOn(ctx, c, hive, arg)
			if err != nil {
				return err
			}
			if !slices.Contains(targets, t) {
				targets = append(targets, t)
			}
		}
		if !dryRun {
			if err := a.confirm(ctx, yes, fmt.Sprintf("Delete %s?", describeModels(targets))); err != nil {
				return err
			}
		}
		results := make([]core.ModelDeleteResult, 0, len(targets))
		for _, t := range targets {
			job, err := a.runJob(ctx, c, core.Request{Operation: core.OpModelDelete, Hive: t.hive, Model: t.model, DryRun: dryRun})
			if err != nil {
				return errors.Join(err, showDeleted(a, results))
			}
			result, err := client.Result[core.ModelDeleteResult](job)
			if err != nil {
				return err
			}
			results = append(results, result)
		}
		return showDeleted(a, results)
	})
	a.hiveFlag(cmd, &hive, "", "`HIVE` to delete them from (default: the only one that has it)")
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

func showDeleted(a *app, results []core.ModelDeleteResult) error {
	return a.show(results, func(w io.Writer) error {
		for _, r := range results {
			text := "Deleted"
			if r.DryRun {
				text = "Would delete"
			}
			if _, err := fmt.Fprintf(w, "%s %s: %s in %s.\n", text, term.Line(r.Model), term.Size(r.FreedBytes), term.Plural(len(r.Files), "file")); err != nil {
				return err
			}
		}
		return nil
	})
}

// modelOn is a model on one hive.
type modelOn struct {
	model string // Model.ID
	hive  string // Hive.ID
	name  string // of the hive
	size  int64
}

// findModelOn finds a model by id or alias on the hive, or if none is named on the only one that
// has it.
func findModelOn(ctx context.Context, c *client.Client, hive, name string) (modelOn, error) {
	if hive != "" {
		h, err := c.Hive(ctx, hive)
		if err != nil {
			return modelOn{}, err
		}
		m, err := c.HiveModel(ctx, h.ID, name)
		return modelOn{model: m.ID, hive: h.ID, name: h.Name, size: m.SizeBytes}, err
	}
	m, err := c.Model(ctx, name)
	if err != nil {
		return modelOn{}, err
	}
	hives, err := c.Hives(ctx)
	if err != nil {
		return modelOn{}, err
	}
	if len(m.Hives) == 0 {
		return modelOn{}, core.Errorf(core.NotFound, "model %s is on no hive", m.ID).Hint("\"rbee ls\" lists those that are.")
	}
	names := hiveNamesOf(m.Hives, hives)
	if len(m.Hives) != 1 {
		return modelOn{}, usageHint("Say which one with --hive.", "model %s is on %s: %s", m.ID, term.Plural(len(names), "hive"), strings.Join(names, ", "))
	}
	return modelOn{model: m.ID, hive: m.Hives[0], name: names[0], size: m.SizeBytes}, nil
}

func describeModels(targets []modelOn) string {
	texts := make([]string, 0, len(targets))
	for _, t := range targets {
		texts = append(texts, fmt.Sprintf("%s (%s) from hive %s", t.model, term.Size(t.size), t.name))
	}
	return strings.Join(texts, " and ")
}
