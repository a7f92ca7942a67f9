package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func jobCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "job",
		Aliases: []string{"jobs"},
		Short:   "Jobs: operations that run or have ended",
	}
	ids := func(ctx context.Context, c *client.Client) ([]string, error) {
		jobs, err := c.Jobs(ctx)
		var ids []string
		for _, j := range jobs {
			ids = append(ids, j.ID)
		}
		return ids, err
	}
	cmd.AddCommand(
		&cobra.Command{
			Use:     "list",
			Aliases: []string{"ls"},
			Short:   "List running jobs and the latest ended ones",
			Args:    exactly(),
			RunE: a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
				jobs, err := c.Jobs(ctx)
				if err != nil {
					return err
				}
				tellSilentHives(ctx, a, c)
				sortJobs(jobs)
				return a.show(list(jobs), jobTable(a, jobs).Write)
			}),
		},
		&cobra.Command{
			Use:               "get ID",
			Aliases:           []string{"show"},
			Short:             "Show a job and its result",
			Args:              exactly("ID"),
			ValidArgsFunction: first(a.names(ids)),
			RunE: a.asking(func(ctx context.Context, c *client.Client, args []string) error {
				j, err := findJob(ctx, c, args[0])
				if err != nil {
					return err
				}
				return a.show(j, func(w io.Writer) error { return writeJob(a, w, j) })
			}),
		},
		&cobra.Command{
			Use:               "cancel ID",
			Short:             "End a job",
			Args:              exactly("ID"),
			ValidArgsFunction: first(a.names(ids)),
			RunE: a.asking(func(ctx context.Context, c *client.Client, args []string) error {
				j, err := findJob(ctx, c, args[0])
				if err != nil {
					return err
				}
				if j.State == core.JobRunning {
					if _, err := c.CancelJob(ctx, j.ID); err != nil {
						return err
					}
					// Report success once the job has ended.
					if err := c.FollowJob(ctx, j.ID, 0, func(core.Event) error { return nil }); err != nil {
						return err
					}
					if j, err = c.Job(ctx, j.ID); err != nil {
						return err
					}
				}
				return a.show(j, func(w io.Writer) error {
					_, err := fmt.Fprintf(w, "Job %s: %s.\n", j.ID, j.State)
					return err
				})
			}),
		},
	)
	cmd.AddCommand(jobLogsCommand(a, ids))
	return cmd
}

// sortJobs puts running jobs first, then the newest.
func sortJobs(jobs []core.Job) {
	slices.SortFunc(jobs, func(x, y core.Job) int {
		return cmp.Or(
			-cmp.Compare(b2i(x.State == core.JobRunning), b2i(y.State == core.JobRunning)),
			y.CreatedAt.Compare(x.CreatedAt),
			strings.Compare(x.ID, y.ID))
	})
}

func b2i(b bool) int {
	if b {
		return 1
	}
	return 0
}

func jobTable(a *app, jobs []core.Job) *term.Table {
	t := term.NewTable("No jobs.", "ID", "OPERATION", "STATE", "STARTED", "TOOK", "ERROR")
	for _, j := range jobs {
		problem := ""
		if j.Error != nil && j.State == core.JobFailed {
			problem, _, _ = strings.Cut(j.Error.Message, "\n")
			problem = shorten(problem, 60)
		}
		t.Add(j.ID, string(j.Operation), string(j.State), a.ago(j.CreatedAt), jobTook(a, j), problem)
	}
	return t
}

// shorten cuts s to n characters.
func shorten(s string, n int) string {
	if r := []rune(s); len(r) > n {
		return string(r[:n-1]) + "…"
	}
	return s
}

// jobTook returns how long a job ran, or has been running.
func jobTook(a *app, j core.Job) string {
	if j.EndedAt.IsZero() {
		return a.since(j.CreatedAt)
	}
	d := j.EndedAt.Sub(j.CreatedAt)
	if d < 10*time.Second {
		return fmt.Sprintf("%.1fs", d.Seconds())
	}
	return term.Duration(d)
}

func writeJob(a *app, w io.Writer, j core.Job) error {
	f := &term.Facts{}
	f.Add("ID", j.ID)
	f.Add("Operation", string(j.Operation))
	f.Add("Hive", j.Hive)
	f.Add("State", string(j.State))
	f.Add("Started", a.ago(j.CreatedAt))
	f.Add("Took", jobTook(a, j))
	if j.Error != nil {
		f.Add("Error", j.Error.Message)
		f.Add("", j.Error.Hint)
	}
	if len(j.Result) > 0 {
		var v any
		if err := json.Unmarshal(j.Result, &v); err == nil {
			if pretty, err := json.MarshalIndent(v, "", "  "); err == nil {
				f.Add("Result", string(pretty))
			}
		}
	}
	return f.Write(w)
}

// findJob finds a job by its id or a unique prefix of it.
func findJob(ctx context.Context, c *client.Client, id string) (core.Job, error) {
	j, err := c.Job(ctx, id)
	if err == nil || (core.KindOf(err) != core.NotFound && core.KindOf(err) != core.Invalid) {
		return j, err
	}
	jobs, listErr := c.Jobs(ctx)
	if listErr != nil {
		return core.Job{}, err
	}
	var found []core.Job
	for _, j := range jobs {
		if strings.HasPrefix(strings.ToLower(j.ID), strings.ToLower(id)) {
			found = append(found, j)
		}
	}
	switch len(found) {
	case 0:
		return core.Job{}, err
	case 1:
		return c.Job(ctx, found[0].ID)
	}
	return core.Job{}, core.Errorf(core.Invalid, "%d jobs begin with %q", len(found), id).Hint("Give more of the id; \"rbee job list\" shows them.")
}
