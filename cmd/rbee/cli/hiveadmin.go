package cli

import (
	"context"
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

func hiveStatusCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:   "status HIVE",
		Short: "Show a hive as every queen sees it",
		Long: `Show a hive as every queen sees it: whether it has a line to that queen, how long ago it reported, and what gossip says of it.
A hive that is reached on one path and not on another has a network problem between the two.`,
		Args:              exactly("HIVE"),
		ValidArgsFunction: first(a.names(hiveNames)),
	}, func(ctx context.Context, c *client.Client, args []string, read ...client.ReadOption) error {
		h, err := c.HiveHealth(ctx, args[0], read...)
		if err != nil {
			return err
		}
		h.Queens = list(h.Queens)
		return a.show(h, func(w io.Writer) error { return writeHealth(a, w, h) })
	})
}

func writeHealth(a *app, w io.Writer, h core.HiveHealth) error {
	f := &term.Facts{}
	f.Addf("Hive", "%s (%s), rbee %s", h.Hive.Name, h.Hive.ID, h.Hive.Version)
	f.Add("Status", hiveState(h.Hive))
	f.Add("Last beat", a.ago(h.Hive.LastBeat))
	f.Add("Address", h.Hive.RPCAddress)
	reached := "yes, just now"
	if !h.Reachable {
		reached = "no"
		if h.Problem != "" {
			reached += ": " + h.Problem
		}
	}
	f.Add("Reachable", reached)
	if err := f.Write(w); err != nil {
		return err
	}
	if err := term.Heading(w, "As the queens see it"); err != nil {
		return err
	}
	slices.SortFunc(h.Queens, func(x, y core.HiveSight) int { return strings.Compare(x.Queen, y.Queen) })
	t := term.NewTable("No queen answered.", "QUEEN", "LINE", "LAST REPORT", "GOSSIP", "PROBLEM")
	for _, q := range h.Queens {
		line, heard := "down", "never"
		if q.Linked {
			line = "up"
		}
		if q.Heard {
			heard = shortDuration(time.Duration(q.Silence)) + " ago"
		}
		t.Add(q.Queen, line, heard, q.Gossip, q.Problem)
	}
	return t.Write(w)
}

func hiveDrainCommand(a *app) *cobra.Command {
	var undo bool
	cmd := &cobra.Command{
		Use:   "drain HIVE",
		Short: "Send a hive no new work; --undo ends that",
		Long: `Send a hive no new work: it gets no new worker, and its workers no new request. What runs, runs on, and no worker is stopped.
The hive stays drained, over restarts too, until --undo.`,
		Args:              exactly("HIVE"),
		ValidArgsFunction: first(a.names(hiveNames)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		h, err := c.Hive(ctx, args[0])
		if err != nil {
			return err
		}
		workers, err := c.Workers(ctx)
		if err != nil {
			return err
		}
		workers = slices.DeleteFunc(workers, func(w core.Worker) bool { return w.Hive != h.ID })
		active := 0
		for _, w := range workers {
			active += w.Load.Active
		}
		if h, err = c.DrainHive(ctx, h.ID, !undo); err != nil {
			return err
		}
		return a.show(h, func(w io.Writer) error {
			text := fmt.Sprintf("Hive %s gets no new work%s. \"rbee hive drain %s --undo\" ends that.", h.Name, stillRunning(active), h.Name)
			if undo {
				text = fmt.Sprintf("Hive %s gets work again.", h.Name)
			}
			_, err := fmt.Fprintln(w, term.Line(text))
			return err
		})
	})
	cmd.Flags().BoolVar(&undo, "undo", false, "have it get work again")
	return cmd
}

func stillRunning(n int) string {
	if n == 0 {
		return ", and no request runs there"
	}
	return "; " + term.Plural(n, "request") + " still running"
}

func hiveRefreshCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "refresh HIVE",
		Short:             "Have a hive look at its devices and worker types anew, and show what changed",
		Args:              exactly("HIVE"),
		ValidArgsFunction: first(a.names(hiveNames)),
		RunE: a.asking(func(ctx context.Context, c *client.Client, args []string) error {
			r, err := c.RefreshHive(ctx, args[0])
			if err != nil {
				return err
			}
			return a.show(r, func(w io.Writer) error { return writeRefresh(w, r) })
		}),
	}
}

func writeRefresh(w io.Writer, r core.RefreshResult) error {
	t := term.NewTable("Nothing changed.", "CHANGE", "WHAT", "DETAIL")
	old := map[string]core.Device{}
	for _, d := range r.Before {
		old[d.ID] = d
	}
	for _, d := range r.After {
		before, was := old[d.ID]
		delete(old, d.ID)
		switch {
		case !was:
			t.Add("new", "device "+d.ID, d.Name+" "+term.Bytes(d.TotalBytes))
		case before.Name != d.Name || before.Kind != d.Kind || before.TotalBytes != d.TotalBytes:
			t.Add("changed", "device "+d.ID, d.Name+" "+term.Bytes(d.TotalBytes))
		}
	}
	for _, d := range r.Before {
		if _, gone := old[d.ID]; gone {
			t.Add("gone", "device "+d.ID, d.Name)
		}
	}
	for _, x := range r.WorkerTypesAfter {
		if !slices.Contains(r.WorkerTypesBefore, x) {
			t.Add("new", "worker type "+x, "")
		}
	}
	for _, x := range r.WorkerTypesBefore {
		if !slices.Contains(r.WorkerTypesAfter, x) {
			t.Add("gone", "worker type "+x, "")
		}
	}
	return t.Write(w)
}
