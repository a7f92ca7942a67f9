package cli

import (
	"context"
	"io"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func workerBuildCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpWorkerBuild}
	var detach bool
	cmd := &cobra.Command{
		Use:   "build SOURCE",
		Short: "Build a worker type on a hive from Go source, test it and install it",
		Long: `Build a worker plugin with the hive's Go toolchain, run the conformance suite of plugins against it, and install it as a worker type of the hive.
SOURCE is a folder on the hive's machine with a package main, or a package and a version: example.org/bee/cmd/worker@v1.2.3.
A hive builds nothing unless its configuration allows it: hive { build { enabled = true } }.`,
		Example: "  rbee worker build ./my-worker\n  rbee worker build example.org/bee/cmd/worker@v1.2.3 --type bee --hive desk",
		Args:    exactly("SOURCE"),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		r.Source = args[0]
		if !strings.Contains(r.Source, "@") || strings.HasPrefix(r.Source, ".") {
			abs, err := filepath.Abs(r.Source)
			if err != nil {
				return core.WithKind(err, core.Invalid)
			}
			r.Source = abs
		}
		return a.submit(ctx, c, r, detach, func(job core.Job) error {
			b, err := client.Result[core.WorkerBinary](job)
			if err != nil {
				return err
			}
			return a.show(b, func(w io.Writer) error { return writeBinary(a, w, b) })
		})
	})
	cmd.Flags().StringVar(&r.Type, "type", "", "worker `TYPE` to install it as (default: what the plugin calls itself)")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	a.hiveFlag(cmd, &r.Hive, core.LocalHive, "`HIVE` to build it on")
	return cmd
}
