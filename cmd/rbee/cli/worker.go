package cli

import (
	"context"
	"errors"
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

func workerCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "worker",
		Aliases: []string{"workers"},
		Short:   "Workers: start, look at and end them, their processes and their binaries",
	}
	list := workerListCommand(a)
	list.Use, list.Aliases = "list", []string{"ls"}
	retire := stopCommand(a)
	retire.Use, retire.Aliases = "retire ID|MODEL...", []string{"stop"}
	download := binaryDownloadCommand(a)
	cmd.AddCommand(workerSpawnCommand(a), list, workerGetCommand(a), retire, processCommand(a), binaryCommand(a), download, workerBuildCommand(a), workerUpgradeCommand(a))
	return cmd
}

func psCommand(a *app) *cobra.Command {
	cmd := workerListCommand(a)
	cmd.Use = "ps"
	return cmd
}

func workerListCommand(a *app) *cobra.Command {
	var hive string
	var long bool
	cmd := &cobra.Command{
		Short: "List the active workers",
		Args:  exactly(),
	}
	a.reads(cmd, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		workers, err := c.Workers(ctx, read...)
		if err != nil {
			return err
		}
		hives, err := c.Hives(ctx, read...)
		if err != nil {
			return err
		}
		if hive != "" {
			h, err := c.Hive(ctx, hive, read...)
			if err != nil {
				return err
			}
			workers = slices.DeleteFunc(workers, func(w core.Worker) bool { return w.Hive != h.ID })
		}
		sortWorkers(workers)
		return a.show(list(workers), workerTable(a, workers, hives, long).Write)
	})
	a.hiveFlag(cmd, &hive, "", "only those of this `HIVE`")
	cmd.Flags().BoolVarP(&long, "long", "l", false, "show also their context and what they can do")
	return cmd
}

func sortWorkers(workers []core.Worker) {
	slices.SortFunc(workers, func(x, y core.Worker) int {
		return strings.Compare(x.Model+"\x00"+x.ID, y.Model+"\x00"+y.ID)
	})
}

// workerTable returns the table of "rbee ps". For a worker of a silent hive it shows the state of
// the hive. long adds the workers' capabilities.
func workerTable(a *app, workers []core.Worker, hives []core.Hive, long bool) *term.Table {
	columns := []string{"ID", "MODEL", "HIVE", "TYPE", "DEVICE", "STATE", "BUSY", "QUEUE", "TOKENS/S", "UNTIL", "SEEN"}
	if long {
		columns = append(columns, "CONTEXT", "CAN DO")
	}
	t := term.NewTable("No workers. \"rbee run MODEL\" starts one.", columns...)
	for _, w := range workers {
		name, state, seen := w.Hive, string(w.State), w.Load.At
		for _, h := range hives {
			if h.ID != w.Hive {
				continue
			}
			name = h.Name
			switch h.Status {
			case core.HiveSuspect:
				state = "suspect"
			case core.HiveDown:
				state = "lost"
			case core.HiveReady:
			}
			if h.LastBeat.After(seen) {
				seen = h.LastBeat
			}
		}
		row := []string{
			w.ID, w.Model, name, w.Type, w.Device, state, fmt.Sprintf("%d/%d", w.Load.Active, w.Slots), fmt.Sprint(w.Load.Queued),
			rateText(w.Load.TokensPerSecond), untilText(a, w), a.ago(seen),
		}
		if long {
			row = append(row, term.Number(w.ContextTokens), strings.Join(w.Capabilities.List(), " "))
		}
		t.Add(row...)
	}
	return t
}

// untilText returns when a worker unloads by itself.
func untilText(a *app, w core.Worker) string {
	at, unloads := w.Load.UnloadsAt()
	switch {
	case w.Load.Pinned:
		return "pinned"
	case w.State != core.WorkerReady || w.Load.At.IsZero():
		return ""
	case !unloads:
		return "stays"
	case w.Load.Active+w.Load.Queued > 0 || w.Load.Idle == 0:
		return "idle for " + term.Duration(time.Duration(w.Load.KeepAlive))
	}
	return "in " + term.Duration(max(at.Sub(a.now()), 0))
}

func rateText(perSecond float64) string {
	switch {
	case perSecond <= 0:
		return ""
	case perSecond < 10:
		return fmt.Sprintf("%.1f", perSecond)
	}
	return fmt.Sprintf("%.0f", perSecond)
}

func workerGetCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:               "get ID",
		Aliases:           []string{"show"},
		Short:             "Show an active worker",
		Long:              "Show an active worker. A unique prefix of its id is enough.",
		Args:              exactly("ID"),
		ValidArgsFunction: first(a.names(workerIDs)),
	}, func(ctx context.Context, c *client.Client, args []string, read ...client.ReadOption) error {
		w, err := c.WorkerDetails(ctx, args[0], read...)
		if err != nil {
			return err
		}
		return a.show(w, func(out io.Writer) error { return writeWorker(a, out, w) })
	})
}

func workerFacts(a *app, w core.Worker) *term.Facts {
	f := &term.Facts{}
	f.Add("ID", w.ID)
	f.Add("Model", w.Model)
	f.Add("Digest", w.ModelDigest)
	f.Add("Hive", w.Hive)
	f.Add("Type", w.Type)
	f.Add("Version", w.Version)
	f.Add("Device", w.Device)
	f.Add("State", string(w.State))
	f.Addf("Slots", "%d", w.Slots)
	f.Addf("Context", "%d tokens per slot", w.ContextTokens)
	f.Addf("Load", "%d running, %d waiting, %s, %d positions in use, %d tokens so far", w.Load.Active, w.Load.Queued,
		orElse(rateText(w.Load.TokensPerSecond), "0")+" tokens/s", w.Load.KVUsedTokens, w.Load.TokensTotal)
	f.Add("Seen", a.ago(w.Load.At))
	f.Addf("Indexes", "created at %d, changed at %d", w.CreateIndex, w.ModifyIndex)
	return f
}

func writeWorker(a *app, out io.Writer, w core.WorkerDetails) error {
	f := workerFacts(a, w.Worker)
	f.Addf("Routed", "%s by the queen that was asked, %d failed", term.Plural(int(w.Routes.Requests), "request"), w.Routes.Failures)
	if err := f.Write(out); err != nil || len(w.Routes.Recent) == 0 {
		return err
	}
	t := term.NewTable("", "FAILED", "REQUEST", "WHY")
	for _, x := range w.Routes.Recent {
		t.Add(a.ago(x.At), x.RequestID, string(x.Problem))
	}
	return errors.Join(line(out), t.Write(out))
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

func workerSpawnCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpWorkerSpawn}
	var detach bool
	cmd := &cobra.Command{
		Use:   "spawn --model MODEL",
		Short: "Start a worker",
		Long: `Start a worker for a model, and wait until it is ready. What is missing, the engine or the model, is fetched first.
^C cancels it. What is not said is chosen: the hive, the worker type, the device.`,
		Example: "  rbee worker spawn --model rbee-tiny --device cpu --slots 4",
		Args:    exactly(),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, _ []string) error {
		if r.Model == "" {
			return usageHint("\"rbee ls\" lists the models.", "--model is missing")
		}
		for name, v := range map[string]int{"--slots": r.Slots, "--context": r.ContextTokens, "--threads": r.Threads} {
			if v < 0 {
				return usagef("%s must not be negative", name)
			}
		}
		return a.submit(ctx, c, r, detach, func(job core.Job) error {
			result, err := client.Result[core.SpawnResult](job)
			if err != nil {
				return err
			}
			return a.show(result, func(w io.Writer) error {
				f := &term.Facts{}
				f.Add("ID", result.Worker.ID)
				f.Add("Model", result.Worker.Model)
				f.Add("Type", result.Worker.Type)
				f.Add("Device", result.Worker.Device)
				f.Addf("Slots", "%d", result.Worker.Slots)
				f.Addf("Context", "%d tokens per slot", result.Worker.ContextTokens)
				f.Addf("Process", "%d", result.PID)
				return f.Write(w)
			})
		})
	})
	f := cmd.Flags()
	f.StringVarP(&r.Model, "model", "m", "", "`MODEL` to serve: id, alias or catalog reference")
	f.StringVar(&r.Type, "type", "", "worker `TYPE`, or TYPE@VERSION: cpu, cuda, vulkan, metal, …")
	f.StringVar(&r.Device, "device", "", "`DEVICE` to load it on: cpu, cuda:0, …")
	f.IntVar(&r.Slots, "slots", 0, "requests served at once (default: the hive's)")
	f.IntVar(&r.ContextTokens, "context", 0, "positions per slot (default: as the model's other workers, else the model's own, as far as memory allows)")
	f.IntVar(&r.Threads, "threads", 0, "CPU threads (default: the hive's)")
	f.StringVar(&r.KeepAlive, "keep-alive", "", "`TIME` after its last request in which it unloads by itself: 5m, seconds, or \"default\" for the cluster's (default: it stays)")
	f.BoolVar(&r.Pin, "pin", false, "never unload it to make room for another worker")
	f.StringVar(&r.RequestID, "request-id", "", "`ID` of the request: the same one twice starts one worker")
	f.BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	a.hiveFlag(cmd, &r.Hive, "", "`HIVE` to start it on (default: chosen)")
	_ = cmd.RegisterFlagCompletionFunc("model", a.names(modelsToUse))
	_ = cmd.RegisterFlagCompletionFunc("type", a.names(workerTypes))
	_ = cmd.RegisterFlagCompletionFunc("device", a.names(deviceIDs))
	return cmd
}

func workerTypes(ctx context.Context, c *client.Client) ([]string, error) {
	hives, err := c.Hives(ctx)
	var types []string
	for _, h := range hives {
		types = append(types, h.WorkerTypes...)
	}
	return types, err
}

func deviceIDs(ctx context.Context, c *client.Client) ([]string, error) {
	hives, err := c.Hives(ctx)
	var ids []string
	for _, h := range hives {
		for _, d := range h.Devices {
			ids = append(ids, d.ID)
		}
	}
	return ids, err
}

func stopCommand(a *app) *cobra.Command {
	var (
		deadline    time.Duration
		yes, dryRun bool
		detach      bool
		keepState   bool
	)
	cmd := &cobra.Command{
		Use:   "stop ID|MODEL...",
		Short: "Retire workers: no new requests; running ones finish, then they stop",
		Long: `Retire workers, named by id, unique prefix of an id, or model: they take no new request, running ones finish, then they stop.
A worker that is retired already is no error.`,
		Args: atLeast("ID|MODEL"),
		ValidArgsFunction: a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
			workers, err := c.Workers(ctx)
			var names []string
			for _, w := range workers {
				names = append(names, w.ID, w.Model)
			}
			return names, err
		}),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		if deadline < 0 {
			return usagef("--deadline must not be negative")
		}
		workers, err := findWorkers(ctx, c, args)
		if err != nil {
			return err
		}
		if dryRun {
			hives, err := c.Hives(ctx)
			if err != nil {
				return err
			}
			fmt.Fprintf(a.stderr, "Would retire %s:\n", term.Plural(len(workers), "worker"))
			return a.show(workers, workerTable(a, workers, hives, false).Write)
		}
		if err := a.confirm(ctx, yes, fmt.Sprintf("Retire %s?", describeWorkers(workers))); err != nil {
			return err
		}
		results := make([]core.ExitResult, 0, len(workers))
		for _, w := range workers {
			r := core.Request{Operation: core.OpActiveWorkerRetire, Worker: w.ID, Grace: core.Duration(deadline), KeepState: keepState}
			if detach {
				if err := a.submit(ctx, c, r, true, nil); err != nil {
					return fmt.Errorf("retire worker %s: %w", w.ID, err)
				}
				continue
			}
			job, err := a.runJob(ctx, c, r)
			if err != nil {
				return fmt.Errorf("retire worker %s: %w", w.ID, err)
			}
			result, err := client.Result[core.ExitResult](job)
			if err != nil {
				return err
			}
			results = append(results, result)
		}
		if detach {
			return nil
		}
		return a.show(results, func(out io.Writer) error { return writeExits(out, results) })
	})
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the ids of the jobs")
	cmd.Flags().BoolVar(&keepState, "keep-state", false, "keep what they have read of conversations for the next worker with the model, where the worker type has keep_state on")
	cmd.Flags().DurationVar(&deadline, "deadline", 0, "how long running requests may go on (default: the hive's)")
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

func destructiveFlags(cmd *cobra.Command, yes, dryRun *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
	cmd.Flags().BoolVar(dryRun, "dry-run", false, "only show what would be done")
}

// findWorkers resolves ids, prefixes of ids and models to workers, without duplicates, in the order
// of the arguments.
func findWorkers(ctx context.Context, c *client.Client, args []string) ([]core.Worker, error) {
	var found []core.Worker
	for _, arg := range args {
		matches, err := findWorker(ctx, c, arg)
		if err != nil {
			return nil, err
		}
		for _, w := range matches {
			if !slices.ContainsFunc(found, func(f core.Worker) bool { return f.ID == w.ID }) {
				found = append(found, w)
			}
		}
	}
	return found, nil
}

func findWorker(ctx context.Context, c *client.Client, arg string) ([]core.Worker, error) {
	w, err := c.Worker(ctx, arg)
	if err == nil {
		return []core.Worker{w}, nil
	}
	if core.KindOf(err) != core.NotFound {
		return nil, err
	}
	id := arg
	switch m, merr := c.Model(ctx, arg); {
	case merr == nil:
		id = m.ID
	case core.KindOf(merr) == core.Invalid: // a prefix of several models
		return nil, merr
	}
	workers, werr := c.Workers(ctx)
	if werr != nil {
		return nil, werr
	}
	workers = slices.DeleteFunc(workers, func(w core.Worker) bool { return w.Model != id })
	if len(workers) == 0 {
		return nil, err
	}
	sortWorkers(workers)
	return workers, nil
}

func describeWorkers(workers []core.Worker) string {
	if len(workers) == 1 {
		w := workers[0]
		return fmt.Sprintf("worker %s (%s, %s)", w.ID, w.Model, term.Plural(w.Load.Active, "running request"))
	}
	var names []string
	active := 0
	for _, w := range workers {
		names = append(names, w.ID+" ("+w.Model+")")
		active += w.Load.Active
	}
	return fmt.Sprintf("%d workers, %s, with %s", len(workers), strings.Join(names, ", "), term.Plural(active, "running request"))
}

// writeExits prints how each worker ended.
func writeExits(out io.Writer, results []core.ExitResult) error {
	for _, r := range results {
		text := fmt.Sprintf("Worker %s ended", r.WorkerID)
		switch {
		case r.AlreadyGone:
			text = fmt.Sprintf("Worker %s was gone already", r.WorkerID)
		case r.Forced:
			text += ", killed because it did not end by itself"
		}
		if r.PID != 0 {
			text += fmt.Sprintf(" (process %d", r.PID)
			if r.Exit != "" {
				text += ", " + r.Exit
			}
			text += ")"
		}
		if _, err := fmt.Fprintln(out, term.Line(text)+"."); err != nil {
			return err
		}
	}
	return nil
}
