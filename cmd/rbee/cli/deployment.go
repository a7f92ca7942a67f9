package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/config"
	"github.com/rbee-project/rbee/core/operation"
)

// exitPlanFailed is the exit code of a failed plan: 1 means that there are changes.
const exitPlanFailed = 255

// planError is why a plan failed.
type planError struct{ err error }

func (e *planError) Error() string { return e.err.Error() }
func (e *planError) Unwrap() error { return e.err }

func planCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "plan FILE...",
		Short: "Show what deployments would start, stop, fetch and unload",
		Long: `Show what the deployments of the files would change: which workers would start and stop, on which devices and with how much of their memory,
what would be downloaded, which workers may have to unload, and what finds no place, with the memory that each device lacks. Nothing is changed.

Exit code 0: nothing is to do. 1: there are changes, or something finds no place. 255: there is no plan, as something is wrong.`,
		Example: "  rbee plan chat.hcl\n  rbee plan deployments/ --format json",
		Args:    cobra.ArbitraryArgs,
	}
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return &planError{flagError(cmd, err)} })
	asking := a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		specs, err := deploymentSpecs(a, args)
		if err != nil {
			return err
		}
		plan, err := deploymentPlan(ctx, a, c, core.Request{Operation: core.OpDeploymentPlan, Specs: specs})
		if err != nil {
			return err
		}
		if err := a.show(plan, func(w io.Writer) error { return writePlan(w, plan) }); err != nil {
			return err
		}
		if !plan.Nothing() {
			return errShown
		}
		return nil
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		err := asking(cmd, args)
		if err != nil && err != errShown { //nolint:errorlint // returned as it is
			return &planError{err}
		}
		return err
	}
	return cmd
}

func applyCommand(a *app) *cobra.Command {
	var index int
	cmd := &cobra.Command{
		Use:   "apply FILE...",
		Short: "Have deployments run",
		Long: `Have the deployments of the files run, and those that are there already as the files say. Others stay as they are. The leader starts and stops their
workers from then on: it replaces those of a hive that is lost, and moves those of a hive that drains.

It is refused where somebody has changed a deployment since the plan that is shown, or the one of --index.`,
		Example: "  rbee apply chat.hcl\n  rbee apply chat.hcl --index 4711   # as \"rbee plan\" showed it, or not at all",
		Args:    cobra.ArbitraryArgs,
	}
	cmd.Flags().IntVar(&index, "index", -1, "`INDEX` of the plan that somebody has looked at")
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		specs, err := deploymentSpecs(a, args)
		if err != nil {
			return err
		}
		if index < 0 {
			plan, err := deploymentPlan(ctx, a, c, core.Request{Operation: core.OpDeploymentPlan, Specs: specs})
			if err != nil {
				return err
			}
			index = int(plan.Index) //nolint:gosec // of a log
		}
		plan, err := deploymentPlan(ctx, a, c, core.Request{Operation: core.OpDeploymentApply, Specs: specs, Index: index})
		if err != nil {
			return err
		}
		return a.show(plan, func(w io.Writer) error {
			if err := writePlan(w, plan); err != nil {
				return err
			}
			_, err := fmt.Fprintln(w, "Applied. \"rbee deployment list\" shows how it goes on.")
			return err
		})
	})
	return cmd
}

// deploymentSpecs reads the deployments from files, for a request.
func deploymentSpecs(a *app, paths []string) (string, error) {
	if len(paths) == 0 {
		return "", usagef("FILE is missing: name the files, or folders of files, with the deployments")
	}
	specs, diags := config.Deployments(paths, a.env)
	if err := writeDiagnostics(a, diags); err != nil {
		return "", err
	}
	if diags.HasErrors() {
		return "", core.Errorf(core.Invalid, "the deployments cannot be read").Hint("Correct what is shown above.")
	}
	text, err := json.Marshal(specs)
	return string(text), core.Wrap(err, core.Internal, "encode deployments")
}

func deploymentPlan(ctx context.Context, a *app, c *client.Client, r core.Request) (core.DeploymentPlan, error) {
	job, err := a.runJob(ctx, c, r)
	if err != nil {
		return core.DeploymentPlan{}, err
	}
	return client.Result[core.DeploymentPlan](job)
}

func writePlan(w io.Writer, p core.DeploymentPlan) error {
	var lines []string
	for _, c := range p.Changes {
		lines = append(lines, fmt.Sprintf("%s deployment %s", c.Action, c.Deployment))
		for _, f := range c.Fields {
			lines = append(lines, "  "+f)
		}
	}
	for _, s := range p.Steps {
		lines = append(lines, stepText(s))
	}
	for _, x := range p.Problems {
		lines = append(lines, fmt.Sprintf("%s: %d replicas find no place: %s", x.Deployment, x.Missing, x.Reason))
		for _, l := range x.Lacks {
			lines = append(lines, fmt.Sprintf("  %s of %s: %s needed, %s free, %s missing", l.Device, l.Hive, mebibytes(l.NeedBytes), mebibytes(l.FreeBytes), mebibytes(l.MissingBytes)))
		}
	}
	if p.Nothing() {
		lines = append(lines, "Nothing is to do.")
	}
	lines = append(lines, fmt.Sprintf("Index: %d", p.Index))
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, term.Line(l)); err != nil {
			return err
		}
	}
	return nil
}

func stepText(s core.DeploymentStep) string {
	at := s.Hive
	if s.Device != "" {
		at = s.Device + " of " + s.Hive
	}
	text := fmt.Sprintf("%s a worker of %s on %s: %s", s.Action, s.Deployment, at, s.Reason)
	if s.Action == "start" && s.NeedBytes > 0 {
		text += fmt.Sprintf("; takes %s of %s that are free", mebibytes(s.NeedBytes), mebibytes(s.FreeBytes))
	}
	if s.EvictBytes > 0 {
		text += fmt.Sprintf("; %s of it once %s unload", mebibytes(s.EvictBytes), orElse(strings.Join(s.Evicts, ", "), "workers"))
	}
	if s.Download {
		text += "; downloads the model"
		if s.DownloadBytes > 0 {
			text += ", " + mebibytes(s.DownloadBytes)
		}
	}
	return text
}

// mebibytes formats a size in MiB, rounded up.
func mebibytes(n int64) string { return fmt.Sprintf("%d MiB", (n+1<<20-1)>>20) }

func deploymentCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "deployment",
		Aliases: []string{"deployments"},
		Short:   "Models that run in as many workers as you say",
		Long:    `Models that run in as many workers as you say: "rbee plan" and "rbee apply" take the files that say it.`,
	}
	cmd.AddCommand(deploymentListCommand(a), deploymentStatusCommand(a), deploymentHistoryCommand(a), deploymentStopCommand(a), deploymentRevertCommand(a))
	return cmd
}

func deploymentListCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{Use: "list", Aliases: []string{"ls"}, Short: "List the deployments", Args: exactly()},
		func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
			all, err := operation.DeploymentList.Ask(ctx, c.Reading(read...), core.Request{})
			if err != nil {
				return err
			}
			return a.show(list(all), func(w io.Writer) error {
				t := term.NewTable("No deployments yet. \"rbee apply FILE\" makes them.", "NAME", "MODEL", "READY", "VERSION", "CHANGED", "PROBLEM")
				for _, d := range all {
					t.Add(d.Name, d.Model, readyText(d), strconv.FormatUint(d.Version, 10), a.ago(d.ChangedAt), problemText(d))
				}
				return t.Write(w)
			})
		})
}

func readyText(d core.DeploymentStatus) string {
	if d.Stopped {
		return "stopped"
	}
	return fmt.Sprintf("%d of %d", d.Ready, d.Replicas)
}

func problemText(d core.DeploymentStatus) string {
	var all []string
	for _, p := range d.Problems {
		all = append(all, p.Reason)
	}
	return strings.Join(all, "; ")
}

func deploymentStatusCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{Use: "status NAME", Short: "Show a deployment and its workers", Args: exactly("NAME"), ValidArgsFunction: first(a.names(deploymentNames))},
		func(ctx context.Context, c *client.Client, args []string, read ...client.ReadOption) error {
			d, err := operation.DeploymentGet.Ask(ctx, c.Reading(read...), core.Request{Deployment: args[0]})
			if err != nil {
				return err
			}
			return showDeployment(a, d)
		})
}

func showDeployment(a *app, d core.DeploymentStatus) error {
	return a.show(d, func(w io.Writer) error {
		fmt.Fprintln(w, term.Line(fmt.Sprintf("%s, version %d: %s, %s", d.Name, d.Version, d.Model, readyText(d))))
		t := term.NewTable("No workers.", "REPLICA", "HIVE", "DEVICE", "WORKER", "STATE")
		for _, r := range d.Workers {
			state := r.State
			if r.Leaving {
				state += ", leaves"
			}
			t.Add(strconv.Itoa(r.Ordinal), orElse(r.HiveName, r.Hive), r.Device, r.Worker, state)
		}
		if err := t.Write(w); err != nil {
			return err
		}
		for _, p := range d.Problems {
			if _, err := fmt.Fprintln(w, term.Line(fmt.Sprintf("%d replicas find no place: %s", p.Missing, p.Reason))); err != nil {
				return err
			}
		}
		return nil
	})
}

func deploymentHistoryCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{Use: "history NAME", Short: "Show the versions of a deployment", Args: exactly("NAME"), ValidArgsFunction: first(a.names(deploymentNames))},
		func(ctx context.Context, c *client.Client, args []string, read ...client.ReadOption) error {
			d, err := operation.DeploymentGet.Ask(ctx, c.Reading(read...), core.Request{Deployment: args[0]})
			if err != nil {
				return err
			}
			all := slices.Concat(d.History, []core.DeploymentVersion{{Version: d.Version, Spec: d.DeploymentSpec, Stopped: d.Stopped, ChangedAt: d.ChangedAt}})
			return a.show(all, func(w io.Writer) error {
				t := term.NewTable("", "VERSION", "CHANGED", "MODEL", "REPLICAS", "STOPPED")
				for _, v := range all {
					t.Add(strconv.FormatUint(v.Version, 10), a.ago(v.ChangedAt), v.Spec.Model, strconv.Itoa(v.Spec.Replicas), strconv.FormatBool(v.Stopped))
				}
				return t.Write(w)
			})
		})
}

func deploymentStopCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "stop NAME", Short: "Stop a deployment: its workers finish their requests and end", Args: exactly("NAME"),
		Long:              `Stop a deployment: its workers finish their requests and end. It stays in the list; "rbee deployment revert" and "rbee apply" start it again.`,
		ValidArgsFunction: first(a.names(deploymentNames)),
	}
	var yes, dryRun bool
	destructiveFlags(cmd, &yes, &dryRun)
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		d, err := operation.DeploymentGet.Ask(ctx, c, core.Request{Deployment: args[0]})
		if err != nil {
			return err
		}
		if dryRun {
			return showDeployment(a, d)
		}
		if err := a.confirm(ctx, yes, fmt.Sprintf("Stop %s with %d workers?", d.Name, len(d.Workers))); err != nil {
			return err
		}
		return changeDeployment(ctx, a, c, core.Request{Operation: core.OpDeploymentStop, Deployment: d.Name})
	})
	return cmd
}

func deploymentRevertCommand(a *app) *cobra.Command {
	var version int
	cmd := &cobra.Command{
		Use: "revert NAME", Short: "Make a deployment what it was at an earlier version", Args: exactly("NAME"),
		Example:           "  rbee deployment revert chat\n  rbee deployment revert chat --version 3",
		ValidArgsFunction: first(a.names(deploymentNames)),
	}
	cmd.Flags().IntVar(&version, "version", 0, "`NUMBER` of the version; 0: the one before")
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		return changeDeployment(ctx, a, c, core.Request{Operation: core.OpDeploymentRevert, Deployment: args[0], Revision: version})
	})
	return cmd
}

func changeDeployment(ctx context.Context, a *app, c *client.Client, r core.Request) error {
	job, err := a.runJob(ctx, c, r)
	if err != nil {
		return err
	}
	d, err := client.Result[core.DeploymentStatus](job)
	if err != nil {
		return err
	}
	return showDeployment(a, d)
}

func deploymentNames(ctx context.Context, c *client.Client) ([]string, error) {
	all, err := operation.DeploymentList.Ask(ctx, c, core.Request{})
	var names []string
	for _, d := range all {
		names = append(names, d.Name)
	}
	return names, err
}
