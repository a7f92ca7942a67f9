package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/client"
)

func (a *app) snapshotCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Copies of the registry in a file",
		Long: `Copies of the registry in a file: nodes, tokens (hashed), hives, workers. Models are not in it.
The CA's key and the gossip keys in it are sealed: they open with the seal key that the queens have on their disks, and with nothing else.`,
	}
	cmd.AddCommand(a.snapshotSaveCommand(), a.snapshotRestoreCommand(), a.snapshotInspectCommand())
	return cmd
}

func (a *app) snapshotSaveCommand() *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Save the leader's registry to a file",
		Long:  "Save the leader's registry to a file, whole or not at all. It is looked into before it is called saved. \"-\" is stdout.",
		Args:  exactly("FILE"),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		if args[0] == "-" {
			if a.stdoutTerminal {
				return usageHint("Name a file, or redirect stdout.", "a snapshot is no text for a terminal")
			}
			return c.SaveSnapshot(ctx, a.stdout)
		}
		info, err := saveSnapshot(ctx, c, args[0], force)
		if err != nil {
			return err
		}
		return a.showSnapshot(info, args[0])
	})
	cmd.Flags().BoolVar(&force, "force", false, "replace the file if it exists")
	return cmd
}

// saveSnapshot writes the snapshot beside path, looks into it, and only then gives it its name.
func saveSnapshot(ctx context.Context, c *client.Client, path string, force bool) (info core.SnapshotInfo, err error) {
	exists := core.WithHint(core.Errorf("", core.Conflict, "%s exists", path), "Choose another name, or say --force.")
	if _, err := os.Lstat(path); err == nil && !force {
		return info, exists
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return info, core.WithHint(core.E("save the snapshot", core.Invalid, err), "Name a file in a folder that you may write to.")
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	if err := c.SaveSnapshot(ctx, f); err != nil {
		return info, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return info, core.E("read the snapshot back", core.Internal, err)
	}
	if info, err = agent.InspectSnapshot(f); err != nil {
		return info, core.WithHint(core.Errorf("look into the new snapshot", core.KindOf(err), "%w", err), "Nothing was saved. Try again.")
	}
	if err := f.Sync(); err != nil {
		return info, core.E("save the snapshot", core.Internal, err)
	}
	if force {
		return info, core.E("save the snapshot", core.Internal, os.Rename(f.Name(), path))
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename it replaces nothing
		if errors.Is(err, os.ErrExist) {
			return info, exists
		}
		return info, core.E("save the snapshot", core.Internal, err)
	}
	return info, core.E("save the snapshot", core.Internal, os.Remove(f.Name()))
}

func (a *app) snapshotRestoreCommand() *cobra.Command {
	var yes, dryRun bool
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Replace the registry by a snapshot of the same cluster",
		Long: `Replace the registry by a snapshot of the same cluster. What changed since then is lost: nodes and tokens that were made are unknown again.
What was revoked stays revoked. Hives report their workers anew within seconds.`,
		Args: exactly("FILE"),
	}
	cmd.RunE = a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		f, err := openSnapshot(args[0])
		if err != nil {
			return err
		}
		defer f.Close()
		info, err := agent.InspectSnapshot(f)
		if err != nil {
			return err
		}
		if dryRun {
			fmt.Fprintln(a.stderr, "Would replace the registry by this:")
			return a.showSnapshot(info, args[0])
		}
		if err := a.confirm(ctx, yes, fmt.Sprintf("Replace the registry by %s, as it was at index %d?", args[0], info.Index)); err != nil {
			return err
		}
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return core.E("read the snapshot", core.Internal, err)
		}
		if info, err = c.RestoreSnapshot(ctx, f); err != nil {
			return err
		}
		fmt.Fprintln(a.stderr, "The registry is now that of the snapshot.")
		return a.showSnapshot(info, args[0])
	})
	destructiveFlags(cmd, &yes, &dryRun)
	return cmd
}

func (a *app) snapshotInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a snapshot holds; needs no agent",
		Args:  exactly("FILE"),
		RunE: a.do(func(_ context.Context, _ *cobra.Command, args []string) error {
			f, err := openSnapshot(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			info, err := agent.InspectSnapshot(f)
			if err != nil {
				return err
			}
			return a.showSnapshot(info, args[0])
		}),
	}
}

func openSnapshot(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, core.WithHint(core.E("", core.NotFound, err), "Name a file that \"rbee operator snapshot save\" wrote.")
	}
	return f, nil
}

func (a *app) showSnapshot(s core.SnapshotInfo, path string) error {
	return a.show(s, func(w io.Writer) error {
		f := &facts{}
		if path != "" {
			f.add("File", path)
		}
		f.add("Cluster", orElse(s.Cluster, "none"))
		f.addf("Index", "%d", s.Index)
		f.addf("Holds", "%s, %s, %s, %s", plural(s.Nodes, "node"), plural(s.Tokens, "token"), plural(s.Hives, "hive"), plural(s.Workers, "worker"))
		f.addf("Format", "%d, needs a registry of version %d", s.Format, s.FSM)
		return f.write(w)
	})
}
