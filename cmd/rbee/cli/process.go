package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/operation"
)

func processCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "process",
		Aliases: []string{"processes", "proc"},
		Short:   "Worker processes of a hive, as the operating system sees them",
	}
	cmd.AddCommand(processListCommand(a), processGetCommand(a), processDeleteCommand(a))
	return cmd
}

func processListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the worker processes of a hive",
		Args:    exactly(),
	}
	return readCommand(a, cmd, operation.WorkerProcessList, nil, func(processes []core.Process) error {
		slices.SortFunc(processes, func(x, y core.Process) int { return x.PID - y.PID })
		t := term.NewTable("No worker processes.", "PID", "WORKER", "MODEL", "TYPE", "DEVICE", "STATE", "MEMORY", "CPU", "ELAPSED")
		for _, p := range processes {
			t.Add(strconv.Itoa(p.PID), p.WorkerID, p.Model, p.Type, p.Device, string(p.State), term.Bytes(p.MemoryBytes), fmt.Sprintf("%.1f%%", p.CPUPercent), a.since(p.StartedAt))
		}
		return a.show(list(processes), t.Write)
	})
}

// pidArg reads a process id.
func pidArg(s string) (int, error) {
	pid, err := strconv.Atoi(s)
	if err != nil || pid <= 0 {
		return 0, usageHint("\"rbee worker process list\" shows the process ids.", "%q is no process id", s)
	}
	return pid, nil
}

func completePIDs(a *app, hive *string) cobra.CompletionFunc {
	return first(a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
		processes, err := c.Processes(ctx, *hive)
		var pids []string
		for _, p := range processes {
			pids = append(pids, strconv.Itoa(p.PID))
		}
		return pids, err
	}))
}

func processGetCommand(a *app) *cobra.Command {
	var hive string
	cmd := &cobra.Command{
		Use:               "get PID",
		Aliases:           []string{"show"},
		Short:             "Show a worker process with its command line, sockets and log",
		Args:              exactly("PID"),
		ValidArgsFunction: completePIDs(a, &hive),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		pid, err := pidArg(args[0])
		if err != nil {
			return err
		}
		p, err := fromHive(ctx, a, c, hive, func(c *client.Client) (core.Process, error) { return c.Process(ctx, hive, pid) })
		if err != nil {
			return err
		}
		return a.show(p, func(w io.Writer) error { return writeProcess(a, w, p) })
	})
	a.hiveFlag(cmd, &hive, core.LocalHive, "`HIVE` to look at")
	return cmd
}

func writeProcess(a *app, w io.Writer, p core.Process) error {
	f := &term.Facts{}
	f.Addf("Process", "%d", p.PID)
	f.Add("Worker", p.WorkerID)
	f.Add("Type", p.Type)
	f.Add("Model", p.Model)
	f.Add("Device", p.Device)
	f.Add("State", string(p.State))
	f.Add("Memory", term.Bytes(p.MemoryBytes))
	f.Addf("CPU", "%.1f%% of one core", p.CPUPercent)
	if !p.StartedAt.IsZero() {
		f.Addf("Started", "%s (%s)", p.StartedAt.Local().Format(time.DateTime), a.ago(p.StartedAt))
	}
	f.Add("Command", strings.Join(p.CommandLine, " "))
	f.Add("Sockets", strings.Join(p.Sockets, "\n"))
	if len(p.Children) > 0 {
		f.Add("Children", strings.Trim(fmt.Sprint(p.Children), "[]"))
	}
	if err := f.Write(w); err != nil || len(p.Log) == 0 {
		return err
	}
	_, err := fmt.Fprintln(w, "\nLog, the last lines:")
	for _, line := range p.Log {
		_, lineErr := fmt.Fprintln(w, "  "+term.Line(line))
		err = errors.Join(err, lineErr)
	}
	return err
}

func processDeleteCommand(a *app) *cobra.Command {
	var (
		hive        string
		grace       time.Duration
		now         bool
		yes, dryRun bool
		detach      bool
	)
	cmd := &cobra.Command{
		Use:   "delete PID",
		Short: "End a worker process",
		Long: `End a worker process: running requests finish within --grace, then it is asked to end, then it is killed with everything it started.
With --now its running requests are cut; --grace is then what the process gets to end in.
Only a process that is a worker of this hive is ever signalled. One that is gone already is no error.`,
		Aliases:           []string{"rm"},
		Args:              exactly("PID"),
		ValidArgsFunction: completePIDs(a, &hive),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		pid, err := pidArg(args[0])
		if err != nil {
			return err
		}
		if grace < 0 {
			return usagef("--grace must not be negative")
		}
		if dryRun {
			p, err := c.Process(ctx, hive, pid)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Would end process %d:\n", pid)
			return a.show(p, func(w io.Writer) error { return writeProcess(a, w, p) })
		}
		if err := a.confirm(ctx, yes, fmt.Sprintf("End worker process %d?", pid)); err != nil {
			return err
		}
		r := core.Request{Operation: core.OpWorkerProcessDelete, Hive: hive, PID: pid, Grace: core.Duration(grace), Now: now}
		return a.submit(ctx, c, r, detach, func(job core.Job) error {
			result, err := client.Result[core.ExitResult](job)
			if err != nil {
				return err
			}
			return a.show(result, func(w io.Writer) error { return writeExits(w, []core.ExitResult{result}) })
		})
	})
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	cmd.Flags().DurationVar(&grace, "grace", 0, "how long running requests may go on (default: the hive's)")
	cmd.Flags().BoolVar(&now, "now", false, "cut running requests")
	destructiveFlags(cmd, &yes, &dryRun)
	a.hiveFlag(cmd, &hive, core.LocalHive, "`HIVE` it runs on")
	return cmd
}
