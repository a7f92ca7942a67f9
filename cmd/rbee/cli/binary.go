package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/operation"
)

func binaryCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "binary",
		Aliases: []string{"binaries"},
		Short:   "Installed worker types of a hive",
	}
	cmd.AddCommand(binaryListCommand(a), binaryGetCommand(a), binaryDownloadCommand(a), binaryDeleteCommand(a))
	return cmd
}

func binaryListCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the worker binaries of a hive",
		Args:    exactly(),
	}
	return readCommand(a, cmd, operation.WorkerBinaryList, nil, func(binaries []core.WorkerBinary) error {
		slices.SortFunc(binaries, func(x, y core.WorkerBinary) int { return strings.Compare(x.ID, y.ID) })
		t := term.NewTable("No worker binaries. \"rbee worker download TYPE\" fetches one; starting a worker does so by itself.",
			"TYPE", "VERSION", "DEVICES", "STATUS", "SIZE", "DIGEST", "SOURCE", "IN USE BY", "PATH")
		for _, b := range binaries {
			t.Add(b.Type, b.Version, deviceText(b.Devices), binaryStatus(b), term.Bytes(b.SizeBytes), term.Digest(b.Digest), b.Source, strings.Join(b.InUseBy, ","), b.Path)
		}
		return a.show(list(binaries), t.Write)
	})
}

func binaryStatus(b core.WorkerBinary) string {
	switch {
	case b.Damaged != "":
		return "damaged"
	case b.Problem != "":
		return "unusable"
	case b.ProbedAt.IsZero():
		return "not probed"
	}
	return "ok"
}

func deviceText(devices []core.Device) string {
	var ids []string
	for _, d := range devices {
		if d.Problem == "" {
			ids = append(ids, d.ID)
		}
	}
	return strings.Join(ids, ",")
}

func binaryGetCommand(a *app) *cobra.Command {
	var hive string
	cmd := &cobra.Command{
		Use:               "get TYPE[@VERSION]",
		Aliases:           []string{"show"},
		Short:             "Show a worker binary with its files and devices",
		Args:              exactly("TYPE"),
		ValidArgsFunction: completeBinaries(a, &hive),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		b, err := fromHive(ctx, a, c, hive, func(c *client.Client) (core.WorkerBinary, error) { return c.Binary(ctx, hive, args[0]) })
		if err != nil {
			return err
		}
		return a.show(b, func(w io.Writer) error { return writeBinary(a, w, b) })
	})
	a.hiveFlag(cmd, &hive, core.LocalHive, "`HIVE` to look at")
	return cmd
}

func completeBinaries(a *app, hive *string) cobra.CompletionFunc {
	return first(a.names(func(ctx context.Context, c *client.Client) ([]string, error) {
		binaries, err := c.Binaries(ctx, *hive)
		var ids []string
		for _, b := range binaries {
			ids = append(ids, b.ID, b.Type)
		}
		return ids, err
	}))
}

func binaryDeleteCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpWorkerBinaryDelete}
	var yes, dryRun, detach bool
	cmd := &cobra.Command{
		Use:   "delete TYPE[@VERSION]",
		Short: "Remove a worker binary from a hive",
		Long: `Remove a worker binary from a hive. One that a worker runs from is refused. With several versions of a type installed, say which.
A type that the hive has a plugin for can be downloaded again.`,
		Aliases:           []string{"rm"},
		Args:              exactly("TYPE"),
		ValidArgsFunction: completeBinaries(a, &r.Hive),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		r.Binary = args[0]
		if dryRun {
			b, err := c.Binary(ctx, r.Hive, r.Binary)
			if err != nil {
				return err
			}
			if len(b.InUseBy) > 0 {
				return core.Errorf(core.InUse, "%s is in use by %s", b.ID, strings.Join(b.InUseBy, ", ")).Hint("End what uses it first: \"rbee worker retire ID\".")
			}
			fmt.Fprintf(a.stderr, "Would delete %s, which frees %s:\n", b.ID, term.Size(b.SizeBytes))
			return a.show(b, func(w io.Writer) error { return writeBinary(a, w, b) })
		}
		if err := a.confirm(ctx, yes, fmt.Sprintf("Delete worker binary %s?", r.Binary)); err != nil {
			return err
		}
		return a.submit(ctx, c, r, detach, func(job core.Job) error {
			b, err := client.Result[core.WorkerBinary](job)
			if err != nil {
				return err
			}
			return a.show(b, func(w io.Writer) error {
				_, err := fmt.Fprintf(w, "Deleted %s (%s).\n", term.Line(b.ID), term.Size(b.SizeBytes))
				return err
			})
		})
	})
	destructiveFlags(cmd, &yes, &dryRun)
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	a.hiveFlag(cmd, &r.Hive, core.LocalHive, "`HIVE` it is on")
	return cmd
}

func writeBinary(a *app, w io.Writer, b core.WorkerBinary) error {
	f := &term.Facts{}
	f.Add("ID", b.ID)
	f.Add("Type", b.Type)
	f.Add("Version", b.Version)
	f.Add("Engine", strings.TrimSpace(b.EngineName+" "+b.EngineVersion))
	f.Add("Source", b.Source)
	f.Add("Status", binaryStatus(b))
	f.Add("Damaged", b.Damaged)
	f.Add("Problem", b.Problem)
	f.Add("Digest", b.Digest)
	f.Add("Size", term.Bytes(b.SizeBytes))
	f.Add("Path", b.Path)
	f.Add("Installed", a.ago(b.InstalledAt))
	f.Add("In use by", strings.Join(b.InUseBy, "\n"))
	f.Add("Devices", deviceLines(b.Devices))
	f.Add("Probed", a.ago(b.ProbedAt))
	f.Add("Checks", checkLines(b.Checks))
	f.Add("Warnings", strings.Join(b.Warnings, "\n"))
	f.Add("Config", schemaLines(b.Schema))
	return errors.Join(f.Write(w), writeFiles(w, b.Files))
}

func checkLines(checks []core.Check) string {
	var lines []string
	for _, c := range checks {
		result := "passed"
		if !c.Passed {
			result = "FAILED"
		}
		lines = append(lines, fmt.Sprintf("%s  %s: %s", result, c.Name, c.Detail))
	}
	return strings.Join(lines, "\n")
}

// schemaLines lists the settings of a plugin, one a line; "rbee plugin schema" prints their
// documentation.
func schemaLines(text json.RawMessage) string {
	var s core.Schema
	if len(text) == 0 || json.Unmarshal(text, &s) != nil {
		return ""
	}
	var lines []string
	for _, x := range s.Attributes {
		line := x.Name + "  " + x.Type
		switch {
		case x.Required:
			line += ", required"
		case len(x.Default) > 0:
			line += " = " + string(x.Default)
		}
		lines = append(lines, line)
	}
	for _, x := range s.Blocks {
		lines = append(lines, x.Name+" { … }")
	}
	return strings.Join(lines, "\n")
}

func deviceLines(devices []core.Device) string {
	var lines []string
	for _, d := range devices {
		line := fmt.Sprintf("%s  %s", d.ID, d.Name)
		if d.TotalBytes > 0 {
			line += fmt.Sprintf(", %s of %s free", term.Size(d.FreeBytes), term.Size(d.TotalBytes))
		}
		if d.Problem != "" {
			line += ", cannot be used: " + d.Problem
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

func writeFiles(w io.Writer, files []core.File) error {
	if len(files) == 0 {
		return nil
	}
	t := term.NewTable("", "FILE", "SIZE", "DIGEST")
	for _, file := range files {
		t.Add(file.Path, term.Size(file.SizeBytes), file.Digest)
	}
	if _, err := fmt.Fprintln(w); err != nil {
		return err
	}
	return t.Write(w)
}

func binaryDownloadCommand(a *app) *cobra.Command {
	r := core.Request{Operation: core.OpWorkerDownload}
	var detach bool
	cmd := &cobra.Command{
		Use:   "download TYPE",
		Short: "Fetch the binary of a worker type: its plugin and its engine",
		Long: `Fetch the binary of a worker type: its plugin and its engine. Several versions live side by side; a worker keeps the one that it was started
with. "rbee worker spawn --type TYPE@VERSION" starts one with a certain version.`,
		Example:           "  rbee worker download cpu\n  rbee worker download cpu --version v0.4.0\n  rbee worker download cpu --from npm:@node-llama-cpp/linux-x64@3.22.1",
		Args:              exactly("TYPE"),
		ValidArgsFunction: first(a.names(workerTypes)),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		r.Type = args[0]
		return a.submit(ctx, c, r, detach, func(job core.Job) error {
			b, err := client.Result[core.WorkerBinary](job)
			if err != nil {
				return err
			}
			return a.show(b, func(w io.Writer) error { return writeBinary(a, w, b) })
		})
	})
	cmd.Flags().StringVar(&r.Version, "version", "", "`VERSION` of the engine (default: the plugin's first choice)")
	cmd.Flags().StringVar(&r.From, "from", "", "catalog `REF` of the engine, instead of the plugin's own choice")
	cmd.Flags().BoolVar(&r.Force, "force", false, "renew what is there")
	cmd.Flags().BoolVar(&detach, "detach", false, "do not wait: show the job's id")
	a.hiveFlag(cmd, &r.Hive, core.LocalHive, "`HIVE` to fetch it on")
	return cmd
}
