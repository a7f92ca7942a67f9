package cli

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/client"
)

func hiveCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "hive",
		Aliases: []string{"hives"},
		Short:   "Hives: the machines that run workers",
	}
	cmd.AddCommand(hiveListCommand(a), hiveGetCommand(a), hiveStatusCommand(a), hiveDrainCommand(a), hiveRefreshCommand(a),
		hiveInstallCommand(a), hiveUninstallCommand(a), hiveStartCommand(a), hiveStopCommand(a), hiveSSHTestCommand(a), hiveImportSSHCommand(a))
	return cmd
}

func hiveListCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:     "list",
		Aliases: []string{"ls"},
		Short:   "List the hives",
		Args:    exactly(),
	}, func(ctx context.Context, c *client.Client, _ []string, read ...client.ReadOption) error {
		hives, err := c.Hives(ctx, read...)
		if err != nil {
			return err
		}
		workers, err := c.Workers(ctx, read...)
		if err != nil {
			return err
		}
		sortHives(hives)
		return a.show(list(hives), hiveTable(a, hives, workers).Write)
	})
}

func hiveGetCommand(a *app) *cobra.Command {
	return a.reads(&cobra.Command{
		Use:               "get HIVE",
		Aliases:           []string{"show"},
		Short:             "Show a hive with its devices",
		Long:              "Show a hive with its devices. \"localhost\" is the hive of the queen that is asked.",
		Args:              exactly("HIVE"),
		ValidArgsFunction: first(a.names(hiveNames)),
	}, func(ctx context.Context, c *client.Client, args []string, read ...client.ReadOption) error {
		h, err := c.Hive(ctx, args[0], read...)
		if err != nil {
			return err
		}
		return a.show(h, hiveFacts(a, h).Write)
	})
}

func sortHives(hives []core.Hive) {
	slices.SortFunc(hives, func(x, y core.Hive) int { return strings.Compare(x.Name+"\x00"+x.ID, y.Name+"\x00"+y.ID) })
}

func hiveTable(a *app, hives []core.Hive, workers []core.Worker) *term.Table {
	t := term.NewTable("No hives.", "NAME", "STATUS", "DEVICES", "WORKERS", "OS/ARCH", "VERSION", "LAST BEAT", "ADDRESS", "ID")
	for _, h := range hives {
		n := 0
		for _, w := range workers {
			if w.Hive == h.ID {
				n++
			}
		}
		t.Add(h.Name, hiveState(h), deviceText(h.Devices), fmt.Sprint(n), strings.Trim(h.OS+"/"+h.Arch, "/"), h.Version, a.ago(h.LastBeat), h.RPCAddress, h.ID)
	}
	return t
}

// hiveState returns the hive's status, and whether it is drained.
func hiveState(h core.Hive) string {
	if h.Draining {
		return string(h.Status) + ", draining"
	}
	return string(h.Status)
}

func hiveFacts(a *app, h core.Hive) *term.Facts {
	f := &term.Facts{}
	f.Add("Name", h.Name)
	f.Add("ID", h.ID)
	f.Add("Status", hiveState(h))
	f.Add("Address", h.RPCAddress)
	f.Add("Last beat", a.ago(h.LastBeat))
	f.Add("Version", h.Version)
	f.Add("System", h.OS+"/"+h.Arch)
	f.Add("Worker types", strings.Join(h.WorkerTypes, ", "))
	if h.Probing {
		f.Add("Probing", "its worker types are still being probed: devices may be missing")
	}
	f.Add("Unconfined", h.Unconfined)
	f.Add("Problems", strings.Join(h.Problems, "\n"))
	f.Add("Devices", deviceLines(h.Devices))
	f.Addf("Incarnation", "%d", h.Incarnation)
	f.Addf("Indexes", "created at %d, changed at %d", h.CreateIndex, h.ModifyIndex)
	return f
}
