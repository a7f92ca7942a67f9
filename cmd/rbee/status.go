package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

// How much of a long list the one screen shows.
const (
	statusModels = 8
	statusJobs   = 5
	watchEvery   = 2 * time.Second
)

func (a *app) statusCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the cluster on one screen, problems first",
		Args:  exactly(),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
		for {
			s, err := c.Status(ctx)
			switch {
			case err == nil:
				if watch && a.stdoutTerminal && !a.wantJSON() {
					fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
				}
				if err := a.show(s, func(w io.Writer) error { return a.writeStatus(w, s, c.Address()) }); err != nil {
					return err
				}
			case !watch || ctx.Err() != nil || core.KindOf(err) != core.Unavailable:
				return err
			default:
				fmt.Fprintf(a.stderr, "rbee: %s; trying again\n", cleanLine(err.Error()))
			}
			if !watch {
				return nil
			}
			if err := sleep(ctx, watchEvery); err != nil {
				return err
			}
		}
	})
	cmd.Flags().BoolVar(&watch, "watch", false, "show it again every "+watchEvery.String()+", until ^C")
	return cmd
}

func (a *app) writeStatus(w io.Writer, s core.Status, address string) error {
	for _, p := range s.Problems {
		if _, err := fmt.Fprintf(w, "PROBLEM: %s\n", cleanLine(p)); err != nil {
			return err
		}
	}
	if len(s.Problems) > 0 {
		fmt.Fprintln(w)
	}
	voters := 0
	for _, q := range s.Queens {
		voters += b2i(q.Voter)
	}
	f := &facts{}
	if len(s.Problems) == 0 {
		f.add("Problems", "none")
	}
	f.addf("Queen", "%s, rbee %s, at %s, up %s", s.Node, s.Version, address, orElse(a.since(s.StartedAt), "?"))
	f.addf("Queens", "%d (%s), leader %s, index %d", len(s.Queens), plural(voters, "voter"), orElse(s.Leader, "unknown"), s.Index)
	if err := f.write(w); err != nil {
		return err
	}
	sortHives(s.Hives)
	sortWorkers(s.Workers)
	sortModels(s.Models)
	sortJobs(s.Jobs)
	models, moreModels := cut(s.Models, statusModels, "rbee ls")
	jobs, moreJobs := cut(s.Jobs, statusJobs, "rbee job list")
	return inOrder(
		func() error { return heading(w, "Hives") },
		func() error { return a.hiveTable(s.Hives, s.Workers).write(w) },
		func() error { return heading(w, "Workers") },
		func() error { return a.workerTable(s.Workers, s.Hives).write(w) },
		func() error { return heading(w, "Models") },
		func() error { return modelTable(models, s.Hives).write(w) },
		func() error { return moreLine(w, moreModels) },
		func() error { return heading(w, "Jobs") },
		func() error { return a.jobTable(jobs).write(w) },
		func() error { return moreLine(w, moreJobs) },
	)
}

// cut returns the first n of all and, where there are more, a line that says how to see them.
func cut[T any](all []T, n int, command string) (some []T, more string) {
	if len(all) <= n {
		return all, ""
	}
	return all[:n], fmt.Sprintf("… and %d more: %s", len(all)-n, command)
}

func moreLine(w io.Writer, line string) error {
	if line == "" {
		return nil
	}
	_, err := fmt.Fprintln(w, strings.TrimSpace(line))
	return err
}
