package cli

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func jobLogsCommand(a *app, ids func(context.Context, *client.Client) ([]string, error)) *cobra.Command {
	var follow bool
	var after int64
	cmd := &cobra.Command{
		Use:     "logs ID",
		Aliases: []string{"log", "events"},
		Short:   "Show what happened in a job, an event a line",
		Long: `Show the events of a job, one a line: progress, log lines, the result, the end. With --follow those to come, too, until
the job ends; then the exit code is 0 only if it succeeded. --format json writes an event a line, as the HTTP API has them.`,
		Args:              exactly("ID"),
		ValidArgsFunction: first(a.names(ids)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		if after < 0 {
			return usagef("--after must not be negative")
		}
		j, err := findJob(ctx, c, args[0])
		if err != nil {
			return err
		}
		return jobLogs(ctx, a, c, j, after, follow)
	})
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new events until the job ends")
	cmd.Flags().Int64Var(&after, "after", 0, "only events with a greater `NUMBER`")
	_ = cmd.RegisterFlagCompletionFunc("after", cobra.NoFileCompletions)
	return cmd
}

// errSeen ends the listing of a job that is still running.
var errSeen = errors.New("all events that there are")

func jobLogs(ctx context.Context, a *app, c *client.Client, j core.Job, after int64, follow bool) error {
	if !follow && after >= j.LastSeq {
		return nil
	}
	var end core.Event
	err := c.FollowJob(ctx, j.ID, after, func(e core.Event) error {
		if e.Kind == core.EventEnd {
			end = e
		}
		if err := writeEvent(a, a.stdout, e); err != nil {
			return err
		}
		if !follow && e.Seq >= j.LastSeq {
			return errSeen
		}
		return nil
	})
	switch {
	case errors.Is(err, errSeen):
		return nil
	case err != nil:
		return fmt.Errorf("follow job %s: %w", j.ID, err)
	case !follow || end.State == core.JobSucceeded || end.Kind == "":
		return nil
	case end.Error != nil:
		return end.Error.Err()
	}
	return core.Errorf(core.Cancelled, "job %s was cancelled", j.ID)
}

// writeEvent writes an event as one line.
func writeEvent(a *app, w io.Writer, e core.Event) error {
	if a.wantJSON() {
		b, err := json.Marshal(e)
		if err == nil {
			_, err = w.Write(append(b, '\n'))
		}
		return err
	}
	_, err := fmt.Fprintf(w, "%4d  %s  %s\n", e.Seq, e.At.Local().Format("15:04:05.000"), term.Line(eventText(e)))
	return err
}

func eventText(e core.Event) string {
	switch e.Kind {
	case core.EventProgress:
		p := e.Progress
		if p == nil {
			return string(e.Kind)
		}
		done := term.Amount(p.Done, p.Unit)
		if p.Total > 0 {
			done = fmt.Sprintf("%d%%", min(p.Done, p.Total)*100/p.Total)
			if p.Unit == "bytes" {
				done = term.Size(p.Done) + " of " + term.Size(p.Total)
			}
		}
		return strings.TrimSuffix(p.Phase+": "+done, ": ")
	case core.EventLog:
		return strings.TrimRight(e.Message, "\n")
	case core.EventResult:
		return "result " + string(e.Result)
	case core.EventEnd:
		if e.Error != nil {
			return string(e.State) + ": " + e.Error.Message
		}
		return string(e.State)
	}
	return string(e.Kind)
}

// tellSilentHives reports whose jobs are missing in a list of them.
func tellSilentHives(ctx context.Context, a *app, c *client.Client) {
	hives, err := c.Hives(ctx)
	if err != nil {
		return // only this note is lost: the list has been printed
	}
	for _, h := range hives {
		if h.Status != core.HiveReady {
			fmt.Fprintf(a.stderr, "The jobs of hive %s are not shown: it is %s. They are kept there.\n", term.Line(cmp.Or(h.Name, h.ID)), h.Status)
		}
	}
}
