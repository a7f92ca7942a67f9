package cli

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func workerUpgradeCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpWorkerUpgrade}
	var deadline time.Duration
	var detach bool
	cmd := &cobra.Command{
		Use:   "upgrade TYPE",
		Short: "Replace the workers of a type by such of its plugin as it is now",
		Long: `Install the plugin of a worker type as it lies in the plugin folder now, start a worker of it for each worker of an earlier one, with the same model and sizes, and retire those once all new ones serve.
Where one does not start, the new ones end and the workers of before go on. Until then both are there: the device needs room for both.`,
		Example:           "  rbee worker upgrade cpu --hive desk",
		Args:              exactly("TYPE"),
		ValidArgsFunction: first(a.names(workerTypes)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		if deadline < 0 {
			return usagef("--deadline must not be negative")
		}
		r.Type, r.Grace = args[0], core.Duration(deadline)
		return a.submit(ctx, c, r, detach, func(job core.Job) error {
			result, err := client.Result[core.UpgradeResult](job)
			if err != nil {
				return err
			}
			return a.show(result, func(w io.Writer) error {
				t := term.NewTable(fmt.Sprintf("Every worker of %s runs %s already.", result.Type, result.Binary), "MODEL", "WORKER", "IN PLACE OF")
				for _, x := range result.Replaced {
					t.Add(x.Model, x.New, x.Old)
				}
				return t.Write(w)
			})
		})
	})
	cmd.Flags().StringVar(&r.Version, "version", "", "`VERSION` of the engine, of its package or of the worker binary (default: the plugin's first choice)")
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "how long running requests of the replaced workers may go on (default: the hive's)")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	a.hiveFlag(cmd, &r.Hive, core.LocalHive, "`HIVE` whose workers are meant")
	return cmd
}
