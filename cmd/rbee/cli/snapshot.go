package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/hashicorp/go-hclog"
	"github.com/spf13/cobra"

	"github.com/rbee-project/rbee/cmd/rbee/cli/term"
	"github.com/rbee-project/rbee/core"
	"github.com/rbee-project/rbee/core/agent"
	"github.com/rbee-project/rbee/core/client"
	"github.com/rbee-project/rbee/core/disk"
)

func snapshotCommand(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Copies of the registry in a file",
		Long: `Copies of the registry in a file: nodes, tokens (hashed), hives, workers. Models are not in it.
The CA's key and the gossip keys in it are sealed: they open with the seal key that the queens have on their disks, which "rbee operator recovery-key"
shows, and with nothing else. Back up both, apart from each other.`,
	}
	cmd.AddCommand(snapshotSaveCommand(a), snapshotRestoreCommand(a), snapshotInspectCommand(a))
	return cmd
}

func snapshotSaveCommand(a *app) *cobra.Command {
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
		return showSnapshot(a, info, args[0])
	})
	cmd.Flags().BoolVar(&force, "force", false, "replace the file if it exists")
	return cmd
}

// saveSnapshot writes the snapshot to a temporary file beside path, inspects it, and only then
// renames it.
func saveSnapshot(ctx context.Context, c *client.Client, path string, force bool) (info core.SnapshotInfo, err error) {
	if _, err := os.Lstat(path); err == nil && !force {
		return info, errExists(path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+"-*") // 0600
	if err != nil {
		return info, core.WithHint(core.Wrap(err, core.Invalid, "save the snapshot"), "Name a file in a folder that you may write to.")
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
		return info, core.Wrap(err, core.Internal, "read the snapshot back")
	}
	if info, err = agent.InspectSnapshot(f); err != nil {
		return info, core.Errorf(core.KindOf(err), "look into the new snapshot: %w", err).Hint("Nothing was saved. Try again.")
	}
	return info, publishSnapshot(f, path, force)
}

func errExists(path string) error {
	return core.Errorf(core.Conflict, "%s exists", path).Hint("Choose another name, or say --force.")
}

// publishSnapshot syncs a temporary file and gives it its final name.
func publishSnapshot(f *os.File, path string, force bool) error {
	if err := f.Sync(); err != nil {
		return core.Wrap(err, core.Internal, "save the snapshot")
	}
	if force {
		return core.Wrap(disk.Rename(f.Name(), path), core.Internal, "save the snapshot")
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, it replaces nothing
		if errors.Is(err, os.ErrExist) {
			return errExists(path)
		}
		return core.Wrap(err, core.Internal, "save the snapshot")
	}
	return core.Wrap(disk.Remove(f.Name()), core.Internal, "save the snapshot")
}

func snapshotRestoreCommand(a *app) *cobra.Command {
	var (
		yes, dryRun bool
		offline     offlineRestore
	)
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Replace the registry by a snapshot of the same cluster",
		Long: `Replace the registry by a snapshot of the same cluster. What changed since then is lost: nodes and tokens that were made are unknown again.
What was revoked stays revoked. Hives report their workers anew within seconds.

With --offline no queen is asked, for a cluster that has none any more: the registry of this machine is replaced while its agent is stopped, and it
is the only queen from then on. What is left of the old registry is put aside. Other machines need nothing, as long as they reach this one at the address
of a queen that they know; other queens that come back must join anew.
A machine that lost its data_dir, too, needs the cluster's recovery key: see "rbee operator recovery-key".`,
		Example: "  rbee operator snapshot restore registry.snap\n  rbee operator snapshot restore --offline registry.snap --recovery-key recovery.key",
		Args:    exactly("FILE"),
	}
	online := a.asking(func(ctx context.Context, c *client.Client, args []string) error {
		return restoreSnapshot(ctx, a, args[0], yes, dryRun, func(f io.Reader) error {
			info, err := c.RestoreSnapshot(ctx, f)
			if err != nil {
				return err
			}
			fmt.Fprintln(a.stderr, "The registry is now that of the snapshot.")
			return showSnapshot(a, info, args[0])
		})
	})
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if !offline.on {
			if name := offline.given(cmd); name != "" {
				return usageHint("Without it the cluster's leader restores, and needs nothing of this machine.", "--%s goes with --offline", name)
			}
			return online(cmd, args)
		}
		return do(func(ctx context.Context, cmd *cobra.Command, args []string) error {
			return restoreSnapshot(ctx, a, args[0], yes, dryRun, func(f io.Reader) error { return restoreOffline(ctx, a, cmd, &offline, f, args[0]) })
		})(cmd, args)
	}
	destructiveFlags(cmd, &yes, &dryRun)
	offline.flags(cmd)
	return cmd
}

// restoreSnapshot inspects a snapshot, asks for confirmation, and restores it.
func restoreSnapshot(ctx context.Context, a *app, path string, yes, dryRun bool, restore func(io.Reader) error) error {
	f, info, err := inspectSnapshot(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if dryRun {
		fmt.Fprintln(a.stderr, "Would replace the registry by this:")
		return showSnapshot(a, info, path)
	}
	if err := a.confirm(ctx, yes, fmt.Sprintf("Replace the registry by %s, as it was at index %d?", path, info.Index)); err != nil {
		return err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return core.Wrap(err, core.Internal, "read the snapshot")
	}
	return restore(f)
}

// offlineRestore restores a snapshot without a cluster.
type offlineRestore struct {
	on          bool
	recoveryKey string // path; "-": stdin; empty: none
	source      configSource
}

func (o *offlineRestore) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.on, "offline", false, "restore on this machine, whose agent is stopped, as the only queen")
	cmd.Flags().StringVar(&o.recoveryKey, "recovery-key", "", "`FILE` with the cluster's recovery key (-: stdin), where data_dir is lost, too")
	o.source.fileFlags(cmd)
}

// given returns a flag that only makes sense offline; empty: none was given.
func (o *offlineRestore) given(cmd *cobra.Command) string {
	names := []string{"recovery-key", "config", "queen-only", "hive-only"}
	for _, x := range settingFlags {
		names = append(names, x.flag)
	}
	for _, name := range names {
		if cmd.Flags().Changed(name) {
			return name
		}
	}
	return ""
}

// maxRecoveryKeyBytes bounds the input that is read as a recovery key.
const maxRecoveryKeyBytes = 4096

func restoreOffline(ctx context.Context, a *app, cmd *cobra.Command, o *offlineRestore, snapshot io.Reader, path string) error {
	cfg, err := loadSettings(a, cmd, &o.source)
	if err != nil {
		return err
	}
	key := ""
	if o.recoveryKey != "" {
		if key, err = readRecoveryKey(a, o.recoveryKey); err != nil {
			return err
		}
	}
	done, err := agent.RestoreOffline(ctx, cfg, snapshot, key, a.now(), hclog.NewNullLogger())
	if err != nil {
		return err
	}
	for _, problem := range done.Problems {
		fmt.Fprintln(a.stderr, "Not readable in the registry of before, so that revocations in it may be lost:", problem)
	}
	if done.Aside != "" {
		fmt.Fprintln(a.stderr, "The registry of before is in", done.Aside)
	}
	for _, id := range done.Revoked {
		fmt.Fprintf(a.stderr, "Node %s, which had this machine's name, is revoked: this machine stands in for it.\n", id)
	}
	fmt.Fprintf(a.stderr, "This machine, node %s, is the cluster's only queen now. Next:\n  %s\n", done.Node, startHint(cmd, &o.source))
	if a.wantJSON() {
		return writeJSON(a.stdout, done)
	}
	return showSnapshot(a, done.SnapshotInfo, path)
}

func readRecoveryKey(a *app, path string) (string, error) {
	in := a.stdin
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return "", core.WithHint(core.Wrap(err, core.NotFound, "read the recovery key"), "Name the file in which the recovery key is kept.")
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, maxRecoveryKeyBytes))
	return string(b), core.Wrap(err, core.Invalid, "read the recovery key")
}

func recoveryKeyCommand(a *app) *cobra.Command {
	var source configSource
	cmd := &cobra.Command{
		Use:   "recovery-key",
		Short: "Show the cluster's recovery key, to be kept apart from its snapshots",
		Long: `Show the cluster's recovery key. It is read from the data_dir of this machine, which must be a queen; nothing goes over the network.

A snapshot and the recovery key are all that is needed to bring a cluster back after the loss of every queen, and all that is needed to be
its CA: keep the key offline or in a password manager, never beside the snapshots. It does not change while the cluster lives.`,
		Example: "  (umask 077; rbee operator recovery-key >recovery.key)",
		Args:    exactly(),
	}
	cmd.RunE = do(func(_ context.Context, cmd *cobra.Command, _ []string) error {
		cfg, err := loadSettings(a, cmd, &source)
		if err != nil {
			return err
		}
		key, err := agent.RecoveryKey(cfg)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(a.stdout, "%s\n", []byte(key))
		return err
	})
	source.fileFlags(cmd)
	return cmd
}

func snapshotInspectCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what a snapshot holds; needs no agent",
		Args:  exactly("FILE"),
		RunE: do(func(_ context.Context, _ *cobra.Command, args []string) error {
			f, info, err := inspectSnapshot(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			return showSnapshot(a, info, args[0])
		}),
	}
}

func openSnapshot(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, core.WithHint(core.WithKind(err, core.NotFound), "Name a file that \"rbee operator snapshot save\" wrote.")
	}
	return f, nil
}

// inspectSnapshot opens and inspects a snapshot. The caller closes it.
func inspectSnapshot(path string) (*os.File, core.SnapshotInfo, error) {
	f, err := openSnapshot(path)
	if err != nil {
		return nil, core.SnapshotInfo{}, err
	}
	info, err := agent.InspectSnapshot(f)
	if err != nil {
		_ = f.Close()
		return nil, info, err
	}
	return f, info, nil
}

func showSnapshot(a *app, s core.SnapshotInfo, path string) error {
	return a.show(s, func(w io.Writer) error {
		f := &term.Facts{}
		if path != "" {
			f.Add("File", path)
		}
		f.Add("Cluster", orElse(s.Cluster, "none"))
		f.Addf("Index", "%d", s.Index)
		f.Addf("Holds", "%s, %s, %s, %s", term.Plural(s.Nodes, "node"), term.Plural(s.Tokens, "token"), term.Plural(s.Hives, "hive"), term.Plural(s.Workers, "worker"))
		f.Addf("Format", "%d, needs a registry of version %d", s.Format, s.FSM)
		return f.Write(w)
	})
}
